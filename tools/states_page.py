"""Write docs/states.md from the core itself: `python -m tools.states_page [--check]`.

A breadth-first search over events finds what each state accepts, and which event leads from which state to which. It
starts from a host of three domains, in both modes. Before two hosts are compared, facts that only count or date
something are made equal (`normal`), so the search ends. Nothing in it is random.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from magrathea.core import events as ev
from magrathea.core import states
from magrathea.core.machine import handle
from magrathea.core.model import (
    CLASSES_OF,
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Mode,
    Pause,
    SleepCause,
    State,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "states.md"

NOW = 10_000.0
LONG_AGO = NOW - 5_000.0
HOST_CPUS, JOB_CPUS = 4, 2
LIMITS = Limits(linger_s=20.0)
WAITS_S = (6.0, 25.0, 35.0, 65.0, 150.0)
"""Steps of time, each beyond one kind of deadline: minimum run, linger, silent agent, claim, boot."""

KINDS = ("normal", "normal", "priority")
MOST_HOSTS = 800
"""Hosts explored in each mode, those with the shortest histories. Four times as many found two per cent more
transitions.
"""

WHEN = {
    State.FROZEN: "priority; saved to disk, until the restore begins or the image is lost",
    State.ASLEEP: "saved to disk with its jobs, which hold nothing; until its restore begins or the image is lost",
    State.DOWN: "not running; its jobs are released",
    State.BOOTING: "boots or is restored from disk, at most for its time limit",
    State.UNKNOWN: "up, but its agent has been silent too long, or somebody else has paused it; its jobs stay counted",
    State.FAULT: "a step failed beyond retry; `magrathea clear` ends it",
    State.PREEMPTED: "has jobs that Magrathea stopped, because of this host or another host of the job",
    State.DRAINING: "finishes its jobs and takes no more; also until it is saved to disk, with its jobs or without",
    State.RUNNING_PRIORITY: "priority, has jobs",
    State.RUNNING_PREEMPTIBLE: "normal, has jobs, and all of them can be stopped now",
    State.RUNNING: "normal, has jobs, and at least one cannot be stopped now",
    State.FREE: "no jobs; exclusive: nothing blocks it; counted: CPUs are free without stopping anybody",
    State.WOULD_PREEMPT: "priority, no jobs; exclusive: all that blocks it can be stopped; counted: a stop frees CPUs",
    State.OCCUPIED: "anything else: the host is in use",
}

WORDS = {
    ev.Claimed: "claim",
    ev.Released: "job ends",
    ev.JobLaunched: "job launched",
    ev.JobsContinued: "job continued",
    ev.JobsReported: "MoM's list",
    ev.JobsGiven: "PBS has given a job",
    ev.JobsDenied: "PBS has no such job",
    ev.BooksReported: "hub's books",
    ev.HubLost: "hub lost",
    ev.HubFound: "hub found",
    ev.Reconfigured: "reconfigured",
    ev.PauseRequested: "pause",
    ev.PauseEnded: "unpause",
    ev.AgentConnected: "agent connected",
    ev.AgentLost: "agent lost",
    ev.DomainBooting: "boot",
    ev.DomainStarted: "domain up",
    ev.DomainStopped: "domain down",
    ev.DomainHalted: "paused by others",
    ev.DomainWentOn: "continued by others",
    ev.BootRequested: "boot requested",
    ev.ShutdownRequested: "shutdown requested",
    ev.FreezeRequested: "freeze",
    ev.SleepRequested: "sleep",
    ev.SleepEnded: "sleep given up",
    ev.FreezeEnded: "saved",
    ev.DefrostRequested: "restore",
    ev.ImageLost: "image lost",
    ev.DrainRequested: "drain",
    ev.DrainEnded: "drain ended",
    ev.Faulted: "fault",
    ev.FaultCleared: "fault cleared",
    ev.TimerFired: "time",
}

Key = tuple[object, ...]
Change = tuple[Kind, State, State]


@dataclass
class Found:
    """What the search has found."""

    hosts: int = 0
    complete: bool = True
    accepts: dict[tuple[State, Kind, Mode], set[tuple[JobClass, ...]]] = field(default_factory=dict)
    changes: dict[Change, dict[Mode, set[str]]] = field(default_factory=dict)


def first_host(mode: Mode) -> Host:
    built = tuple(
        Domain(f"{kind[0]}{number}", Kind(kind), HOST_CPUS, lifecycle=Lifecycle.UP, agent_lost_at=None)
        for number, kind in enumerate(KINDS, 1)
    )
    return Host("host", mode, HOST_CPUS, 1_000, built, LIMITS, now=NOW)


def normal(host: Host) -> Host:
    """The same situation, with only a few values for times and counters."""
    paused = Pause(NOW, "pause") if host.paused else None
    return replace(host, now=NOW, paused=paused, domains=tuple(_normal_domain(host, d) for d in host.domains))


def _normal_domain(host: Host, d: Domain) -> Domain:
    silent = d.agent_lost_at is not None and host.now >= d.agent_lost_at + LIMITS.agent_silent_s
    lost = None if d.agent_lost_at is None else LONG_AGO if silent else NOW
    jobs = tuple(_normal_job(host, j) for j in d.jobs)
    young = any(j.run_since == NOW for j in jobs)
    return replace(
        d,
        agent_lost_at=lost,
        boot_until=None if d.boot_until is None else NOW + 100.0,
        linger_until=None if d.linger_until is None else NOW + LIMITS.linger_s,
        young_since=NOW if young else None,
        overtaken_since=None,
        preempted_s=0.0,
        ended=(),
        jobs=jobs,
        closing=replace(d.closing, since=NOW) if d.closing else None,
        down_why="",
        sleep=replace(d.sleep, since=LONG_AGO) if d.sleep else None,
        woken_at=None if d.woken_at is None else NOW,
    )


def _normal_job(host: Host, job: Job) -> Job:
    young = host.now < job.run_since + LIMITS.min_run_s
    return replace(
        job,
        claimed_at=LONG_AGO if job.confirmed else NOW,
        run_since=NOW if young else LONG_AGO,
        stopped_since=None if job.stopped_since is None else NOW - 10.0,
        preemptions=0,
        preempted_s=0.0,
        missing=0,
        given=True,
    )


def key(host: Host) -> Key:
    """Equal for hosts that differ in names only, because domains of a kind are interchangeable."""
    return (host.hub_lost, bool(host.paused), *sorted(_facts(d) for d in host.domains))


def _facts(d: Domain) -> tuple[str, ...]:
    odd = (d.frozen, d.saving, bool(d.draining), bool(d.fault), d.closing, d.paused_externally, d.sleep, d.woken_at)
    flags = (*odd, d.linger_until, d.linger_size.cpus, d.agent_lost_at)
    jobs = sorted(
        f"{j.cls} {j.run_since} {j.confirmed} {j.launched} {j.stopper} {j.booked} {j.held_elsewhere}" for j in d.jobs
    )
    return (d.kind, d.lifecycle, str(flags), *jobs)


def events(host: Host) -> Iterator[ev.Event]:
    """What may happen next: everything about jobs, and one disturbance at a time."""
    for d in host.domains:
        for cls in CLASSES_OF[d.kind]:
            used = {j.key.id for j in d.jobs}
            free = next((id for id in ("a", "b") if id not in used), None)
            if free:
                yield ev.Claimed(NOW, d.name, JobKey(free, 1), cls, JOB_CPUS)
        for j in d.jobs:
            yield ev.Released(NOW, d.name, j.key)
            yield ev.JobsDenied(NOW, d.name, (j.key,))
            if not j.launched:
                yield ev.JobLaunched(NOW, d.name, j.key)
            if j.stopped_by_us:
                yield ev.JobsContinued(NOW, d.name, (j.key,))
            elif j.cls is JobClass.PREEMPTIBLE and j.launched:
                yield ev.BooksReported(NOW, (ev.Booking(j.key, booked=True, held=True),))
        if d.stopped:
            yield ev.BooksReported(NOW, ())
        yield from _recoveries(d)
    if host.hub_lost:
        yield ev.HubFound(NOW)
    elif host.paused:
        yield ev.PauseEnded(NOW)
    elif not any(_disturbed(d) for d in host.domains):
        yield ev.HubLost(NOW)
        yield ev.PauseRequested(NOW, "pause")
        for d in host.domains:
            yield from _disturbances(d)
            if d.jobs:
                yield _configured(host, without=d.name)
    yield from (ev.TimerFired(NOW + wait) for wait in WAITS_S)


def _configured(host: Host, without: str = "") -> ev.Reconfigured:
    """A configuration equal to the host, without one domain."""
    meant = (ev.ConfiguredDomain(d.name, d.kind, d.cpus) for d in host.domains if d.name != without)
    return ev.Reconfigured(NOW, host.name, host.mode, host.cpus, host.memory_mib, host.limits, tuple(meant))


def _disturbed(d: Domain) -> bool:
    odd = d.frozen or d.sleep or d.drain_reason or d.fault or d.paused_externally or d.agent_lost_at is not None
    return bool(odd) or d.lifecycle is not Lifecycle.UP


def _disturbances(d: Domain) -> Iterator[ev.Event]:
    yield ev.AgentLost(NOW, d.name)
    yield ev.DomainStopped(NOW, d.name)
    yield ev.DomainHalted(NOW, d.name)
    yield ev.DrainRequested(NOW, d.name, "drain")
    yield ev.ShutdownRequested(NOW, d.name)
    yield ev.Faulted(NOW, d.name, "fault")
    yield ev.SleepRequested(NOW, d.name, "sleep", SleepCause.ADMIN)
    if d.kind is Kind.PRIORITY:
        yield ev.FreezeRequested(NOW, d.name)
    if not d.jobs:
        yield ev.JobsReported(NOW, d.name, (ev.ReportedJob(JobKey("a", 1), JOB_CPUS),))


def _recoveries(d: Domain) -> Iterator[ev.Event]:
    if d.agent_lost_at is not None and d.lifecycle is Lifecycle.UP:
        yield ev.AgentConnected(NOW, d.name)
    if d.fault:
        yield ev.FaultCleared(NOW, d.name)
    if d.sleep is not None:
        yield from _ends_of_sleep(d)
    elif d.saving and not d.jobs:
        yield ev.FreezeEnded(NOW, d.name)
    elif d.drain_reason:
        yield ev.DrainEnded(NOW, d.name)
    if d.must_go_down:
        yield ev.DomainStopped(NOW, d.name)
    if d.paused_externally:
        yield ev.DomainWentOn(NOW, d.name)
    if d.lifecycle is Lifecycle.BOOTING:
        yield ev.DomainStarted(NOW, d.name)
    elif d.frozen:
        yield ev.DefrostRequested(NOW, d.name, NOW + 100.0)
        yield ev.ImageLost(NOW, d.name)
    elif d.lifecycle is Lifecycle.DOWN and d.sleep is None:
        yield ev.DomainBooting(NOW, d.name, NOW + 100.0)
        yield ev.BootRequested(NOW, d.name)


def _ends_of_sleep(d: Domain) -> Iterator[ev.Event]:
    yield ev.DefrostRequested(NOW, d.name, NOW + 100.0)
    if d.away:
        yield ev.ImageLost(NOW, d.name)
        yield ev.DomainStopped(NOW, d.name)
        return
    yield ev.BooksReported(NOW, tuple(ev.Booking(j.key, booked=True) for j in d.stopped))
    yield ev.DrainEnded(NOW, d.name)
    if all(j.confirmed and j.booked for j in d.jobs):
        yield ev.FreezeEnded(NOW, d.name)
        yield ev.FreezeEnded(NOW, d.name, "disk full")
    if d.sleep is not None and d.sleep.wakes:
        yield ev.SleepEnded(NOW, d.name)


def explore(first: Host, found: Found, most_hosts: int = MOST_HOSTS) -> None:
    """Search breadth-first from `first` and add to `found`."""
    seen, queue = {key(first)}, deque([first])
    looked_at = 0
    while queue and looked_at < most_hosts:
        host = queue.popleft()
        looked_at += 1
        before = {d.name: states.state_of(host, d) for d in host.domains}
        for d in host.domains:
            found.accepts.setdefault((before[d.name], d.kind, host.mode), set()).add(states.accepts(host, d))
        for event in events(host):
            after, _ = handle(host, event)
            _note(found, before, after, event)
            if any(_passing(d) for d in after.domains):
                _look_back(found, normal(after))
            elif len(seen) <= most_hosts and (its_key := key(new := normal(after))) not in seen:
                seen.add(its_key)  # one more than is looked at shows that these were not all
                queue.append(new)
    found.hosts += looked_at
    found.complete = found.complete and not queue


def _passing(d: Domain) -> bool:
    return d.closing is not None or d.paused_externally or not d.configured


def _look_back(found: Found, host: Host) -> None:
    """Note what ends a pause by others, a shutdown, or a domain's absence from the configuration. Other events are not
    followed there: they have the same effect on a domain with a silent agent, or one that drains.
    """
    before = {d.name: states.state_of(host, d) for d in host.domains}
    for domain in (d for d in host.domains if _passing(d)):
        for event in _recoveries(domain) if domain.configured else (_configured(host),):
            _note(found, before, handle(host, event)[0], event)


def _note(found: Found, before: dict[str, State], after: Host, event: ev.Event) -> None:
    for d in after.domains:
        old, new = before[d.name], states.state_of(after, d)
        if old is new:
            continue
        own = isinstance(event, ev.DomainEvent) and event.domain == d.name
        of_sibling = isinstance(event, ev.DomainEvent) and not own
        word = ("sibling: " if of_sibling else "") + WORDS[type(event)]
        found.changes.setdefault((d.kind, old, new), {}).setdefault(after.mode, set()).add(word)


def explored() -> Found:
    found = Found()
    for mode in Mode:
        explore(first_host(mode), found)
    return found


def page(found: Found) -> str:
    """docs/states.md."""
    lines = [
        "# States of a domain",
        "",
        "Written by `python -m tools.states_page` from the code; do not edit. A state is never stored. It follows",
        "from the facts: the first row of this table that is true gives it.",
        "",
        "| state | when | accepts, exclusive | accepts, counted |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{state}` | {WHEN[state]} | {_accepted(found, state, Mode.EXCLUSIVE)} | "
        f"{_accepted(found, state, Mode.COUNTED)} |"
        for state in State
    ]
    lines += [
        "",
        "What a state accepts depends on the host, too. `none` means that it may accept nothing: CPUs are used up, a",
        "sibling keeps the host, or a domain of the host boots or is in `fault`. On an exclusive host with a frozen",
        "sibling, a normal domain accepts `preemptible` only.",
        "",
        "## What leads from state to state",
        "",
        f"Found by a search of {found.hosts:,} situations of a host with two normal domains and a priority domain"
        + (", all that there are." if found.complete else ", those with the shortest histories."),
        f"The host has {HOST_CPUS} CPUs. Jobs have {JOB_CPUS}, at most two in a domain. One disturbance at a time (a",
        "domain down, in fault, ...). `time` is a deadline: the minimum run, a linger, a silent agent, an unconfirmed",
        "claim, a boot. `sibling:` is an event in another domain of the host.",
    ]
    for kind in (Kind.NORMAL, Kind.PRIORITY):
        lines += ["", f"### A {kind} domain", "", "| from | to | exclusive | counted |", "| --- | --- | --- | --- |"]
        order = list(State)
        changes = sorted(
            (c for c in found.changes if c[0] is kind), key=lambda c: (order.index(c[1]), order.index(c[2]))
        )
        for change in changes:
            by = [", ".join(sorted(found.changes[change].get(m, set()), key=_own_first)) or "-" for m in Mode]
            lines.append(f"| `{change[1]}` | `{change[2]}` | {by[0]} | {by[1]} |")
    return "\n".join(lines) + "\n"


def _own_first(word: str) -> tuple[bool, str]:
    return word.startswith("sibling"), word


def _accepted(found: Found, state: State, mode: Mode) -> str:
    """The sets of accepted classes that were found, the largest first."""
    seen = {classes for (s, _, m), sets in found.accepts.items() if s is state and m is mode for classes in sets}
    ordered = sorted(seen, key=lambda classes: (-len(classes), classes))
    return "; ".join(", ".join(classes) or "none" for classes in ordered) or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is stale")
    options = parser.parse_args()
    text = page(explored())
    if options.check:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        sys.stderr.write(f"{PAGE} is stale: run `python -m tools.states_page` and commit it\n")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
