"""What libvirt's figures and words mean to the driver: pure functions, no calls.

CPU, best first: a quota of the whole domain, a cap (Xen), a quota of each virtual CPU; where there is none of these, a
weight. A weight only orders who waits; one that is too low makes a preempted domain's MoM silent for minutes
(measured), so it never goes below LEAST_SHARE of the full one.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from magrathea.core.refusals import RefusalCode

from ..cpu_quota import LEAST_QUOTA_US, LONG_PERIOD_US, PERIOD_US

# Numbers of libvirt's interface, which never change (libvirt-domain.h, virterror.h): this file needs no binding.
RUNNING, BLOCKED, PAUSED, SHUTTING_DOWN, SHUT_OFF, CRASHED, PM_SUSPENDED = range(1, 8)
NO_DOMAIN = 42
TRANSIENT_PAUSES = frozenset({2, 3, 4, 8, 9, 11, 12})
"""Reasons of PAUSED that pass by themselves: migration, save, dump, going down, a snapshot, starting."""

ERROR_CODES = {
    3: RefusalCode.NOT_SUPPORTED,  # NO_SUPPORT
    8: RefusalCode.BAD_VALUE,  # INVALID_ARG
    29: RefusalCode.NOT_PERMITTED,  # OPERATION_DENIED
    NO_DOMAIN: RefusalCode.NO_DOMAIN,
    45: RefusalCode.NOT_PERMITTED,  # AUTH_FAILED
    55: RefusalCode.DOMAIN_DOWN,  # OPERATION_INVALID: what is asked of a domain that is not running, above all
    67: RefusalCode.NOT_SUPPORTED,  # CONFIG_UNSUPPORTED
    68: RefusalCode.TIMEOUT,  # OPERATION_TIMEOUT
    74: RefusalCode.NOT_SUPPORTED,  # ARGUMENT_UNSUPPORTED
    79: RefusalCode.NOT_PERMITTED,  # AUTH_CANCELLED
    84: RefusalCode.NOT_SUPPORTED,  # OPERATION_UNSUPPORTED
    88: RefusalCode.NOT_PERMITTED,  # ACCESS_DENIED
    94: RefusalCode.NOT_PERMITTED,  # AUTH_UNAVAILABLE
}
"""libvirt's error numbers in the driver's words; every other is `failed`."""
FROM_RPC = 7
"""What an error comes from: libvirt's own messages between its library and libvirtd."""
BROKEN = frozenset({1, 38})
"""INTERNAL_ERROR ("client socket is closed", "keepalive timeout") and SYSTEM_ERROR ("broken pipe", "end of file"): from
there they mean that libvirtd is gone, and nobody knows whether the call has taken effect."""


def error_code(number: int, origin: int) -> RefusalCode:
    """The driver's word for an error of libvirt's."""
    return RefusalCode.LOST if origin == FROM_RPC and number in BROKEN else ERROR_CODES.get(number, RefusalCode.FAILED)


BURST_US = 2_500
"""What a capped domain may take in one go: under emulation its agent's answer costs 1.5 to 2.5 ms, and where it does
not fit, it waits for one period after another. Measured at 5 %, asked each 0.2 s: 1 ms per 20 ms p99 112 ms, 2.5 ms per
50 ms 40 ms, 5 ms per 100 ms 3 ms; but beside a hungry process the longest wait grows with the period."""
LONGEST_PERIOD_US = 1_000_000
"""The kernel's longest; only a small share of many virtual CPUs needs it."""
LEAST_SHARE = 10
"""Per cent of the full weight: at a tenth a ping takes 20 ms and starting a process 0.4 s; at 2 %, minutes."""


def is_up(state: int) -> bool:
    return state in (RUNNING, BLOCKED, PAUSED, SHUTTING_DOWN, PM_SUSPENDED)


def is_paused(state: int, reason: int) -> bool:
    """Somebody, or something, has made it stand still, and it stays so until somebody lets it go on."""
    return state == PM_SUSPENDED or (state == PAUSED and reason not in TRANSIENT_PAUSES)


