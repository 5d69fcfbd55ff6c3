"""The stand-in's MoM: one process per domain, and the root of all processes of the domain's jobs.

    python -m magrathea_lab.pbs_standin.mom --server D/pbs.sock --vnode n1 --hook .../hooks/magrathea_mom.py

Inside a virtual machine `--server` is a virtio-serial port that leads to the same socket. The host and the guest share
no files, so the server asks for a job's files (`read`).

Rule 1: it blocks where OpenPBS's MoM blocks. `execjob_begin` runs in the main loop, and everything else waits; the
prologue runs beside the loop; `execjob_end` and `exechost_periodic` run in the background. Like OpenPBS's MoM it keeps
a file for each of its jobs, `mom_priv/jobs/ID.JB` in its PBS_HOME.
Rule 2: it signals a job's session only, so that processes which escape PBS escape here too.
Rule 3: standard library only, like the two modules that it imports: a guest has nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..processes import become_subreaper, die_with_parent, end_descendants, of_session, send

PRERUN, RUNNING, SUSPENDED, EXITING = 41, 42, 43, 50  # job.h
TICK_S = 0.2
"""Interval of the walltime clock."""
HOOK_ALARM_S = 30.0
"""PBS's default `alarm` of a hook. A hook that takes longer is killed, which counts as a reject."""
PROLOGUE_ALARM_S = 600.0
"""The `alarm` that `magrathea pbs install` sets for the hook that waits for memory."""
BAD_STATE, UNKNOWN_JOB = 15016, 15001  # pbs_error.h
MOST_READ = 1 << 16
LINE_LIMIT = 1 << 20
SAFE_ENVIRONMENT = ("PATH", "HOME", "LANG", "USER", "LOGNAME", "TZ")

Json = dict[str, Any]


def alarm_s(event: str) -> float:
    """How many seconds a hook may take at this event."""
    return PROLOGUE_ALARM_S if event == "execjob_prologue" else HOOK_ALARM_S


@dataclass
class Task:
    """A job's part on this MoM. `pid`: also its session's id. `used_s`: walltime without the time spent suspended."""

    job: Json
    substate: int = PRERUN
    pid: int = 0
    used_s: float = 0.0
    limit_s: float | None = None
    kill_at: float | None = None
    why: str = ""
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    def attributes(self) -> Json:
        return {**self.job, "substate": self.substate, "session_id": self.pid or None}


