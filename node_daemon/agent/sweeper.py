"""Standing orders: when the agent looks, stops and continues, and when it looks again (law 2)."""

import time

from .changes import StoppedProcesses
from .ender import Ender
from .finder import REREAD_S, Finder
from .jobs import Job
from .log import log
from .loop import Loop, Timer
from .refusals import SUPERSEDED, refusal
from .signals import Signaller
from .stopper import Stopper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Tuple

    from .lines import Doc
    from .values import Key, Reply

    Warned = Tuple[int, float, bool]  # signal, seconds before the stop, to the first process only

LAUNCH_POLL_S = 0.2
LAUNCH_PATIENCE_S = 60.0  # after this, a job without a process is only looked for with each report
SWEEP_S = 0.5
ENVIRON_S = 0.05  # environments are read after known processes have stopped, or after this time
PASSES_AT_ONCE = 4  # looks at /proc in a row; then other work gets its turn
GIVE_WAY_S = (0.0002, 0.00002, 0.01)  # for processes to stop: at least, for each process, at most
PASS_PAUSE_S = (0.001, 0.05)
WHOLE_LOOK_S = 5.0  # a whole look may be so old while only stopped processes are checked
CALM_AFTER_S = 30.0  # a stop undisturbed for so long is checked less often:
CALM_SWEEP_S = 1.0  # instead of SWEEP_S; an emulated guest pays 0.1 % of a core for each wake-up a second
CALM_LOOK_S = 15.0  # instead of WHOLE_LOOK_S
ORDERS_S = 1.5


class Effort:
    """One `orders` request under way: its jobs, its deadline, and where its answer goes."""

    def __init__(self, keys: "List[Key]", began: float, deadline: float, reply: "Reply") -> None:
        self.keys = keys
        self.began = began
        self.deadline = deadline
        self.reply = reply


