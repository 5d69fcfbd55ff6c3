"""The facts of moves between hosts, and what hosts and hub tell each other about them. Plain data; see migration.py.

Rule 1: everything that must survive a crash is here, or in the domain's own facts. Nothing is remembered elsewhere.
Rule 2: a message holds all that its sender knows, so a lost or repeated one does no harm. A record replaces an older
one of the same domain, by its revision. A word names the number that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from .model import Domain, Host


class Where(StrEnum):
    """What a host's hypervisor shows of a domain.

    `ABSENT`: no trace of it, not even a definition. `OFF`: it is defined there, but does not run. `RUNNING`: it runs
    there, or somebody has paused it. `LEFT`: its copy to another host ended, and the hypervisor holds it paused since
    then; it goes on only if told to. `INCOMING`: a copy from another host is being received. `ARRIVED`: such a copy is
    complete, but has never run.
    """

    ABSENT = "absent"
    OFF = "off"
    RUNNING = "running"
    LEFT = "left"
    INCOMING = "incoming"
    ARRIVED = "arrived"


class Letting(StrEnum):
    """How a domain ceased to run at the source. `GONE`: its copy was complete at that moment. `ENDED`: it just ended;
    a complete copy at the target may be older."""

    GONE = "gone"
    ENDED = "ended"


# The hub's books: who owns a domain.


@dataclass(frozen=True, slots=True)
class Transfer:
    """A move that the hub has granted. `number`: of the ownership that the target gets with the domain.

    `ready`: the target expects the domain. `room`: what it has prepared; only the source's hypervisor reads that.
    `declined`: why the target does not want it; empty if it does. `letting`: the source has said that the domain no
    longer runs there. `owed`: the target has the domain, but not yet its facts.
    """

    number: int
    source: str
    target: str
    ready: bool = False
    declined: str = ""
    letting: Letting | None = None
    owed: bool = False
    room: str = ""


@dataclass(frozen=True, slots=True)
class Ownership:
    """The hub's record of one domain. `number` only grows. `revision` grows with every change of the record.

    `owner`: empty if the domain was given up. Then the host at home takes it back.
    """

    domain: str
    number: int
    owner: str
    revision: int
    transfer: Transfer | None = None

    def is_elsewhere(self, host: str) -> bool:
        """True if another host than this one has the domain."""
        return self.owner not in ("", host)

    @property
    def whose(self) -> str:
        """Why another host than the owner may not act on the domain, for people."""
        if self.owner:
            return f"{self.owner} has {self.domain}, by the hub's books; ask that host"
        return f"{self.domain} was given up, and the hub has not said yet that it is this host's; wait"


class Says(StrEnum):
    """What a host says about a domain.

    Any host: it `OWNS` the domain, or takes back one that was given up. The source: it `ASKS` for a move (to `about`);
    the domain `STAYS`; it is `GONE` or has `ENDED` here on its way to `about` (see Letting). The target: it is `READY`
    (with `about` as what it has prepared), or `DECLINES` (because of `about`); the domain is `HERE`; its facts are
    `ADOPTED`, too; or, after the source has let go, it `LACKS` a copy that may run.
    """

    OWNS = "owns"
    ASKS = "asks"
    STAYS = "stays"
    GONE = "gone"
    ENDED = "ended"
    READY = "ready"
    DECLINES = "declines"
    HERE = "here"
    ADOPTED = "adopted"
    LACKS = "lacks"


@dataclass(frozen=True, slots=True)
class Word:
    """One thing that a host says. `number`: of the ownership or transfer that it is about."""

    domain: str
    number: int
    says: Says
    about: str = ""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A domain's facts on their way to the target of transfer `number`. `at`: the source's clock when they were packed.

    `final`: the domain no longer runs at the source, so its facts no longer change there. `papers`: what the target's
    hypervisor and configuration must know of the domain beside its facts; nothing here reads them.
    """

    number: int
    source: str
    at: float
    final: bool
    facts: Domain
    papers: str = ""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A domain that came here by a move, with its papers; the configuration need not name it."""

    name: str
    papers: str = ""


# A host's own facts.


class MoveStage(StrEnum):
    """How far a domain is on its way from here.

    `ASKING`: the hub has not granted the move yet. `PREPARING`: the target is not ready yet. `COPYING`: the hypervisor
    copies, or is about to. `HANDED`: the domain no longer runs here, and the hub must say who has it. `STAYING`: it
    stays, and the hub must say so, too. `RESUMING`: the hub has said so, but the domain does not run yet.
    """

    ASKING = "asking"
    PREPARING = "preparing"
    COPYING = "copying"
    HANDED = "handed"
    STAYING = "staying"
    RESUMING = "resuming"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A domain that leaves this host. `number`: of this host's ownership; `granted`: of the target's; 0 if not granted.

    `to`: the host that the move was asked for. `wanted`: where the domain should be; empty: here. If it is not `to`,
    the move turns back. `until`: when the hub's grant and the target's readiness come too late. `tried`: the copy was
    started and is over; under one number it is tried once. `letting`: set when the domain ceased to run here. `sealed`:
    its facts since then; until then they are among the host's. `attempts`: copies that failed. `why`: for people, why
    it turned back. `called_off`: somebody wanted it to stay. `papers`: see Parcel. `wish`: why the hub wants the move;
    empty if an admin does.
    """

    domain: str
    number: int
    to: str
    wanted: str
    since: float
    until: float
    stage: MoveStage = MoveStage.ASKING
    granted: int = 0
    tried: bool = False
    letting: Letting | None = None
    sealed: Domain | None = None
    attempts: int = 0
    why: str = ""
    papers: str = ""
    called_off: bool = False
    wish: str = ""

    @property
    def turns_back(self) -> bool:
        return self.wanted != self.to