class Mom:
    """One MoM. `hook_events`: the events for which its hook is registered. `home`: its PBS_HOME."""

    def __init__(
        self,
        vnode: str,
        hook: Path | None,
        config: Path | None,
        hook_events: set[str],
        period_s: float,
        kill_delay_s: float,
        home: Path | None = None,
    ) -> None:
        self.vnode, self.hook, self.config, self.hook_events = vnode, hook, config, hook_events
        self.period_s, self.kill_delay_s = period_s, kill_delay_s
        self.home = home
        if home is not None:
            shutil.rmtree(home / "mom_priv/jobs", ignore_errors=True)  # of a MoM that was killed
            (home / "mom_priv/jobs").mkdir(parents=True)
        self.server_name = ""
        self.tasks: dict[str, Task] = {}
        self._children: dict[int, Callable[[int], None]] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._writer: asyncio.StreamWriter | None = None

    # Hooks

    def _hook_process(self, event: str, task: Task | None) -> subprocess.Popen[str]:
        given = {"hook": str(self.hook), "config": str(self.config) if self.config else None, "event": event}
        given |= {"home": str(self.home) if self.home else None}
        jobs = [t.attributes() for t in self.tasks.values()] if event == "exechost_periodic" else None
        given |= {"server": self.server_name, "vnode": self.vnode, "jobs": jobs}  # type: ignore[dict-item]
        given["job"] = None if task is None else task.attributes()  # type: ignore[assignment]
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pbs_module.py"))]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(given))
        process.stdin.close()
        process.stdin = None
        return process

    def _outcome(self, event: str, code: int, output: str) -> Json:
        if code != 0:
            return {"accepted": False, "message": f"hook of {event} ended with code {code}", "changes": {}}
        outcome: Json = json.loads(output)
        for line in [*outcome["log"], *([] if outcome["accepted"] else [f"rejected: {outcome['message']}"])]:
            self.log(f"{event}: {line}")
        return outcome

    def hook_now(self, event: str, task: Task) -> Json:
        """Run the hook in the main loop; everything else waits, as in PBS."""
        if self.hook is None or event not in self.hook_events:
            return {"accepted": True, "message": "", "changes": {}}
        process = self._hook_process(event, task)
        try:
            output, _ = process.communicate(timeout=alarm_s(event))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return self._outcome(event, process.returncode, output)

    async def hook_beside(self, event: str, task: Task | None = None) -> Json:
        """Run the hook while the main loop continues."""
        if self.hook is None or event not in self.hook_events:
            return {"accepted": True, "message": "", "changes": {}}
        process = self._hook_process(event, task)
        assert process.stdout is not None
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._children[process.pid] = ended.set_result
        alarm = asyncio.get_running_loop().call_later(alarm_s(event), lambda: send([process.pid], signal.SIGKILL))
        code = await ended
        alarm.cancel()
        process.returncode = code
        return self._outcome(event, code, process.stdout.read())

    # Jobs

    def begin(self, job: Json) -> Json:
        task = Task(job, limit_s=job.get("walltime_s"))
        outcome = self.hook_now("execjob_begin", task)
        if outcome["accepted"]:
            self.tasks[job["id"]] = task
            if (file := self._file(job)) is not None:
                file.touch()
        return {"ok": outcome["accepted"], "text": outcome["message"], "changes": outcome["changes"]}

    def _file(self, job: Json) -> Path | None:
        return None if self.home is None else self.home / "mom_priv/jobs" / f"{job['id']}.JB"

    def _forget(self, job: Json) -> None:
        if (file := self._file(job)) is not None:
            file.unlink(missing_ok=True)

    def abort(self, job: Json) -> Json:
        task = self.tasks.pop(job["id"], None) or Task(job)
        self._forget(job)
        self.in_background(self.hook_beside("execjob_abort", task), "execjob_abort")
        return {"ok": True}

    def launch(self, job: Json) -> Json:
        self.in_background(self._launch(self.tasks[job["id"]]), f"launch of {job['id']}")
        return {"ok": True}

    async def _launch(self, task: Task) -> None:
        outcome = await self.hook_beside("execjob_prologue", task)
        if not outcome["accepted"]:
            await self._end(task, None, outcome["changes"])
            return
        job = task.job
        environment = {name: os.environ[name] for name in SAFE_ENVIRONMENT if name in os.environ}
        environment |= {"PBS_JOBID": job["id"], "PBS_QUEUE": job["queue"], "PBS_JOBNAME": job["Job_Name"]}
        environment |= {"PBS_O_WORKDIR": job["workdir"], "PBS_O_QUEUE": job["queue"], "PBS_ENVIRONMENT": "PBS_BATCH"}
        if job["mother_superior"]:
            with Path(job["output"]).open("ab") as output:
                process = subprocess.Popen(
                    ["/bin/sh", job["script"]],
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=job["workdir"],
                    env={**environment, **job["variables"]}, start_new_session=True,
                )  # fmt: skip
            task.pid = process.pid
            self._children[process.pid] = lambda code: self._exited(task, process, code)
        task.substate = RUNNING
        self.tell({"event": "running", "job": job["id"], "run": job["run_version"]})

    def _exited(self, task: Task, process: subprocess.Popen[bytes], code: int) -> None:
        process.returncode = code
        send(of_session(task.pid), signal.SIGKILL)
        self.in_background(self._end(task, code, {}), f"end of {task.job['id']}")

    async def _end(self, task: Task, code: int | None, changes: Json) -> None:
        """Finish a job. `code`: None if it never started because its prologue was refused."""
        task.substate = EXITING
        job = task.job
        if code is not None:
            await self.hook_beside("execjob_epilogue", task)
        note = {"event": "obit", "job": job["id"], "run": job["run_version"], "code": code, "why": task.why}
        self.tell({**note, "used_s": task.used_s, "changes": changes})
        await self.hook_beside("execjob_end", task)
        task.exited.set()
        if self.tasks.get(job["id"]) is task:
            del self.tasks[job["id"]]
            self._forget(job)

    def signal(self, job: Json, wanted: str) -> Json:
        """`suspend`, `resume`, `delete` (SIGTERM, and SIGKILL after the kill delay) or `kill`."""
        task = self.tasks.get(job["id"])
        if task is None:
            return {"ok": False, "code": UNKNOWN_JOB, "text": f"{self.vnode} has no job {job['id']}"}
        if wanted in ("suspend", "resume"):
            before, after, number = {
                "suspend": (RUNNING, SUSPENDED, signal.SIGSTOP),
                "resume": (SUSPENDED, RUNNING, signal.SIGCONT),
            }[wanted]
            if task.substate != before:
                return {"ok": False, "code": BAD_STATE, "text": f"{wanted} of {job['id']} in substate {task.substate}"}
            task.substate = after
        else:
            if wanted == "delete":
                self.hook_now("execjob_preterm", task)
            number = signal.SIGTERM if wanted == "delete" else signal.SIGKILL
            task.kill_at = time.monotonic() + self.kill_delay_s
        if task.pid:  # a signal before the first process is lost, as in PBS
            send(of_session(task.pid), number)
        elif wanted in ("delete", "kill") and not job["mother_superior"]:
            self.in_background(self._end(task, 0, {}), f"end of {job['id']}")
        return {"ok": True}

    def walltime(self, job: Json, seconds: float) -> Json:
        if job["id"] in self.tasks:
            self.tasks[job["id"]].limit_s = seconds
        return {"ok": True}

    def read(self, job: Json, path: str) -> Json:
        """The last part of a file on this MoM's machine; empty if there is no such file (yet)."""
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        return {"ok": True, "text": text[-MOST_READ:]}

    def tick(self, elapsed_s: float) -> None:
        """Advance the walltime clock by `elapsed_s`; suspended jobs do not use walltime."""
        now = time.monotonic()
        for task in self.tasks.values():
            if task.pid == 0 or task.substate not in (RUNNING, SUSPENDED):
                continue
            if task.substate == RUNNING:
                task.used_s += elapsed_s
            if task.kill_at is None and task.limit_s is not None and task.used_s > task.limit_s:
                task.why = f"walltime {task.used_s:.0f} exceeded limit {task.limit_s:.0f}"
                self.log(f"{task.job['id']}: {task.why}")
                self.signal(task.job, "delete")
            if task.kill_at is not None and now > task.kill_at:
                send(of_session(task.pid), signal.SIGKILL)

    # The loop

    def log(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.vnode}: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def tell(self, message: Json) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(message).encode() + b"\n")

    def in_background(self, work: Any, what: str) -> asyncio.Future[Any]:
        def ended(done: asyncio.Future[Any]) -> None:
            self._background.discard(done)
            if not done.cancelled() and done.exception() is not None:
                self.log(f"{what} failed: {done.exception()!r}")

        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(ended)
        return task

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (ended := self._children.pop(pid, None)) is not None:  # else it is an orphan of some job
                ended(os.waitstatus_to_exitcode(status))

    async def _periodically(self) -> None:
        await self.hook_beside("exechost_startup")
        last, due = time.monotonic(), time.monotonic() + self.period_s
        hook: asyncio.Future[Any] | None = None
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.tick(now - last)
            last = now
            if hook is not None and not hook.done():
                due = now + self.period_s  # like OpenPBS: on a busy machine hooks would pile up and make it busier
            elif now >= due:
                due = now + self.period_s
                hook = self.in_background(self.hook_beside("exechost_periodic"), "exechost_periodic")

    async def run(self, server: Path, offer: Json) -> None:
        """Serve until the server closes the connection or SIGTERM arrives."""
        loop = asyncio.get_running_loop()
        this = asyncio.current_task()
        assert this is not None
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        loop.add_signal_handler(signal.SIGTERM, lambda: this.cancel())
        reader, self._writer = await connect(server)
        self.tell({"op": "mom", **offer})
        self.server_name = json.loads(await reader.readline())["server"]
        self.in_background(self._periodically(), "the periodic work")
        handle: dict[str, Callable[..., Json]] = {"begin": self.begin, "abort": self.abort, "launch": self.launch}
        handle |= {"signal": self.signal, "walltime": self.walltime, "read": self.read}
        while line := await reader.readline():
            request = json.loads(line)
            number, op = request.pop("id"), request.pop("op")
            self.tell({"id": number, **handle[op](**request)})


