"""The daemon's channel to its hub: found, lost, asked again, and invalid messages."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
import zmq.auth

from magrathea.core.events import Booking
from magrathea.core.model import Domain, Host, JobKey, Kind, Mode, Stage
from magrathea.core.readiness import Unready
from magrathea.messages import (
    KNOWS_MOVES,
    BookEntry,
    Books,
    Heartbeat,
    HistoryAsked,
    HistoryTold,
    PartsAsked,
    PartsTold,
    Resend,
    Snapshot,
    ToHub,
    UnreadyPart,
    decode_to_hub,
    encode,
)
from magrathea.move_messages import ownerships_of
from magrathea_lab.waiting import BOUND_S
from node_daemon import hub_client
from node_daemon.hub_client import HubClient
from node_daemon.hub_keys import HubError
from node_daemon.snapshot import Beside, snapshot

BEAT = encode(Heartbeat(sender="hub", boot_id="b", revision=0))


class HubsEnd:
    """The hub's end of the channel, played by the test: it sends nothing by itself."""

    def __init__(self, endpoint: str, server_key: bytes | None = None) -> None:
        self.context = zmq.asyncio.Context()
        self.peer = b"h1"
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if server_key is not None:
            self.socket.curve_secretkey = server_key
            self.socket.curve_server = True
        self.socket.bind(endpoint)

    async def hear(self, kind: type = Snapshot, seconds: float = BOUND_S) -> ToHub:
        async with asyncio.timeout(seconds):
            while True:
                peer, data = await self.socket.recv_multipart()
                assert peer.partition(b"/")[0] == b"h1"
                self.peer = peer
                message = decode_to_hub(data)
                if isinstance(message, kind):
                    return message

    async def say(self, data: bytes) -> None:
        await self.socket.send_multipart([self.peer, data])

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


class DaemonsEnd:
    """A host that reports what the test wants."""

    def __init__(self, endpoints: list[str], **keys: str) -> None:
        self.told: list[object] = []
        self.host = Host("h1", Mode.EXCLUSIVE, 4, 1024, (Domain("n1", Kind.NORMAL, 4),))
        self.client = HubClient(
            "h1",
            "boot",
            endpoints,
            lambda revision: snapshot(self.host, Beside("boot", notes=(str(self.note),)), revision),
            on_books=self.told.append,
            on_found=lambda: self.told.append("found"),
            on_lost=lambda: self.told.append("lost"),
            on_history=self.history,
            on_moves=self.told.append,
            key_file=keys.get("key_file", ""),
            hub_key_file=keys.get("hub_key_file", ""),
        )
        self.note = 0

    async def history(self, asked: HistoryAsked) -> bytes:
        return encode(HistoryTold(sender="h1", id=asked.id, entries=[], trouble=asked.about))

    async def until_told(self, what: object) -> None:
        async with asyncio.timeout(BOUND_S):
            while what not in self.told:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[HubsEnd, DaemonsEnd]]:
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/hub"
        hub, host = HubsEnd(endpoint), DaemonsEnd([endpoint])
        host.client.start()
        try:
            yield hub, host
        finally:
            await host.client.close()
            hub.close()


