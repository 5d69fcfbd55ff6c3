"""What libvirt's figures and words mean to the driver: pure functions, no calls.

Ways to cap CPU, best first: a quota of the whole domain, a cap (Xen), a quota of each virtual CPU, a weight. A weight
only decides who waits. Too low a weight makes a preempted domain's MoM silent for minutes (measured), so it never goes
below LEAST_SHARE of the full weight.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from magrathea.core.refusals import RefusalCode

from ..cpu_quota import LEAST_QUOTA_US, LONG_PERIOD_US, PERIOD_US

# Numbers of libvirt's interface, which never change (libvirt-domain.h, virterror.h). Thus this file needs no binding.
RUNNING, BLOCKED, PAUSED, SHUTTING_DOWN, SHUT_OFF, CRASHED, PM_SUSPENDED = range(1, 8)
NO_DOMAIN = 42
TRANSIENT_PAUSES = frozenset({2, 3, 4, 8, 9, 11, 12})
"""Reasons of PAUSED that pass by themselves: migration, save, dump, shutting down, a snapshot, starting."""

ERROR_CODES = {
    3: RefusalCode.NOT_SUPPORTED,  # NO_SUPPORT
    8: RefusalCode.BAD_VALUE,  # INVALID_ARG
    29: RefusalCode.NOT_PERMITTED,  # OPERATION_DENIED
    NO_DOMAIN: RefusalCode.NO_DOMAIN,
    45: RefusalCode.NOT_PERMITTED,  # AUTH_FAILED
    55: RefusalCode.DOMAIN_DOWN,  # OPERATION_INVALID: most often the domain is not running
    67: RefusalCode.NOT_SUPPORTED,  # CONFIG_UNSUPPORTED
    68: RefusalCode.TIMEOUT,  # OPERATION_TIMEOUT
    74: RefusalCode.NOT_SUPPORTED,  # ARGUMENT_UNSUPPORTED
    79: RefusalCode.NOT_PERMITTED,  # AUTH_CANCELLED
    84: RefusalCode.NOT_SUPPORTED,  # OPERATION_UNSUPPORTED
    88: RefusalCode.NOT_PERMITTED,  # ACCESS_DENIED
    94: RefusalCode.NOT_PERMITTED,  # AUTH_UNAVAILABLE
}
"""libvirt's error numbers as the driver's codes; every other number is `failed`."""
FROM_RPC = 7
"""The origin of an error: libvirt's own messages between its library and libvirtd."""
BROKEN = frozenset({1, 38})
"""INTERNAL_ERROR ("client socket is closed", "keepalive timeout") and SYSTEM_ERROR ("broken pipe", "end of file").

With the origin FROM_RPC they mean that libvirtd is gone. The call may or may not have taken effect.
"""


def error_code(number: int, origin: int) -> RefusalCode:
    """The driver's code for a libvirt error."""
    return RefusalCode.LOST if origin == FROM_RPC and number in BROKEN else ERROR_CODES.get(number, RefusalCode.FAILED)


BURST_US = 2_500
"""The CPU time that a capped domain may use in one burst.

Under emulation the agent's answer costs 1.5 to 2.5 ms; if it does not fit into one quota, it waits for several periods.
Measured at 5 %, one question every 0.2 s, 99th percentile of the answers: 112 ms with 1 ms per 20 ms; 40 ms with 2.5 ms
per 50 ms; 3 ms with 5 ms per 100 ms. But beside a process that takes all CPU the longest wait grows with the period.
"""
LONGEST_PERIOD_US = 1_000_000
"""The kernel's maximum; only a small share of many virtual CPUs needs it."""
LEAST_SHARE = 10
"""Per cent of the full weight. At a tenth a ping takes 20 ms and starting a process 0.4 s; at 2 %, minutes."""


def is_up(state: int) -> bool:
    return state in (RUNNING, BLOCKED, PAUSED, SHUTTING_DOWN, PM_SUSPENDED)


def is_paused(state: int, reason: int) -> bool:
    """True if somebody or something has paused the domain, and it stays paused until somebody resumes it."""
    return state == PM_SUSPENDED or (state == PAUSED and reason not in TRANSIENT_PAUSES)


