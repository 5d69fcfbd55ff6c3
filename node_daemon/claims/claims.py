"""Turns what guests say into events, and answers them.

A claim is answered within DAEMON_CLAIM_S, because MoM does nothing else in the meantime. If it would cost a sibling
something, a hub is asked first whether PBS has given the job to the domain (confirmation.py). It is granted when all
jobs that had to stop have stopped and CPU has moved. If they have not stopped in time, it is refused, its fact is taken
away, and the plan leads back. PBS is asked about all other jobs afterwards (inquirer.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, assert_never

from magrathea.core import events as ev
from magrathea.core import plan
from magrathea.core.model import Host, JobClass, JobKey, MemoryComing, MemoryLack, MemoryShort, Stage
from magrathea.core.readiness import Unready, held_back, unready
from magrathea.core.refusals import Refusal, RefusalCode, retry_after_s
from magrathea.core.states import accepts
from magrathea.deadlines import DAEMON_CLAIM_S, MEMORY_GLANCE_S, ORDER_S
from magrathea.logs import RationedLog
from magrathea.pbs_text.words import is_subjob
from magrathea.stop_warnings import WITHOUT_PROLOGUE_S

from ..facts import differs
from ..guest_channel.messages import (
    AnyRequest,
    Claim,
    ClaimedJob,
    GuestMemory,
    Hello,
    Jobs,
    Launched,
    Prepared,
    Release,
    Report,
)
from ..hypervisor.base import Driver
from ..switch.progress import CpuComing, Unstopped
from ..switch.switch import Switch
from .closures import Closures
from .confirmation import Confirmation, Confirmed, Given, Mark
from .inquirer import Inquirer
from .inquiries import Inquiries
from .pace import JOBS_PER_CHANGE, LISTS_S, REPORTS_S, UNCHANGED, Pace, Turns
from .pbs_says import PbsSays
from .swap import keeps_mib, swap_notes

log = logging.getLogger(__name__)
limited_log = RationedLog(log, burst=100, period_s=1.0)
"""Limited per domain: guests decide how often something about them is logged."""

MEMORY_STEP_MIB = 16
"""Unreclaimable memory is rounded up to a multiple of this. Otherwise each report would change the facts."""
WAITS = ("waits for its memory", "waits for jobs that were warned")
"""What a job that has been granted its place may still wait for, as its comment says it."""

Reply = dict[str, Any]


class DaemonForClaims(Protocol):
    """What claims need of the daemon."""

    switch: Switch
    driver: Driver

    @property
    def host(self) -> Host: ...

    async def parts_elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        """The job's parts in vnodes of other hosts that are not ready. None if no hub answers."""
        ...

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        """Whether PBS has given the job to the domain. It has if all hubs are too old to be asked."""
        ...

    def actual_changed(self) -> None: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def refused(self, domain: str, key: JobKey, code: RefusalCode, text: str) -> None: ...

    def observe(self, name: str) -> None: ...


def refusal(code: RefusalCode, text: str) -> Reply:
    return {"ok": False, "code": code, "text": text[:4096], "retry_after_s": retry_after_s(code)}


