"""How long a domain's claims take while root in a sibling's guest sends legal messages as fast as he can.

Three floods: lists of jobs, reports of memory, claims with their ends. The rival of each is the same claim on the same
host just before, without a flood. Beside it: what the daemon writes to files for each of the flood's lines.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magrathea_lab.rigs.local_host import Host, one_host
from magrathea_lab.waiting import until

from .claim import Channel, channel_to, check
from .figure import Figure, at_most, percentile, run

ROUNDS, QUICK_ROUNDS = 300, 50
WARM = 1000
"""Lines before anything is measured: more than a guest may have entered at once."""
CPUS = 150
MOST_TIMES = 4.0
"""A sibling waits for one change of the flood at most, so a claim takes some times as long, not a hundred times."""
MOST_KB = 90.0
"""Written for each line of a flood, on average. Lists and reports of memory mostly change nothing; a claim or an end
may change facts, and the journal then gets the whole row of facts."""
WINDOW_S = 6.0
"""For so long nothing else is at work, to see what is written for each line; lists are entered each 2 s at most."""
Line = tuple[str, dict[str, object]]


def lists() -> Iterator[Line]:
    for number in itertools.count():
        yield "jobs", {"jobs": [{"id": f"{n}.list{number}", "run": 1} for n in range(50)]}


def reports() -> Iterator[Line]:
    return (("report", {"memory": {"unreclaimable_mib": mib}}) for mib in itertools.cycle((16, 64)))


def claims_and_ends() -> Iterator[Line]:
    for number in itertools.count():
        job = {"id": f"{number}.flood", "run": 1}
        yield "claim", {"job": {**job, "class": "preemptible", "cpus": 1}}
        yield "release", {"job": job}


FLOODS = {"lists": lists, "reports of memory": reports, "claims and their ends": claims_and_ends}


def _send(name: str, host: Host, answered: Any) -> None:
    """Runs in a process of its own."""
    with channel_to(host, "n1") as channel:
        for op, fields in FLOODS[name]():
            channel.ask(op, **fields)
            answered.value += 1


@contextmanager
def flood(name: str, host: Host) -> Iterator[Callable[[], int]]:
    """The flood goes on for the block. Gives a function that returns how many of its lines were answered so far."""
    answered: Any = multiprocessing.Value("q", 0)
    sender = multiprocessing.Process(target=_send, args=(name, host, answered), daemon=True)
    sender.start()
    try:
        until(lambda: answered.value > WARM, "the flood")
        yield lambda: int(answered.value)
        if not sender.is_alive():
            raise RuntimeError(f"the flood of {name} has ended")
    finally:
        sender.kill()
        sender.join()


def claims(channel: Channel, count: int, first: str) -> list[float]:
    """Milliseconds from each claim to its answer."""
    took = []
    for number in range(count):
        job: dict[str, object] = {"id": f"{number}.{first}", "run": 1}
        began = time.perf_counter()
        answer = channel.ask("claim", job={**job, "class": "priority", "cpus": 1})
        took.append((time.perf_counter() - began) * 1000)
        check(answer)
        check(channel.ask("release", job=job))
        time.sleep(0.02)
    return took


def written(host: Host) -> int:
    """Bytes that the daemon has written to files so far."""
    [line] = [text for text in Path(f"/proc/{host.daemon.pid}/io").read_text().splitlines() if "wchar" in text]
    return int(line.split()[1])


def written_for(host: Host, answered: Callable[[], int]) -> tuple[float, float]:
    """kB written for each line of the flood, and in a second."""
    bytes_before, lines_before, began = written(host), answered(), time.perf_counter()
    time.sleep(WINDOW_S)
    kb = (written(host) - bytes_before) / 1000
    return kb / (answered() - lines_before), kb / (time.perf_counter() - began)


def measured(name: str, count: int) -> list[Figure]:
    with one_host(agents=(), mode=f'mode = "counted"\ncpus = {CPUS}') as host, channel_to(host, "p1") as channel:
        until(lambda: host.status().domains[1].agent, "the sibling's channel")
        claims(channel, 10, "warm")
        calm = claims(channel, count, "calm")
        with flood(name, host) as answered:
            for_line, in_second = written_for(host, answered)
            busy = claims(channel, count, "busy")
    ratio = percentile(busy, 99) / percentile(calm, 99)
    return [
        Figure("claim of a sibling, no flood, p50", round(percentile(calm, 50), 2), "ms"),
        Figure(f"claim beside a guest's {name}, p50", round(percentile(busy, 50), 2), "ms"),
        Figure("claim of a sibling, no flood, p99", round(percentile(calm, 99), 2), "ms"),
        Figure(f"claim beside a guest's {name}, p99", round(percentile(busy, 99), 2), "ms"),
        at_most(f"p99 beside {name}, of p99 without", round(ratio, 2), "times", MOST_TIMES, f"{count} claims each"),
        at_most(f"written for each line of {name}", round(for_line, 2), "kB", MOST_KB, f"{in_second:.0f} kB/s"),
    ]


def figures(quick: bool) -> list[Figure]:
    return [figure for name in FLOODS for figure in measured(name, QUICK_ROUNDS if quick else ROUNDS)]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
