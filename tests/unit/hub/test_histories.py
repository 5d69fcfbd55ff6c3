"""The hub asks hosts for their histories: each answers, or the reason is reported; no wait is without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from magrathea.messages import HistoryAsked, HistoryEntry, HistoryTold, Message
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub.histories import Histories

ENTRY = HistoryEntry(at=1.0, kind="event", name="HubFound")


def play(test: Callable[[Histories, list[tuple[str, HistoryAsked]]], Awaitable[None]], *away: str) -> None:
    async def all_of_it() -> None:
        sent: list[tuple[str, HistoryAsked]] = []

        def send(host: str, message: Message) -> bool:
            assert isinstance(message, HistoryAsked)
            sent.append((host, message))
            return host not in away

        await test(Histories(send, answer_s=0.05), sent)

    asyncio.run(asyncio.wait_for(all_of_it(), BOUND_S))


def told(host: str, id: int, trouble: str = "") -> HistoryTold:
    return HistoryTold(sender=host, id=id, entries=[] if trouble else [ENTRY], trouble=trouble)


def test_each_host_is_asked_the_same_and_its_answer_comes_with_its_name() -> None:
    async def test(histories: Histories, sent: list[tuple[str, HistoryAsked]]) -> None:
        asking = asyncio.ensure_future(histories.ask(["h2", "h1"], "12", 5.0, 10))
        await asyncio.sleep(0)
        assert [host for host, _ in sent] == ["h1", "h2"]
        question = sent[0][1]
        assert (question.about, question.since, question.limit) == ("12", 5.0, 10)
        histories.told("h2", told("h2", question.id, "the journal cannot be read"))
        histories.told("h1", told("h1", question.id))
        found = await asking
        assert [(h.host, h.entries, h.trouble) for h in found] == [
            ("h1", [ENTRY], ""),
            ("h2", [], "the journal cannot be read"),
        ]

    play(test)


def test_silent_hosts_are_named_and_the_others_histories_are_shown() -> None:
    async def test(histories: Histories, sent: list[tuple[str, HistoryAsked]]) -> None:
        asking = asyncio.ensure_future(histories.ask(["h1", "h2", "h3"], "", 0.0, 10))
        await asyncio.sleep(0)
        histories.told("h2", told("h2", sent[0][1].id))
        found = {h.host: (len(h.entries), h.trouble) for h in await asking}
        assert found["h1"] == (0, "it cannot be reached now")
        assert found["h2"] == (1, "")
        assert "no answer within 0.05 s" in found["h3"][1]

    play(test, "h1")


def test_a_late_or_a_strangers_answer_is_nobodys() -> None:
    async def test(histories: Histories, sent: list[tuple[str, HistoryAsked]]) -> None:
        assert (await histories.ask(["h1"], "", 0.0, 10))[0].trouble
        histories.told("h1", told("h1", sent[0][1].id))
        histories.told("h9", told("h9", sent[0][1].id))
        assert await histories.ask([], "", 0.0, 10) == []

    play(test)
