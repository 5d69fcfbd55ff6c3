"""Carries out one action of the books on a connection: look, act if it still makes sense, look again.

The first look makes every action safe to repeat. It also notices what has changed since the decision: another run of
the job, a job that is ending, a job that somebody else has suspended or resumed. Blocking; runs in a worker.
"""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import assert_never

from magrathea.core.model import JobKey
from magrathea.pbs_text.states import DEAD_STATES, ENDING_SUBSTATE, REQUEUING_SUBSTATE, RESUMING_SUBSTATE
from scheduler_plugin.pbs.base import Code, Pbs, PbsError, PbsJob

from .books import Action, Look, Outcome, Requeue, Resume, SetComment, SetWalltime, Suspend
from .job_comments import Comment


def perform(pbs: Pbs, action: Action) -> Outcome:
    """The outcome of the action. Raises PbsError only if the first look fails; then nothing was asked for."""
    before = pbs.job(action.key.id)
    if isinstance(action, Look) or before is None or not _sensible(action, before):
        return Outcome(action, isinstance(action, Look), True, before, before, time.time())
    error: PbsError | None = None
    try:
        _ask(pbs, action, before)
    except PbsError as refusal:
        error = refusal
    if isinstance(action, SetComment):  # no decision depends on a comment
        return Outcome(action, error is None, False, before, None, time.time(), error)
    try:
        after = pbs.job(action.key.id)
    except PbsError as unknown:
        return Outcome(action, False, False, before, None, time.time(), error or unknown)
    return Outcome(action, error is None, True, before, after, time.time(), error)


class RefusalProgress(Enum):
    """The progress of the explanation of a refused start."""

    UNSEEN = auto()
    """PBS has not yet shown that run of the job on the host that refused it."""
    SEEN = auto()
    """PBS has shown it there. PBS will take the job back from its MoM."""
    OVER = auto()


def explain(pbs: Pbs, key: JobKey, comment: Comment, so_far: RefusalProgress) -> RefusalProgress:
    """Explain a refused start in the job's comment, as soon as PBS has taken the job back from its MoM.

    PBS's own comment is "Execution server rejected request", which helps nobody. A waiting job does not show where it
    was, so it must have been seen there before. Raises PbsError.
    """
    job = pbs.job(key.id)
    if job is None or not job.is_run(key.run):
        return RefusalProgress.OVER
    if job.state not in "WQ":
        return RefusalProgress.SEEN if comment.vnodes & set(job.vnodes) else so_far
    if so_far is RefusalProgress.SEEN:
        pbs.set_comment(key.id, comment.text)
    return RefusalProgress.OVER


def say(pbs: Pbs, key: JobKey, comment: Comment) -> None:
    """Set the comment of a job that runs on one of the comment's vnodes. Raises PbsError."""
    job = pbs.job(key.id)
    if job is not None and job.is_run(key.run) and job.state == "R" and comment.vnodes & set(job.vnodes):
        pbs.set_comment(key.id, comment.text)


def _sensible(action: Action, job: PbsJob) -> bool:
    if not job.is_run(action.key.run) or (action.only_on and not action.only_on & set(job.vnodes)):
        return False
    if isinstance(action, Requeue) and job.substate == REQUEUING_SUBSTATE:
        return job.state in "RS"  # its MoM was gone when PBS asked it, and PBS did not notice: only asking again helps
    if job.substate >= ENDING_SUBSTATE:
        return False
    match action:
        case Suspend():
            return job.state == "R"
        case Resume():
            return job.suspended and job.substate != RESUMING_SUBSTATE
        case SetWalltime():
            return job.state in "RS" and job.walltime_s is not None and job.walltime_s < action.seconds
        case _:
            return job.state in "RS"


def _require_a_mom(pbs: Pbs, job: PbsJob) -> None:
    """Raise PbsError if all MoMs of the job are dead. Then a rerun by force would do harm (Pbs.rerun)."""
    # one by one: the first is usually there, and a host may cause many requeues
    if all(vnode.state & DEAD_STATES for vnode in map(pbs.vnode, job.vnodes) if vnode is not None):
        where = ", ".join(job.vnodes)
        raise PbsError(Code.NO_MOM, f"rerun of job {job.id}: no MoM of {where} is there to answer", transient=True)


def _ask(pbs: Pbs, action: Action, job: PbsJob) -> None:
    id = action.key.id
    match action:
        case Suspend():
            pbs.admin_suspend(id)
        case Resume(plain=True):
            pbs.resume(id)
            pbs.wake_scheduler()  # the scheduler resumes the job
        case Resume():
            pbs.admin_resume(id)
        case Requeue():
            _require_a_mom(pbs, job)
            pbs.rerun(id, force=True)
        case SetWalltime():
            pbs.set_walltime(id, action.seconds)
        case SetComment():
            pbs.set_comment(id, action.text)
        case Look():
            pass  # `perform` has read the job already
        case _:
            assert_never(action)


def spelled(action: Action) -> str:
    """An action for the log: its name, and all its fields but the job."""
    rest = [f"{name}={getattr(action, name)}" for name in action.__slots__ if name != "key"]
    return " ".join([type(action).__name__, *rest])
