"""Virtual machines, preemption and PBS working as one."""

__version__ = "0.1.0"