class How(Enum):
    """What a parameter of the hypervisor's scheduler means."""

    QUOTA = "quota"
    """Microseconds per period, for the whole domain or container; below zero: no quota."""
    QUOTA_PER_VCPU = "quota-per-vcpu"
    CAP = "cap"
    """Per cent of one CPU; 0: no cap."""
    WEIGHT = "weight"


NOTHING_OWN: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class CpuControl:
    """How this hypervisor limits a domain's CPU. `full`: the weight of an uncapped domain.

    `own`: the parameters of the domain's definition, in which the site may have set a cap or a weight of its own. That
    is the domain's ceiling: it is never raised, and what "no cap" comes back to.
    """

    how: How
    name: str
    period: str = ""
    full: int = 0

    def parameters(self, percent: int | None, vcpus: int, own: Mapping[str, object] = NOTHING_OWN) -> dict[str, int]:
        """The parameters that limit the domain to `percent` of one CPU (None: no cap but its own)."""
        if self.how is How.WEIGHT:
            full = self._full(own)
            return {self.name: full if percent is None else self._weight(percent, full)}
        ceiling = self._limit(own, vcpus)
        if ceiling is not None and (percent is None or percent >= ceiling):
            return {name: value for name in (self.period, self.name) if isinstance(value := own.get(name), int)}
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

    def percent(
        self, parameters: Mapping[str, object], vcpus: int, own: Mapping[str, object] = NOTHING_OWN
    ) -> int | None:
        """The limit in per cent of one CPU that the parameters mean; None: no cap but its own, or unknown."""
        value = parameters.get(self.name)
        if self.how is How.WEIGHT:
            full = self._full(own)
            return None if not isinstance(value, int) or value >= full else max(1, round(value * 100 / full))
        limit, ceiling = self._limit(parameters, vcpus), self._limit(own, vcpus)
        return None if limit is not None and ceiling is not None and limit >= ceiling else limit

    def _limit(self, parameters: Mapping[str, object], vcpus: int) -> int | None:
        value = parameters.get(self.name)
        if not isinstance(value, int) or self.how is How.WEIGHT:
            return None
        if self.how is How.CAP:
            return value or None
        period = parameters.get(self.period)
        if not isinstance(period, int) or not 0 < value < 2**40 or period <= 0:
            return None  # no quota: -1, or in some versions the largest possible quota
        each = vcpus if self.how is How.QUOTA_PER_VCPU else 1
        return max(1, round(value * each * 100 / period))

    def nearest(self, percent: int | None) -> int | None:
        """What `percent` will return after `parameters(percent)` were set."""
        if self.how is not How.WEIGHT or percent is None:
            return percent
        return self.percent({self.name: self._weight(percent, self.full)}, 1)

    def _full(self, own: Mapping[str, object]) -> int:
        value = own.get(self.name)
        return value if isinstance(value, int) and value > 0 else self.full

    @staticmethod
    def _weight(percent: int, full: int) -> int:
        return round(full * min(100, max(LEAST_SHARE, percent)) / 100)


FULL_CPU_SHARES = 1024
FULL_XEN_WEIGHT = 256


def cpu_control(kind: str, parameters: Mapping[str, object]) -> CpuControl | None:
    """The best control that a domain's scheduler offers. `kind`: libvirt's word for the hypervisor (QEMU, LXC, Xen,
    ...)."""
    if "global_quota" in parameters and "global_period" in parameters:
        return CpuControl(How.QUOTA, "global_quota", "global_period")
    if "cap" in parameters:
        return CpuControl(How.CAP, "cap")
    if "vcpu_quota" in parameters and "vcpu_period" in parameters:
        # a container has no virtual CPUs: its quota applies to the whole
        how = How.QUOTA if kind.upper() == "LXC" else How.QUOTA_PER_VCPU
        return CpuControl(how, "vcpu_quota", "vcpu_period")
    if "cpu_shares" in parameters:
        return CpuControl(How.WEIGHT, "cpu_shares", full=FULL_CPU_SHARES)
    if "weight" in parameters:
        return CpuControl(How.WEIGHT, "weight", full=FULL_XEN_WEIGHT)
    return None


def has_balloon(kind: str, xml: str) -> bool:
    """True if a domain's memory can be moved while it runs, according to libvirt's own XML. Raises nothing."""
    if kind.upper() != "QEMU":
        return True  # Xen always has one, and a container has a limit
    balloon = ElementTree.fromstring(xml).find("./devices/memballoon")
    return balloon is not None and balloon.get("model") != "none"
