"""A host with a valid key sends as much and as fast as it can; the others are still served."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq
from msgspec import structs

from magrathea.messages import MAX_BYTES, Heartbeat, RefusedClaim, encode
from scheduler_plugin.hub import job_comments, keys, lanes, shares
from scheduler_plugin.hub.vnode_attributes import RANK
from tests.embedded.real_hub import RealHub, run
from tests.fakes.host import FakeHost
from tests.fakes.reports import NOW, domain, report, snapshot


@contextmanager
def flood(hub: RealHub, host: str, messages: list[bytes]) -> Iterator[None]:
    """Send them in a thread, as fast as the connection accepts them."""
    over = threading.Event()
    pair = keys.read_secret(hub.keys_dir / keys.TO_HOSTS / f"{host}.key_secret")
    server = keys.read(hub.keys_dir / keys.HUB_PUBLIC).public

    def send() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.SNDTIMEO, 100)
            dealer.curve_publickey, dealer.curve_secretkey = pair.public.encode(), pair.secret.encode()
            dealer.curve_serverkey = server.encode()
            dealer.connect(hub.endpoint)
            for message in itertools.cycle(messages):
                if over.is_set():
                    return
                with suppress(zmq.Again):
                    dealer.send(message, copy=False)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def served(hub: RealHub, honest: FakeHost, rounds: int = 20) -> None:
    """Each snapshot of an honest host reaches PBS. If it were served only in silence, this would wait for ever."""
    for rank in range(1, rounds):
        await honest.says(domain("n1", rank=rank))
        await hub.until(lambda rank=rank: hub.shown("n1", RANK) == str(rank), "publication")  # type: ignore[misc]


def large(number: int) -> bytes:
    """As many jobs as a message can hold; another snapshot each time."""
    jobs = [report(f"{number}{n}.srv") for n in range(7000)]
    message = encode(snapshot(domain("p1", jobs), host="h1", revision=number, boot_id=f"boot{number}"))
    assert MAX_BYTES // 3 < len(message) < MAX_BYTES
    return message


FLOODS = {
    "large": [large(number) for number in range(4)],
    "short": [encode(snapshot(host="h1", revision=n, boot_id=f"b{n}")) for n in range(100)],
    "garbage": [b'{"type":"\xff"}', b"", b"x" * 100_000],
}


@pytest.mark.parametrize("messages", FLOODS.values(), ids=FLOODS)
def test_an_honest_host_is_published_while_another_floods(tmp_path: Path, messages: list[bytes]) -> None:
    async def test(hub: RealHub) -> None:
        hub.enrol("h1", "p1")
        honest = hub.host("h2", "n1")
        hub.start()
        await honest.says(domain("n1"))
        await hub.until(lambda: hub.shown("n1", RANK) == "0", "the honest host is heard")
        with flood(hub, "h1", messages):
            await asyncio.sleep(1.0)
            await served(hub, honest)

    run(tmp_path, test, tcp=True)


def test_the_newest_snapshot_of_a_flood_counts_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LOOP_BURST_S", 0.001)

    async def test(hub: RealHub) -> None:
        host = hub.host("h1", "p1")
        hub.start()
        for rank in range(1, 150):
            await host.says(domain("p1", rank=rank))
        await hub.until(lambda: hub.shown("p1", RANK) == "149", "the last one")
        assert hub.pbs.count("set_vnode") < 100, "most were replaced by a later one"

    run(tmp_path, test, tcp=True)


def refused(id: str) -> RefusedClaim:
    return RefusedClaim(id=id, run=1, domain="p1", code="busy", text="", at=NOW)


def test_ten_thousand_refusals_cost_pbs_some_questions(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        host = hub.host("h1", "p1")
        began = time.monotonic()
        hub.start()
        await host.says(domain("p1"))
        await hub.until(lambda: hub.shown("p1", RANK) == "0", "PBS was read")
        for number in range(200):
            made = snapshot(domain("p1"), host="h1", revision=number + 2)
            claims = [refused(f"{number}{n:02}.srv") for n in range(50)]
            await host.sends(encode(structs.replace(made, refused=claims)))
            await asyncio.sleep(0.006)
        await host.says(domain("p1", rank=7), revision=1000)
        await hub.until(lambda: hub.shown("p1", RANK) == "7", "the last one")
        at_once, per_s = job_comments.BURST + job_comments.OWN_BURST, job_comments.PER_S + shares.OWN_PER_S
        allowed = at_once + (time.monotonic() - began) * per_s
        assert 0 < hub.pbs.count("job") <= allowed

    run(tmp_path, test, tcp=True)


def test_a_snapshot_with_ten_thousand_refusals_is_invalid(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        host = hub.host("h1", "p1")
        hub.start()
        claims = [refused(f"{n}.srv") for n in range(10_000)]
        await host.sends(encode(structs.replace(snapshot(domain("p1", rank=7), host="h1"), refused=claims)))
        await host.sends(encode(Heartbeat(sender="h1", boot_id="boot", revision=0)))
        await host.hears(lambda message: not isinstance(message, Heartbeat))
        await host.says(domain("p1"))
        await hub.until(lambda: hub.shown("p1", RANK) is not None, "the next one")
        assert hub.shown("p1", RANK) == "0"

    run(tmp_path, test, tcp=True)
