"""What can become of each domain of this host: looked up for the core, which decides (core/evacuation.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from magrathea.core import placement
from magrathea.core.evacuation import Fate, Resident, turn_of
from magrathea.core.model import Domain, Kind, Lifecycle
from magrathea.core.placement import HostRoom
from magrathea.core.refusals import RefusalCode

from ..hypervisor.base import SAVE
from .needs import DaemonForEvacuation
from .records import Leaver

PASSING = (
    RefusalCode.HUB_LOST,
    RefusalCode.LOST,
    RefusalCode.TIMEOUT,
    RefusalCode.BUSY,
    RefusalCode.PAUSED,
    RefusalCode.JOURNAL,
    RefusalCode.DOMAIN_MOVING,
    RefusalCode.DOMAIN_BOOTING,
)
"""Codes of refusals that go away by themselves, or when an admin has fixed what stands in the way of all domains."""


async def residents(daemon: DaemonForEvacuation, names: Iterable[str], wish: Fate) -> list[Resident]:
    found = await asyncio.gather(*(resident(daemon, Leaver(domain=name, fate=wish), wish) for name in names))
    return [one for one in found if one is not None]


async def resident(daemon: DaemonForEvacuation, leaver: Leaver, wish: Fate) -> Resident | None:
    """The domain as the core takes it; None if it is not here any more."""
    name, domain = leaver.domain, daemon.host.domain(leaver.domain)
    if domain is None:
        return None
    rests = why_it_rests(daemon, domain)
    moves, sleeps = wish is Fate.MOVE and not rests, wish is not Fate.DRAIN and not rests
    no_move = await _no_move(daemon, domain) if moves else ""
    no_sleep = leaver.no_sleep or (await _no_sleep(daemon, name) if sleeps else "")
    traveller, tried = placement.traveller(domain), frozenset(leaver.tried)
    return Resident(traveller, turn_of(domain), rests, no_move, no_sleep, tried)


def why_it_rests(daemon: DaemonForEvacuation, domain: Domain) -> str:
    """Why nothing has to become of the domain; empty if something has."""
    if domain.kind is Kind.SERVICE:
        read = daemon.switch.readings.of(domain.name)
        if read is None:
            return "it is a service, and the hypervisor does not show it"
        return "" if read.up else "it is saved on disk" if read.saved else "it is down"
    if domain.asleep or domain.frozen:
        return "it sleeps on disk"
    return "it is down" if domain.lifecycle is Lifecycle.DOWN else ""


async def _no_move(daemon: DaemonForEvacuation, domain: Domain) -> str:
    if domain.kind is Kind.SERVICE:
        return "services do not move"
    if domain.lifecycle is Lifecycle.BOOTING:
        return ""
    no = await daemon.move_requests.why_not(domain.name)
    return "" if no is None or no.code in PASSING else str(no)


async def _no_sleep(daemon: DaemonForEvacuation, name: str) -> str:
    c = daemon.configuration
    if SAVE not in daemon.driver.capabilities and daemon.host.driver_lost_at is None:
        return f"the {c.host.driver} driver of {c.host.name} saves no domains"
    if c.domain[name].kind is Kind.SERVICE and not c.sleeps_at_shutdown(name):
        return "[shutdown] of noded.toml leaves it awake"
    no = await daemon.saves.refusal(name)
    return "" if no is None or no.code in PASSING else no.text


async def rooms(daemon: DaemonForEvacuation) -> tuple[HostRoom, ...]:
    """What room the hosts have to which domains of this one may move."""
    hosts = daemon.configuration.moves.hosts
    found = await daemon.hub.rooms(hosts) if hosts else ()
    if found is None:
        closed = "no hub says what room it has; it may be too old for the question"
        return tuple(placement.unknown(host, daemon.host.name, closed) for host in hosts)
    return found
