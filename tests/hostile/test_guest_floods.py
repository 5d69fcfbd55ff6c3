"""Root in one guest sends legal messages as fast as the channel takes them; its siblings are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.claims.pace import CHANGES_PER_CPU_S, CHANGES_PER_S
from tests.embedded.rig import Job, Rig, rig
from tests.embedded.test_crash import short

SESSION = "0123456789abcdef"
CLAIMS = 30
WARM = 1000
"""More messages than a guest may have entered at once on a host of CPUS."""
CPUS = 150
MAX_BYTES_PER_S = 5_000_000
"""What the daemon writes: mostly its journal. A commit takes up to 90 kB."""
MAX_CHANGES_PER_S = 2 * (CHANGES_PER_S + CHANGES_PER_CPU_S * CPUS)


def lists() -> Iterator[dict[str, Any]]:
    """Two lists of 50 jobs in turn. Entering each of them changes all jobs."""
    both = [[{"id": f"{n}.{half}", "run": 1} for n in range(50)] for half in "ab"]
    return ({"op": "jobs", "jobs": jobs} for jobs in itertools.cycle(both))


def reports() -> Iterator[dict[str, Any]]:
    return ({"op": "report", "memory": {"unreclaimable_mib": mib}} for mib in itertools.cycle((16, 64)))


def claims_and_ends() -> Iterator[dict[str, Any]]:
    """Each job is claimed and released at once. Entering each message changes a fact."""
    for number in itertools.count():
        job = {"id": f"{number}.flood", "run": 1}
        yield {"op": "claim", "job": {**job, "class": "protected", "cpus": 1}}
        yield {"op": "release", "job": job}


@contextlib.asynccontextmanager
async def flood(r: Rig, name: str, messages: Iterator[dict[str, Any]]) -> AsyncIterator[None]:
    """Be the guest's agent, and send."""
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
            answered += b'"ok":true' in await reader.readline()

    task = asyncio.create_task(send())
    try:
        await eventually(lambda: answered > WARM, "the flood")
        yield
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


@pytest.mark.parametrize("messages", [lists, reports, claims_and_ends])
def test_a_guests_legal_flood_delays_no_sibling_and_fills_no_disk(tmp_path: Path, messages: Any) -> None:
    link = short(tmp_path)

    numbers = itertools.count()

    async def claims(r: Rig) -> list[float]:
        took = []
        for _ in range(CLAIMS):
            job = Job(f"{next(numbers)}.srv", 1, "protected")
            began = time.monotonic()
            assert (answer := await r.claim("n2", job))["ok"], answer
            took.append(time.monotonic() - began)
            await r.end_job("n2", job)
        return sorted(took)

    async def all_of_it() -> None:
        async with rig(link, "counted", {"n1": "normal", "n2": "normal"}, cpus=CPUS) as r:
            await claims(r)
            calm = await claims(r)
            async with flood(r, "n1", messages()):
                before, began = (written(r), changes(r)), time.monotonic()
                await asyncio.sleep(5.0)
                after, seconds = (written(r), changes(r)), time.monotonic() - began
                busy = await claims(r)
            assert after[0] - before[0] < seconds * MAX_BYTES_PER_S
            assert after[1] - before[1] < seconds * MAX_CHANGES_PER_S
            assert busy[CLAIMS // 2] < 0.1 + 3 * calm[CLAIMS // 2]

    try:
        asyncio.run(asyncio.wait_for(all_of_it(), 4 * BOUND_S))
    finally:
        link.unlink()
