"""Reports that the agent sends to the node daemon unasked."""

import os

from .channel import Channel
from .log import log
from .loop import Loop
from .procfs import memory_report
from .refusals import BUSY
from .swaps import swap
from .sweeper import Sweeper
from .table import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .jobs import Job
    from .lines import Doc
    from .values import Key

MAX_TELLING = 32  # launches without an answer: half of what the daemon works on at once, so that claims find a place
TELLING_S = 0.2  # between two such groups: stays below MAX_LINES_PER_S, so that reading never pauses for them
REPORT_S = 10.0
REPEATED_S = 60.0  # a launch or a release is reported again and again for this long


class Reports:
    """Reports that the agent sends to the node daemon unasked: launches, ends, and memory every REPORT_S."""

    def __init__(self, loop: Loop, channel: Channel, table: Table, sweeper: Sweeper) -> None:
        self.loop = loop
        self.channel = channel
        self.table = table
        self.jobs = table.jobs
        self.sweeper = sweeper
        self.reporting = False
        self.telling = 0  # launches without an answer

    def greeted(self) -> None:
        """A node daemon has connected, perhaps another one than before."""
        for job in self.jobs.values():
            job.told = False
        self.tell_launched()
        self._report()

    def tell_launched(self) -> None:
        """Report each job that has shown a process, once."""
        self.table.save()
        self._tell_launched()

    def _tell_launched(self) -> None:
        if not self.channel.ready or self.telling >= MAX_TELLING:
            return
        for job in self.jobs.values():
            if job.seen and job.listed and not job.told and not job.telling:
                job.telling = self.channel.ask("launched", {"job": job.name()}, REPEATED_S, self._told(job))
                self.telling += job.telling
                if not job.telling or self.telling >= MAX_TELLING:
                    return

    def _told(self, job: "Job") -> "Callable[[Optional[Doc]], None]":
        def answered(answer: "Optional[Doc]") -> None:
            self.telling -= 1
            job.telling = False
            job.told = answer is not None and answer.get("code") != BUSY
            if job.told and not self.telling:
                self.loop.after(TELLING_S, self._tell_launched)  # if the daemon was busy, the next report does it

        return answered

    def tell_release(self, key: "Key") -> None:
        """Report that a job is over."""
        body = {"job": {"id": key[0], "run": key[1]}}
        self.channel.withdraw("release", body)
        if not self.channel.has_room or not self.channel.ask("release", body, REPEATED_S, lambda answer: None):
            log.warning(
                "release of job %s not reported: too many requests wait; MoM's next lists will show it" % key[0]
            )

    def report_again(self) -> None:
        """Report now and every REPORT_S from now on."""
        self.loop.after(REPORT_S, self.report_again)
        if self.jobs:
            self.sweeper.finder.environments.relax()
        else:
            self.sweeper.finder.environments.rest()
        self._report()
        self.tell_launched()

    def _report(self) -> None:
        if not self.channel.ready or self.reporting:
            return
        if any(job.order != "stop" for job in self.jobs.values()):
            self.sweeper.sweep()  # running jobs may have ended
        elif self.jobs:
            self.sweeper.glance()
        body = {"memory": dict(memory_report(), **swap().report()), "load1": round(os.getloadavg()[0], 2)}
        self.reporting = self.channel.ask("report", body, REPORT_S / 2, self._reported)

    def _reported(self, answer: "Optional[Doc]") -> None:
        self.reporting = False
