"""Measure what a start of the agent costs, compiled as the guest's installer does: time, CPU time and memory.

The agent counts as started once its socket takes a connection. CPU time and memory (the largest resident set) are read
when it has come to rest after that. Ratios are of CPU time, which other work on the machine changes least.

The agent and a bare Python start by turns. With `--before PATH`, another tree's agent takes part: PATH is its folder,
or the single file that the agent once was (`git show 0e59ef2:node_daemon/agent.py >agent.py`).
"""

from __future__ import annotations

import argparse
import compileall
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from magrathea_lab.rigs.agent_rig import AGENT
from magrathea_lab.waiting import BOUND_S, NotInTime

from .figure import Figure, as_json, at_most, table

STARTS, QUICK_STARTS = 60, 15
MOST_TIMES = 1.05
"""What the agent may cost now, as a multiple of what it cost before."""
LOOK_S = 0.0002
REST_S = 0.05
"""Longer than a program waits for its CPU, and shorter than the agent's pause between two tries to connect."""
MB = 1_000_000
BARE = "print(flush=True); input()"


class Candidate:
    """A program that is started again and again, and what its starts have cost."""

    def __init__(self, name: str, command: list[str], folder: Path, is_up: Callable[[subprocess.Popen[bytes]], bool]):
        self.name, self.command, self.folder, self.is_up = name, command, folder, is_up
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.peak_bytes: list[int] = []

    def start(self) -> None:
        """Start it once, note what that cost, and end it. Raises NotInTime, or RuntimeError if it ends by itself."""
        began = time.perf_counter()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(self.command, cwd=self.folder, **pipes) as program:  # type: ignore[call-overload]
            try:
                while not self.is_up(program):
                    if program.poll() is not None:
                        raise RuntimeError(f"{self.name}: ended with {program.returncode}: {' '.join(self.command)}")
                    if time.perf_counter() > began + BOUND_S:
                        raise NotInTime(f"{self.name} does not start")
                    time.sleep(LOOK_S)
                self.wall_s.append(time.perf_counter() - began)
                self.cpu_s.append(_cpu_s_at_rest(program.pid))
                status = Path(f"/proc/{program.pid}/status").read_text()
                self.peak_bytes.append(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
            finally:
                program.terminate()

    def forget(self) -> None:
        for costs in (self.wall_s, self.cpu_s, self.peak_bytes):
            costs.clear()


def _cpu_s_at_rest(pid: int) -> float:
    """Its user and system time, once it uses none for REST_S. Raises NotInTime."""
    clock = (~pid << 3) | 2  # clock_getcpuclockid(3)
    end = time.monotonic() + BOUND_S
    used_s, seen_s = -1.0, time.clock_gettime(clock)
    while used_s != seen_s:
        if time.monotonic() > end:
            raise NotInTime(f"process {pid} does not come to rest")
        time.sleep(REST_S)
        used_s, seen_s = seen_s, time.clock_gettime(clock)
    return used_s


def bare(folder: Path) -> Candidate:
    """A Python that has started, and does nothing."""

    def is_up(program: subprocess.Popen[bytes]) -> bool:
        assert program.stdout is not None
        return program.stdout.readline() == b"\n"

    return Candidate("an empty Python", [sys.executable, "-I", "-S", "-c", BARE], folder, is_up)


def agent(name: str, source: Path, folder: Path) -> Candidate:
    """The agent of a folder or a file, compiled, with a configuration of its own and nobody to connect to."""
    folder.mkdir()
    if source.is_dir():
        shutil.copytree(source, folder / "agent", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-I", "-S", str(folder / "agent")]
    else:
        shutil.copy(source, folder / "agent.py")
        command = [sys.executable, "-E", "-s", "-S", "-m", "agent"]  # as its unit did: by -m the compiled form is used
    if not compileall.compile_dir(folder, quiet=2):
        raise RuntimeError(f"{source} cannot be compiled")
    place = folder / "socket"
    values = {"socket": place, "channel": f"unix:{folder / 'nobody'}", "state": folder / "state.json"}
    (folder / "agent.json").write_text(json.dumps({key: str(value) for key, value in values.items()}))

    def is_up(program: subprocess.Popen[bytes]) -> bool:
        with socket.socket(socket.AF_UNIX) as hook:
            return hook.connect_ex(str(place)) == 0

    return Candidate(name, [*command, "--config", str(folder / "agent.json")], folder, is_up)


def measure(starts: int, before: Path | None = None) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="magrathea-agent-start-") as folder:
        found = [bare(Path(folder)), agent("the agent", AGENT, Path(folder) / "now")]
        if before is not None:
            found.append(agent("the agent before", before, Path(folder) / "before"))
        for number in range(starts + 1):
            turn = number % len(found)
            for candidate in (*found[turn:], *found[:turn]):
                candidate.start()
                if number == 0:
                    candidate.forget()  # it has filled the caches
    note = f"median of {starts} starts"
    figures = [figure for candidate in found for figure in _costs(candidate, note)]
    figures += _ratios("the agent / an empty Python", found[1], found[0])
    if before is not None:
        figures += _ratios("the agent now / before", found[1], found[2], MOST_TIMES)
    return figures


def _costs(of: Candidate, note: str) -> list[Figure]:
    return [
        Figure(f"start of {of.name}", round(1000 * statistics.median(of.wall_s), 1), "ms", note=note),
        Figure(f"CPU time of a start of {of.name}", round(1000 * statistics.median(of.cpu_s), 1), "ms", note=note),
        Figure(f"memory of {of.name}, at most", round(max(of.peak_bytes) / MB, 1), "MB"),
    ]


def _ratios(what: str, one: Candidate, other: Candidate, limit: float | None = None) -> list[Figure]:
    ratios = {
        f"CPU time of a start, {what}": statistics.median(one.cpu_s) / statistics.median(other.cpu_s),
        f"memory, {what}": max(one.peak_bytes) / max(other.peak_bytes),
    }
    if limit is None:
        return [Figure(name, round(value, 3), "times") for name, value in ratios.items()]
    return [at_most(name, round(value, 3), "times", limit) for name, value in ratios.items()]


def figures(quick: bool) -> list[Figure]:
    return measure(QUICK_STARTS if quick else STARTS)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.agent_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=STARTS, help="default: %(default)d")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STARTS} starts")
    parser.add_argument("--before", type=Path, metavar="PATH", help="compare with this agent: a folder or a file")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    found = measure(QUICK_STARTS if options.quick else options.starts, options.before)
    print(as_json(found) if options.json else table(found))
    return 1 if any(f.met is False for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())
