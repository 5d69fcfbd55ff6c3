"""A control socket that gives a test's answers, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from magrathea.core.model import JobClass, Kind, Mode, State
from magrathea.messages import DomainReport, JobReport, Snapshot
from magrathea_lab.waiting import BOUND_S

AT = 1_800_000_000.0


def job(id: str, cls: JobClass = JobClass.PREEMPTIBLE, **more: object) -> JobReport:
    fields = {"run": 1, "cpus": 2, "memory_mib": 100, "claimed_at": AT - 300, "confirmed": True}
    return JobReport(id=id, cls=cls, **{"stop": False, "ready": False, **fields, **more})  # type: ignore[arg-type]


def domain(name: str, state: State = State.FREE, *jobs: JobReport, **more: object) -> DomainReport:
    fields: dict[str, object] = {"kind": Kind.NORMAL, "since": AT - 90, "why": "no jobs", "accepts": [], "rank": 0}
    fields |= {"vnode": f"{name}.cluster", "ncpus": 2, "mem_mib": 2048, "agent": True, **more}
    return DomainReport(name=name, state=state, jobs=list(jobs), **fields)  # type: ignore[arg-type]


def snapshot(*domains: DomainReport, **more: object) -> Snapshot:
    fields = {"boot_id": "b1", "revision": 7, "at": AT, "mode": Mode.EXCLUSIVE, "cpus": 2, "memory_mib": 4096}
    return Snapshot(host="h1", domains=list(domains), **{**fields, **more})  # type: ignore[arg-type]


PREEMPTION = snapshot(
    domain(
        "n1",
        State.PREEMPTED,
        job(
            "12.srv", stop=True, stopped_since=AT - 35, stopper="us", preempted_by="13.srv", preemptions=1, booked=True
        ),
        why="job 12.srv is stopped for 13.srv",
        cpu_percent=200,
        want_cpu_percent=10,
    ),
    domain(
        "p1",
        State.RUNNING_PRIORITY,
        job("13.srv", JobClass.PRIORITY),
        kind=Kind.PRIORITY,
        accepts=[JobClass.PRIORITY],
        rank=900,
        why="one job\tof class priority\n",
    ),
    hub_connected=True,
    notes=["memory is not moved"],
)


@contextlib.contextmanager
def answering(path: Path, *parts: bytes, hang: bool = False) -> Iterator[list[bytes]]:
    """A server at `path` that sends `parts` to every client; yields the questions that it got. `hang`: then it
    waits."""
    questions: list[bytes] = []
    over = threading.Event()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(8)

    def serve() -> None:
        while not over.is_set():
            client, _ = server.accept()
            with client, contextlib.suppress(ConnectionError):
                client.settimeout(BOUND_S)
                question = client.recv(4096)
                questions.append(question)
                for part in parts if question else ():
                    client.sendall(part)
                if hang and question:
                    over.wait(BOUND_S)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield questions
    finally:
        over.set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wake, contextlib.suppress(OSError):
            wake.connect(str(path))
        thread.join(10)
        server.close()
