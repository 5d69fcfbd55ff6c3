"""A host may report what it likes: commands that look at it still answer, and its newest snapshot counts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from magrathea.core.model import JobClass, Kind, Mode, State, StoppedBy
from magrathea.messages import BadMessage, Chunk, DomainReport, HostView, JobReport, Snapshot, decode_to_hub, encode
from magrathea.preview import outlook_farm
from magrathea_lab.rigs import virtual_time
from scheduler_plugin.hub import channel as channels
from scheduler_plugin.hub import lanes
from scheduler_plugin.hub.channel import HubChannel
from tests.fakes.reports import NOW, domain, report, snapshot

numbers = st.integers(0, 2**40)
times = st.floats(0, 2**36)
jobs = st.builds(
    JobReport,
    id=st.sampled_from(("1.srv", "2.srv", "3[1].srv")),
    run=st.integers(0, 2),
    cls=st.sampled_from(JobClass),
    cpus=numbers,
    memory_mib=numbers,
    claimed_at=times,
    confirmed=st.booleans(),
    stop=st.booleans(),
    ready=st.booleans(),
    stopped_since=st.none() | times,
    stopper=st.none() | st.sampled_from(StoppedBy),
    preemptions=numbers,
)
domains = st.builds(
    DomainReport,
    name=st.sampled_from(("n1", "n2", "p1")),
    vnode=st.sampled_from(("n1", "n2", "p1")),
    kind=st.sampled_from(Kind),
    state=st.sampled_from(State),
    since=times,
    why=st.just(""),
    accepts=st.lists(st.sampled_from(JobClass), max_size=3),
    rank=st.integers(-5, 5),
    ncpus=numbers,
    mem_mib=numbers,
    jobs=st.lists(jobs, max_size=3),
    agent=st.booleans(),
)
snapshots = st.builds(
    snapshot,
    mode=st.sampled_from(Mode),
    cpus=numbers,
    at=times,
)


@given(
    made=snapshots,
    reported=st.lists(domains, max_size=4),
    cls=st.sampled_from(JobClass),
    chunk=st.builds(Chunk, number=st.integers(1, 3), cpus=numbers, memory_mib=numbers),
    live=st.booleans(),
    paused=st.none() | times,
    hub=st.booleans(),
)
def test_a_preview_answers_whatever_a_host_reports(
    made: Snapshot,
    reported: list[DomainReport],
    cls: JobClass,
    chunk: Chunk,
    live: bool,
    paused: float | None,
    hub: bool,
) -> None:
    told = structs.replace(made, domains=reported, paused_since=paused, hub_connected=hub)
    outlook_farm([HostView(live=live, snapshot=told)], cls, [chunk])


@pytest.mark.parametrize("stopper", ["x", "", "US", 1])
def test_a_snapshot_with_an_unknown_stopper_is_refused(stopper: object) -> None:
    raw = json.loads(encode(snapshot(domain(jobs=[report(stopped_since=NOW)]))))
    assert decode_to_hub(json.dumps(raw).encode())
    raw["domains"][0]["jobs"][0]["stopper"] = stopper
    with pytest.raises(BadMessage):
        decode_to_hub(json.dumps(raw).encode())


def test_a_large_snapshot_that_waited_replaces_no_newer_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon was started anew meanwhile, so the numbers of the two cannot be compared."""
    monkeypatch.setattr(lanes, "LOOP_BURST_S", 1e-9)
    monkeypatch.setattr(lanes, "LOOP_SHARE", 1e-3)
    heard: list[Any] = []
    large = ["x" * 1000] * 10

    def hear(host: str, message: Any, new: bool) -> None:
        heard.append(message.boot_id)

    async def test() -> None:
        channel = HubChannel([], [], tmp_path, hear)
        channel.start()
        no_socket: Any = None
        peer = channels._Peer(no_socket, b"h1")

        def say(made: Snapshot) -> None:
            channel._received("h1", peer, [zmq.Frame(encode(made))])

        say(structs.replace(snapshot(domain(), boot_id="first"), notes=large))
        say(structs.replace(snapshot(domain(), boot_id="old", revision=9), notes=large))
        assert heard == ["first"], "the next large one waits"
        say(snapshot(domain(), boot_id="new"))
        await asyncio.sleep(3600)
        assert heard == ["first", "new"]
        await channel.close()

    virtual_time.run(test())
