"""Planned reboots: the host's domains are put to sleep when the machine shuts down, and brought back afterwards."""
