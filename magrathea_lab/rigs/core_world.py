"""A host to which events happen, and everything that must be true after each of them.

The stateful test (test_core_events.py) and the long run (bench/core_events.py) both use `World.do`. A broken invariant
raises `Broken` with the events that led to it, as Python code for a test.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import replace
from pathlib import Path

from magrathea.core import events as ev
from magrathea.core import life, shares, states, stopping
from magrathea.core.caps import CapKind
from magrathea.core.machine import handle, next_deadline
from magrathea.core.model import (
    Amount,
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Mode,
    Patience,
    StoppedBy,
)
from magrathea.core.plan import desired

from . import core_oracle as oracle
from .core_comparison import REPEATABLE, at, same_facts, view
from .core_configurations import broken_by, configuration
from .core_giving_way import broken_in
from .core_independence import gives_back, independent
from .core_oracle import HIGH, LOW, PROTECTED


class Broken(AssertionError):
    """An invariant is broken; the text has the events that led to it."""


class World:
    """A host and its history. `thorough`: after each event try every claim, not just one."""

    def __init__(self, host: Host, *, thorough: bool = True) -> None:
        self.first = self.host = at(host, host.now)  # facts that follow from others are there from the first event on
        self.story: list[ev.Event] = []
        self.thorough = thorough
        self._turn = 0
        self._facts_make_sense(self.host)
        self._published_is_answered(self.host)

    def do(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        """The machine's decisions on `event`. Raises Broken, also if the core raises an exception."""
        self.story.append(event)
        try:
            return self._do(event)
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            self._must(False, f"{type(error).__name__}: {error} at {_where(error)}")
            raise

    def _do(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        before = self.host
        calm = at(before, event.at)
        after, decisions = handle(before, event)
        self._must(after.now == max(before.now, event.at), "time goes on with the event")
        self._facts_make_sense(after)
        self._handed_out(calm, after, event)
        self._answer(calm, after, event, decisions)
        self._twice(calm, after, event, decisions)
        self._published_is_answered(after)
        if self.thorough or self._turn % 4 == 0:
            self._time_in_two_steps(after)
        self.host = after
        return decisions

    def _must(self, holds: bool, what: str) -> None:
        if not holds:
            story = "\n  ".join(repr(e) for e in self.story)
            raise Broken(f"{what}\nfrom {self.first!r}\nby\n  {story}\nto {self.host!r} before the last")

    # What must be true of facts at any time

    def _facts_make_sense(self, h: Host) -> None:
        for d in h.domains:
            self._must([j.key for j in d.jobs] == sorted({j.key for j in d.jobs}), "jobs are sorted and unique")
            self._must(len({j.key.id for j in d.jobs}) == len(d.jobs), "one run of a job at a time")
            for j in d.jobs:
                self._must((j.stopper is None) == (j.stopped_since is None), "stopped by somebody since some time")
                sleeps = d.sleep is not None or d.woken_at is not None
                ours = j.stopper is StoppedBy.US
                self._must(not ours or sleeps or j.cls is LOW, "only preemptible jobs are stopped by us")
                self._must(not ours or sleeps or not j.keeps, "nor those that keep what is protected")
                self._must(j.confirmed or h.now < j.claimed_at + h.limits.claim_s, "no claim outlives its time")
                self._must(j.cpus >= 0 and j.memory_mib >= 0, "no negative job")
            down = d.lifecycle is Lifecycle.DOWN and d.sleep is None
            self._must(not d.jobs or not down, "a domain that is down and does not sleep has no jobs")
            self._sleep_makes_sense(h, d)
            self._must(not d.jobs or not d.frozen, "a frozen domain has no jobs")
            self._must(not d.jobs or d.kind is not Kind.SERVICE, "a service has no jobs")
            self._must(not d.frozen or d.kind is Kind.PRIORITY, "only priority domains are frozen")
            self._must(d.lifecycle is not Lifecycle.BOOTING or h.now < (d.boot_until or 0), "no boot for ever")
            self._must((d.lifecycle is Lifecycle.BOOTING) == (d.boot_until is not None), "only boots have a limit")
            needed = bool(d.jobs) or d.sleep is not None
            self._must(d.configured or needed, "what is not configured is there for its jobs' sake, or sleeps")
            self._must(d.linger_until is None or d.kind is Kind.PRIORITY, "only priority domains linger")
            self._must(not d.saving or d.lifecycle is Lifecycle.UP, "only what is up is being saved")
            self._must(not d.paused_externally or d.lifecycle is Lifecycle.UP, "only what is up is paused")
            if d.closing:
                self._must(not d.saving and not d.frozen and d.sleep is None, "nothing goes down and is saved")
                idle = d.closing.patience is Patience.IDLE
                self._must(not idle or bool(d.jobs), "what waits for an idle moment has jobs")
                self._must(d.kind is not Kind.SERVICE, "services are left alone")
        wanted = stopping.wanted_stopped(h)
        stopped = {(d.name, j.key) for d in h.domains for j in d.stopped}
        self._must(wanted <= stopped, "what must stop is marked as stopped at once")
        if h.mode is Mode.EXCLUSIVE or not any(j.memory_mib for d in h.domains for j in d.jobs):
            expected = oracle.must_not_run(h)
            self._must({(n, k.id) for n, k in wanted} == expected, f"to be stopped: {wanted}, by the rules {expected}")
        here = stopping.wanted_here(h)
        held = {(d.name, j.key) for d in h.domains for j in d.jobs if j.held_elsewhere}
        self._must(wanted - held <= here, "what is stopped for nobody else's sake is our own wish")
        for what in broken_in(h):
            self._must(False, what)
        self._progress(h, wanted)
        self._exclusive_use(h)
        self._desired_fits(h)

    def _progress(self, h: Host, wanted: frozenset[tuple[str, JobKey]]) -> None:
        """If nothing is in the way, every stopped job is continued; on a paused host no job is."""
        if h.paused:
            self._must({k for _, k in wanted} == {k for _, k in self._stopped(h)}, "paused: what is stopped stays so")
            return
        jobs = [j for d in oracle.workers(h) if d.sleep is None for j in d.jobs]
        keeping = any(oracle.lingering(h, d) or oracle.is_restored(d) for d in h.domains)
        keeping = keeping or any(d.sleep is not None and not oracle.asleep(d) for d in h.domains)
        in_the_way = keeping or any(j.held_elsewhere or not oracle.ours(j) for j in jobs)
        wanted = frozenset(one for one in wanted if (h.domain(one[0]) or h.domains[0]).sleep is None)
        waiting = [d.name for d in h.domains if oracle.wants_back(d) and not oracle.must_ask(h, d)]
        if not jobs and not keeping and h.driver_lost_at is None:
            self._must(not waiting, f"with nothing in the way {waiting} sleep on")
        if jobs and not in_the_way:
            self._must(len(wanted) < len(jobs), "with nothing in the way somebody goes on")
            first = any(j.cls is HIGH for d in h.domains for j in oracle.with_a_place(d))
            if h.mode is Mode.EXCLUSIVE and not first:
                self._must(not wanted, "with nothing in the way everybody goes on")

    def _exclusive_use(self, h: Host) -> None:
        """On an exclusive host no preemptible job runs beside a priority job, unless an agent continued one during a
        pause. What keeps a protected resource is never stopped, even if the host has become exclusive meanwhile."""
        if h.mode is Mode.COUNTED or h.paused:
            return
        for p in oracle.workers(h):
            if any(j.cls is HIGH for j in (*oracle.running(p), *oracle.with_a_place(p))):
                beside = [j for s in oracle.siblings(h, p) if s.kind is Kind.NORMAL for j in oracle.running(s)]
                stoppable = [j for j in beside if j.cls is LOW and not j.keeps]
                free_running = [j for j in stoppable if j.stopper is None and not j.ending]
                self._must(not free_running, f"beside a priority job in {p.name} run {free_running}")

    def _desired_fits(self, h: Host) -> None:
        """CPUs and memory assigned never exceed the host's, unless its jobs themselves do."""
        total, used = h.without_services, [d.use for d in self._as_they_go_on(h)]
        floors = sum(d.floor_mib for d in h.workers)
        wants = desired(h)
        # Who is started by somebody else takes its memory at once, also what a sibling is still to give by a sleep
        early = any(oracle.yields(d) for d in h.workers) and any(d.woken_at is not None for d in h.workers)
        if sum(u.mib for u in used) + floors <= total.mib and not early:
            given = sum(w.memory_mib or 0 for w in wants.values())
            away = sum(d.floor_mib for d in h.workers if d.name not in wants)
            self._must(given + away <= total.mib, f"{given} + {away} MiB are handed out of {total.mib}")
        if h.mode is Mode.COUNTED and sum(u.cpus for u in used) <= total.cpus:
            # A domain whose running jobs have no CPUs may use one, and takes it from nobody's share
            need = {d.name for d, use in zip(h.workers, used, strict=True) if use.cpus}
            shares = {name: w.cap.percent or 0 for name, w in wants.items() if w.cap.kind is CapKind.SHARE}
            self._must(all(shares[name] <= 100 for name in shares.keys() - need), f"of no use: {shares}")
            share = sum(percent for name, percent in shares.items() if name in need)
            self._must(share <= 100 * total.cpus, f"{share} % are handed out of {total.cpus} CPUs")

    @staticmethod
    def _as_they_go_on(h: Host) -> tuple[Domain, ...]:
        """The domains after all jobs that may continue have been continued.

        On an exclusive host this only differs from now if several domains have jobs to run. A claim cannot cause that,
        but MoM's list can, if jobs are on their way back. On a counted host that has become too small for a stopped
        job, the job continues nevertheless, alone.
        """
        wanted = stopping.wanted_stopped(h)
        active = [d for d in h.workers if any((d.name, j.key) not in wanted for j in d.jobs)]
        if h.mode is Mode.EXCLUSIVE and len(active) <= 1:
            return h.workers
        return tuple(
            replace(d, jobs=tuple(j if (d.name, j.key) in wanted else _continued(j) for j in d.jobs)) for d in h.workers
        )

    def _sleep_makes_sense(self, h: Host, d: Domain) -> None:
        if d.sleep is None:
            self._must(d.woken_at is None or any(oracle.ours(j) for j in d.jobs), "what has woken has jobs to continue")
            return
        self._must(d.kind is not Kind.SERVICE, "a service does not sleep")
        self._must(not d.frozen and not d.saving, "a domain is frozen or sleeps")
        self._must(d.woken_at is None, "a domain sleeps or has woken")
        if oracle.away(d):
            self._must(all(j.stopper for j in d.jobs), "a sleeping job is stopped")
            self._must(all(j.confirmed for j in d.jobs), "nothing provisional sleeps")
            self._must(d.use == d.use_when_stopped == Amount(0, 0), "what sleeps holds nothing")
        step = life.step(h, d, life.Seen(up=True, was_up=True, agent=True))
        if isinstance(step, life.Save):
            past = d.sleep.books_until is not None and h.now >= d.sleep.books_until
            safe = (j.stopper is StoppedBy.PBS or (oracle.ours(j) and (j.booked or past)) for j in d.jobs)
            self._must(oracle.falling(d) and all(safe), "what is saved is stopped, and PBS has it suspended")
            self._must(not any(j.ending or not j.confirmed for j in d.jobs), "nothing is saved that starts or ends")

    # What an event may do

    def _handed_out(self, calm: Host, after: Host, event: ev.Event) -> None:
        if after.paused:
            stopped = self._stopped(after) - self._stopped(calm)
            self._must(not stopped, f"on a paused host nobody is stopped: {stopped}")
        let_go = after.paused and isinstance(event, ev.JobsContinued)
        told_of_sizes = isinstance(event, ev.JobsReported | ev.JobsGiven)
        if after.mode is Mode.COUNTED and not told_of_sizes and not let_go:
            most = max(oracle.cpus_for_jobs(after), oracle.cpus_in_use(oracle.workers(calm)))
            # A job that was stopped continues even if the host is now too small for it, but then alone
            alone = isinstance(event, ev.JobsContinued) and sum(bool(d.running) for d in after.workers) == 1
            self._must(alone or oracle.cpus_in_use(oracle.workers(after)) <= most, "more CPUs run than there are")
            memory = after.without_services.mib - sum(d.floor_mib for d in after.workers)
            was = sum(d.use.mib for d in calm.workers)
            told = ev.MemoryReported | ev.BooksReported | ev.Reconfigured
            late = isinstance(
                event, ev.DomainStarted
            )  # after its boot has failed, or by somebody else: nobody was asked
            if not alone and not late and not isinstance(event, told):
                leaves = sum(d.use.mib for d in after.workers if oracle.yields(d))
                used = sum(d.use.mib for d in after.workers) - leaves
                self._must(used <= max(memory, was), "more memory than there is")
        woken = [d for d in after.domains if oracle.away(d) and not oracle.asleep(d) and self._slept(calm, d.name)]
        cpus = {d.name: sum(j.cpus for j in oracle.going_on(d)) for d in woken}
        exclusive = after.mode is Mode.EXCLUSIVE
        woken = [d for d in woken if (d.jobs if exclusive else cpus[d.name])]  # who needs no room may wake without any
        if woken and after.mode is Mode.COUNTED and not isinstance(event, ev.DomainBooting):
            busy = [d for d in after.workers if oracle.running(d) or oracle.with_a_place(d)]
            taken = sum(j.cpus for d in busy for j in (*oracle.running(d), *oracle.with_a_place(d)))
            self._must(taken <= oracle.cpus_for_jobs(after) or len(busy) <= 1, f"no room for {woken[0].name} to wake")
        if woken and after.mode is Mode.EXCLUSIVE and not isinstance(event, ev.DomainBooting):
            busy = [d for d in after.workers if oracle.running(d) or oracle.with_a_place(d)]
            self._must(len(busy) <= 1, f"{woken[0].name} wakes beside jobs")
        gives_up_sleep = isinstance(event, ev.DefrostRequested) and any(
            oracle.falling(d) for d in calm.domains if d.name == event.domain
        )
        if isinstance(event, ev.Claimed | ev.DefrostRequested) and not gives_up_sleep and not gives_back(calm, event):
            going_on = {k for k in self._stopped(calm) if k not in stopping.wanted_stopped(calm)}
            now_on = {k for k in self._stopped(after) if k not in stopping.wanted_stopped(after)}
            self._must(now_on <= going_on, f"a claim resumes nobody: {now_on - going_on}")

    @staticmethod
    def _slept(h: Host, name: str) -> bool:
        domain = h.domain(name)
        return domain is not None and oracle.asleep(domain)

    @staticmethod
    def _stopped(h: Host) -> set[tuple[str, JobKey]]:
        return {(d.name, j.key) for d in h.domains for j in d.jobs if oracle.ours(j)}

    def _answer(self, calm: Host, after: Host, event: ev.Event, decisions: tuple[ev.Decision, ...]) -> None:
        refused = [d for d in decisions if isinstance(d, ev.Refused)]
        accepted = [d for d in decisions if isinstance(d, ev.Accepted)]
        asks = ev.Claimed | ev.DefrostRequested | ev.BootRequested | ev.ShutdownRequested | ev.SleepRequested
        if isinstance(event, asks):
            self._must(len(refused) + len(accepted) == 1, "a claim or an admin's wish has one answer")
        if refused:
            self._must(after == calm, f"what is refused ({refused[0].code}) changes nothing but the time")
            self._must(bool(refused[0].code and refused[0].text), "a refusal says why")
        if isinstance(event, ev.DomainEvent) and calm.domain(event.domain) is None:
            self._must(bool(refused) and after == calm, "an unknown domain is refused")
        if isinstance(event, ev.Reconfigured):
            for what in broken_by(calm, after, event, decisions):
                self._must(False, what)
        if isinstance(event, ev.Claimed) and accepted:
            self._accepted(calm, after, event, accepted[0])
        if isinstance(event, ev.Claimed):
            self._costs_siblings(calm, event, decisions)
        gone = {(d.name, j.key) for d in calm.domains for j in d.jobs}
        gone -= {(d.name, j.key) for d in after.domains for j in d.jobs}
        noted = {(d.domain, d.key) for d in decisions if isinstance(d, ev.Noted) and d.key}
        self._must(gone <= noted, f"the end of {gone - noted} is not told")
        if not isinstance(event, ev.Released | ev.JobsDenied | ev.ImageLost):
            slept = {name for name, _ in gone if oracle.away(calm.domain(name) or calm.domains[0])}
            self._must(not slept, f"sleeping jobs of {slept} are released by {type(event).__name__}")

    def _costs_siblings(self, calm: Host, event: ev.Claimed, decisions: tuple[ev.Decision, ...]) -> None:
        """A claim that PBS was not asked about is refused if, and only if, it would cost a sibling something."""
        was = calm.domain(event.domain)
        if was is None or was.job(event.key) is not None:
            return
        unconfirmed = any(ev.is_question(d) for d in decisions)
        self._must(not (event.given and unconfirmed), "what PBS has given needs no question")
        if event.given:
            return
        asked = next((d for d in handle(calm, replace(event, given=True))[1] if isinstance(d, ev.Accepted)), None)
        others = replace(calm, domains=tuple(s for s in calm.domains if s.name != was.name))
        siblings_stopped = oracle.line_closed(others)
        costs = asked is not None and bool(asked.victims or siblings_stopped)
        self._must(unconfirmed == costs, f"it would cost siblings {costs}, and must be confirmed: {unconfirmed}")

    def _accepted(self, calm: Host, after: Host, event: ev.Claimed, answer: ev.Accepted) -> None:
        here, was = after.domain(event.domain), calm.domain(event.domain)
        assert here and was
        self._must(here.job(event.key) is not None, "an accepted job is there")
        if was.job(event.key):
            self._must(after == calm, "a repeated claim changes nothing")
            return
        self._must(event.cpus >= 0 and event.memory_mib >= 0, "impossible numbers are refused")
        self._must(event.cls in oracle.TAKES[was.kind], "a domain takes classes of its kind")
        for name in answer.victims:
            victim = calm.domain(name)
            self._must(victim is not None and oracle.stoppable(calm, victim), f"{name} could not be stopped")
            self._must(not oracle.running(after.domain(name)), f"{name} is not stopped as a whole")  # type: ignore[arg-type]
        stopped_now = {name for name, _ in self._stopped(after) - self._stopped(calm)}
        self._must(stopped_now <= set(answer.victims), "only victims are stopped")
        if after.mode is Mode.EXCLUSIVE:
            beside = [j for s in oracle.siblings(after, here) for j in oracle.running(s)]
            self._must(not beside, f"{event.key} was let in beside {beside}")
            return
        n, run = oracle.cpus_for_jobs(after), oracle.cpus_in_use(oracle.workers(after)) + oracle.kept_from(after, here)
        # A job without CPUs takes nothing, and may start where jobs have more than there is, by PBS's word
        self._must(run <= n or not event.cpus, f"{run} of {n} CPUs are taken after a claim")
        if event.cls is PROTECTED and event.cpus:
            self._must(run + oracle.reserved(after) <= n, "a protected job does not borrow")
        plain = all(d.floor_mib == d.swap_mib == d.unreclaimable_mib == d.memory_mib == 0 for d in calm.domains)
        if plain and not any(j.memory_mib for d in calm.domains for j in d.jobs) and event.memory_mib == 0:
            known = was.job_of(event.key.id)
            if known is None:
                best = oracle.best_victims(calm, was, event.cpus) if event.cls is HIGH and event.cpus else ()
                self._must(answer.victims == best, f"victims {answer.victims}, best are {best}")

    def _twice(self, calm: Host, after: Host, event: ev.Event, decisions: tuple[ev.Decision, ...]) -> None:
        if isinstance(event, REPEATABLE) and not _boots_again(calm, event):
            again, repeated = handle(after, event)
            self._must(again == after, f"a repeated {type(event).__name__} changes something")
            if isinstance(event, ev.Claimed):
                codes = [
                    [getattr(d, "code", "accepted") for d in ds if not isinstance(d, ev.Noted)]
                    for ds in (decisions, repeated)
                ]
                self._must(codes[0] == codes[1], f"a repeated claim is answered otherwise: {codes}")

    # What is published

    def _picked(self, h: Host) -> tuple[Domain, ...]:
        return h.domains if self.thorough else (h.domains[self._turn % len(h.domains)],)

    def _published_is_answered(self, h: Host) -> None:
        self._turn += 1
        for d in self._picked(h):
            state, accepts = states.state_of(h, d), set(states.accepts(h, d))
            self._must(state is oracle.state(h, d), f"{d.name} is {state}, by the table {oracle.state(h, d)}")
            self._must(accepts == oracle.accepts(h, d), f"{d.name}: {accepts}, by the table {oracle.accepts(h, d)}")
            for cls in JobClass:
                claim = ev.Claimed(h.now, d.name, JobKey("probe", 1), cls, 1)
                new, decisions = handle(h, claim)
                ok = any(isinstance(decision, ev.Accepted) for decision in decisions)
                self._must(ok == (cls in accepts), f"{d.name} publishes {accepts}, a claim of {cls}: {decisions[-1]}")
                self._must(ok or new == h, "a refused claim changes nothing")
            for cls in oracle.TAKES[d.kind]:
                share = shares.share(h, d, cls).cpus
                self._must(share == oracle.share(h, d, cls), f"{d.name}: share {share} of {cls}")
            size = states.published(h, d)
            # an existing job may exceed the CPUs of a host that was made smaller
            most = max(h.cpus, oracle.cpus_in_use([d]))
            self._must(0 <= size.cpus <= most and size.mib >= 0, f"{d.name} publishes {size}")
            if accepts:
                in_use = oracle.cpus_in_use([d])
                self._must(in_use + 1 <= size.cpus, f"{d.name} accepts and publishes {size.cpus} CPUs, {in_use} in use")
            self._must(-1024 <= states.rank(h, d) <= 1023, "a rank fits into a vnode's Priority")
            self._must(bool(states.why(h, d)), "there is a sentence for people")

    def _time_in_two_steps(self, h: Host) -> None:
        """Nothing changes before the next deadline, and waiting in two steps is the same as waiting once."""
        due, names = next_deadline(h), [d.name for d in self._picked(h)]
        if due is None:
            later = at(h, h.now + 100_000)
            same = replace(later, now=h.now) == h and view(later, names) == view(h, names)
            self._must(same, "no deadline, yet time changes it")
            return
        self._must(due > h.now, "a deadline is in the future")
        between = at(h, (h.now + due) / 2)
        self._must(replace(between, now=h.now) == h, "the facts change before the next deadline")
        self._must(view(between, names) == view(h, names), "what is published changes before the next deadline")
        far = h.now + 50
        self._must(at(between if between.now <= far else h, far) == at(h, far), "time in two steps is another time")

    # Actions between events

    def restart(self, *, agents_back: bool = True) -> None:
        """Restart the daemon from its journal. If `agents_back`, hub and agents that were connected return at once."""
        before = self.host
        kept: Host = pickle.loads(pickle.dumps(before))
        self._must(kept == before, "facts survive being written down")
        connected = [d.name for d in kept.domains if d.agent_lost_at is None]
        back: list[ev.Event] = [configuration(kept, kept.now), ev.DaemonStarted(kept.now)]
        if agents_back:
            back += [ev.AgentConnected(kept.now, name) for name in connected]
            back += [] if before.hub_lost else [ev.HubFound(kept.now)]
        for event in back:
            self.do(event)
        if agents_back:
            away = {d.name for d in before.domains} - set(connected)
            expected = replace(
                before,
                domains=tuple(replace(d, agent_lost_at=before.now) if d.name in away else d for d in before.domains),
            )
            self._must(same_facts(self.host, expected), "a restart changes facts")

    def swap(self, one: ev.Event, two: ev.Event) -> None:
        """If two events are independent, their order changes neither the facts nor the answers."""
        if not independent(self.host, one, two):
            return
        ways = []
        for first, second in ((one, two), (two, one)):
            middle, said = handle(self.host, first)
            last, more = handle(middle, second)
            ways.append((last, {repr(d) for d in (*said, *more) if not isinstance(d, ev.Noted)}))
        self.story += [one, two]
        self._must(same_facts(ways[0][0], ways[1][0]), "swapped, they lead elsewhere")
        self._must(ways[0][1] == ways[1][1], f"swapped, they are answered otherwise: {ways[0][1]} {ways[1][1]}")
        del self.story[-2:]

    def calm_down(self) -> None:
        """End every running job, lift all holds, find the hub, let every deadline pass: then every stopped job must
        continue."""
        h = at(handle(self.host, ev.PauseEnded(self.host.now))[0], self.host.now + 100_000)
        h = handle(handle(h, ev.BooksReported(h.now, ()))[0], ev.DriverFound(h.now))[0]
        h = handle(h, ev.HubFound(h.now))[0]
        for _ in range(1 + sum(1 + len(d.jobs) for d in h.domains)):
            h = self._woken(h)
            for d in h.domains:
                for j in oracle.running(d):
                    h = handle(h, ev.Released(h.now, d.name, j.key))[0]
            h = at(h, h.now + 100_000)
            stopped = self._stopped(h)
            wanted = stopping.wanted_stopped(h)
            if not stopped and not any(d.sleep for d in h.domains):
                return
            h = self._woken(h)
            awake = [(name, key) for name, key in stopped if (h.domain(name) or h.domains[0]).sleep is None]
            wanted = stopping.wanted_stopped(h)
            self._must(not stopped or wanted < stopped or len(awake) < len(stopped), f"{wanted} are stopped for ever")
            line = [d.name for d in stopping.in_line(h)]  # where memory is short, the first may go on alone
            for name, key in sorted(stopped - wanted, key=lambda one: (line.index(one[0]), one[1])):
                h, said = handle(h, ev.JobsContinued(h.now, name, (key,)))
                self._must(not any(isinstance(d, ev.Refused) for d in said), f"{key} may go on and may not: {said}")
        self._must(not self._stopped(h), "somebody is stopped for ever")
        self._must(not any(d.sleep for d in h.domains), "somebody sleeps for ever")

    @staticmethod
    def _woken(h: Host) -> Host:
        """Everybody is asked to come back, after it was configured again; whose turn it is, does."""
        h = h.having(*(replace(d, configured=True) for d in h.domains if d.sleep is not None))
        for name in [d.name for d in h.domains if d.sleep is not None]:
            h = handle(h, ev.DefrostRequested(h.now, name, h.now + 60))[0]
            h = handle(h, ev.SleepEnded(h.now, name))[0]
            if (h.domain(name) or h.domains[0]).waking:
                h = handle(h, ev.DomainStarted(h.now, name))[0]
        return h


def _continued(j: Job) -> Job:
    return replace(j, stopper=None, stopped_since=None) if oracle.ours(j) else j


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-3:])


def _boots_again(h: Host, event: ev.Event) -> bool:
    """True if the domain goes down in order to restart. If it goes down once more, it stays down."""
    domain = h.domain(event.domain) if isinstance(event, ev.DomainStopped) else None
    return domain is not None and domain.closing is not None and domain.closing.reboot
