"""From a priority job's claim to its answer in the node daemon, with ten processes stopped and CPU moved.

The claim goes over the guest channel of `p1`, as its agent would send it. The answer comes when the daemon has written
its journal (synchronously), the agent of `n1` has stopped every process of the job there, and the driver has capped the
domain. The script checks all of this after each answer. Before anything is stopped, the daemon asks a hub whether PBS
has given the job to `p1`: a stand-in for the hub says yes at once, so PBS's own time is not in the figures. The same is
measured with a hub of the release before, which is not asked, and through the agent's socket, as MoM's hook claims.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from magrathea.messages import KNOWS_MOVES
from magrathea_lab.rigs import local_host as hosts
from magrathea_lab.rigs.local_host import COMPUTE, Host
from magrathea_lab.waiting import until

from .figure import Figure, at_most, percentile, run

ROUNDS, QUICK_ROUNDS = 200, 30
PROCESSES = 10
P50_MS, P99_MS = 10.0, 50.0


class Channel:
    """The domain's side of the guest channel, with what a claim needs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._next = 0
        hello = {"type": "hello", "protocol": 1, "session": "0123456789abcdef", "agent": "bench", "can": []}
        connection.sendall(b"\n" + json.dumps(hello).encode() + b"\n")

    def ask(self, op: str, **fields: object) -> dict[str, object]:
        self._next += 1
        request = {"type": "request", "id": self._next, "session": "0123456789abcdef", "op": op, **fields}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        for line in iter(self._file.readline, b""):
            if not line.strip():
                continue
            message: dict[str, object] = json.loads(line)
            if message["type"] == "request":
                self._answer(message)
            elif message["type"] == "answer" and message["id"] == self._next:
                return message
        raise ConnectionError("the daemon closed the guest channel")

    def _answer(self, request: dict[str, object]) -> None:
        answer = {"type": "answer", "id": request["id"], "session": request["session"], "ok": True}
        if request["op"] == "orders":  # there is nothing to stop in this domain
            answer |= {"jobs": [], "ms": 0.0}
        self._connection.sendall(json.dumps(answer).encode() + b"\n")


@contextmanager
def channel_to(host: Host, domain: str) -> Iterator[Channel]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect(str(host.place / "run" / "guest" / f"{domain}.sock"))
        yield Channel(connection)


def check(answer: dict[str, object]) -> None:
    if answer.get("ok") is not True:
        raise RuntimeError(f"the daemon refused: {answer}")


def rounds(
    host: Host, count: int, claim: Callable[[str], dict[str, object]], release: Callable[[str], object]
) -> list[float]:
    """Milliseconds from claim to answer. After each, all processes were stopped and the cap was set."""
    check(host.claim("n1", host.job, "preemptible"))
    processes = host.start_processes(PROCESSES)
    until(lambda: host.status().domains[0].jobs[0].confirmed, "the job's launch to be seen")
    times = []
    for i in range(count):
        until(lambda: host.status().domains[1].state == "occupied-would-preempt", "the job to be stoppable again")
        began = time.perf_counter()
        answer = claim(f"{i}.high")
        times.append((time.perf_counter() - began) * 1000)
        check(answer)
        if escaped := [p.pid for p in processes if not hosts.stopped(p)]:
            raise RuntimeError(f"the answer came while {len(escaped)} processes still ran: {escaped}")
        n1 = host.status().domains[0]
        coarse = n1.cpu_percent == 100  # by affinity, if control groups may not be used
        if n1.want_cpu_percent is None or not (coarse or n1.cpu_percent == n1.want_cpu_percent):
            raise RuntimeError(f"the answer came before the cap: {n1.cpu_percent} % instead of {n1.want_cpu_percent} %")
        release(f"{i}.high")
        until(lambda: not any(hosts.stopped(p) for p in processes), "the job to go on")
    return times


def by_channel(count: int, program: str, hub_version: str = KNOWS_MOVES) -> list[float]:
    with hosts.one_host(program, agents=("n1",), hub_version=hub_version) as host, channel_to(host, "p1") as channel:
        until(lambda: host.status().domains[1].agent, "the priority domain's channel")
        return rounds(
            host,
            count,
            claim=lambda id: channel.ask("claim", job=_job(id)),
            release=lambda id: check(channel.ask("release", job={"id": id, "run": 1})),
        )


def by_agent(count: int, program: str) -> list[float]:
    with hosts.one_host(program) as host:
        return rounds(host, count, lambda id: host.claim("p1", id, "priority"), lambda id: host.release("p1", id))


def _job(id: str) -> dict[str, object]:
    return {"id": id, "run": 1, "class": "priority", "cpus": 1, "memory_mib": 0, "rerunnable": True}


def figures(quick: bool) -> list[Figure]:
    count = QUICK_ROUNDS if quick else ROUNDS
    computing = by_channel(count, COMPUTE)
    unasked = by_channel(count, COMPUTE, hub_version="")
    sleeping = by_channel(count, "")
    through = by_agent(count, COMPUTE)
    note = f"{count} rounds, {PROCESSES} processes that all compute"
    return [
        at_most("claim to answer in the node daemon, p50", round(percentile(computing, 50), 2), "ms", P50_MS, note),
        at_most("claim to answer in the node daemon, p99", round(percentile(computing, 99), 2), "ms", P99_MS, note),
        Figure("the same, no hub asked about the job, p50", round(percentile(unasked, 50), 2), "ms"),
        Figure("the same, no hub asked about the job, p99", round(percentile(unasked, 99), 2), "ms"),
        Figure("the same, processes asleep, p50", round(percentile(sleeping, 50), 2), "ms"),
        Figure("the same, processes asleep, p99", round(percentile(sleeping, 99), 2), "ms"),
        Figure("the same, computing, through the agent's socket, p50", round(percentile(through, 50), 2), "ms"),
        Figure("the same, computing, through the agent's socket, p99", round(percentile(through, 99), 2), "ms"),
    ]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
