"""Root in one guest sends legal messages as fast as the channel takes them; its siblings are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.claims.pace import (
    CHANGES_BURST,
    CHANGES_PER_CPU,
    CHANGES_PER_CPU_S,
    CHANGES_PER_S,
    LISTS_S,
    REPORTS_S,
)
from tests.embedded.rig import Job, Rig, rig
from tests.embedded.test_crash import short

SESSION = "0123456789abcdef"
CLAIMS = 30
CPUS = 8
LINES = 400
"""So many lines of the flood are waited for: far more than a guest may have entered at once on a host of CPUS."""
MAX_BYTES_PER_CHANGE, MAX_BYTES_PER_LINE = 90_000, 500
"""What the daemon writes: for each change that it enters, a commit of its journal; for other lines next to nothing."""
OWN_CHANGES_PER_S = 2.0
"""Of the daemon, for instance what it sees of services."""


def lists() -> Iterator[dict[str, Any]]:
    """Each has 50 other jobs. Entering it changes all jobs."""
    for number in itertools.count():
        yield {"op": "jobs", "jobs": [{"id": f"{n}.list{number}", "run": 1, "cpus": 0} for n in range(50)]}


def reports() -> Iterator[dict[str, Any]]:
    return ({"op": "report", "memory": {"unreclaimable_mib": mib}} for mib in itertools.cycle((16, 64)))


def claims_and_ends() -> Iterator[dict[str, Any]]:
    """Each job is claimed and released at once. Entering each message changes a fact."""
    for number in itertools.count():
        job = {"id": f"{number}.flood", "run": 1}
        yield {"op": "claim", "job": {**job, "class": "protected", "cpus": 1}}
        yield {"op": "release", "job": job}


@contextlib.asynccontextmanager
async def flood(r: Rig, name: str, messages: Iterator[dict[str, Any]]) -> AsyncIterator[Callable[[], int]]:
    """Be the guest's agent, and send. Gives a function that returns how many lines were answered so far."""
    agent = r.domains[name].agent
    assert agent is not None
    agent.kill()
    await agent.wait()
    reader, writer = await asyncio.open_unix_connection(r.folder / "run" / "guest" / f"{name}.sock")
    writer.write(b"\n" + json.dumps({"type": "hello", "protocol": 1, "session": SESSION}).encode() + b"\n")
    answered = 0

    async def send() -> None:
        nonlocal answered
        while b'"hello"' not in await reader.readline():
            pass
        for number in itertools.count(1):
            message = {"type": "request", "id": number, "session": SESSION, **next(messages)}
            writer.write(json.dumps(message).encode() + b"\n")
            await writer.drain()
            assert await reader.readline()
            answered += 1

    task = asyncio.create_task(send())
    try:
        yield lambda: answered
        assert not task.done(), "the flood went on"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


def written(r: Rig) -> int:
    """Bytes that the daemon has written to files so far."""
    assert r.daemon is not None
    counts = dict(line.split(": ") for line in Path(f"/proc/{r.daemon.pid}/io").read_text().splitlines())
    return int(counts["wchar"])


def changes(r: Rig) -> int:
    """Events of the guest n1 that the history has so far."""
    with closing(sqlite3.connect(f"file:{r.journal}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT count(*) FROM history WHERE domain = 'n1' AND kind = 'event'").fetchone()
        return int(found[0])


@pytest.mark.parametrize(
    ("messages", "at_once", "per_s"),
    [
        (lists, 1, 1 / LISTS_S),
        (reports, 1, 1 / REPORTS_S),
        (claims_and_ends, CHANGES_BURST + CHANGES_PER_CPU * CPUS, CHANGES_PER_S + CHANGES_PER_CPU_S * CPUS),
    ],
)
def test_a_guests_legal_flood_refuses_no_sibling_and_fills_no_disk(
    tmp_path: Path, messages: Any, at_once: float, per_s: float
) -> None:
    """`at_once`, `per_s`: how many changes may be entered. How long siblings' claims take meanwhile:
    `python -m bench guest_flood`."""
    link = short(tmp_path)

    async def all_of_it() -> None:
        async with rig(link, "counted", {"n1": "normal", "n2": "normal"}, cpus=CPUS) as r:
            before, began = (written(r), changes(r)), time.monotonic()
            async with flood(r, "n1", messages()) as answered:
                await eventually(lambda: answered() >= LINES, "the flood")
                lines, seconds = answered(), time.monotonic() - began
                wrote, entered = (now - then for now, then in zip((written(r), changes(r)), before, strict=True))
                for number in range(CLAIMS):
                    job = Job(f"{number}.srv", 1, "protected")
                    assert (answer := await r.claim("n2", job))["ok"], answer
                    await r.end_job("n2", job)
            own = 5 + seconds * OWN_CHANGES_PER_S
            assert entered <= at_once + seconds * per_s + own
            commits = entered + own
            assert wrote < commits * MAX_BYTES_PER_CHANGE + lines * MAX_BYTES_PER_LINE

    try:
        asyncio.run(asyncio.wait_for(all_of_it(), 4 * BOUND_S))
    finally:
        link.unlink()