class Claims:
    """The channels' handler (`channel.Handler`)."""

    def __init__(self, daemon: DaemonForClaims) -> None:
        self._daemon = daemon
        self._granted: set[tuple[str, JobKey]] = set()
        self._waiting: dict[tuple[str, JobKey], str] = {}
        self._unheard_since: dict[tuple[str, JobKey], float] = {}
        self._confirmation = Confirmation(daemon)
        self._inquiries = Inquiries()
        self.inquirer = Inquirer(daemon, self._inquiries)
        self._lists = Pace(LISTS_S)
        self._reports = Pace(REPORTS_S)
        self._turns = Turns(lambda: daemon.host.cpus)
        self._swap: dict[str, GuestMemory] = {}
        """What each domain's guest has last reported of its memory."""
        self._to_enter: Counter[Mark] = Counter()
        """Claims that wait for their turn, in which they will be judged."""
        self._closures = Closures()
        self._openings: set[asyncio.TimerHandle] = set()

    def close(self) -> None:
        """Enter no more reports, and ask nothing more."""
        self.inquirer.close()
        for opening in self._openings:
            opening.cancel()
        self._lists.close()
        self._reports.close()

    def connected(self, domain: str, hello: Hello) -> None:
        can = ", ".join(hello.can) or "no abilities"
        limited_log.say(domain, f"{domain}: agent {hello.agent} connected ({can})", level=logging.INFO)
        self._turns.spend(domain, 1)
        self._daemon.apply(ev.AgentConnected(self._daemon.now(), domain))
        self._daemon.switch.agent_connected(domain)

    def lost(self, domain: str) -> None:
        limited_log.say(domain, f"{domain}: agent lost", level=logging.INFO)
        self._lists.lost(domain)
        self._reports.lost(domain)
        self._turns.spend(domain, 1)
        self._daemon.switch.agent_lost(domain)
        self._daemon.apply(ev.AgentLost(self._daemon.now(), domain))

    async def request(self, domain: str, request: AnyRequest) -> Reply:
        match request:
            case Claim():
                answer = await self._claim(domain, request)
                if not answer["ok"]:
                    self._close_for(domain, request.job.key, request.job.cls)
                return answer
            case Release():
                self._granted.discard((domain, request.job.key))
                await self._release((domain, request.job.key))
            case Launched():
                await self._enter(domain, lambda now: ev.JobLaunched(now, domain, request.job.key))
                if (job := self._job((domain, request.job.key))) is not None:
                    self._closures.started(domain, job.cls)
                self._note_waiting((domain, request.job.key), "")  # if its prologue still waits, it asks again
            case Jobs():
                self._lists.enter(domain, lambda: self._list(domain, request))
            case Prepared():  # takes no turn: each job that waits for memory asks twice a second
                return await self._prepared((domain, request.job.key), request.vnodes)
            case Report():
                self._reports.enter(domain, lambda: self._report(domain, request))
            case _:
                assert_never(request)
        return {"ok": True}

    def closed(self) -> Mapping[str, frozenset[JobClass]]:
        """By domain, the classes of which it takes no jobs for a moment."""
        return self._closures.closed(self._daemon.now())

    def _close_for(self, domain: str, key: JobKey, cls: JobClass) -> None:
        """A job was refused. If PBS would try it again at once, publish for a while that the domain takes none."""
        daemon, found, now = self._daemon, self._daemon.host.domain(domain), self._daemon.now()
        if not is_subjob(key.id) or found is None or cls not in accepts(daemon.host, found):
            return
        until = self._closures.refused(domain, cls, now)
        if until is None:
            return
        limited_log.say(domain, f"{domain}: takes no {cls} jobs for {until - now:g} s: it has refused subjob {key}")
        daemon.actual_changed()

        def open_again() -> None:
            self._openings.discard(opening)
            daemon.actual_changed()

        opening = asyncio.get_running_loop().call_later(until - now, open_again)
        self._openings.add(opening)

    async def _enter(self, domain: str, event: Callable[[float], ev.Event]) -> tuple[ev.Decision, ...]:
        """Make what happened at that time a fact, in the domain's turn."""
        daemon = self._daemon
        async with self._turns.turn(domain) as spend:
            before = daemon.host
            decisions = daemon.apply(event(daemon.now()))
            spend(self._cost(domain) if differs(before, daemon.host) else UNCHANGED)
        return decisions

    def _cost(self, domain: str) -> float:
        """What a change of its facts counts. All of the domain's jobs are written with each."""
        found = self._daemon.host.domain(domain)
        return max(1.0, len(found.jobs) / JOBS_PER_CHANGE) if found is not None else 1.0

    async def _claim(self, domain: str, request: Claim) -> Reply:
        asked = time.monotonic()
        end = asyncio.get_running_loop().time() + DAEMON_CLAIM_S
        job, daemon, mark = request.job, self._daemon, (domain, request.job.key)
        self._to_enter[mark] += 1
        try:
            async with asyncio.timeout_at(end):
                refused = await self._claimed(domain, job)
        except TimeoutError:
            return refusal(RefusalCode.BUSY, f"{domain} claims and releases too many jobs; ask again later")
        finally:
            self._to_enter -= Counter([mark])
        if refused is not None:
            if refused.code is not RefusalCode.RELEASED:
                daemon.refused(domain, job.key, refused.code, refused.text)
            return refusal(refused.code, refused.text)
        known = self._job(mark)
        if known is None:
            return refusal(RefusalCode.RELEASED, f"{job.key} was released while it was claimed")
        granted = mark in self._granted or known.launched or known.confirmed
        if (
            not granted
            and (answer := await self._switched(mark, end, waits=job.prologue) or self._paused(mark)) is not None
        ):
            return answer
        self._granted = {m for m in self._granted if self._job(m) is not None} | {mark}
        daemon.observe("answer")
        took_ms = (time.monotonic() - asked) * 1000
        limited_log.say(domain, f"{domain}: claim of {job.key} granted after {took_ms:.1f} ms", level=logging.INFO)
        return {"ok": True}

    async def _claimed(self, domain: str, job: ClaimedJob) -> Refusal | None:
        """Make the claim a fact, after a question to a hub if that is needed. Returns a refusal if it is none."""
        daemon, mark = self._daemon, (domain, job.key)
        if self._inquiries.is_trusted(daemon.host, domain, daemon.now()) or self._job(mark) is not None:
            refused = await self._try(domain, job)
        else:
            refused = Refusal(RefusalCode.UNCONFIRMED, f"{domain} has claimed or listed jobs that are not there")
        if refused is not None and refused.code is RefusalCode.UNCONFIRMED:
            confirmed = await self._confirmation.given(mark)
            refused = self._unconfirmed(mark, confirmed.answer) or await self._try(domain, job, confirmed)
        if refused is not None:
            self._turns.spend(domain, 1)  # it is published
        return refused

    async def _try(self, domain: str, job: ClaimedJob, confirmed: Confirmed | None = None) -> Refusal | None:
        """Claim the job, with the size that PBS has confirmed, otherwise with the one that the guest says."""
        told = confirmed.size if confirmed is not None else None
        size = (job.cpus, job.memory_mib) if told is None else (told.cpus, told.mib)
        given = confirmed is not None

        def claim(now: float) -> ev.Event:
            asked = ev.Claimed(now, domain, job.key, job.cls, *size, job.rerunnable, given, job.keeps)
            return replace(asked, warning=job.wants, longest_warning_s=None if job.prologue else WITHOUT_PROLOGUE_S)

        decisions = await self._enter(domain, claim)
        refused = (d for d in decisions if isinstance(d, ev.Refused) and d.key == job.key)
        return next((Refusal(d.code, d.text) for d in refused), None)

    async def _release(self, mark: Mark) -> None:
        """End the job, and a claim of it that waits for a hub: one that waits now, and one whose turn came before."""
        self._confirmation.withdraw(mark)
        await self._enter(mark[0], lambda now: ev.Released(now, *mark))
        self._confirmation.withdraw(mark)

    def _unconfirmed(self, mark: Mark, answer: Given) -> Refusal | None:
        """The refusal if PBS is not known to have given the job to the domain."""
        domain, key = mark
        match answer:
            case Given.YES:
                return None
            case Given.WITHDRAWN:
                return Refusal(RefusalCode.RELEASED, f"{key} was released while it was claimed")
            case Given.NO:
                text = f"PBS has not given {key} to {domain}"
                limited_log.say(domain, f"{domain}: claim of {key} refused: {text}")
                return Refusal(RefusalCode.NOT_GIVEN, text)
            case Given.TOO_MANY:
                text = f"{domain} claims too many jobs at once about which PBS must be asked"
                limited_log.say(domain, f"{domain}: claim of {key} refused: {text}; PBS is not asked")
                return Refusal(RefusalCode.UNCONFIRMED, text)
            case Given.UNKNOWN:
                text = f"no hub could ask PBS whether it has given {key} to {domain}"
                limited_log.say(domain, f"{domain}: claim of {key} refused: {text}")
                return Refusal(RefusalCode.UNCONFIRMED, text)

    def _job(self, mark: tuple[str, JobKey]) -> Any:
        found = self._daemon.host.domain(mark[0])
        return found.job(mark[1]) if found else None

    async def _switched(self, mark: tuple[str, JobKey], end: float, *, waits: bool) -> Reply | None:
        """Wait until the switch for this claim is done. Returns a refusal if that lasts beyond `end` (loop's time).

        `waits`: the job's MoM has the hook that waits in the prologue.
        """
        progress = self._daemon.switch.progress
        try:
            async with asyncio.timeout_at(end):
                while self._job(mark) is not None:
                    pending = progress.pending(mark[0])
                    if not isinstance(pending, Unstopped | CpuComing):
                        return await self._check_memory(mark, pending)
                    await progress.changed()
        except TimeoutError:
            if self._job(mark) is not None:
                return self._time_is_over(mark, waits=waits)
        return refusal(RefusalCode.RELEASED, f"{mark[1]} was released while it was claimed")

    def _time_is_over(self, mark: tuple[str, JobKey], *, waits: bool) -> Reply | None:
        """The time is over: a job that has not stopped refuses the claim. CPU that has not moved does not, nor do jobs
        that still have time after their warning, if the prologue `waits` for them."""
        daemon = self._daemon
        pending = daemon.switch.progress.pending(mark[0])
        if isinstance(pending, CpuComing):
            text = f"{mark[0]}: claim of {mark[1]} granted although CPU has not moved within {DAEMON_CLAIM_S:g} s"
            limited_log.say(mark[0], text)
        if not isinstance(pending, Unstopped):
            return None
        if waits and self._warned(pending) == pending.jobs:
            text = f"{mark[0]}: claim of {mark[1]} granted while {len(pending.jobs)} jobs have time after a warning"
            limited_log.say(mark[0], text, level=logging.INFO)
            return None
        late = sorted(f"{key} in {domain}" for domain, key in pending.jobs)
        text = f"not stopped within {DAEMON_CLAIM_S:g} s: {', '.join(late)}; see that domain's agent"
        limited_log.say(mark[0], f"{mark[0]}: claim of {mark[1]} refused: {text}")
        daemon.apply(ev.Released(daemon.now(), *mark))
        daemon.refused(*mark, RefusalCode.STOP_TIMEOUT, text)
        return refusal(RefusalCode.STOP_TIMEOUT, text)

    def _warned(self, pending: Unstopped) -> frozenset[tuple[str, JobKey]]:
        """Those of these jobs that still have time after a long warning: their MoM has the prologue hook."""
        host, now = self._daemon.host, self._daemon.now()
        known = {mark: self._job(mark) for mark in pending.jobs}
        asked = {mark: job for mark, job in known.items() if job is not None and job.warning is not None}
        long = {mark: job for mark, job in asked.items() if plan.warned_s(host, job.warning) > WITHOUT_PROLOGUE_S}
        untils = {mark: plan.warned_until(host, job) for mark, job in long.items()}
        return frozenset(mark for mark, until in untils.items() if until is not None and now < until + ORDER_S)

    async def _check_memory(self, mark: tuple[str, JobKey], lack: MemoryLack | None) -> Reply | None:
        """Everything but memory is there. Returns a refusal if the memory is known not to come."""
        daemon = self._daemon
        progress = daemon.switch.progress
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MEMORY_GLANCE_S):
                while isinstance(lack, MemoryComing) and self._job(mark) is not None:
                    await progress.changed()
                    lack = progress.lack(mark[0])
        if not isinstance(lack, MemoryShort):
            return None
        limited_log.say(mark[0], f"{mark[0]}: claim of {mark[1]} refused: {lack.why}")
        daemon.apply(ev.Released(daemon.now(), *mark))
        daemon.refused(*mark, RefusalCode.MEMORY_SHORT, lack.why)
        return refusal(RefusalCode.MEMORY_SHORT, lack.why)

    def _paused(self, mark: tuple[str, JobKey]) -> Reply | None:
        """Returns a refusal if the host is paused and the domain would have to be given CPUs or memory first."""
        daemon = self._daemon
        pause = daemon.host.paused
        if pause is None or not plan.lacks(daemon.host, daemon.switch.actual(), mark[0]):
            return None
        daemon.apply(ev.Released(daemon.now(), *mark))
        text = f"{mark[0]} would have to be given CPUs or memory, but {daemon.host.name} is paused ({pause.reason})"
        daemon.refused(*mark, RefusalCode.PAUSED, text)
        return refusal(RefusalCode.PAUSED, text)

    async def _prepared(self, mark: tuple[str, JobKey], vnodes: list[str]) -> Reply:
        """Whether all parts of the job have their memory. The prologue hook of the first part asks until they have."""
        daemon, (domain, key) = self._daemon, mark
        gone = refusal(RefusalCode.UNKNOWN_JOB, f"{domain} has no {key}; it was released, or never claimed")
        if self._job(mark) is None:
            return gone
        reported = await daemon.parts_elsewhere(domain, key, vnodes)
        if self._job(mark) is None:
            return gone
        silence = Unready(Stage.UNHEARD, "no hub answers, and only a hub knows of the job's other hosts")
        elsewhere = (silence,) if reported is None else reported
        parts = (*self._parts_here(key), *elsewhere)
        if (why := held_back(parts, self._unheard_s(mark, elsewhere), hub=reported is not None)) is not None:
            self._note_waiting(mark, "")
            daemon.refused(domain, key, why.code, why.text)
            if (job := self._job(mark)) is not None:
                self._close_for(domain, key, job.cls)
            return refusal(why.code, why.text)
        if not parts:
            self._note_waiting(mark, "")
            return {"ok": True, "ready": True}
        text = f"{WAITS[bool(self._warnings())]}: {', '.join(part.text for part in parts)}"[:4096]
        self._note_waiting(mark, text)
        return {"ok": True, "ready": False, "text": text}

    def _parts_here(self, key: JobKey) -> tuple[Unready, ...]:
        """The job's parts on this host that are not ready."""
        progress = self._daemon.switch.progress
        how_far = progress.how_far()
        names = (d.name for d in self._daemon.host.domains if d.job(key) is not None)
        parts = [*self._warnings(), *(unready(progress.lack(name), how_far or name) for name in names)]
        return tuple(part for part in parts if part is not None)

    def _warnings(self) -> tuple[Unready, ...]:
        """What a job waits for if jobs that must stop have been warned first."""
        host, pending = self._daemon.host, self._daemon.switch.progress.unstopped()
        asked = [job for mark in pending.jobs if (job := self._job(mark)) is not None and job.warning is not None]
        if not asked:
            return ()
        left_s = max(0.0, *((plan.warned_until(host, job) or 0.0) - self._daemon.now() for job in asked))
        return (Unready(Stage.COMING, f"{len(asked)} of them stop within {left_s:.0f} s"),)

    def _unheard_s(self, mark: tuple[str, JobKey], parts: tuple[Unready, ...]) -> float:
        """For how long, from question to question, nothing has been known about some part."""
        if all(part.stage is not Stage.UNHEARD for part in parts):
            self._unheard_since.pop(mark, None)
            return 0.0
        now = asyncio.get_running_loop().time()
        return now - self._unheard_since.setdefault(mark, now)

    def _note_waiting(self, mark: tuple[str, JobKey], text: str) -> None:
        """Note what the job waits for, for its owner; empty if for nothing."""
        before = self._waiting.pop(mark, "")
        if text:
            self._waiting[mark] = text
        if text != before:
            self._daemon.actual_changed()

    def waits(self) -> dict[tuple[str, JobKey], str]:
        """Jobs whose prologue waits for memory, and how far the memory is, for people."""
        there = {m for m in self._waiting if self._job(m) is not None}
        self._waiting = {m: text for m, text in self._waiting.items() if m in there}
        self._unheard_since = {m: at for m, at in self._unheard_since.items() if m in there}
        return dict(self._waiting)

    def _list(self, domain: str, said: Jobs) -> bool:
        """Enter MoM's list. Always True: even a list that changes nothing is compared with all jobs.

        A list that overtakes a claim does not make it a job that nobody has claimed: that would run at once. Nor does
        a list make a job of what PBS has denied.
        """
        daemon = self._daemon
        out = self._inquiries.left_out(daemon.host, domain, [job.key for job in said.jobs], daemon.now())
        reported = (job.reported() for job in said.jobs if job.key not in out)
        jobs = tuple(job for job in reported if (domain, job.key) not in self._to_enter)
        daemon.apply(ev.JobsReported(daemon.now(), domain, jobs))
        if out:
            self.inquirer.look_soon()
        return True

    def notes(self) -> list[str]:
        """What guests report that does not fit the configuration, for people."""
        return swap_notes(self._daemon.host.workers, self._swap)

    def _report(self, domain: str, report: Report) -> bool:
        """Enter what the guest says about its memory. Returns False if that is known.

        Stopped jobs lock nothing: while all are stopped, the figure only falls.
        """
        found, switch = self._daemon.host.domain(domain), self._daemon.switch
        if found is None:
            return False
        mib = -(-max(0, report.memory.unreclaimable_mib) // MEMORY_STEP_MIB) * MEMORY_STEP_MIB
        if found.stopped and not found.running:
            mib = min(mib, found.unreclaimable_mib)
        self._swap[domain] = report.memory
        mib = switch.stays_mib(domain, max(mib, keeps_mib(found, report.memory), switch.mover.kept_mib(domain)))
        if found.unreclaimable_mib == mib:
            return False
        self._daemon.apply(ev.MemoryReported(self._daemon.now(), domain, mib))
        return True
