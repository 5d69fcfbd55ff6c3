"""Taking a host back after its evacuation: what is left to do, by the facts."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.evacuation import Fate
from magrathea.core.model import Domain, Kind, SleepCause
from magrathea.core.moves import MoveStage

from ..reboot.waking import defrost
from .needs import DaemonForEvacuation
from .progress import drain_reason
from .records import EvacuationRecord, Leaver

LEFT = (MoveStage.HANDED, MoveStage.RESUMING)
"""A domain in these stages no longer runs here: only the hub's word ends them."""


def steps(daemon: DaemonForEvacuation, record: EvacuationRecord) -> Iterator[Leaver]:
    """Call back what has not left yet, end the drains, wake what sleeps. Yields those that were asked to come back."""
    now, reason = daemon.now(), drain_reason(record)
    for leaver in record.leavers:
        name = leaver.domain
        leaving = daemon.place.moves.leaving_of(name)
        if leaving is not None and leaver.fate is Fate.MOVE and not leaving.turns_back and leaving.stage not in LEFT:
            daemon.apply_move(me.MoveRequested(now, name, daemon.place.name, now))
        domain = daemon.host.domain(name)
        if domain is not None and name in record.drained and domain.draining == reason:
            _undrain(daemon, domain)
        if domain is not None and sleeps_since_then(domain) and not leaver.woken:
            defrost(daemon, name)
            yield replace(leaver, woken=True)


def _undrain(daemon: DaemonForEvacuation, domain: Domain) -> None:
    """The end of a drain also keeps awake whoever falls asleep, so this may be the domain's way back, too."""
    daemon.apply(ev.DrainEnded(daemon.now(), domain.name))


def sleeps_since_then(domain: Domain) -> bool:
    """True if the evacuation has put the domain to sleep, and nobody has asked for it since."""
    return domain.sleep is not None and domain.sleep.cause is SleepCause.EVACUATION and not domain.sleep.wakes


def services(daemon: DaemonForEvacuation, record: EvacuationRecord) -> list[str]:
    """Services that were saved, and are not back."""
    found = []
    for leaver in record.leavers:
        domain, read = daemon.host.domain(leaver.domain), daemon.switch.readings.of(leaver.domain)
        service = domain is not None and domain.kind is Kind.SERVICE and leaver.fate is Fate.SLEEP
        if service and not leaver.woken and leaver.asked and (read is None or not read.up):
            found.append(leaver.domain)
    return found


def left(daemon: DaemonForEvacuation, record: EvacuationRecord) -> bool:
    """True if something of the evacuation is still to be ended."""
    reason = drain_reason(record)
    for leaver in record.leavers:
        domain = daemon.host.domain(leaver.domain)
        leaves = daemon.place.moves.leaving_of(leaver.domain) is not None and leaver.fate is Fate.MOVE
        if leaves or (domain is not None and domain.draining == reason and leaver.domain in record.drained):
            return True
        if domain is not None and sleeps_since_then(domain) and not leaver.woken:
            return True
    return bool(services(daemon, record))
