"""Builds hosts in one line, and asks them in another.

    h = host("exclusive", n1="normal", p1="priority")
    h = run(h, "n1", "1", cpus=2)          # an old, launched, confirmed job, put into the facts directly
    assert claim(h, "p1", "9").ok

A host is built from facts, not by events, so that a test of one rule does not depend on another. All times are relative
to `T`, which is so far from zero that nothing is young or due unless the test wants it. CPUs: 8, memory: 16,000 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from magrathea.core import shares, states, stopping
from magrathea.core.events import (
    Accepted,
    Booking,
    BooksReported,
    Claimed,
    Decision,
    DefrostRequested,
    Event,
    JobLaunched,
    JobsContinued,
    JobsReported,
    Noted,
    Refused,
    Released,
    ReportedJob,
    TimerFired,
)
from magrathea.core.machine import handle
from magrathea.core.model import (
    Amount,
    Domain,
    Host,
    Job,
    JobClass,
    JobKey,
    Kind,
    Lifecycle,
    Limits,
    Mode,
    Sleep,
    SleepCause,
    State,
    StoppedBy,
)

T = 10_000.0
"""The present time of every built host."""

OLD_S = 1_000.0
"""How long before `T` a built job started: more than every limit."""

LOW = JobClass.PREEMPTIBLE
PROTECTED = JobClass.PROTECTED
HIGH = JobClass.PRIORITY


def _domain(name: str, text: str, host_cpus: int) -> Domain:
    """A domain from text like `priority cpus=4 floor=100 frozen`: the kind, then figures and facts in any order."""
    kind, *words = text.split()
    domain = Domain(name, Kind(kind), cpus=host_cpus, lifecycle=Lifecycle.UP, agent_lost_at=None)
    for word in words:
        what, _, value = word.partition("=")
        match what:
            case "cpus":
                domain = replace(domain, cpus=int(value))
            case "memory":
                domain = replace(domain, memory_mib=int(value))
            case "floor":
                domain = replace(domain, floor_mib=int(value))
            case "swap":
                domain = replace(domain, swap_mib=int(value))
            case "unreclaimable":
                domain = replace(domain, unreclaimable_mib=int(value))
            case "disk":  # it can be put to sleep if it must give way
                domain = replace(domain, disk_obstacle="")
            case "preempted":
                domain = replace(domain, preempted_s=float(value))
            case "down":
                domain = replace(domain, lifecycle=Lifecycle.DOWN, agent_lost_at=T - OLD_S)
            case "booting":
                domain = replace(domain, lifecycle=Lifecycle.BOOTING, boot_until=T + 300, agent_lost_at=T - OLD_S)
            case "frozen":
                domain = replace(domain, frozen=True, lifecycle=Lifecycle.DOWN, agent_lost_at=T - OLD_S)
            case "restoring":
                domain = replace(
                    domain, frozen=True, lifecycle=Lifecycle.BOOTING, boot_until=T + 300, agent_lost_at=T - OLD_S
                )
            case "unknown":
                domain = replace(domain, agent_lost_at=T - OLD_S)
            case "away":  # the agent has just gone
                domain = replace(domain, agent_lost_at=T)
            case "draining":
                domain = replace(domain, draining="maintenance")
            case "saving":
                domain = replace(domain, saving=True)
            case "falling":
                domain = replace(domain, sleep=Sleep(T - OLD_S, "a new disk", SleepCause.ADMIN))
            case "asleep" | "wakes":
                sleep = Sleep(T - OLD_S, "a new disk", SleepCause.ADMIN, wakes=word == "wakes")
                domain = replace(domain, sleep=sleep, lifecycle=Lifecycle.DOWN, agent_lost_at=T - OLD_S)
            case "waking":
                sleep = Sleep(T - OLD_S, "a new disk", SleepCause.ADMIN, wakes=True)
                domain = replace(domain, sleep=sleep, lifecycle=Lifecycle.BOOTING, boot_until=T + 300)
                domain = replace(domain, agent_lost_at=T - OLD_S)
            case "fault":
                domain = replace(domain, fault="cannot set CPUs")
            case "lingering":
                domain = replace(domain, linger_until=T + 30, linger_size=Amount(int(value or host_cpus), 0))
            case _:
                raise ValueError(f"{name}: what is {word!r}?")
    return domain


def host(
    mode: str, *, cpus: int = 8, memory: int = 16_000, hub: bool = True, limits: Limits | None = None, **domains: str
) -> Host:
    """A host at time `T`. Its domains are up, connected and empty, unless their texts say otherwise."""
    built = tuple(_domain(name, text, cpus) for name, text in sorted(domains.items()))
    return Host("h1", Mode(mode), cpus, memory, built, limits or Limits(), hub_lost=not hub, now=T)


def key(id: str, run: int = 1) -> JobKey:
    return JobKey(id, run)


def default_class(h: Host, domain: str) -> JobClass:
    return HIGH if get(h, domain).kind is Kind.PRIORITY else LOW


def get(h: Host, domain: str) -> Domain:
    found = h.domain(domain)
    assert found is not None, f"no domain {domain}"
    return found


def share(h: Host, domain: str, cls: JobClass) -> int:
    """CPUs that one more job of the class may have in the domain."""
    return shares.share(h, get(h, domain), cls).cpus


def get_job(h: Host, domain: str, id: str) -> Job:
    found = get(h, domain).job_of(id)
    assert found is not None, f"no job {id} in {domain}"
    return found


def run(
    h: Host,
    domain: str,
    id: str,
    *,
    cls: JobClass | None = None,
    cpus: int = 1,
    memory: int = 0,
    age: float = OLD_S,
    **facts: object,
) -> Host:
    """`h` with a job that has run in `domain` for `age` seconds. `facts` overrides any field of the Job."""
    start = h.now - age
    job = Job(
        key(id),
        cls or default_class(h, domain),
        cpus,
        memory,
        claimed_at=start,
        run_since=start,
        confirmed=True,
        launched=True,
        given=True,
    )
    return h.having(get(h, domain).having(replace(job, **facts)))  # type: ignore[arg-type]


def stop(h: Host, domain: str, id: str, *, since: float = 100.0, booked: bool = True, **facts: object) -> Host:
    """`h` with the job stopped by us for `since` seconds, also in PBS's books."""
    job = replace(
        get_job(h, domain, id), stopped_since=h.now - since, stopper=StoppedBy.US, booked=booked, preemptions=1
    )
    return h.having(get(h, domain).having(replace(job, **facts)))  # type: ignore[arg-type]


