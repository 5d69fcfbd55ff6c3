"""Which domains a driver must not miss, and not take for services, because they move or have moved."""

from __future__ import annotations

from typing import TypeVar

from magrathea.core.moves import HostWithMoves

from ..configuration import NodedConfiguration
from ..hypervisor.base import Driver
from .papers import PapersRefused, read_papers

D = TypeVar("D", bound=Driver)


def away(place: HostWithMoves, c: NodedConfiguration) -> dict[str, str]:
    """The domains of the configuration that other hosts have, each with its host."""
    owners = {record.domain: record.owner for record in place.moves.records if record.is_elsewhere(place.name)}
    return {name: owners[name] for name in c.domain if name in owners and place.host.domain(name) is None}


def on_their_way(place: HostWithMoves) -> frozenset[str]:
    """The hypervisor's names of the domains that are on their way to or from here.

    Each is counted by its facts, here or at the other host: as a service it would take its CPUs and all the memory that
    it may ever have from the jobs that run here.
    """
    found = set()
    texts = [x.papers for x in place.moves.leaving] + [x.parcel.papers for x in place.moves.arriving if x.parcel]
    for text in filter(None, texts):
        try:
            found.add(read_papers(text).departure.name)
        except PapersRefused:
            continue  # such an arrival is declined
    return frozenset(found)


def told(driver: D, place: HostWithMoves, c: NodedConfiguration) -> D:
    """The driver, which knows now what it must leave out."""
    driver.leave_out(away(place, c), on_their_way(place))
    return driver
