"""How long `magrathea status` takes as a whole process, with a host of four domains and eight jobs.

A thread plays the daemon and answers at once, so only the command itself is measured.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from magrathea.core.model import JobClass, Kind, Mode, State
from magrathea.messages import DomainReport, JobReport, Snapshot, encode

from .figure import Figure, below, run

RUNS, QUICK_RUNS = 20, 7
LIMIT_MS = 150.0


def _snapshot() -> Snapshot:
    now = time.time()
    preemptible, priority, normal = JobClass.PREEMPTIBLE, Kind.PRIORITY, Kind.NORMAL
    return Snapshot(
        host="bench",
        boot_id="b",
        revision=1,
        at=now,
        mode=Mode.EXCLUSIVE,
        cpus=16,
        memory_mib=65536,
        domains=[
            DomainReport(
                name=f"d{i}",
                vnode=f"d{i}",
                kind=normal if i else priority,
                state=State.RUNNING_PREEMPTIBLE if i else State.WOULD_PREEMPT,
                since=now - 100 * i,
                why="two jobs, all stoppable",
                accepts=[preemptible],
                rank=i,
                ncpus=16,
                mem_mib=65536,
                agent=True,
                jobs=[
                    JobReport(
                        id=f"{i}{k}.server",
                        run=1,
                        cls=preemptible,
                        cpus=2,
                        memory_mib=512,
                        claimed_at=now,
                        confirmed=True,
                        stop=False,
                        ready=False,
                    )
                    for k in range(2)
                ],
            )
            for i in range(4)
        ],
    )


def _serve(server: socket.socket, answer: bytes) -> None:
    while True:
        client, _ = server.accept()
        with client:
            if not client.recv(4096):
                return
            client.sendall(answer)


def _times(command: list[str], environment: dict[str, str], runs: int) -> list[float]:
    """Milliseconds of each run, after one that fills the caches and does not count."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=60)
        times.append((time.perf_counter() - began) * 1000)
    return times[1:]


def figures(quick: bool) -> list[Figure]:
    runs = QUICK_RUNS if quick else RUNS
    installed = Path(sys.executable).with_name("magrathea")
    status = [str(installed)] if installed.exists() else [sys.executable, "-m", "magrathea.cli"]
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as server:
        path = f"{place}/control.sock"
        server.bind(path)
        server.listen()
        thread = threading.Thread(target=_serve, args=(server, encode(_snapshot()) + b"\n"), daemon=True)
        thread.start()
        environment = {**os.environ, "MAGRATHEA_CONTROL": path}
        try:
            empty = _times([sys.executable, "-c", "pass"], environment, runs)
            table = _times([*status, "status"], environment, runs)
            plain = _times([*status, "status", "--format", "plain"], environment, runs)
        finally:
            with socket.socket(socket.AF_UNIX) as wake:
                wake.connect(path)
            thread.join(10)
    note = f"median of {runs} whole processes; an empty Python: {statistics.median(empty):.0f} ms"
    return [
        below("`magrathea status`, table", round(statistics.median(table), 1), "ms", LIMIT_MS, note),
        below("`magrathea status --format plain`", round(statistics.median(plain), 1), "ms", LIMIT_MS, note),
    ]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
