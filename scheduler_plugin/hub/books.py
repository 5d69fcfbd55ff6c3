"""Which jobs the hub suspends and resumes in PBS. Everything that decides it is in this file.

Rule 1: no clock, no I/O. `step` takes what the hosts want, what PBS has and the time. It returns the job's new entry
and at most one action. The caller takes the next step for a job only after that action's outcome.
Rule 2: level-triggered. An entry records what we did, never what is still to be done. The newest wish wins; a restart,
a lost answer or an admin's command is just another starting point.
Rule 3: the hub resumes only what it suspended. It writes the entry to disk before it asks PBS for the suspend.

    a host wants it stopped     admin-suspend until PBS shows S or the job is gone; give walltime back; set the comment
    no host does, all are ready admin-resume, or plain resume if a failed one has lost the flag; restore the comment
    a domain of it sleeps       it stays suspended, however long; set the comment (sleepers.py)
    a domain of it has left its host, and no other has its facts yet: nothing is done or forgotten (transfers.py)
    requeue, or its host died   rerun by force if the job allows it, otherwise one alert
    its guest ended             the same, as soon as its MoM is back without the job. Never while all of the job's MoMs
                                are away: PBS would not start it again (Pbs.rerun). Then an alert tells an admin.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from magrathea.core.model import JobKey
from magrathea.pbs_text.states import ENDING_SUBSTATE, RESUMING_SUBSTATE
from magrathea.text import one_line
from scheduler_plugin.pbs.base import Code, PbsError, PbsJob

from .job_wishes import JobWish
from .sleepers import ASLEEP, Sleeper

RETRY_FIRST_S = 0.1
RETRY_STARTING_S = 1.0
"""MoM refuses to suspend a job that is just starting; that takes seconds at most, longer only with slow hooks."""
RETRY_MOST_S = 30.0
RETRY_REFUSED_S = 60.0
WATCH_S = 5.0
DOUBT_S = 900.0
"""A suspend without an answer can still take effect minutes later, when its MoM wakes up. The hub watches that long."""
UNLISTED_S = 60.0
"""If a live host has not listed a job for this long, the job is not there (MoM's list comes every 15 s)."""
REQUEUE_AGAIN_S = 30.0
"""PBS completes a rerun when a MoM has answered. If the MoM went away at that moment, the hub asks again."""
LATE_S = 1.0
"""The hub gives walltime back if a late booking cost the job at least this much."""
MOST_BY = 200
"""Longest text, as a host reports it, that a job's comment shows as the reason."""
MOST_COMMENT = 250
COMMENT_AGAIN_S = 3600.0
"""If the comment of a sleeping job cannot be set: PBS refuses it for subjobs."""
DEFAULT_NODE_FAIL_REQUEUE_S = 310.0
"""PBS's default if the server attribute is not set."""


class LedgerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What we did to a job in PBS. Times are Unix seconds on the hub's clock.

    `asked_at`: when we first asked for a suspend; None: we only watch the job. `booked`: PBS has it suspended for us;
    `seen_at`: when we last saw that. `stopped_at`: since when it is stopped but not booked, so that its walltime runs.
    `walltime_s`: the new limit that makes up for it. `comment`: the job's comment before ours. `plain`: the admin flag
    is lost, so `resume` is the right call. `doubt_until`: until then a call without an answer may still take effect.
    `touch`: suspend it and resume it at once, which ends its vnode's maintenance (maintenance.py). `away`: the job may
    be gone, because one of its guests was off or lost to PBS and no host has listed the job since. `asleep_at`: when
    we wrote into its comment that it sleeps; 0: we have not.
    """

    id: str
    run: int
    asked_at: float | None = None
    booked: bool = False
    seen_at: float = 0.0
    stopped_at: float | None = None
    walltime_s: int | None = None
    comment: str = ""
    commented: bool = False
    plain: bool = False
    doubt_until: float = 0.0
    tries: int = 0
    not_before: float = 0.0
    unlisted_since: float | None = None
    dead_since: float | None = None
    alerted: bool = False
    touch: bool = False
    away: bool = False
    asleep_at: float = 0.0

    @property
    def key(self) -> JobKey:
        return JobKey(self.id, self.run)


@dataclass(frozen=True, slots=True)
class Truth:
    """What PBS has. `job`: None if PBS does not know it. `maintenance`, `dead`: at least one of its vnodes is.

    `off`: a host reports that one of the job's domains is off, which PBS may notice a minute later. `silent`: each of
    the job's vnodes is dead or off, so that no MoM can answer. `sleeper`: one of the job's domains that sleeps.
    `waking`: one has just come back, and PBS
    has not shown yet that its MoM is there (sleepers.py). `moving`: one is on its way to another host, and no host has
    its facts in use (transfers.py).
    """

    job: PbsJob | None
    at: float
    maintenance: bool = False
    dead: bool = False
    off: bool = False
    silent: bool = False
    sleeper: Sleeper | None = None
    waking: bool = False
    moving: bool = False


@dataclass(frozen=True, slots=True)
class _Action:
    """`only_on`: act only if the job is on one of these vnodes; empty: on any. PBS does not show run versions to an
    operator, and it may have sent the job to another host meanwhile."""

    key: JobKey
    only_on: frozenset[str] = field(default=frozenset(), kw_only=True, compare=False)


@dataclass(frozen=True, slots=True)
class Suspend(_Action):
    pass


@dataclass(frozen=True, slots=True)
class Resume(_Action):
    plain: bool


@dataclass(frozen=True, slots=True)
class Requeue(_Action):
    pass


@dataclass(frozen=True, slots=True)
class SetWalltime(_Action):
    seconds: int


@dataclass(frozen=True, slots=True)
class SetComment(_Action):
    text: str


@dataclass(frozen=True, slots=True)
class Look(_Action):
    pass


Action = Suspend | Resume | Requeue | SetWalltime | SetComment | Look


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action went. `done`: PBS was asked and agreed. `before`, `after`: the job before and after it, if
    `looked`; `after` is what counts. `error`: why it failed."""

    action: Action
    done: bool
    looked: bool
    before: PbsJob | None
    after: PbsJob | None
    at: float
    error: PbsError | None = None


@dataclass(frozen=True, slots=True)
class BookStep:
    """A job's new entry and the next action. `notes` are for the log."""

    entry: LedgerEntry | None
    action: Action | None = None
    notes: tuple[str, ...] = ()

    def is_charged(self, *, new: bool) -> bool:
        """True if a host that changes its mind all the time could cause this step again and again.

        `new`: the job had no entry. It has none any more when no host wants it stopped, so even a look or an alert
        could be repeated.
        """
        repeated = new and (self.action is not None or bool(self.notes))
        return repeated or isinstance(self.action, Suspend | Requeue)


def step(
    key: JobKey,
    entry: LedgerEntry | None,
    wish: JobWish,
    truth: Truth | None,
    now: float,
    node_fail_requeue_s: float = DEFAULT_NODE_FAIL_REQUEUE_S,
) -> BookStep:
    """The job's new entry and at most one action.

    `node_fail_requeue_s`: the server's attribute. If it is 0 or less, PBS requeues nothing when a host dies. The hub
    then does not either.
    """
    job = truth.job if truth else None
    if entry is None:
        taken_over = wish.booked and truth is not None and truth.maintenance and _suspended(key, job)
        if taken_over:
            entry = LedgerEntry(id=key.id, run=key.run, asked_at=now, booked=True, commented=True)
        elif wish.stop:
            entry = LedgerEntry(id=key.id, run=key.run)
        else:
            return BookStep(None)
    if truth is not None:
        if _gone(key, job):
            if not wish.stop:
                return BookStep(None)
            # the host has not learned of the job's end yet, or we have not learned of the job yet
            entry = LedgerEntry(id=key.id, run=key.run, not_before=entry.not_before, tries=entry.tries)
        elif truth.moving:
            return BookStep(replace(entry, unlisted_since=None, dead_since=None))
        else:
            entry = _observed(entry, wish, truth, now)
    if now < entry.not_before:
        return BookStep(entry)
    if truth is not None and truth.sleeper is not None:
        return _while_asleep(entry, truth.sleeper, truth, now)
    if truth is not None and job is not None and (lost := _requeued(entry, wish, truth, job, now, node_fail_requeue_s)):
        return lost
    if entry.booked:
        found = _while_booked(entry, wish, job, now)
        # MoM gets both from PBS. A resume that fails loses the suspension's flag; a limit is given up after some tries
        relayed = isinstance(found.action, Resume | SetWalltime)
        in_vain = relayed and truth is not None and (truth.dead or truth.off or truth.waking)
        return BookStep(entry) if in_vain else found
    return _while_not_booked(entry, wish, job, now)


def _suspended(key: JobKey, job: PbsJob | None) -> bool:
    return job is not None and job.is_run(key.run) and job.suspended and job.substate < ENDING_SUBSTATE


def _gone(key: JobKey, job: PbsJob | None) -> bool:
    """True if PBS has no such job, has a newer run of it, or no MoM has it. A run newer than PBS's own is not gone."""
    return job is None or job.run_version > key.run or (job.is_run(key.run) and job.state not in "RSUE")


def _is_lost(truth: Truth) -> bool:
    """True if a MoM of the job is away, and should not be."""
    return truth.dead and truth.sleeper is None and not truth.waking


def _observed(entry: LedgerEntry, wish: JobWish, truth: Truth, now: float) -> LedgerEntry:
    """The entry after a look at what PBS has."""
    job = truth.job
    assert job is not None
    unlisted = bool(wish.unlisted)
    entry = replace(
        entry,
        unlisted_since=(entry.unlisted_since or now) if unlisted else None,
        dead_since=(entry.dead_since or now) if _is_lost(truth) and entry.asked_at is not None else None,
        away=truth.dead or truth.off or (entry.away and not wish.listed),
    )
    if not job.is_run(entry.run) or job.substate >= ENDING_SUBSTATE:
        return entry
    if job.suspended:
        if entry.asked_at is None:
            return entry  # somebody else suspended it
        if not entry.booked and entry.stopped_at is None:
            entry = replace(entry, stopped_at=wish.stopped_at)
        entry = replace(entry, booked=True, seen_at=max(entry.seen_at, truth.at))
        return _owed(entry, job, truth.at)
    if entry.booked:  # resumed, by us or by somebody
        entry = replace(entry, booked=False, plain=False, tries=0, not_before=0.0, asleep_at=0.0)
        if wish.stop:
            return replace(entry, stopped_at=max(entry.seen_at, wish.stopped_at or 0.0))
    if wish.stop:
        return entry if entry.stopped_at is not None else replace(entry, stopped_at=wish.stopped_at)
    return _owed(entry, job, now)


def _owed(entry: LedgerEntry, job: PbsJob, until: float) -> LedgerEntry:
    """If walltime ran while the job was stopped but not booked: the entry with a new limit that makes up for it."""
    if entry.stopped_at is None:
        return entry
    lost_s = until - entry.stopped_at
    entry = replace(entry, stopped_at=None)
    if lost_s <= LATE_S or job.walltime_s is None:
        return entry
    return replace(entry, walltime_s=(entry.walltime_s or job.walltime_s) + math.ceil(lost_s))


def _lost(entry: LedgerEntry, wish: JobWish, job: PbsJob, now: float, node_fail_requeue_s: float) -> str:
    """Why the job should be requeued; empty if it should not."""
    if wish.requeue:
        return "stopped longer than the limit"
    if entry.booked and entry.dead_since is not None and 0 < node_fail_requeue_s <= now - entry.dead_since:
        return f"its host has been down for {now - entry.dead_since:.0f} s"
    gone = entry.away and entry.unlisted_since is not None and now - entry.unlisted_since >= UNLISTED_S
    if gone and job.is_run(entry.run) and job.state in "RS":
        return "its guest was ended, and is back without it"
    return ""


def _requeued(
    entry: LedgerEntry, wish: JobWish, truth: Truth, job: PbsJob, now: float, node_fail_requeue_s: float
) -> BookStep | None:
    """None if there is no reason to requeue, or if an alert has already reported that it is impossible."""
    if not (reason := _lost(entry, wish, job, now, node_fail_requeue_s)):
        return None
    if job.rerunnable and not truth.silent:
        return BookStep(entry, Requeue(entry.key), (f"job {entry.key}: {reason}; requeued",))
    if entry.alerted:
        return None
    entry = replace(entry, alerted=True)
    if not job.rerunnable:
        return BookStep(
            entry, None, (f"ALERT job {entry.key}: {reason}, and it is not rerunnable: resume or delete it",)
        )
    where = ", ".join(job.vnodes)
    note = (
        f"ALERT job {entry.key}: {reason}; it is requeued as soon as {where} is back. To have it elsewhere before: "
        f"qrerun -W force {entry.id}, then restart pbs_server, which starts it only then (running jobs go on)"
    )
    text = f"magrathea: {where} is down; requeued once it is back, since PBS would not start it again before"
    original = entry.comment if entry.commented else job.comment
    return BookStep(replace(entry, comment=original), SetComment(entry.key, text[:MOST_COMMENT]), (note,))


def _while_asleep(entry: LedgerEntry, sleeper: Sleeper, truth: Truth, now: float) -> BookStep:
    """Its MoM cannot be asked for anything, and nobody may start it elsewhere: its memory is in the image.

    PBS replaces the comment, for example if the job is held; then it is set again. It changes when the domain is asked
    to come back.
    """
    job = truth.job
    if job is None or not job.is_run(entry.run) or job.state not in "RS":
        return BookStep(entry)
    text = f"{sleeper.sentence}; {sleeper.return_}; to delete the job before that: qdel -W force"[:MOST_COMMENT]
    told = job.comment == text or (job.comment.startswith(ASLEEP) and sleeper.return_ in job.comment)
    if entry.asleep_at and (told or truth.at <= entry.asleep_at):
        return BookStep(entry)
    original = entry.comment if entry.commented else job.comment
    return BookStep(replace(entry, comment=original, asleep_at=now), SetComment(entry.key, text))


def _while_booked(entry: LedgerEntry, wish: JobWish, job: PbsJob | None, now: float) -> BookStep:
    if entry.walltime_s is not None and (wish.stop or not entry.tries):  # a resume does not wait for a second try
        return BookStep(entry, SetWalltime(entry.key, entry.walltime_s))
    if wish.stop:
        if (entry.commented and not entry.asleep_at) or job is None:
            return BookStep(entry)
        since = time.strftime("%b %d %H:%M:%S", time.localtime(wish.stopped_at or now))
        text = f"preempted by {one_line(wish.by, MOST_BY)} since {since}"
        original = entry.comment if entry.commented else job.comment
        return BookStep(replace(entry, comment=original, asleep_at=0.0), SetComment(entry.key, text))
    if wish.waiting or (entry.away and not wish.listed):
        return BookStep(entry)
    if wish.unlisted and (entry.unlisted_since is None or now - entry.unlisted_since < UNLISTED_S):
        return BookStep(entry)
    if job is not None and job.substate == RESUMING_SUBSTATE:
        return BookStep(replace(entry, not_before=now + WATCH_S), Look(entry.key))
    return BookStep(entry, Resume(entry.key, entry.plain))


def _while_not_booked(entry: LedgerEntry, wish: JobWish, job: PbsJob | None, now: float) -> BookStep:
    if wish.stop:
        if job is not None and job.is_run(entry.run) and job.suspended:
            return BookStep(replace(entry, not_before=now + WATCH_S), Look(entry.key))  # somebody else suspended it
        if job is not None and job.is_run(entry.run) and job.substate >= ENDING_SUBSTATE:
            return BookStep(replace(entry, not_before=now + WATCH_S), Look(entry.key))
        if now < wish.warned_until:
            return BookStep(replace(entry, not_before=wish.warned_until))
        return BookStep(replace(entry, asked_at=entry.asked_at or now), Suspend(entry.key))
    if entry.touch:
        return BookStep(replace(entry, asked_at=now, touch=False), Suspend(entry.key))
    if entry.walltime_s is not None:
        return BookStep(entry, SetWalltime(entry.key, entry.walltime_s))
    if entry.commented and entry.comment and job is not None and job.comment != entry.comment:
        return BookStep(entry, SetComment(entry.key, entry.comment))
    if now < entry.doubt_until:
        return BookStep(replace(entry, not_before=now + WATCH_S), Look(entry.key))
    return BookStep(entry if entry.away else None)


def learned(entry: LedgerEntry, outcome: Outcome) -> BookStep:
    """The entry after an action, with the time of the next one; PBS's truth is the outcome's `after`."""
    action, error, now = outcome.action, outcome.error, outcome.at
    if error is None:
        wait_until = entry.not_before if isinstance(action, Look) else now + _pause_s(outcome)
        if isinstance(action, Look) and now >= entry.doubt_until and outcome.after and outcome.after.state == "R":
            wait_until = now  # somebody else had suspended the job and has resumed it
        entry = replace(entry, tries=0, not_before=wait_until)
    match action:
        case Suspend():
            return _suspend_learned(entry, outcome)
        case Resume() if error is not None and error.code == Code.WRONG_RESUME:
            return BookStep(
                replace(entry, plain=not entry.plain, tries=entry.tries + 1, not_before=now + RETRY_FIRST_S)
            )
        case Resume() if error is not None and error.code == Code.INTERNAL and entry.unlisted_since is not None:
            # how PBS reports a MoM that does not know the job
            return BookStep(replace(_later(entry, error, now), away=True), None, (f"job {entry.key}: {error}",))
        case SetComment():
            # also after an error: a comment is not worth another try
            restored = action.text == entry.comment and not entry.booked
            entry = replace(entry, comment="" if restored else entry.comment, commented=not restored)
            if error is not None and entry.asleep_at:
                entry = replace(entry, asleep_at=now + COMMENT_AGAIN_S)
            notes = (f"job {entry.key}: comment not set: {error}",) if error else ()
            return BookStep(entry, None, notes)
        case SetWalltime() if error is None or not error.transient or entry.tries >= 5:
            given_up = (f"ALERT job {entry.key}: walltime not set to {action.seconds} s: {error}",) if error else ()
            return BookStep(replace(entry, walltime_s=None, tries=0), None, given_up)
        case Requeue() if error is None:
            return BookStep(replace(entry, not_before=now + (REQUEUE_AGAIN_S if outcome.done else WATCH_S)))
        case Requeue() if error is not None and error.transient:
            return BookStep(_later(entry, error, now))
        case Requeue() if error is not None:
            notes = () if entry.alerted else (f"ALERT job {entry.key}: cannot be requeued: {error}",)
            return BookStep(replace(_later(entry, error, now), alerted=True), None, notes)
    if error is None:
        return BookStep(entry)
    return BookStep(_later(entry, error, now), None, (f"job {entry.key}: {error}",) if entry.tries in (0, 5) else ())


def _pause_s(outcome: Outcome) -> float:
    """Seconds to wait after an action without an error; 0 if the next action cannot be the same one."""
    if isinstance(outcome.action, SetComment | SetWalltime):
        return 0.0
    return RETRY_FIRST_S if outcome.done else RETRY_STARTING_S


def _suspend_learned(entry: LedgerEntry, outcome: Outcome) -> BookStep:
    error, now = outcome.error, outcome.at
    if error is not None and error.transient:
        entry = replace(_later(entry, error, now), doubt_until=now + DOUBT_S)
        return BookStep(entry, None, (f"job {entry.key}: {error}; looked at again",))
    if outcome.done:
        return BookStep(replace(entry, not_before=now + RETRY_FIRST_S))
    if not entry.booked and now >= entry.doubt_until:
        entry = replace(entry, asked_at=None)  # refused or not tried: if the job is suspended now, somebody else did it
    if error is None:
        return BookStep(replace(entry, not_before=now + WATCH_S))
    if error.code == Code.BAD_STATE:
        wait_s = min(RETRY_STARTING_S, RETRY_FIRST_S * 2 ** min(entry.tries, 10))
        return BookStep(replace(entry, tries=entry.tries + 1, not_before=now + wait_s))
    return BookStep(_later(entry, error, now), None, (f"job {entry.key}: {error}",) if entry.tries in (0, 5) else ())


def _later(entry: LedgerEntry, error: PbsError, now: float) -> LedgerEntry:
    """The entry with the time of the next try: soon if that may help, later if PBS refused."""
    soon_s = min(RETRY_MOST_S, 5 * RETRY_FIRST_S * 2 ** min(entry.tries, 10))
    wait_s = soon_s if error.transient or error.code == Code.BAD_STATE else RETRY_REFUSED_S
    return replace(entry, tries=entry.tries + 1, not_before=now + wait_s)
