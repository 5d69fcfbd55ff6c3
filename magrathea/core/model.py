"""The facts of one host, as frozen data.

Rule 1: only facts are stored here. States, shares, ranks and who is stopped are computed (states.py, shares.py,
stopping.py).
Rule 2: nothing here changes anything; `machine.handle` returns a new Host.
Rule 3: every time is in seconds on the host's own clock. `Host.now` is the time of the last event. So a deadline takes
effect with an event (`TimerFired`, or an earlier one), and no rule needs a clock.
Rule 4: what follows from facts is computed once for them, at the first question. Facts are frozen, so an answer stays
right as long as they exist. A Domain keeps what follows from its own facts (`cached_property`), a Host what follows
from all of them (`once`). Without this, each domain would ask about all domains, and each job about all jobs. On a host
of 64 domains and 2,000 jobs that is too much work for the thread that answers claims. An event replaces only the
domains that it changes, so the answers of the others remain.

CPUs are whole numbers, memory is in MiB. Words: docs/rules.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

from .values import NOTHING as NOTHING
from .values import Amount as Amount
from .values import Coming as Coming
from .values import StopWarning as StopWarning
from .words import CLASSES_OF as CLASSES_OF
from .words import GiveWay as GiveWay
from .words import JobClass as JobClass
from .words import Kind as Kind
from .words import Lifecycle as Lifecycle
from .words import MemoryComing as MemoryComing
from .words import MemoryLack as MemoryLack
from .words import MemoryShort as MemoryShort
from .words import Mode as Mode
from .words import Patience as Patience
from .words import SleepCause as SleepCause
from .words import Stage as Stage
from .words import State as State
from .words import StoppedBy as StoppedBy

NOT_ASKED = "the hypervisor has not said yet whether it can be saved to disk"
"""The first `Domain.disk_obstacle`."""

Answer = TypeVar("Answer")
About = TypeVarTuple("About")


class JobKey(NamedTuple):
    """Identity of a job's part in a domain: PBS job id and run version.

    Without the run version a late end of the first run would release the second.
    """

    id: str
    run: int

    def __str__(self) -> str:
        return f"{self.id} (run {self.run})"


@dataclass(frozen=True, slots=True)
class Job:
    """A PBS job's part in one domain.

    `claimed_at`: when it was claimed or found. `confirmed`: its launch or MoM's list has shown it; until then the
    claim is provisional. `launched`: the agent has seen a process of it. `run_since`: when it last started or was
    continued. `ending`: PBS reports it as exiting. `stopped_since`, `stopper`: both set or both None. `booked`: PBS
    holds it as admin-suspended by the hub. `held_elsewhere`: another of the job's hosts wants it stopped.
    `missing`: how many of MoM's lists in a row lacked it. `preemptions`, `preempted_s`: times and seconds stopped
    by us so far, the present stop's seconds not included. `rerunnable`: PBS may requeue it. `given`: a hub has said
    that PBS gave the job to this domain; without that, and while a hub answers, the domain does not linger after it.
    `keeps`: resources that the admin protects and a stop would not give back. `warning`: what it wants before
    a stop; None if nothing.
    """

    key: JobKey
    cls: JobClass
    cpus: int
    memory_mib: int
    claimed_at: float
    run_since: float
    confirmed: bool = False
    launched: bool = False
    ending: bool = False
    stopped_since: float | None = None
    stopper: StoppedBy | None = None
    booked: bool = False
    held_elsewhere: bool = False
    missing: int = 0
    preemptions: int = 0
    preempted_s: float = 0.0
    rerunnable: bool = True
    given: bool = False
    keeps: str = ""
    warning: StopWarning | None = None

    @property
    def size(self) -> Amount:
        return Amount(self.cpus, self.memory_mib)

    @property
    def stopped_by_us(self) -> bool:
        return self.stopper is StoppedBy.US


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that was released a short while ago. A late list or claim must not bring it back. `denied`: it was removed
    because PBS had not given it. If PBS gives it after all, it may come back at once."""

    key: JobKey
    at: float
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Closing:
    """An admin's wish that a domain goes down and, with `reboot`, comes up again."""

    reboot: bool
    patience: Patience
    since: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """A domain is saved to disk with its jobs, or is about to be (docs/rules.md, "Sleep").

    `wakes`: somebody wants it back; it waits for its turn. `books_until`: from this time on it is saved although PBS
    has not suspended all of its jobs; None: never.
    """

    since: float
    reason: str
    cause: SleepCause
    wakes: bool = False
    books_until: float | None = None