def set_domain(h: Host, domain: str, **facts: object) -> Host:
    return h.having(replace(get(h, domain), **facts))  # type: ignore[arg-type]


def after(h: Host, *events: Event) -> Host:
    for event in events:
        h, _ = handle(h, event)
    return h


def later(h: Host, seconds: float) -> Host:
    """`h` after so many seconds without events."""
    return after(h, TimerFired(h.now + seconds))


@dataclass(frozen=True)
class Answer:
    """The outcome of a claim or request: `code` is `accepted` or the refusal's code."""

    host: Host
    code: str
    text: str
    victims: tuple[str, ...]
    decisions: tuple[Decision, ...]

    @property
    def ok(self) -> bool:
        return self.code == "accepted"


def ask(h: Host, event: Event) -> Answer:
    """The answer to a claim, or to a request that is answered like one."""
    new, decisions = handle(h, event)
    answers = [d for d in decisions if isinstance(d, Accepted | Refused)]
    assert len(answers) == 1, f"{event} must be answered once: {decisions}"
    answer = answers[0]
    if isinstance(answer, Accepted):
        return Answer(new, "accepted", "", tuple(sorted(answer.victims)), decisions)
    return Answer(new, answer.code, answer.text, (), decisions)


def claim(
    h: Host,
    domain: str,
    id: str,
    *,
    cls: JobClass | None = None,
    cpus: int = 1,
    memory: int = 0,
    run: int = 1,
    after_s: float = 0.0,
) -> Answer:
    if cls is None:
        found = h.domain(domain)
        cls = HIGH if found is not None and found.kind is Kind.PRIORITY else LOW
    return ask(h, Claimed(h.now + after_s, domain, key(id, run), cls, cpus, memory))


def defrost(h: Host, domain: str, *, within: float = 300.0) -> Answer:
    return ask(h, DefrostRequested(h.now, domain, h.now + within))


def release(h: Host, domain: str, id: str, run: int = 1) -> Host:
    return after(h, Released(h.now, domain, key(id, run)))


def launch(h: Host, domain: str, id: str, run: int = 1) -> Host:
    return after(h, JobLaunched(h.now, domain, key(id, run)))


def go_on(h: Host, domain: str, id: str, run: int = 1) -> Host:
    """The job really runs again: the agent has lifted the stop, and PBS no longer has it suspended."""
    return after(h, JobsContinued(h.now, domain, (key(id, run),)))


def listed(h: Host, domain: str, *jobs: str | ReportedJob) -> Host:
    """`h` after MoM's list of the domain; jobs by id (run 1, one CPU) or in full."""
    return after(
        h, JobsReported(h.now, domain, tuple(j if isinstance(j, ReportedJob) else ReportedJob(key(j)) for j in jobs))
    )


def books(h: Host, *entries: Booking) -> Host:
    return after(h, BooksReported(h.now, entries))


def state(h: Host, domain: str) -> State:
    return states.state_of(h, get(h, domain))


def accepts(h: Host, domain: str) -> set[JobClass]:
    return set(states.accepts(h, get(h, domain)))


def wanted(h: Host) -> set[str]:
    """Ids of the jobs that should be stopped."""
    return {job.id for _, job in stopping.wanted_stopped(h)}


def wished(h: Host) -> set[str]:
    """Ids of the jobs that should be stopped for this host's own sake, as it reports to the hub."""
    return {job.id for _, job in stopping.wanted_here(h)}


def stopped(h: Host) -> set[str]:
    """Ids of the jobs that are stopped by us, according to the facts."""
    return {j.key.id for d in h.domains for j in d.stopped}


def job_ids(h: Host, domain: str) -> set[str]:
    return {j.key.id for j in get(h, domain).jobs}


def told(decisions: tuple[Decision, ...], what: str) -> list[str]:
    """Ids of the jobs (or names of the domains) with the note `what`."""
    return [d.key.id if d.key else d.domain for d in decisions if isinstance(d, Noted) and d.what == what]
