"""The kernel's CPU quota. Both drivers set it: one through control groups, the other through libvirt."""

from __future__ import annotations

PERIOD_US = 20_000
"""A capped domain waits about this long for its share at most. With 5 ms per 20 ms a guest answers in 3 ms."""
LONG_PERIOD_US = 100_000
"""For shares below 5 %: with PERIOD_US their quota would be below the kernel's minimum."""
LEAST_QUOTA_US = 1_000
"""The kernel's minimum."""
