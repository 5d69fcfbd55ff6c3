"""Jobs of unusual kinds, and PBS commands on them: helpers for the tests of this folder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, LOCKS, MachineProcess
from magrathea_lab.scenarios.scenarios import STILL_S, require, wait, wait_running, wait_state, wait_stoppable
from magrathea_lab.work import PAUSE_S

LONG = 100_000
"""Steps of a job that a test ends by deleting it."""


def command(fleet: OpenPbsCluster, steps: int, counter: str = "$HOME/$PBS_JOBID.count") -> str:
    """The command of a job's script that runs work.py."""
    return f'python3 -S "{fleet.directory}/work.py" {steps} {PAUSE_S} "{counter}"'


def submit(fleet: OpenPbsCluster, queue: str, script: str, *argv: str) -> str:
    """Submit a script as alice; its output and errors go into one file."""
    return fleet.pbs.qsub(USER, "-q", queue, "-N", "job", "-j", "oe", *argv, script=script)


def home(fleet: OpenPbsCluster) -> Path:
    return fleet.directory / "home" / USER


def preempt(fleet: OpenPbsCluster, *lows: str, domain: str = "n1", by: str = "p1") -> str:
    """Start a priority job at `by`, which preempts `domain` with its jobs `lows`; all of these are S afterwards."""
    wait_stoppable(fleet, domain)
    high = fleet.submit("high", LONG, select=f"1:ncpus=1:host={by}")
    wait_running(fleet, high)
    for low in lows:
        wait_state(fleet, low, "S")
    return high


def preempted(fleet: OpenPbsCluster, steps: int = LONG) -> tuple[str, str]:
    """A preempted job in n1 (state S), and the priority job that preempted it."""
    low = fleet.submit("low", steps)
    wait_running(fleet, low)
    return low, preempt(fleet, low)


def end(fleet: OpenPbsCluster, job: str) -> None:
    """Kill a job.

    A `qdel` of a job that has just started may take PBS ten seconds more. MoM sees that the script's child is alive
    when its shell ends, and does not check again for that long.
    """
    fleet.pbs.run(HEAD, ["qsig", "-s", "SIGKILL", job])


def lives(fleet: OpenPbsCluster, pid: str) -> bool:
    """True if the process exists in n1."""
    return fleet.pbs.run("n1", ["kill", "-0", pid], check=False).returncode == 0


def pbs(fleet: OpenPbsCluster, *argv: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    """Run a PBS command on the server's machine; a failure is no error."""
    return fleet.pbs.run(HEAD, argv, user=user, check=False)


def refused(fleet: OpenPbsCluster, *argv: str, user: str = "root") -> str:
    """Require that PBS refuses a command; return its message."""
    done = pbs(fleet, *argv, user=user)
    require(fleet, done.returncode != 0, f"{' '.join(argv)} is refused: {done.stdout}{done.stderr}")
    return done.stderr


def subjobs(fleet: OpenPbsCluster, array: str) -> Mapping[str, str]:
    """State of each subjob of an array."""
    return {id: str(job["job_state"]) for id, job in fleet.pbs.jobs("-t", array).items() if "[]" not in id}


def all_stand_still(fleet: OpenPbsCluster, files: list[Path]) -> list[str]:
    """Require that none of these counters moves; return their values."""
    before = [file.read_text() for file in files]
    time.sleep(STILL_S)
    moving = [file.name for file, text in zip(files, before, strict=True) if file.read_text() != text]
    require(fleet, not moving, f"counters that should stand still: {moving}")
    return before


def all_go_on(fleet: OpenPbsCluster, files: list[Path], before: list[str]) -> None:
    for file, text in zip(files, before, strict=True):
        wait(fleet, f"{file.name} goes on", lambda file=file, text=text: file.read_text() not in (text, ""))  # type: ignore[misc]


@contextmanager
def site_hook(fleet: OpenPbsCluster, name: str, event: str, script: str, *moms: str, order: int = 1) -> Iterator[None]:
    """Inside the `with` these MoMs have a MoM hook of the site, which runs before ours by default."""
    file = fleet.directory / f"{name}.py"
    file.write_text(script, encoding="utf-8")
    lines = [f"create hook {name}", f'set hook {name} event="{event}"', f"set hook {name} order={order}"]
    fleet.pbs.qmgr("\n".join([*lines, f"import hook {name} application/x-python default {file}"]))
    wanted = [fleet.pbs.pbs_home(mom) / "mom_priv/hooks" / f"{name}.PY" for mom in moms]
    try:
        wait(fleet, f"hook {name} is at {moms}", lambda: all(path.exists() for path in wanted))
        yield
    finally:
        fleet.pbs.qmgr(f"delete hook {name}")
        wait(fleet, f"hook {name} has gone from {moms}", lambda: not any(path.exists() for path in wanted))


@contextmanager
def configured(fleet: OpenPbsCluster, inside: str, afterwards: str) -> Iterator[None]:
    """Inside the `with` PBS is configured by the first line for qmgr, afterwards by the second."""
    fleet.pbs.qmgr(inside)
    try:
        yield
    finally:
        fleet.pbs.qmgr(afterwards)


@contextmanager
def hanging_mom(fleet: OpenPbsCluster, machine: str) -> Iterator[None]:
    """Inside the `with` the machine's MoM answers nothing, so the hub books nothing there. Its jobs and agent go on."""
    pid = (fleet.pbs.pbs_home(machine) / LOCKS["mom"]).read_text().strip()
    fleet.pbs.run(machine, ["kill", "-STOP", pid])
    try:
        yield
    finally:
        fleet.pbs.run(machine, ["kill", "-CONT", pid])


@contextmanager
def stopped(part: MachineProcess) -> Iterator[None]:
    """Inside the `with` the part is stopped, but its connections stay."""
    os.kill(part.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (part.popen.pid, part.pid):  # nsenter stops itself when its child is stopped
            os.kill(pid, signal.SIGCONT)