def run(test: Callable[[HubsEnd, DaemonsEnd], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with pair() as (hub, host):
            await test(hub, host)

    asyncio.run(all_of_it())


def test_a_hub_gets_the_whole_host_unasked_and_its_first_word_makes_it_found() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        first = await hub.hear()
        assert isinstance(first, Snapshot) and (first.host, first.revision) == ("h1", 1)
        assert host.told == []
        await hub.say(BEAT)
        await host.until_told("found")

    run(test)


def test_changes_within_a_moment_are_sent_as_one_and_repetitions_never() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        for _ in range(50):
            host.note += 1
            host.client.publish()
        second = await hub.hear()
        assert isinstance(second, Snapshot) and second.notes == ["50"] and second.revision == 2
        host.client.publish()
        with pytest.raises(TimeoutError):
            await hub.hear(seconds=0.2)

    run(test)


def test_a_hub_that_asks_is_sent_the_same_revision_again() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        first = await hub.hear()
        await hub.say(BEAT)
        await hub.hear()  # a hub that has just been found gets it too
        await hub.say(encode(Resend()))
        again = await hub.hear()
        assert isinstance(first, Snapshot) and isinstance(again, Snapshot)
        assert again.revision == first.revision

    run(test)


def test_an_answer_with_the_history_has_the_questions_number() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        await hub.say(encode(HistoryAsked(id=7, about="12")))
        assert await hub.hear(HistoryTold) == HistoryTold(sender="h1", id=7, entries=[], trouble="12")

    run(test)


def test_what_a_hub_says_about_moves_is_passed_on_and_heartbeats_say_that_it_is_known() -> None:
    records = ownerships_of(())

    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        beat = await hub.hear(Heartbeat)
        assert isinstance(beat, Heartbeat) and beat.version == KNOWS_MOVES
        await hub.say(encode(records))
        await host.until_told(records)

    run(test)


def test_a_live_hub_is_asked_for_the_parts_of_a_job_on_other_hosts() -> None:
    part = UnreadyPart(stage=Stage.COMING, text="h2: n2")

    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        assert await host.client.unready("n1", JobKey("7.srv", 2), ["n2"]) is None, "none is heard yet"
        await hub.say(BEAT)
        await host.until_told("found")
        for parts in ([part], []):
            asking = asyncio.create_task(host.client.unready("n1", JobKey("7.srv", 2), ["n2"]))
            asked = await hub.hear(PartsAsked)
            assert isinstance(asked, PartsAsked)
            assert (asked.sender, asked.job, asked.run, asked.vnodes) == ("h1", "7.srv", 2, ["n2"])
            await hub.say(encode(PartsTold(id=asked.id + 100, parts=[part, part])))  # an answer to another question
            await hub.say(encode(PartsTold(id=asked.id, parts=parts)))
            await hub.say(encode(PartsTold(id=asked.id, parts=[part, part])))  # too late
            assert await asking == tuple(Unready(p.stage, p.text) for p in parts)

    run(test)


def test_without_an_answer_of_the_hub_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "ANSWER_S", 0.05)

    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        await hub.say(BEAT)
        await host.until_told("found")
        assert await host.client.unready("n1", JobKey("7.srv", 2), ["n2"]) is None

    run(test)


def test_a_guest_that_asks_without_end_is_rationed_and_delays_no_other_guest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub that gets too much from a host ignores all of it."""
    monkeypatch.setattr(hub_client, "PACE_S", 600.0)
    heard = []

    async def answer(hub: HubsEnd) -> None:
        while True:
            asked = await hub.hear(PartsAsked)
            assert isinstance(asked, PartsAsked)
            heard.append(asked.job)
            await hub.say(encode(PartsTold(id=asked.id, parts=[])))

    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        await hub.say(BEAT)
        await host.until_told("found")
        answering = asyncio.create_task(answer(hub))
        flood = [asyncio.create_task(host.client.unready("n1", JobKey("7.srv", 1), ["n2"])) for _ in range(50)]
        assert await flood[0] == ()
        assert await host.client.unready("p1", JobKey("8.srv", 1), ["p2"]) == ()
        assert heard == ["7.srv", "8.srv"]
        for task in (*flood, answering):
            task.cancel()
        await asyncio.gather(*flood, answering, return_exceptions=True)

    run(test)


def test_books_become_events_of_booking() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        entry = BookEntry(id="1.srv", run=2, booked=True, held=False)
        await hub.say(encode(Books(hub_id="hub", acked_revision=1, jobs=[entry])))
        await host.until_told((Booking(JobKey("1.srv", 2), True, False),))

    run(test)


@pytest.mark.parametrize("data", [b"", b"nonsense", b'{"type":"books"}', encode(Resend())[:-1], b"[" * 5000])
def test_invalid_messages_are_dropped(data: bytes) -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        await hub.say(data)
        await hub.say(BEAT)
        await host.until_told("found")
        assert host.told == ["found"]

    run(test)


def test_a_silent_hub_is_lost_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(hub_client, "SILENT_S", 0.2)

    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await hub.hear()
        await hub.say(BEAT)
        await host.until_told("lost")
        await hub.hear()  # sent again without a question
        await hub.say(BEAT)
        async with asyncio.timeout(BOUND_S):
            while host.told.count("found") < 2:
                await asyncio.sleep(0.005)

    run(test)


def test_over_tcp_both_sides_have_keys(tmp_path: Path) -> None:
    async def test() -> None:
        hub_public, hub_secret = zmq.auth.create_certificates(tmp_path, "hub")
        _, secret = zmq.auth.create_certificates(tmp_path, "h1")
        _, server_key = zmq.auth.load_certificate(hub_secret)
        context = zmq.Context()
        probe = context.socket(zmq.ROUTER)
        port = probe.bind_to_random_port("tcp://127.0.0.1")
        probe.close(linger=0)
        context.term()
        endpoint = f"tcp://127.0.0.1:{port}"
        hub = HubsEnd(endpoint, server_key)
        host = DaemonsEnd([endpoint], key_file=str(secret), hub_key_file=str(hub_public))
        host.client.start()
        try:
            heard = await hub.hear()
            assert isinstance(heard, Snapshot) and heard.boot_id == "boot"
        finally:
            await host.client.close()
            hub.close()

    asyncio.run(test())


@pytest.mark.parametrize("text", ["no key", 'public-key = "{0}"\nsecret-key = "{0}"\n'.format("~" * 40)])
def test_a_key_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)

    async def test() -> None:
        key = str(tmp_path / "key")
        host = DaemonsEnd(["tcp://127.0.0.1:1"], key_file=key, hub_key_file=key)
        with pytest.raises(HubError, match="not a key file"):
            host.client.start()
        await host.client.close()

    asyncio.run(test())