@dataclass(frozen=True)
class Domain:
    """A VM or container of a host: one MoM, one PBS vnode.

    `cpus`: configured size; a frozen domain reserves it, a service takes it. `memory_mib`: configured ceiling, 0 if
    there is none; a service takes it. `floor_mib`: memory that guest, MoM and agent need. `swap_mib`: how much of its
    jobs' memory can leave the host's memory. `unreclaimable_mib`: what its agent last reported as locked or huge.
    `boot_until`: after this time a boot has failed. `agent_lost_at`: None while the agent is connected. `frozen`: saved
    to disk. `saving`: being saved. `draining`: the reason; empty if it does not drain. `fault`: what failed; empty if
    nothing did. `linger_until`, `linger_size`: after its last priority job, a priority domain keeps this size to itself
    until this time. `young_since`: young jobs have protected it without a gap since then. `overtaken_since`: smaller
    preempted domains have gone before it since then. `preempted_s`: job-seconds of ended stops by us, of all jobs that
    ever ran here. `ended`: recently released jobs. `boot_limit_s`: configured limit of a boot. `configured`: False once
    the configuration no longer names it. `closing`: it must go down. `paused_externally`: somebody else has paused it,
    so it is up but nothing in it runs. `down_why`: for people, why it went down or did not come up. `sleep`: None if it
    is awake. `woken_at`: its sleep ended then, and some of its jobs have not continued yet. `disk_obstacle`: why it
    cannot be put to sleep to give way; empty if it can. `stays_awake`: why that is not tried again; empty if it may be.
    `ignores_swap`: it gives way to disk, never to its swap (giving_way.py). `still_since`: a move made its guest stand
    still then, for long if the domain runs again: its clock and MoM's connections are not right until it has caught up.
    """

    name: str
    kind: Kind
    cpus: int
    memory_mib: int = 0
    floor_mib: int = 0
    swap_mib: int = 0
    unreclaimable_mib: int = 0
    lifecycle: Lifecycle = Lifecycle.DOWN
    boot_until: float | None = None
    agent_lost_at: float | None = 0.0
    frozen: bool = False
    saving: bool = False
    draining: str = ""
    fault: str = ""
    linger_until: float | None = None
    linger_size: Amount = NOTHING
    young_since: float | None = None
    overtaken_since: float | None = None
    preempted_s: float = 0.0
    jobs: tuple[Job, ...] = ()
    ended: tuple[Ended, ...] = ()
    boot_limit_s: float = 300.0
    configured: bool = True
    closing: Closing | None = None
    paused_externally: bool = False
    down_why: str = ""
    sleep: Sleep | None = None
    woken_at: float | None = None
    disk_obstacle: str = NOT_ASKED
    stays_awake: str = ""
    ignores_swap: bool = False
    still_since: float | None = None

    @property
    def rests_for_move(self) -> bool:
        """True if its jobs stand still for the rest of a move, and until PBS has been asked about them."""
        return self.sleep is not None and self.sleep.cause is SleepCause.MOVE

    @property
    def falls_asleep(self) -> bool:
        """True if it is up, and its jobs are being stopped so that it can be saved with them."""
        return self.sleep is not None and self.lifecycle is Lifecycle.UP

    @property
    def must_give_way(self) -> bool:
        """True if it is up, and was or is to be put to sleep because others need its memory."""
        return self.sleep is not None and self.sleep.cause is SleepCause.GIVE_WAY and self.lifecycle is Lifecycle.UP

    @property
    def gives_way(self) -> bool:
        """True if it is being put to sleep because others need its memory, and nobody has given that up."""
        return self.must_give_way and self.sleep is not None and not self.sleep.wakes

    @property
    def away(self) -> bool:
        """True if it sleeps or is being restored from its sleep. Its jobs hold nothing."""
        return self.sleep is not None and self.lifecycle is not Lifecycle.UP

    @property
    def asleep(self) -> bool:
        """True if it is saved to disk with its jobs."""
        return self.sleep is not None and self.lifecycle is Lifecycle.DOWN

    @property
    def waking(self) -> bool:
        """True if it is being restored with its jobs."""
        return self.sleep is not None and self.lifecycle is Lifecycle.BOOTING

    @property
    def in_line_to_wake(self) -> bool:
        return self.asleep and self.sleep is not None and self.sleep.wakes

    @property
    def drain_reason(self) -> str:
        """Why the domain finishes its jobs but takes no more; empty if it takes jobs."""
        if self.sleep is not None and self.lifecycle is Lifecycle.UP:
            return self.sleep.reason if self.rests_for_move else f"to be put to sleep: {self.sleep.reason}"
        if not self.configured:
            return "no longer configured"
        if self.draining or self.saving:
            return self.draining or "to be frozen"
        if self.closing is None or self.closing.patience is Patience.IDLE:
            return ""
        return "to be rebooted" if self.closing.reboot else "to be shut down"

    @property
    def must_go_down(self) -> bool:
        """True if the domain must go down and there is nothing left to wait for."""
        return self.closing is not None and (self.closing.patience is Patience.NOW or not self.jobs)

    @cached_property
    def _by_key(self) -> dict[JobKey, Job]:
        return {j.key: j for j in self.jobs}

    @cached_property
    def _by_id(self) -> dict[str, Job]:
        return {j.key.id: j for j in reversed(self.jobs)}

    def job(self, key: JobKey) -> Job | None:
        return self._by_key.get(key)

    def job_of(self, id: str) -> Job | None:
        """The oldest run of that job in the domain; None if there is none."""
        return self._by_id.get(id)

    def having(self, *jobs: Job) -> Domain:
        """This domain with each of `jobs` added, or replacing the one with its key. Jobs stay sorted by key."""
        changed = self._by_key | {j.key: j for j in jobs}  # in the order of before, new ones last
        added = len(changed) > len(self.jobs)
        return replace(self, jobs=tuple(changed[key] for key in sorted(changed)) if added else tuple(changed.values()))

    @cached_property
    def latest_start(self) -> float:
        """When the last of its jobs was started or continued; minus infinity if it has none."""
        return max((j.run_since for j in self.jobs), default=-math.inf)

    @cached_property
    def running(self) -> tuple[Job, ...]:
        """Jobs that are not stopped by us; none of a domain that sleeps or is being woken."""
        if self.away:
            return ()
        return tuple(j for j in self.jobs if j.stopper is not StoppedBy.US)

    @cached_property
    def stopped(self) -> tuple[Job, ...]:
        """Jobs stopped by us."""
        return tuple(j for j in self.jobs if j.stopper is StoppedBy.US)

    def stuck_mib(self, jobs: tuple[Job, ...]) -> int:
        """How much of these jobs' memory stays in the host's if they are stopped: swap is short, or it is locked."""
        return self.stuck_of(len(jobs), sum(j.memory_mib for j in jobs))

    def stuck_of(self, jobs: int, mib: int) -> int:
        """The same for several jobs with this much memory in total."""
        swap_mib = 0 if self.ignores_swap else self.swap_mib
        return max(0, mib - swap_mib, self.unreclaimable_mib) if jobs else 0

    @cached_property
    def to_continue(self) -> tuple[Job, ...]:
        """Its jobs that continue when its turn has come: stopped by us, and no other host holds them. When a domain
        comes back from its sleep, what PBS itself has suspended comes back with it, and counts as running."""
        if self.away:
            return tuple(j for j in self.jobs if not (j.stopped_by_us and j.held_elsewhere))
        return tuple(j for j in self.stopped if not j.held_elsewhere)

    @property
    def keeps_its_place(self) -> bool:
        """True if what its jobs need is kept for them: until it is saved, while it wakes, and until they continue. A
        domain that gives way keeps nothing: others need its place."""
        falls_asleep = self.falls_asleep and not self.must_give_way
        return (falls_asleep or self.waking or self.woken_at is not None) and bool(self.to_continue)

    @property
    def wants_to_continue(self) -> bool:
        """True if jobs of it are stopped, or sleep, and are to go on as soon as there is room."""
        if self.sleep is None or self.must_give_way:
            return bool(self.stopped)
        return bool(self.jobs) and (self.waking or self.sleep.wakes)

    @cached_property
    def use(self) -> Amount:
        """What its jobs hold now: the running ones everything, the stopped ones the memory that cannot leave."""
        if self.away:
            return NOTHING
        running = self.running
        memory_mib = sum(j.memory_mib for j in running) + self.stuck_mib(self.stopped)
        return Amount(sum(j.cpus for j in running), memory_mib)

    @cached_property
    def use_when_stopped(self) -> Amount:
        """What its jobs would hold if all of them were stopped."""
        return NOTHING if self.away else Amount(0, self.stuck_mib(self.jobs))

    @cached_property
    def stopped_since(self) -> float | None:
        """When the earliest present stop by us began, or None."""
        return min((j.stopped_since for j in self.stopped if j.stopped_since is not None), default=None)


