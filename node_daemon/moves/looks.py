"""What a hypervisor shows of a domain, in the words of the core (core/moves.py, `Where`). Pure.

Rule 1: what was not prepared here for a move has not come by one. A domain of another UUID is never taken for it, and
neither is ever ended: somebody has it here.
"""

from __future__ import annotations

from magrathea.core.moves import Arriving, Where

from ..hypervisor.moving import Departure, Presence, Whereabouts

_WHERE = {
    Presence.RUNNING: Where.RUNNING,
    Presence.PAUSED: Where.RUNNING,
    Presence.LEAVING: Where.RUNNING,
    Presence.SWITCHING: Where.RUNNING,
    Presence.HELD: Where.LEFT,
    Presence.ARRIVING: Where.INCOMING,
    Presence.ARRIVED: Where.ARRIVED,
}


def where(found: Whereabouts) -> Where:
    """Where a domain of this host is."""
    if found.presence is Presence.ABSENT:
        return Where.OFF if found.defined else Where.ABSENT
    return _WHERE[found.presence]


def is_copying(found: Whereabouts) -> bool:
    """True if a copy from here is under way."""
    return found.presence in (Presence.LEAVING, Presence.SWITCHING)


def is_awaited(arriving: Arriving | None) -> bool:
    """True if a copy may be here that has never run; the hypervisor shows it like a domain that somebody has paused."""
    return arriving is not None and bool(arriving.room) and not arriving.ran


def where_arriving(found: Whereabouts, arriving: Arriving, uuid: str) -> Where:
    """Where a domain is that arrives with this UUID. Another domain of its name is `OFF` for the core, which declines
    the arrival then; once that is cancelled there is nothing of it."""
    if arriving.room:
        return where(found) if found.uuid in ("", uuid) else Where.ABSENT
    nothing = found.presence is Presence.ABSENT and not found.defined
    return Where.ABSENT if nothing or arriving.cancelled else Where.OFF


def unlike_papers(found: Whereabouts, arriving: Arriving, departure: Departure) -> str:
    """How what arrives here differs from its papers, for people; empty if it does not, or nothing is here yet.

    Its definition comes from its source by way of the hypervisors; the papers came before, and were checked.
    """
    if not arriving.room or found.presence not in (Presence.ARRIVING, Presence.ARRIVED):
        return ""
    table = (
        ("UUID", departure.uuid, found.uuid),
        ("number of CPUs", departure.cpus, found.cpus),
        ("memory in MiB", departure.memory_mib, found.memory_mib),
    )
    what = [f"its {name} is {is_so}, its papers say {said}" for name, said, is_so in table if said and said != is_so]
    return f"{', '.join(what)}; nothing else may come than was checked" if what else ""
