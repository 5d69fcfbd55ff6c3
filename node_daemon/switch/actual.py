"""The actual state of the host in the plan's terms, from readings, confirmed orders and moves of memory."""

from __future__ import annotations

from magrathea.core import plan
from magrathea.core.caps import Giving
from magrathea.core.model import Host

from ..hypervisor.base import CPU, Driver
from ..retries import loop_time
from .memory import Mover
from .orders import AgentOrders
from .readings import Readings
from .steps import Steps


def actual_domains(
    host: Host, readings: Readings, orders: AgentOrders, steps: Steps, mover: Mover
) -> dict[str, plan.ActualDomain]:
    """Each working domain that is up. A cap or an amount of memory that the driver cannot set exactly counts as the
    wanted one if it is the nearest that the driver can set."""
    driver, wants = readings.driver, plan.desired(host)
    result = {}
    for domain in host.workers:
        read = readings.of(domain.name)
        confirmed = orders.confirmed(domain.name)
        if read is None or not read.up:
            if read is None and orders.has_agent(domain.name):  # no longer configured: only its agent is left
                result[domain.name] = plan.ActualDomain(orders=confirmed, can_cap=False)
            continue
        want = wants.get(domain.name)
        cpu = _in_core_figures(host, driver, read.cpu_percent, want)
        memory = read.memory_mib if readings.has_movable_memory else None
        wanted = want.memory_mib if want is not None else None
        if memory is not None and wanted is not None and mover.bounds.settled(domain.name, read, wanted):
            memory = wanted
        result[domain.name] = plan.ActualDomain(
            cpu, memory, confirmed, can_cap=_can_cap(host, driver), giving=_giving(domain.name, steps, mover)
        )
    return result


def _can_cap(host: Host, driver: Driver) -> bool:
    """A driver that can only assign whole CPUs cannot cap anything on a host with one CPU."""
    least = driver.nearest_cpu(host.limits.preempted_cpu_percent)
    return CPU in driver.capabilities and least is not None


def _in_core_figures(host: Host, driver: Driver, percent: int | None, want: plan.Want | None) -> int | None:
    """The core's figure for a cap that the driver reports: the one whose nearest possible cap is `percent`."""
    figures = (want.cap.percent if want is not None else None, host.limits.preempted_cpu_percent)
    return next((figure for figure in figures if driver.nearest_cpu(figure) == percent), percent)


def _giving(domain: str, steps: Steps, mover: Mover) -> Giving:
    failure = steps.retries.of(("SetMemory", domain))
    return Giving(
        leaves=mover.leaves(domain),
        failed=failure is not None and not failure.away,
        unanswered_s=loop_time() - failure.since if failure is not None and failure.away else 0.0,
        relieved_s=mover.paging.relieved_s(domain),
    )
