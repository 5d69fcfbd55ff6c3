"""What `magrathea host adopt` must know of a host whose domains have moved, have come from others, or sleep: by the
daemon's journal, which also tells it while no daemon runs.

Rule 1: a domain that is away is no missing domain. Its table stays as it is, for the day when it comes back.
Rule 2: a visitor belongs to the host that names it. It is neither adopted here nor changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from magrathea.core.model import Host
from magrathea.core.moves import HostWithMoves

from ..configuration import NodedConfiguration
from ..journal import salvage, salvage_moves
from ..moves.absent import away
from ..moves.papers import with_visitors
from .adopt import Proposal


@dataclass(frozen=True, slots=True)
class MovedDomains:
    """`here`: the configuration of the domains that are here: with visitors, and without those that are away. `away`:
    these, each with its host. `visitors`, `asleep`: by libvirt's names."""

    here: NodedConfiguration | None
    away: dict[str, str]
    visitors: frozenset[str]
    asleep: frozenset[str]

    def noted(self, proposal: Proposal) -> Proposal:
        """The proposal, saying what the domain is at present."""
        name, why = proposal.found.name, proposal.why
        if name in self.visitors:
            why = "a visitor: it belongs to the host that it came from, and is not changed"
        if name in self.asleep:
            why += "; it sleeps on disk"
        return proposal if why == proposal.why else replace(proposal, why=why)

    def sentences(self) -> list[str]:
        """For people: what is not here."""
        return [f"{name} is at {host}; its table stays as it is" for name, host in sorted(self.away.items())]


def moved_domains(configuration: NodedConfiguration | None) -> MovedDomains:
    """Without a configuration or a journal, all domains are at home and awake."""
    if configuration is None:
        return MovedDomains(None, {}, frozenset(), frozenset())
    path, name = configuration.journal_path, configuration.host.name
    host = salvage(path) or Host(name, configuration.host.mode, 0, 0)
    moves = salvage_moves(path)
    gone = away(HostWithMoves(host, moves), configuration)
    whole = with_visitors(configuration, moves)
    tables = {domain: table for domain, table in whole.domain.items() if domain not in gone}
    here = msgspec.structs.replace(whole, domain=tables)
    visitors = {
        here.libvirt_name(domain) for domain in tables if moves.visitor(domain) and domain not in configuration.domain
    }
    asleep = {here.libvirt_name(d.name) for d in host.domains if d.asleep and d.name in tables}
    return MovedDomains(here, gone, frozenset(visitors), frozenset(asleep))
