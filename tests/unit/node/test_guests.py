"""What a claim is answered when what had to be stopped has not stopped in time, or the claim has gone meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from magrathea.core import events as ev
from magrathea.core import machine
from magrathea.core.model import Host, JobClass, JobKey
from node_daemon import guests
from node_daemon.guest_messages import Claim, ClaimedJob
from tests.unit.core.builders import host, run


class NeverStops:
    """A switch whose agent never confirms anything."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner

    def unconfirmed(self) -> frozenset[tuple[str, JobKey]]:
        jobs = ((d.name, j.key) for d in self.owner.host.domains for j in d.stopped)
        return frozenset(jobs) if self.owner.host.domain("p1").jobs else frozenset()  # type: ignore[union-attr]

    def cpu_pending(self) -> bool:
        return False

    async def changed(self) -> None:
        await asyncio.sleep(10)


class Owner:
    driver: Any = None

    def __init__(self, facts: Host) -> None:
        self.host = facts
        self.switch: Any = NeverStops(self)
        self.told: list[tuple[str, JobKey, str]] = []

    def now(self) -> float:
        return self.host.now

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        self.host, decisions = machine.handle(self.host, event)
        return decisions

    def refused(self, domain: str, key: JobKey, code: str, text: str) -> None:
        self.told.append((domain, key, code))

    def observe(self, name: str) -> None:
        raise AssertionError("nothing is granted here")


CLAIM = Claim(id=1, session="0" * 16, job=ClaimedJob(id="9.srv", run=1, cls=JobClass.PRIORITY, cpus=1, memory_mib=0))


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Owner:
    monkeypatch.setattr(guests, "CLAIM_S", 0.05)
    return Owner(run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cpus=4))


def test_what_does_not_stop_in_time_refuses_the_claim_and_its_owner_is_told_why(owner: Owner) -> None:
    answer = asyncio.run(guests.Guests(owner).request("p1", CLAIM))
    assert (answer["ok"], answer["code"]) == (False, "stop-timeout")
    assert "1.srv" in answer["text"]
    assert owner.told == [("p1", JobKey("9.srv", 1), "stop-timeout")]


def test_a_claim_that_was_taken_back_meanwhile_is_not_granted(owner: Owner) -> None:
    async def claim() -> dict[str, Any]:
        asked = asyncio.create_task(guests.Guests(owner).request("p1", CLAIM))
        await asyncio.sleep(0.01)
        owner.apply(ev.Released(owner.now(), "p1", JobKey("9.srv", 1)))
        return await asked

    answer = asyncio.run(claim())
    assert (answer["ok"], answer["code"]) == (False, "released")