@dataclass(frozen=True, slots=True)
class Limits:
    """The admin's times (seconds) and counts. docs/rules.md describes what they protect.

    `agent_silent_s`: an agent away longer makes its domain `unknown`; the daemon's start counts as contact lost.
    `claim_s`: an unconfirmed claim is released after it. `min_run_s`: a younger job is not stopped (at least 5).
    `young_s`: young jobs protect a domain no longer than this in a row. `linger_s`: a priority domain keeps the
    host after its last job. `max_preemptions`: a job stopped that often is not stopped again (0: no limit).
    `max_preempted_s`: a job stopped that long in one stop is requeued if it is rerunnable (0: no limit).
    `overtaken_s`: a preempted domain passed over longer goes next. `remember_s`: an ended job is known for so long.
    `longest_warning_s`: a job that has asked for a warning runs on after it for no longer than this.
    `preempted_cpu_percent`: a preempted domain's cap (100: one CPU); 10 keeps MoM answering. `give_way`: where the
    memory of preempted domains goes.
    """

    agent_silent_s: float = 30.0
    claim_s: float = 60.0
    min_run_s: float = 5.0
    young_s: float = 60.0
    linger_s: float = 0.0
    max_preemptions: int = 0
    max_preempted_s: float = 0.0
    overtaken_s: float = 600.0
    remember_s: float = 60.0
    longest_warning_s: float = 1.0
    preempted_cpu_percent: int = 10
    give_way: GiveWay = GiveWay.SWAP