class How(Enum):
    """What a parameter of the hypervisor's scheduler means."""

    QUOTA = "quota"
    """Microseconds per period, of the domain or container as a whole; below zero: no quota."""
    QUOTA_PER_VCPU = "quota-per-vcpu"
    CAP = "cap"
    """Per cent of one CPU; 0: no cap."""
    WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class CpuControl:
    """The way of this hypervisor to hold a domain's CPU down. `full`: the weight of an uncapped domain."""

    how: How
    name: str
    period: str = ""
    full: int = 0

    def parameters(self, percent: int | None, vcpus: int) -> dict[str, int]:
        """What to set so that the domain has at most `percent` of one CPU (None: no cap)."""
        if self.how is How.WEIGHT:
            return {self.name: self.full if percent is None else self._weight(percent)}
        if self.how is How.CAP:
            return {self.name: percent or 0}
        if percent is None:
            return {self.name: -1}
        sharers = max(1, vcpus) if self.how is How.QUOTA_PER_VCPU else 1
        burst = -(-BURST_US * 100 * sharers // percent)
        for period in (min(max(burst, PERIOD_US), LONG_PERIOD_US), LONGEST_PERIOD_US):
            if (quota := percent * period // 100 // sharers) >= LEAST_QUOTA_US:
                break
        return {self.period: period, self.name: max(quota, LEAST_QUOTA_US)}

    def percent(self, parameters: Mapping[str, object], vcpus: int) -> int | None:
        """What the domain may have of one CPU, of the parameters as read; None: no cap, or not known."""
        value = parameters.get(self.name)
        if not isinstance(value, int):
            return None
        if self.how is How.WEIGHT:
            return None if value >= self.full else max(1, round(value * 100 / self.full))
        if self.how is How.CAP:
            return value or None
        period = parameters.get(self.period)
        if not isinstance(period, int) or not 0 < value < 2**40 or period <= 0:
            return None  # -1 and, as some versions write it, the largest quota there is: none
        each = vcpus if self.how is How.QUOTA_PER_VCPU else 1
        return max(1, round(value * each * 100 / period))

    def nearest(self, percent: int | None) -> int | None:
        """What `percent` will read after `parameters(percent)`."""
        if self.how is not How.WEIGHT or percent is None:
            return percent
        return self.percent({self.name: self._weight(percent)}, 1)

    def _weight(self, percent: int) -> int:
        return round(self.full * min(100, max(LEAST_SHARE, percent)) / 100)


FULL_CPU_SHARES = 1024
FULL_XEN_WEIGHT = 256


def cpu_control(kind: str, parameters: Mapping[str, object]) -> CpuControl | None:
    """The best of what a domain's scheduler offers. `kind`: libvirt's word for the hypervisor (QEMU, LXC, Xen, ...)."""
    if "global_quota" in parameters and "global_period" in parameters:
        return CpuControl(How.QUOTA, "global_quota", "global_period")
    if "cap" in parameters:
        return CpuControl(How.CAP, "cap")
    if "vcpu_quota" in parameters and "vcpu_period" in parameters:
        # A container has no virtual CPUs: there it is the quota of the whole.
        how = How.QUOTA if kind.upper() == "LXC" else How.QUOTA_PER_VCPU
        return CpuControl(how, "vcpu_quota", "vcpu_period")
    if "cpu_shares" in parameters:
        return CpuControl(How.WEIGHT, "cpu_shares", full=FULL_CPU_SHARES)
    if "weight" in parameters:
        return CpuControl(How.WEIGHT, "weight", full=FULL_XEN_WEIGHT)
    return None


def has_balloon(kind: str, xml: str) -> bool:
    """Whether a domain's memory can be moved while it runs. Of libvirt's own XML; raises nothing."""
    if kind.upper() != "QEMU":
        return True  # Xen always has one, and a container has a limit
    balloon = ElementTree.fromstring(xml).find("./devices/memballoon")
    return balloon is not None and balloon.get("model") != "none"
