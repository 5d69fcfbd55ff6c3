"""What an admin asks about moves: what a move would be, a move itself, and how far moves are. And what the hub wishes.

Rule 1: the hub's wish is checked as an admin's request is, and beside it by the core: only a domain that is preempted
moves so. If this host does not follow a wish, it tells the hub why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from magrathea import supervision
from magrathea.control import ControlRequest, Denied, granted
from magrathea.core import arrivals, departures, migration
from magrathea.core import events as ev
from magrathea.core import move_events as me
from magrathea.core.model import Lifecycle
from magrathea.core.move_events import MoveNote, MoveNoted
from magrathea.core.moves import Arriving, Leaving, MoveStage
from magrathea.core.refusals import RefusalCode
from magrathea.messages import DomainTravel
from magrathea.move_messages import MOST_TEXT, MoveRefused, MoveWished, Ownerships, ParcelSent, WishRefused
from magrathea.move_reports import CopiedDiskReport, MoveEnd, MovePlan, MoveReport

from ..configuration import NodedConfiguration
from ..hypervisor.base import DriverError
from ..hypervisor.moving import Departure, MoveProgress
from .copies import terms
from .domain_moves import DomainMoves
from .needs import DaemonForMoves
from .papers import PapersRefused, papers_of

log = logging.getLogger(__name__)

ENDS = (MoveNote.LEFT, MoveNote.STAYED, MoveNote.CALLED_OFF)


class MoveRequests:
    """The operations of the control socket. `moves`: None if this host's driver moves nothing."""

    def __init__(self, daemon: DaemonForMoves, moves: DomainMoves | None) -> None:
        self._daemon = daemon
        self._moves = moves
        self._ended: dict[str, MoveEnd] = {}
        self._wishes: dict[str, asyncio.Task[None]] = {}
        """By domain: the wish that is being looked at."""

    async def close(self) -> None:
        wishes = list(self._wishes.values())
        for task in wishes:
            task.cancel()
        await asyncio.gather(*wishes, return_exceptions=True)

    def noted(self, note: MoveNoted) -> None:
        """The core has noted something about a move."""
        if note.what not in ENDS:
            return
        moved, domain = note.what is MoveNote.LEFT, self._daemon.place.host.domain(note.domain)
        text = f"it is at {note.text} now" if moved else f"it stays here: {note.text or 'somebody asked for that'}"
        up = domain is not None and domain.lifecycle is Lifecycle.UP
        self._ended[note.domain] = MoveEnd(
            domain=note.domain,
            moved=moved,
            at=self._daemon.now(),
            text=text[:4096],
            try_next=up and note.what is MoveNote.STAYED,
        )

    async def report(self, request: ControlRequest) -> bytes:
        """How far moves are."""
        place = self._daemon.place
        away = (r for r in place.moves.records if r.is_elsewhere(place.name) and place.host.domain(r.domain) is None)
        return granted(
            now=self._daemon.now(),
            moves=self._reports(),
            ended=list(self._ended.values()),
            elsewhere={record.domain: record.owner for record in away},
        )

    async def plan(self, request: ControlRequest) -> bytes:
        """What a move would be, as far as this host knows. Nothing is changed. Raises Denied."""
        _, plan = await self._planned(request.domain, request.to)
        return granted(now=self._daemon.now(), plan=plan)

    async def migrate(self, request: ControlRequest) -> bytes:
        """Begin the move, or let it turn back if the host itself is named. The answer does not wait until it is done.
        Raises Denied."""
        daemon, name = self._daemon, request.domain
        now = daemon.now()
        leaving = daemon.place.moves.leaving_of(name)
        if leaving is not None and not request.to:
            text = f"{name} is on its way to {leaving.to}; name the host where it is to go instead"
            raise Denied(RefusalCode.DOMAIN_MOVING, text)
        if leaving is None and request.to == daemon.place.name:
            raise Denied(RefusalCode.BAD_REQUEST, f"{name} is not on its way from {request.to}; name another host")
        if leaving is not None:
            if request.to != daemon.place.name:
                self._permitted(request.to)
            plan, papers, to = None, "", request.to
        else:
            plan, papers = await self._plan_with_papers(name, request.to)
            to = plan.hosts[0]
        self._begin(name, to, papers)
        return granted(now=now, plan=plan, moves=self._reports())

    async def why_not(self, name: str) -> Denied | None:
        """Why the domain cannot move now, whichever host takes it; None if it can, as far as this host knows."""
        try:
            await self._plan_with_papers(name, "")
        except Denied as no:
            return no
        return None

    async def begin(self, name: str, to: str, ready: Callable[[], None]) -> None:
        """Begin the move. `ready` is called right before, if nothing stands in the way. Raises Denied."""
        _, papers = await self._plan_with_papers(name, to)
        ready()
        self._begin(name, to, papers)

    def ended(self, name: str) -> MoveEnd | None:
        """How the domain's last move ended, since this daemon's start."""
        return self._ended.get(name)

    async def _plan_with_papers(self, name: str, to: str) -> tuple[MovePlan, str]:
        departure, plan = await self._planned(name, to)
        try:
            return plan, papers_of(self._daemon.configuration, name, departure).encoded()
        except PapersRefused as error:
            raise Denied(RefusalCode.NOT_SUPPORTED, f"{name} cannot move: {error}") from error

    def _begin(self, name: str, to: str, papers: str, wish: str = "") -> None:
        """Let the core decide. Raises Denied."""
        daemon = self._daemon
        until = daemon.now() + daemon.configuration.moves.patience_s
        decisions = daemon.apply_move(me.MoveRequested(daemon.now(), name, to, until, papers, wish))
        if decisions is None:
            raise Denied(RefusalCode.JOURNAL, "the journal cannot be written, so no move begins; the status says why")
        for said in decisions:
            if isinstance(said, ev.Refused) and said.domain == name:
                raise Denied(said.code, said.text)
        if self._moves is not None:
            self._moves.look_soon()

    # What the hub says

    def heard(self, message: Ownerships | MoveRefused | MoveWished | ParcelSent) -> None:
        """A message of the hub. Raises BadMessage."""
        if not isinstance(message, MoveWished):
            if self._moves is not None:
                self._moves.heard(message)
            return
        record, name = self._daemon.place.moves.record(message.domain), message.domain
        under_way = self._daemon.place.moves.leaving_of(name) is not None or name in self._wishes
        if under_way or record is None or (record.number, record.owner) != (message.number, self._daemon.place.name):
            return  # the hub says it again, or has more to say first
        task = self._wishes[name] = supervision.start(self._follow(message))
        task.add_done_callback(lambda _: self._wishes.pop(name, None))

    async def _follow(self, wish: MoveWished) -> None:
        """Begin the move that the hub wishes for, or tell it why not."""
        try:
            if no := departures.no_wish(self._daemon.place, wish.domain):
                raise Denied(no.code, no.text)
            _, papers = await self._plan_with_papers(wish.domain, wish.to)
            self._begin(wish.domain, wish.to, papers, wish.why)
            log.info("%s moves to %s, as the hub wishes: %s", wish.domain, wish.to, wish.why)
        except Denied as error:
            log.info("%s does not move to %s, as the hub wishes: %s", wish.domain, wish.to, error)
            refused = WishRefused(
                sender=self._daemon.place.name,
                domain=wish.domain,
                number=wish.number,
                to=wish.to,
                code=error.code,
                text=str(error)[:MOST_TEXT],
            )
            self._daemon.hub.tell_of_moves(refused)

    def _permitted(self, to: str) -> None:
        """Raises Denied if this host moves no domain to `to`; empty: to any host."""
        here, hosts = self._daemon.place.name, self._daemon.configuration.moves.hosts
        if not hosts:
            text = f"{here} moves no domains: name the hosts that they may go to, `hosts` in [moves] of noded.toml"
            raise Denied(RefusalCode.NOT_SUPPORTED, text)
        if to and to not in hosts:
            text = f"{here} moves domains to {', '.join(hosts)} only; add {to} to `hosts` in [moves]"
            raise Denied(RefusalCode.NO_VISITORS, text)

    async def _planned(self, name: str, to: str) -> tuple[Departure, MovePlan]:
        daemon = self._daemon
        c, place = daemon.configuration, daemon.place
        if self._moves is None:
            raise Denied(RefusalCode.NOT_SUPPORTED, why_nothing_moves(c))
        self._permitted(to)
        if place.host.domain(name) is not None and c.vnode(name) != name:
            text = f"the vnode of {name} is {c.vnode(name)}; a domain moves only if its vnode has its name"
            raise Denied(RefusalCode.NOT_MOVABLE, f"{text}, because the hub's books know it by that")
        hosts = [to] if to else list(c.moves.hosts)
        if no := departures.no_move(place, name, hosts[0]):
            raise Denied(no.code, no.text)
        self._moves.mover.know(name, c.libvirt_name(name))
        try:
            reasons = await self._moves.mover.why_not_movable(name, terms(c))
            if reasons:
                raise Denied(RefusalCode.NOT_SUPPORTED, f"{name} cannot move: {'; '.join(reasons)}")
            departure = await self._moves.mover.departure(name, terms(c))
        except DriverError as error:
            raise Denied(error.code, error.text) from error
        domain = place.host.domain(name)
        assert domain is not None, "an unknown domain is refused"
        read = daemon.switch.readings.of(name)
        memory_mib = (read.memory_mib if read is not None else None) or domain.memory_mib
        disks = [CopiedDiskReport(path=disk.path, mib=disk.size_bytes // 2**20) for disk in departure.disks]
        plan = MovePlan(
            domain=name, source=place.name, hosts=hosts, memory_mib=memory_mib, jobs=len(domain.jobs), disks=disks
        )
        return departure, plan

    # What is going on

    def travels(self) -> dict[str, DomainTravel]:
        """Each domain that takes no jobs because of a move, with how far that is."""
        place, found = self._daemon.place, {}
        for domain in place.host.domains:
            if migration.refusal(place, domain.name) is None and migration.may_act(place, domain.name):
                continue
            report = self._report(domain.name)
            record = place.moves.record(domain.name)
            if report is not None:
                found[domain.name] = DomainTravel(
                    source=report.source,
                    target=report.target,
                    stage=report.stage,
                    text=report.text,
                    percent=report.percent,
                )
            elif record is not None and record.owner != place.name:
                text = f"{record.owner} has it, by the hub's books" if record.owner else record.whose
                to = record.owner or place.name
                found[domain.name] = DomainTravel(source=place.name, target=to, stage="elsewhere", text=text)
        return found

    def _reports(self) -> list[MoveReport]:
        moves = self._daemon.place.moves
        names = {x.domain for x in moves.leaving} | {x.domain for x in moves.arriving}
        return [report for name in sorted(names) if (report := self._report(name)) is not None]

    def _report(self, name: str) -> MoveReport | None:
        place = self._daemon.place
        if (leaving := place.moves.leaving_of(name)) is not None:
            progress = self._moves.copies.progress(name) if self._moves is not None else None
            percent = _percent(progress)
            return MoveReport(
                domain=name,
                source=place.name,
                target=leaving.to,
                stage=leaving.stage,
                text=_leaves(leaving, percent),
                percent=percent,
            )
        if (arriving := place.moves.arriving_of(name)) is not None:
            stage, text = _arrives(arriving)
            return MoveReport(domain=name, source=arriving.source, target=place.name, stage=stage, text=text)
        return None


def why_nothing_moves(c: NodedConfiguration) -> str:
    """Why this host's driver moves no domains."""
    if c.host.driver != "libvirt":
        return f"the {c.host.driver} driver of {c.host.name} moves no domains; only virtual machines move; drain it"
    return f"{c.host.uri} of {c.host.name} has no virtual machines of QEMU, and libvirt moves no others; drain it"


def _percent(progress: MoveProgress | None) -> int | None:
    """How much of the present pass is done."""
    if progress is None or not progress.sent_bytes:
        return None
    return min(99, 100 * progress.sent_bytes // max(1, progress.sent_bytes + progress.left_bytes))


_LEAVES = {
    MoveStage.ASKING: "waits for the hub's grant",
    MoveStage.PREPARING: "waits until it is expected there",
    MoveStage.COPYING: "is being copied",
    MoveStage.HANDED: "no longer runs here; the hub decides which host has it",
    MoveStage.STAYING: "stays here",
    MoveStage.RESUMING: "stays here, and is about to run again",
}


def _leaves(leaving: Leaving, percent: int | None) -> str:
    why = f" (wished by the hub: {leaving.wish})" if leaving.wish else ""
    text = f"on its way to {leaving.to}{why}: {_LEAVES[leaving.stage]}"
    if leaving.stage is MoveStage.COPYING and percent is not None:
        text += f", {percent} %"
    if leaving.attempts:
        text += f" (copies that failed: {leaving.attempts}; {leaving.why})"
    elif leaving.turns_back and leaving.why:
        text += f"; it turns back: {leaving.why}"
    return text[:4096]


def _arrives(arriving: Arriving) -> tuple[str, str]:
    stage = "here" if arriving.here else "ready" if arriving.ready else "expected"
    return stage, f"on its way from {arriving.source}: {arrivals.how(arriving)}"[:4096]
