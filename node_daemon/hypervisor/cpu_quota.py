"""The kernel's CPU quota, which both drivers set: one by control groups, the other through libvirt."""

from __future__ import annotations

PERIOD_US = 20_000
"""A capped domain waits at most about this long for its share: with 5 ms per 20 ms a guest answers in 3 ms."""
LONG_PERIOD_US = 100_000
"""For shares below 5 %, whose quota would otherwise be below the kernel's least."""
LEAST_QUOTA_US = 1_000
"""The kernel's least quota."""
