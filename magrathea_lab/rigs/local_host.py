"""One host for benchmarks: the real daemon, real agents, real processes. Only PBS and the hub are replaced.

Everything is in a temporary directory, and is removed at the end of the `with` block. No root is needed.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from magrathea import client
from magrathea.messages import KNOWS_MOVES, Snapshot
from node_daemon.main import group_name

from .. import leftovers
from ..waiting import BOUND_S, until
from .hub_rig import HubThread

ROOT = """
import os, subprocess, sys
job = {**os.environ, "PBS_JOBID": sys.argv[1]}
def run(program): return subprocess.Popen([sys.executable, "-S", "-c", program], env=job, start_new_session=True)
processes = []
for line in sys.stdin:
    word, number = line.split()
    if word == "start":
        sleeping = "import time; time.sleep(3600)"
        processes += [run(sys.argv[2] or sleeping) for _ in range(int(number))]
        print(*[p.pid for p in processes], flush=True)
    for process in processes if word == "end" else []:
        process.kill()
        process.wait()
"""
"""A domain's root process: starts and ends a job's processes on command, and ends them when its standard input
closes."""
COMPUTE = "n = 0\nwhile True: n += 1"

CONFIGURATION = """
[host]
name = "bench"
{mode}
reserve_mib = 0
[limits]
min_run_s = 0
allow_short_min_run = true
[hub]
endpoints = ["ipc://{place}/hub"]
[paths]
run_dir = "{place}/run"
state_dir = "{place}/state"
scripts = ""
[domain.n1]
kind = "normal"
local.pid_file = "{place}/n1.pid"
[domain.p1]
kind = "priority"
local.pid_file = "{place}/p1.pid"
"""


@dataclass
class Host:
    """A host with a normal domain `n1`, which has the job's processes, and a priority domain `p1`."""

    place: Path
    daemon: subprocess.Popen[bytes]
    agents: dict[str, subprocess.Popen[bytes]]
    roots: dict[str, subprocess.Popen[str]]
    job: str

    @property
    def control(self) -> Path:
        return self.place / "run" / "control.sock"

    def status(self) -> Snapshot:
        return client.status(self.control)

    def start_processes(self, count: int) -> list[psutil.Process]:
        """Let the job in `n1` have `count` processes; return all of them."""
        root = self.roots["n1"]
        assert root.stdin is not None and root.stdout is not None
        root.stdin.write(f"start {count}\n")
        root.stdin.flush()
        if not select.select([root.stdout], [], [], BOUND_S)[0]:
            raise TimeoutError("the domain's root process does not start processes")
        return [psutil.Process(int(pid)) for pid in root.stdout.readline().split()]

    def ask_agent(self, domain: str, **request: object) -> dict[str, object]:
        """Ask an agent as a MoM hook does; return its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(BOUND_S)
            connection.connect(str(self.place / f"{domain}.agent"))
            connection.sendall(json.dumps(request).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and (part := connection.recv(65536)):
                data += part
        answer: dict[str, object] = json.loads(data)
        return answer

    def job_fields(self, id: str, cls: str) -> dict[str, object]:
        fields = {"id": id, "run": 1, "class": cls, "cpus": 1, "memory_mib": 0, "rerunnable": True}
        return {**fields, "owner": getpass.getuser()}

    def claim(self, domain: str, id: str, cls: str) -> dict[str, object]:
        return self.ask_agent(domain, op="claim", job=self.job_fields(id, cls), deadline_s=1.8)

    def release(self, domain: str, id: str) -> dict[str, object]:
        return self.ask_agent(domain, op="release", job={"id": id, "run": 1})


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(BOUND_S)
    if process.stdout is not None:
        process.stdout.close()


def stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


@contextlib.contextmanager
def one_host(
    program: str = "",
    agents: tuple[str, ...] = ("n1", "p1"),
    mode: str = 'mode = "exclusive"',
    hub_version: str = KNOWS_MOVES,
) -> Iterator[Host]:
    """A host with its daemon and the agents of `agents`, all connected. `program`: what the job's processes run.
    `mode`: the line of the configuration, with the host's CPUs if they matter. `hub_version`: see HubRig."""
    job = f"{os.getpid()}.bench"
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magrathea-bench-")))
        stack.callback(leftovers.take(leftovers.Kind.GROUP, group_name("bench", f"{place}/run")).undo)
        hub = HubThread(f"ipc://{place}/hub", books=False, version=hub_version)
        hub.start()
        stack.callback(hub.close)
        roots = {}
        for name in ("n1", "p1"):
            root = subprocess.Popen(
                [sys.executable, "-c", ROOT, job, program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            roots[name] = root
            stack.callback(_end_root, root)
            (place / f"{name}.pid").write_text(f"{root.pid}\n")
        (place / "noded.toml").write_text(CONFIGURATION.format(place=place, mode=mode))
        log = stack.enter_context((place / "log").open("wb"))
        command = [sys.executable, "-m", "node_daemon.main", "--config", str(place / "noded.toml")]
        # as its unit does (deploy/systemd); without root it gets no higher priority
        daemon = subprocess.Popen(["nice", "-n", "-5", *command] if os.geteuid() == 0 else command, stderr=log)
        stack.callback(_stop, daemon)
        running = {}
        for name in agents:
            configuration = {
                "socket": f"{place}/{name}.agent",
                "channel": f"unix:{place}/run/guest/{name}.sock",
                "state": f"{place}/{name}.state",
                "scripts": f"{place}/no-scripts",
            }
            file = place / f"{name}.json"
            file.write_text(json.dumps(configuration))
            # with `-m`, as its unit does: then Python uses the compiled file; compiling would keep 10 MB of memory
            command = [sys.executable, "-m", "node_daemon.agent", "--config", str(file)]
            running[name] = subprocess.Popen(command, stderr=log)
            stack.callback(_stop, running[name])
        host = Host(place, daemon, running, roots, job)
        try:
            until(lambda: _is_up(host), "the daemon, its agents and the hub to be connected")
            yield host
        except BaseException:
            log.flush()
            sys.stderr.write((place / "log").read_text()[-4000:])
            raise


def _is_up(host: Host) -> bool:
    if host.daemon.poll() is not None:
        raise ChildProcessError(f"the daemon ended with {host.daemon.returncode}")
    try:
        status = host.status()
    except client.Unreachable:
        return False
    return status.hub_connected and all(d.agent for d in status.domains if d.name in host.agents)


def _end_root(root: subprocess.Popen[str]) -> None:
    """End the domain's root process, but first the job's processes: they have sessions of their own, and may be
    stopped."""
    assert root.stdin is not None
    with contextlib.suppress(BrokenPipeError, ValueError):
        root.stdin.write("end 0\n")
        root.stdin.flush()
        root.stdin.close()
    try:
        root.wait(BOUND_S)
    except subprocess.TimeoutExpired:
        root.kill()
        root.wait(BOUND_S)
    assert root.stdout is not None
    root.stdout.close()