async def connect(server: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a unix socket, or to the character device that leads to it. Raises OSError."""
    if not server.is_char_device():
        return await asyncio.open_unix_connection(str(server), limit=LINE_LIMIT)
    loop = asyncio.get_running_loop()
    port = os.open(server, os.O_RDWR | os.O_NONBLOCK)  # a virtio-serial port can be opened only once
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(port, "rb", buffering=0))
    transport, flow = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(os.dup(port), "wb", buffering=0)
    )
    return reader, asyncio.StreamWriter(transport, flow, reader, loop)


EVENTS = "execjob_begin,execjob_preterm,execjob_abort,exechost_periodic,exechost_startup"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One MoM of the PBS stand-in: root of all processes of a domain.")
    parser.add_argument("--server", required=True, type=Path, help="socket of the stand-in server, or a port to it")
    parser.add_argument("--vnode", required=True)
    parser.add_argument("--ncpus", type=int, default=1)
    parser.add_argument("--mem-mib", type=int, default=1024)
    parser.add_argument("--hook", type=Path, help="the MoM hook file")
    parser.add_argument("--hook-config", type=Path)
    parser.add_argument("--hook-events", default=EVENTS)
    parser.add_argument("--home", type=Path, help="PBS_HOME; the agent finds the files of the jobs there")
    parser.add_argument("--pid-file", type=Path, help="for the local hypervisor driver")
    parser.add_argument("--periodic-s", type=float, default=15.0, help="seconds between exechost_periodic events")
    parser.add_argument("--kill-delay-s", type=float, default=10.0, help="from SIGTERM to SIGKILL of a deleted job")
    return parser.parse_args()


def main() -> None:
    given = options()
    become_subreaper()
    die_with_parent(signal.SIGTERM)
    events = set(given.hook_events.split(","))
    mom = Mom(given.vnode, given.hook, given.hook_config, events, given.periodic_s, given.kill_delay_s, given.home)
    pid_file: Path | None = given.pid_file
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    try:
        with suppress(asyncio.CancelledError):
            offer = {"vnode": given.vnode, "ncpus": given.ncpus, "mem_mib": given.mem_mib}
            asyncio.run(mom.run(given.server, offer))
    finally:
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)
        end_descendants(patience_s=0.3)


if __name__ == "__main__":
    main()