@dataclass(frozen=True, slots=True)
class Arriving:
    """A domain that this host expects, or has and is not done with. `number`: of the transfer.

    `where`: what the hypervisor showed since the facts below last changed; None: it was not looked at. `parcel`: the
    newest facts from the source, by this host's clock. `ready`: everything is prepared. `room`: what that is; see
    Transfer. `declined`: why not; empty if it is welcome. `letting`: what the source said. `owner`: the hub says that
    the domain is this host's. `ran`: it was seen running here. `cancelled`: the move is off; what has come of it is
    removed. `adopted`: its facts are among the host's. `until`: the reservation ends; once the domain is here, the
    waiting for its last facts.
    """

    domain: str
    number: int
    source: str
    until: float
    where: Where | None = None
    parcel: Parcel | None = None
    ready: bool = False
    declined: str = ""
    letting: Letting | None = None
    owner: bool = False
    ran: bool = False
    cancelled: bool = False
    adopted: bool = False
    room: str = ""

    @property
    def here(self) -> bool:
        """True if this host has the domain, and no other can run it any more."""
        complete = self.letting is Letting.GONE and self.where in (Where.ARRIVED, Where.OFF)
        return self.ran or self.owner or complete

    @property
    def runs(self) -> bool:
        """True if the domain has run here since it arrived, as far as the hypervisor shows: or has ended since."""
        return self.where in (Where.RUNNING, Where.OFF, Where.ABSENT)

    @property
    def lacks(self) -> bool:
        """True if the source has let go, but there is nothing here that may run."""
        if self.letting is None or self.here:
            return False
        return self.where in (Where.ABSENT, Where.OFF, Where.ARRIVED)


@dataclass(frozen=True)
class Moves:
    """All of a host's facts about moves. `records`: the newest that the hub has told, one a domain.

    `visitors`: the domains that came here by a move.
    """

    records: tuple[Ownership, ...] = ()
    leaving: tuple[Leaving, ...] = ()
    arriving: tuple[Arriving, ...] = ()
    visitors: tuple[Visitor, ...] = ()

    def record(self, domain: str) -> Ownership | None:
        return next((r for r in self.records if r.domain == domain), None)

    def leaving_of(self, domain: str) -> Leaving | None:
        return next((x for x in self.leaving if x.domain == domain), None)

    def arriving_of(self, domain: str) -> Arriving | None:
        return next((x for x in self.arriving if x.domain == domain), None)

    def visitor(self, domain: str) -> Visitor | None:
        return next((v for v in self.visitors if v.name == domain), None)

    def with_visitor(self, domain: str, now: Visitor | None) -> Moves:
        kept = (v for v in self.visitors if v.name != domain)
        new = () if now is None else (now,)
        return replace(self, visitors=tuple(sorted((*kept, *new), key=lambda v: v.name)))

    def with_record(self, record: Ownership) -> Moves:
        kept = (r for r in self.records if r.domain != record.domain)
        return replace(self, records=tuple(sorted((*kept, record), key=lambda r: r.domain)))

    def with_leaving(self, domain: str, now: Leaving | None) -> Moves:
        kept = (x for x in self.leaving if x.domain != domain)
        new = () if now is None else (now,)
        return replace(self, leaving=tuple(sorted((*kept, *new), key=lambda x: x.domain)))

    def with_arriving(self, domain: str, now: Arriving | None) -> Moves:
        kept = (x for x in self.arriving if x.domain != domain)
        new = () if now is None else (now,)
        return replace(self, arriving=tuple(sorted((*kept, *new), key=lambda x: x.domain)))


@dataclass(frozen=True)
class HostWithMoves:
    """A host with its moves: what one journal holds, and one commit writes."""

    host: Host
    moves: Moves = Moves()

    @property
    def name(self) -> str:
        return self.host.name


def with_domain(host: Host, domain: Domain) -> Host:
    kept = (d for d in host.domains if d.name != domain.name)
    return replace(host, domains=tuple(sorted((*kept, domain), key=lambda d: d.name)))


def without_domain(host: Host, name: str) -> Host:
    return replace(host, domains=tuple(d for d in host.domains if d.name != name))
