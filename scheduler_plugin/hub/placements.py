"""Answers hosts that ask whether PBS has given a job to a vnode of theirs, and what it has given it there.

Rule 1: no I/O and no clock. The hub's shell asks PBS if `known` does not answer and `may_ask` permits it.
Rule 2: a question for which a claim waits is answered by what PBS said a moment ago; what it said earlier may be over.
Rule 3: a host asks about its other jobs again and again. It is answered by the last reading of all jobs, so that this
costs PBS nothing. Only a yes is answered so: a job may be younger than the reading.
Rule 4: each kind of question is taken from shares of its own, so that no claim waits for what waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from magrathea.core.model import Amount, JobKey
from magrathea.messages import MOST_COUNT, GivenAsked, GivenTold
from magrathea.pbs_text.amounts import size_bytes, whole_mib, whole_number
from magrathea.pbs_text.placement import placed
from scheduler_plugin.pbs.base import PbsJob

from .job_parts import QUESTIONS
from .job_reports import is_given
from .shares import Cause, Shares

WITHOUT_HURRY = 5.0, 128.0, 8.0
"""Questions for which no claim waits: see shares.py. A host asks one for each job that starts."""
MOMENT_S = 5.0
"""An agent that has lost the answer repeats its claim within this time."""
READING_S = 150.0
"""An older reading of all jobs answers nothing. By default they are read each minute."""
MOST_REMEMBERED = 4096
"""Answers of PBS. They are needed for a moment only."""


def size_on(vnode: str, exec_vnode: str) -> Amount | None:
    """What PBS has given the job on that vnode; None if that cannot be read."""
    cpus = memory_bytes = 0
    try:
        for name, resources in (part for chunk in placed(exec_vnode) for part in chunk):
            if name == vnode:
                cpus += sum(whole_number(value) for what, value in resources if what == "ncpus")
                memory_bytes += sum(size_bytes(value) for what, value in resources if what == "mem")
    except ValueError:
        return None
    return Amount(min(cpus, MOST_COUNT), min(whole_mib(memory_bytes), MOST_COUNT))


def told(asked: GivenAsked, job: PbsJob | None) -> GivenTold:
    """The answer to the question. `job`: what PBS has under the job's id."""
    if job is not None and job.exec_vnode and not job.vnodes:  # it runs, but where cannot be read
        return GivenTold(id=asked.id, given=None)
    if job is None or not is_given(JobKey(asked.job, asked.run), asked.vnode, job):
        return GivenTold(id=asked.id, given=False)
    size = size_on(asked.vnode, job.exec_vnode) if job.exec_vnode and asked.claim is not None else None
    if size is None:
        return GivenTold(id=asked.id, given=True)
    return GivenTold(id=asked.id, given=True, cpus=size.cpus, memory_mib=size.mib)


class Placements:
    """What PBS has said lately. `speaks`: whether PBS has that vnode and this host may speak of it; `cause`: whom a
    question is charged to. About a vnode that this PBS does not have it can say nothing: its jobs may be another's."""

    def __init__(self, speaks: Callable[[str, str], bool], cause: Callable[[str, str], Cause]) -> None:
        self._speaks, self._cause = speaks, cause
        self._claims, self._others = Shares(*QUESTIONS), Shares(*WITHOUT_HURRY)
        self._answers: dict[str, tuple[PbsJob | None, float]] = {}
        self._reading: Mapping[str, PbsJob] = MappingProxyType({})
        self._read_at = float("-inf")

    @property
    def reading(self) -> Mapping[str, PbsJob]:
        """All jobs as of the last reading."""
        return self._reading

    def read(self, jobs: Mapping[str, PbsJob], asked_at: float) -> None:
        """Take all jobs, as they were at `asked_at` or later."""
        self._reading, self._read_at = jobs, asked_at

    def answered(self, id: str, job: PbsJob | None, at: float) -> None:
        """Take PBS's answer about one job, which was asked for at `at`."""
        self._answers.pop(id, None)  # so that the newest answers are the last ones
        self._answers[id] = job, at
        if len(self._answers) > MOST_REMEMBERED:
            del self._answers[next(iter(self._answers))]

    def known(self, host: str, asked: GivenAsked, now: float) -> GivenTold | None:
        """The answer, if PBS has said lately that the job is there; None if PBS must be asked."""
        if not self._speaks(host, asked.vnode):
            return None
        job, at = self._answers.get(asked.job, (None, float("-inf")))
        answer = told(asked, job) if now < at + MOMENT_S else None
        if (answer is None or not answer.given) and not asked.urgent and now < self._read_at + READING_S:
            answer = told(asked, self._reading.get(asked.job))
        return answer if answer is not None and answer.given else None

    def may_ask(self, host: str, asked: GivenAsked, now: float) -> bool:
        """True if PBS may be asked for the host. It takes one of the host's questions."""
        shares = self._claims if asked.urgent else self._others
        return self._speaks(host, asked.vnode) and shares.take([self._cause(host, asked.vnode)], now)