class Sweeper:
    """Carries out orders: looks, signals, and looks again until all is as ordered. Repeats that while a stop stands.

    A stop is complete when two looks in a row have found every process of the job stopped and none new. A process
    that was forked before its parent stopped is found by the second look.
    """

    def __init__(self, loop: Loop, jobs: "Dict[Key, Job]", finder: Finder, signaller: Signaller) -> None:
        self.loop = loop
        self.jobs = jobs
        self.finder = finder
        self.stopper = Stopper(finder, signaller)
        self.ender = Ender(loop, self.stopper, signaller, self.sweep)
        self.on_seen: "Callable[[], None]" = lambda: None
        self.on_done: "Callable[[], None]" = lambda: None
        self.on_looked: "Callable[[], None]" = lambda: None
        self.effort: "Optional[Effort]" = None
        self.since = 0.0  # when the present series of passes began
        self.until = 0.0  # when slow sweeps follow it
        self.pause = PASS_PAUSE_S[0]
        self.timer: "Optional[Timer]" = None
        self.stopped = StoppedProcesses()
        self.watched_at: "Optional[float]" = None  # the look that found them
        self.disturbed_at = 0.0  # when a process last had to be stopped

    # orders
    def order(
        self,
        wanted: "List[Tuple[Key, str]]",
        deadline_s: float,
        reply: "Reply",
        warnings: "Optional[Dict[Key, Warned]]" = None,
    ) -> None:
        """Take the full set of orders. `reply` gets the answer when they are carried out, or at the deadline.

        `warnings`: what comes before a job's stop. A stop that stands already has no second warning.
        """
        now = time.monotonic()
        self._unwatch()
        if self.effort is not None:
            self.effort.reply(refusal(SUPERSEDED, "newer orders came before these were carried out"))
            self.effort = None
        named = dict(wanted)
        for key, job in list(self.jobs.items()):
            if key not in named:
                self._set(job, None)
                if not job.listed:
                    self.forget(job)
        for key, word in wanted:
            if key not in self.jobs:
                self.jobs[key] = Job(key, now)
            job = self.jobs[key]
            begins = word == "stop" and job.order != "stop"
            self._set(job, word)
            if begins and warnings and key in warnings:
                job.warning, warn_s, job.warn_first_only = warnings[key]
                job.warned_until = now + warn_s
        self.effort = Effort([key for key, _ in wanted], now, now + deadline_s, reply)
        self._begin(now, now + deadline_s)

    @staticmethod
    def _set(job: Job, order: "Optional[str]") -> None:
        if job.order != order:
            log.info("job %s: %s" % (job, order or "no order"))
            job.warning, job.warned_until = 0, 0.0
        job.stopped_at = (job.stopped_at or time.time()) if order == "stop" else None
        job.wake_all = order == "run" and job.order != "run"
        job.order = order
        job.calm = 0
        job.settled = order not in ("stop", "run")
        job.barrier = order == "stop"

    def forget(self, job: Job) -> None:
        self._unwatch()
        self.finder.forget(job)
        self.jobs.pop(job.key, None)

    def bury(self, job: Job) -> None:
        """Kill the stopped processes of a job that has ended: nothing else would end them."""
        left = dict(job.struck)
        self.forget(job)
        if left:
            self.ender.kill(str(job), left)

    def _unwatch(self) -> None:
        self.stopped.watch(())
        self.watched_at = None

    def resume_standing(self) -> None:
        """Enforce the standing orders of the earlier agent."""
        now = time.monotonic()
        for job in self.jobs.values():
            self.finder.cgroups.refresh(now)
            self.finder.cgroups.thaw_leftover(job.id)
            self._set(job, job.order)
        self._begin(now, now + ORDERS_S)

    # the work

    def _begin(self, now: float, until: float) -> None:
        self.since = self.disturbed_at = now
        self.until = until
        self.pause = PASS_PAUSE_S[0]
        struck = 0
        for job in self.jobs.values():
            if job.order == "stop" and not job.leaving and not job.settled and now >= job.warned_until:
                # first those of the last look: while they run, looking for the rest takes longer
                running = [p for p in job.procs.values() if p.state != "T"]
                self.stopper.strike(job, running, now)
                struck += len(running)
        self._give_way(struck, now)
        self._drive(first=True)

    @staticmethod
    def _give_way(running: int, since: float) -> None:
        """Leave the CPU alone for about as long as it was used since `since`.

        A process needs a CPU in order to stop, and waits for ours if it last ran there.
        """
        if running:
            took = time.monotonic() - since
            time.sleep(min(max(took, GIVE_WAY_S[0] + running * GIVE_WAY_S[1]), GIVE_WAY_S[2]))

    def _drive(self, first: bool = False) -> None:
        """Make some passes; then answer, or pause."""
        self._arm(SWEEP_S, self._drive)  # for the case that these passes meet a defect
        for _ in range(PASSES_AT_ONCE):
            # known processes stop before environments are read; not for ever, because one may hang in the kernel
            known = any(job.procs and not job.settled for job in self.jobs.values())
            running = sum(job.running for job in self.jobs.values())
            began = time.monotonic()
            environ = not known or (not running and not first) or began - self.since > ENVIRON_S
            self._pass(thorough=first or environ, environ=environ)
            first = False
            left = [job for job in self.jobs.values() if not job.settled]
            if all(time.monotonic() < job.warned_until for job in left):
                break
            self._give_way(sum(job.running for job in left), began)
        now = time.monotonic()
        left = [job for job in self.jobs.values() if not job.settled]
        busy = now < self.until and bool(left)
        if not busy:
            self._finish(now)
        warned_s = min([job.warned_until - now for job in left] or [0.0])
        if busy and warned_s > SWEEP_S:
            self._arm(SWEEP_S, self._meanwhile)
        else:
            self._schedule(max(self.pause, warned_s) if busy else None)
        self.pause = min(2 * self.pause, PASS_PAUSE_S[1])

    def _meanwhile(self) -> None:
        """Enforce the other orders, and find ends, while jobs have their time before a stop."""
        self._arm(SWEEP_S, self._meanwhile)  # for the case that this look meets a defect
        self.sweep(whole=True)
        self._drive()

    def is_busy(self) -> bool:
        """Whether an order is being carried out at this moment, and not only waits for the end of a warning."""
        now = time.monotonic()
        return self.effort is not None and any(now >= job.warned_until for job in self.jobs.values() if not job.settled)

    def _finish(self, now: float) -> None:
        for job in self.jobs.values():
            if job.order == "run":
                job.settled = True  # a continue does not stand: if it is stopped again, that was somebody else
        effort, self.effort = self.effort, None
        self.on_done()
        if effort is not None:
            rows = [self.row(self.jobs[key]) for key in effort.keys if key in self.jobs]
            effort.reply({"ok": True, "jobs": rows, "ms": round((now - effort.began) * 1000, 2)})

    def row(self, job: Job) -> "Doc":
        # Out of time with processes not read yet: one may be the job's, so not all can be reported as stopped.
        unknown = int(job.order == "stop" and self.finder.may_miss(job) and not job.settled)
        leaving = job.order == "stop" and job.leaving
        return {
            "id": job.id,
            "run": job.run,
            "order": job.order,
            "processes": job.stopped if leaving else len(job.procs) + job.doubtful + unknown,
            "stopped": job.stopped,
            "pending": job.pending,
        }

    def _arm(self, delay: float, action: "Callable[[], None]") -> None:
        self._disarm()
        self.timer = self.loop.after(delay, action)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _schedule(self, delay: "Optional[float]" = None) -> None:
        self._disarm()
        if delay is not None:
            self._arm(delay, self._drive)
            return
        now = time.monotonic()
        if any(not j.seen and j.listed and now - j.known_at < LAUNCH_PATIENCE_S for j in self.jobs.values()):
            self._arm(LAUNCH_POLL_S, self.glance)
        elif any(job.order == "stop" for job in self.jobs.values()):
            self._arm(CALM_SWEEP_S if self._calm(now) else SWEEP_S, self.glance)

    def _calm(self, now: float) -> bool:
        ends = any(job.leaving or job.pending for job in self.jobs.values())
        return now - self.disturbed_at > CALM_AFTER_S and not ends

    def glance(self) -> None:
        """Like `sweep`, but with one small read for each stopped process if the jobs cannot have got new ones."""
        if self.effort is not None:
            return  # its passes are under way
        self._arm(SWEEP_S, self.glance)  # for the case that this look meets a defect
        if self._stands():
            self._schedule()
        else:
            self.sweep()

    def _stands(self) -> bool:
        """Whether every stop still is as the last look left it."""
        jobs = self.jobs.values()
        stops = [job for job in jobs if job.order == "stop"]
        if any(j.leaving or j.pending or j.barrier or not j.settled for j in stops):
            return False
        patience_s = CALM_LOOK_S if self._calm(time.monotonic()) else WHOLE_LOOK_S
        if not all(job.seen or not job.listed for job in jobs):
            patience_s = REREAD_S
        if not self.finder.unchanged(jobs, patience_s):
            return False
        if self.watched_at != self.finder.whole_at:
            self.stopped.watch(proc for job in stops for proc in job.procs.values())
            self.watched_at = self.finder.whole_at
        return self.stopped.still()

    def sweep(self, whole: bool = False) -> None:
        """Look thoroughly, and enforce every standing order again.

        Environments are read only if a stop stands, a job has shown no process, or the look must be `whole`. Reading
        one may wait for a process that is forking, and a running job is not worth that.
        """
        now = time.monotonic()
        if self.is_busy():
            return  # its passes are under way
        self.since = now
        environ = whole or any(j.order == "stop" or not j.procs for j in self.jobs.values())
        self._pass(thorough=True, environ=environ)
        if self.effort is not None:
            return  # its next pass has its time
        if any(j.order == "stop" and j.running for j in self.jobs.values()):
            self.until = now + SWEEP_S
            self.pause = PASS_PAUSE_S[0]
            self._schedule(self.pause)
        else:
            self._schedule()

    def _pass(self, thorough: bool, environ: bool = True) -> None:
        jobs = list(self.jobs.values())
        barriers = [j for j in jobs if j.barrier and not j.leaving and time.monotonic() >= j.warned_until]
        frozen: "List[str]" = []
        try:
            for job in barriers:
                job.barrier = False
                frozen += self.finder.cgroups.freeze(job.id)
            found = self.finder.look(jobs, thorough, self.since, environ)
            grown = {proc.job for proc in found}
            for job in jobs:
                if job.order == "stop" and not job.leaving and self.stopper.warned(job):
                    job.stopped = sum(p.state in "Tt" for p in job.procs.values())
                    job.pending, job.running, job.calm = 0, len(job.procs) - job.stopped, 0
                elif job.order == "stop":
                    self._stop(job, job in grown or self.finder.may_miss(job))
                elif job.order == "run" and not job.settled:
                    self.stopper.continue_job(job)
                else:
                    job.stopped = sum(p.state in "Tt" for p in job.procs.values())
                    job.pending = job.running = 0
        finally:
            self.finder.cgroups.thaw(frozen)
        if any(job.order == "stop" and (job.running or job in grown) for job in jobs):
            self.disturbed_at = time.monotonic()
        seen = False
        for job in jobs:
            if job.procs and not job.seen:
                job.seen = seen = True
        self.on_looked()
        if seen:
            self.on_seen()

    def _stop(self, job: Job, grown: bool) -> None:
        """One pass for a job. `grown`: it has, or may have, more processes than before."""
        if not job.leaving:
            self.stopper.stop(job, grown)
            return
        if job.deleted:
            self.ender.let_end(job)
        job.stopped = sum(p.state in "Tt" for p in job.procs.values())
        job.pending, job.running, job.settled = 0, 0, True