@dataclass(frozen=True, slots=True)
class Pause:
    """An admin has paused the host: what is stopped stays stopped, and nothing else is stopped or moved."""

    since: float
    reason: str


@dataclass(frozen=True)
class Host:
    """A physical machine with one node daemon, and everything known about it.

    `memory_mib`: memory of all domains together, without the host's reserve. `hub_lost`: no hub answers, so nothing new
    is preempted. `paused`: None if it is not paused. `now`: the time of the last event. `domains`: sorted by name.
    `driver_lost_at`: when the hypervisor stopped answering; None while it answers. `others`: CPUs and memory of the
    hypervisor's domains that are not configured; they are subtracted like services. `coming`: the domains for which
    moves keep room.
    """

    name: str
    mode: Mode
    cpus: int
    memory_mib: int
    domains: tuple[Domain, ...] = ()
    limits: Limits = Limits()
    hub_lost: bool = False
    now: float = 0.0
    paused: Pause | None = None
    driver_lost_at: float | None = None
    others: Amount = NOTHING
    coming: tuple[Coming, ...] = ()

    @cached_property
    def _by_name(self) -> dict[str, Domain]:
        return {d.name: d for d in self.domains}

    @cached_property
    def answers(self) -> dict[tuple[Callable[..., Any], tuple[Any, ...]], Any]:
        """The answers that `once` has computed for this host, by function and arguments."""
        return {}

    def domain(self, name: str) -> Domain | None:
        return self._by_name.get(name)

    def having(self, *domains: Domain) -> Host:
        """This host with each of `domains` replacing the one with its name."""
        changed = {d.name: d for d in domains}
        return replace(self, domains=tuple(changed.get(d.name, d) for d in self.domains))

    @cached_property
    def workers(self) -> tuple[Domain, ...]:
        """The domains that take jobs. Services are never touched, only subtracted."""
        return tuple(d for d in self.domains if d.kind is not Kind.SERVICE)

    @cached_property
    def without_services(self) -> Amount:
        """What the host has for the domains that take jobs (N of docs/rules.md)."""
        services = [d for d in self.domains if d.kind is Kind.SERVICE]
        cpus, mib = sum(d.cpus for d in services), sum(d.memory_mib for d in services)
        return Amount(self.cpus - cpus, self.memory_mib - mib) - self.others

    @cached_property
    def for_workers(self) -> Amount:
        """What the host has for its own domains that take jobs: without what moves keep for others."""
        cpus, mib = sum(c.size.cpus for c in self.coming), sum(c.size.mib for c in self.coming)
        return self.without_services - Amount(cpus, mib)


def once(host: Host, follows: Callable[[Host, *About], Answer], *about: *About) -> Answer:
    """`follows(host, *about)`, computed at the first question and kept with the host (rule 4)."""
    question = (follows, about)
    if question not in host.answers:
        host.answers[question] = follows(host, *about)
    answer: Answer = host.answers[question]
    return answer
