"""A small host with everything real except PBS: node daemon, agents, local driver, jobs that are processes.

`Rig` starts and kills them. It plays MoM (claims, lists, releases on the agents' sockets) and the hub (books what the
daemon wants stopped, over ZeroMQ). The rig's hub signals no process, so only the agent stops and continues jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magrathea_lab import leftovers
from magrathea_lab.rigs.agent_rig import MARK
from magrathea_lab.rigs.hub_rig import HubRig
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.main import group_name

ROOT = """
import os, signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
OWN = {name: value for name, value in os.environ.items() if name in sys.argv[1:]}
for line in sys.stdin:
    job, processes = line.split()
    # Children that wait, and a shell that keeps making new ones.
    script = "n=1; while [ $n -lt %s ]; do sleep 100000 & n=$((n+1)); done; while :; do sleep 0.05; done" % processes
    child = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL,
                             env={**OWN, "PATH": "/usr/bin:/bin", "PBS_JOBID": job})
    print(child.pid, flush=True)
"""


LIST_S = 4.0
"""A list is given up after this time; the next one says the same."""


@dataclass
class Job:
    id: str
    run: int
    cls: str
    cpus: int = 1
    session: int = 0
    """The session of its processes, once it runs."""

    def key(self) -> dict[str, Any]:
        return {"id": self.id, "run": self.run}


@dataclass
class DomainRig:
    name: str
    kind: str
    folder: Path
    root: asyncio.subprocess.Process | None = None
    agent: asyncio.subprocess.Process | None = None
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.name}.agent"


def states_of(session: int) -> list[str]:
    """State letters of the living processes of a session."""
    letters = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    letters.append(fields[0])
    return letters


def stopped(letters: list[str]) -> bool:
    """True if all are stopped. A shell in uninterruptible sleep counts: its new child was stopped before its exec."""
    return bool(letters) and all(letter in "TD" for letter in letters)


def running(letters: list[str]) -> bool:
    return bool(letters) and "T" not in letters


class Rig:
    """See the module's docstring. `domains`: name -> kind."""

    def __init__(self, folder: Path, mode: str, domains: dict[str, str], cpus: int = 4, extra: str = "") -> None:
        self.folder = folder
        self.mode = mode
        self.cpus = cpus
        self.extra = extra
        self.domains = {name: DomainRig(name, kind, folder) for name, kind in domains.items()}
        self.daemon: asyncio.subprocess.Process | None = None
        self.hub = HubRig(f"ipc://{folder}/hub.ipc")
        self._mom: asyncio.Task[None] | None = None
        self._group = leftovers.take(leftovers.Kind.GROUP, group_name("h1", f"{folder}/run"))
        self._kept: list[asyncio.subprocess.Process] = []
        self._mark = {MARK: str(folder)}
        """In the environment of its jobs, because another test's jobs may have the same ids."""

    # Contents

    @property
    def config(self) -> Path:
        return self.folder / "noded.toml"

    @property
    def journal(self) -> Path:
        return self.folder / "state" / "journal.sqlite"

    def write_config(self) -> None:
        text = f"""
[host]
name = "h1"
mode = "{self.mode}"
cpus = {self.cpus}
memory_mib = 4096
[limits]
min_run_s = 0.0
allow_short_min_run = true
[hub]
endpoints = ["ipc://{self.folder}/hub.ipc"]
[paths]
run_dir = "{self.folder}/run"
state_dir = "{self.folder}/state"
scripts = ""
{self.extra}
"""
        for domain in self.domains.values():
            text += (
                f'[domain.{domain.name}]\nkind = "{domain.kind}"\nlocal.pid_file = "{self.folder}/{domain.name}.pid"\n'
            )
            agent = {
                "socket": str(domain.socket),
                "channel": f"unix:{self.folder}/run/guest/{domain.name}.sock",
                "state": f"{self.folder}/{domain.name}.state",
                "scripts": f"{self.folder}/{domain.name}.d",
                "environment": self._mark,
            }
            domain.config.write_text(json.dumps(agent))
        self.config.write_text(text)

    async def start(self) -> None:
        self.write_config()
        self.hub.start()
        for domain in self.domains.values():
            domain.root = await asyncio.create_subprocess_exec(
                sys.executable,
                "-S",
                "-E",
                "-c",
                ROOT,
                leftovers.OWNER,
                MARK,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, **self._mark},
            )
            (self.folder / f"{domain.name}.pid").write_text(f"{domain.root.pid}\n")
        await self.start_daemon()
        for domain in self.domains.values():
            await self.start_agent(domain)
        self._mom = asyncio.get_running_loop().create_task(self._lists())
        await eventually(self.settled, "the daemon up, agents and hub connected")

    async def start_daemon(self, **environment: str) -> None:
        log = (self.folder / "noded.log").open("ab")
        self.daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node_daemon.main", "--config", str(self.config), "--log-level", "debug"),
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
        log.close()
        self._kept.append(self.daemon)

    async def start_agent(self, domain: DomainRig) -> None:
        log = (self.folder / f"{domain.name}.log").open("ab")
        domain.agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "node_daemon.agent", "--config", str(domain.config)), stdout=log, stderr=log
        )
        log.close()
        self._kept.append(domain.agent)

    async def stop_daemon(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.daemon is not None
        with contextlib.suppress(ProcessLookupError):
            self.daemon.send_signal(number)
        return await asyncio.wait_for(self.daemon.wait(), BOUND_S)

    async def close(self) -> None:
        if self._mom is not None:
            self._mom.cancel()
            await asyncio.gather(self._mom, return_exceptions=True)
        for domain in self.domains.values():
            for job in domain.jobs.values():
                kill_session(job.session)
        for process in [*self._kept, *(d.root for d in self.domains.values() if d.root is not None)]:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await self.hub.close()
        self._group.undo()

    # Reports

    async def status(self) -> dict[str, Any]:
        return await ask(self.folder / "run" / "control.sock", {"op": "status"})

    def report(self, name: str) -> Any:
        """The domain in the last snapshot that the hub received."""
        last = self.hub.last
        assert last is not None
        return next(d for d in last.domains if d.name == name)

    def settled(self) -> bool:
        last = self.hub.last
        return last is not None and last.hub_connected and all(d.agent for d in last.domains)

    # MoM's part

    async def ask_agent(self, domain: DomainRig, message: dict[str, Any], seconds: float = BOUND_S) -> dict[str, Any]:
        try:
            return await ask(domain.socket, message, seconds)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            return {"ok": False, "code": "no-agent", "text": str(error)}

    async def claim(self, name: str, job: Job, *, if_unconfirmed: bool = False) -> dict[str, Any]:
        """The answer to a claim. On a busy machine the hub may be asked too late to confirm the job; then the claim is
        repeated, unless that is the answer that is wanted."""
        end = time.monotonic() + BOUND_S
        while True:
            answer = await self._claim(name, job)
            if answer.get("code") != "unconfirmed" or if_unconfirmed or time.monotonic() > end:
                return answer

    async def _claim(self, name: str, job: Job) -> dict[str, Any]:
        domain = self.domains[name]
        described = {**job.key(), "class": job.cls, "cpus": job.cpus, "memory_mib": 0, "rerunnable": True}
        described["owner"] = getpass.getuser()
        answer = await self.ask_agent(domain, {"op": "claim", "job": described, "deadline_s": 1.8})
        if answer["ok"]:  # MoM makes no list while its hook claims
            domain.jobs[job.id] = job
        else:
            domain.jobs.pop(job.id, None)
        return answer

    async def start_job(self, name: str, job: Job, processes: int = 3) -> None:
        """Claim until the claim is granted, as PBS does when it runs the job again; then start its processes."""
        end = time.monotonic() + BOUND_S
        while not (answer := await self.claim(name, job))["ok"]:
            assert time.monotonic() < end, f"{job} was never accepted: {answer}"
            job.run += 1
            await asyncio.sleep(0.1)
        await self.launch(name, job, processes)

    async def launch(self, name: str, job: Job, processes: int = 3) -> None:
        root = self.domains[name].root
        assert root is not None and root.stdin is not None and root.stdout is not None
        root.stdin.write(f"{job.id} {processes}\n".encode())
        job.session = int(await root.stdout.readline())
        await eventually(lambda: len(states_of(job.session)) >= processes, f"{processes} processes of {job}")

    async def end_job(self, name: str, job: Job) -> dict[str, Any]:
        kill_session(job.session)
        self.domains[name].jobs.pop(job.id, None)
        return await self.ask_agent(self.domains[name], {"op": "release", "job": job.key()})

    async def _lists(self) -> None:
        """Send MoM's list every 0.4 s instead of every 15 s. An agent that hangs delays the others by LIST_S."""
        while True:
            for domain in self.domains.values():
                jobs = [self._listed(j) for j in domain.jobs.values()]
                await self.ask_agent(domain, {"op": "jobs", "jobs": jobs}, LIST_S)
            await asyncio.sleep(0.4)

    def _listed(self, job: Job) -> dict[str, Any]:
        substate = 43 if self.hub.booked.get((job.id, job.run)) else 42 if job.session else 41
        described = {**job.key(), "cpus": job.cpus, "memory_mib": 0, "substate": substate, "rerunnable": True}
        return {**described, "owner": getpass.getuser()}


def kill_session(session: int) -> None:
    if session <= 0:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    os.kill(int(entry.name), signal.SIGKILL)


async def ask(path: Path, message: dict[str, Any], seconds: float = BOUND_S) -> dict[str, Any]:
    """Send one line to a unix socket, and return the line that comes back."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_unix_connection(path, limit=2**22)
        try:
            writer.write(json.dumps(message).encode() + b"\n")
            answer: dict[str, Any] = json.loads(await reader.readuntil(b"\n"))
            return answer
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def rig(folder: Path, mode: str, domains: dict[str, str], cpus: int = 4, extra: str = "") -> AsyncIterator[Rig]:
    """A rig that is ended whatever happens."""
    made = Rig(folder, mode, domains, cpus, extra)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
