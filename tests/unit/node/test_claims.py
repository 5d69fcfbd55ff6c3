"""The answer to a claim if jobs have not stopped in time, or if the claim has ended meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from magrathea.core import events as ev
from magrathea.core import machine, plan
from magrathea.core.model import Amount, Host, JobClass, JobKey, MemoryComing, MemoryLack, MemoryShort, StopWarning
from magrathea.core.readiness import Unready
from magrathea_lab.rigs import virtual_time
from node_daemon.claims import claims
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.guest_channel.messages import Claim, ClaimedJob, GuestJob, Launched, Prepared
from node_daemon.switch.progress import Pending, Unstopped
from tests.unit.core.builders import host, run


class NeverStops:
    """A switch with an agent that never confirms anything."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner

    @property
    def progress(self) -> NeverStops:
        return self

    def pending(self, domain: str) -> Pending | None:
        jobs = ((d.name, j.key) for d in self.owner.host.domains for j in d.stopped)
        claimed = self.owner.host.domain("p1").jobs  # type: ignore[union-attr]
        return Unstopped(frozenset(jobs)) if claimed else None

    async def changed(self) -> None:
        await asyncio.sleep(10)


class Owner:
    driver: Any = None

    def __init__(self, facts: Host) -> None:
        self.host = facts
        self.switch: Any = NeverStops(self)
        self.told: list[tuple[str, JobKey, str]] = []
        self.unready: tuple[Unready, ...] | None = ()
        self.asked: list[tuple[str, JobKey]] = []
        self.pbs_gave: bool | None = True
        self.pbs_size: Amount | None = None

    def now(self) -> float:
        return self.host.now

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        self.host, decisions = machine.handle(self.host, event)
        return decisions

    def refused(self, domain: str, key: JobKey, code: str, text: str) -> None:
        self.told.append((domain, key, code))

    async def parts_elsewhere(self, domain: str, key: JobKey, vnodes: list[str]) -> tuple[Unready, ...] | None:
        return self.unready if "elsewhere" in vnodes else ()

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        self.asked.append((domain, key))
        return PbsSays(self.pbs_gave, self.pbs_size)

    def actual_changed(self) -> None:
        return

    def observe(self, name: str) -> None:
        raise AssertionError("nothing is granted here")


JOB = ClaimedJob(id="9.srv", run=1, cls=JobClass.PRIORITY, cpus=1, memory_mib=0, prologue=True)
CLAIM = Claim(id=1, session="0" * 16, job=JOB)


@pytest.fixture
def owner() -> Owner:
    return Owner(run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cpus=4))


COMING = MemoryComing()


class Lacking:
    """A switch that only knows what memory each domain lacks."""

    def __init__(self, **lacks: MemoryLack | None) -> None:
        self.lacks = lacks
        self.warned: frozenset[tuple[str, JobKey]] = frozenset()
        self.progress = self

    def lack(self, domain: str) -> MemoryLack | None:
        return self.lacks[domain]

    def unstopped(self) -> Unstopped:
        return Unstopped(self.warned)

    def how_far(self) -> str:
        return "p1 takes 10 of 900 MiB"


def test_a_job_waits_for_its_parts_in_all_domains_of_its_host() -> None:
    """Only a counted host has a job in two domains. Its other hosts are not asked."""
    facts = host("counted", cpus=8, n1="normal", p1="priority", p2="priority")
    for name in ("p1", "p2"):
        facts = run(facts, name, "9.srv", cpus=1)
    owner = Owner(run(facts, "n1", "1.srv", cpus=1))

    def asked(vnodes: list[str], **lacks: MemoryLack | None) -> dict[str, Any]:
        owner.switch = Lacking(**lacks)
        request = Prepared(id=1, session="0" * 16, job=GuestJob(id="9.srv", run=1), vnodes=vnodes)
        return virtual_time.run(claims.Claims(owner).request("p1", request))

    told = "waits for its memory: p1 takes 10 of 900 MiB"
    for vnodes in ([], ["p1", "p2"]):
        assert asked(vnodes, n1=COMING, p1=None, p2=COMING) == {"ok": True, "ready": False, "text": told}
        assert asked(vnodes, n1=COMING, p1=COMING, p2=None)["ready"] is False
        assert asked(vnodes, n1=COMING, p1=None, p2=None) == {"ok": True, "ready": True}
        short = asked(vnodes, n1=COMING, p1=COMING, p2=MemoryShort("p2 needs 9 MiB and can have 1"))
        assert (short["code"], short["text"]) == ("memory-short", "p2 needs 9 MiB and can have 1")
    owner.unready = None
    assert "no hub answers" in asked(["p1", "p2", "elsewhere"], n1=None, p1=None, p2=None)["text"]


def warned(owner: Owner, seconds: float, granted_s: float) -> None:
    """Let n1's job ask for a warning of so many seconds, at a site that grants so many."""
    domain = owner.host.domain("n1")
    assert domain is not None
    jobs = (replace(job, warning=StopWarning("SIGUSR1", seconds)) for job in domain.jobs)
    limits = replace(owner.host.limits, longest_warning_s=granted_s)
    owner.host = replace(owner.host.having(domain.having(*jobs)), limits=limits)


@pytest.mark.parametrize(("asked_s", "granted_s", "ok"), [(60, 120, True), (60, 1, False), (1, 120, False)])
def test_a_claim_waits_for_no_long_warning_that_the_prologue_waits_for(
    owner: Owner, asked_s: float, granted_s: float, ok: bool
) -> None:
    warned(owner, asked_s, granted_s)
    owner.observe = lambda name: None  # type: ignore[method-assign]
    answer = virtual_time.run(claims.Claims(owner).request("p1", CLAIM))
    assert answer["ok"] is ok
    assert ok or answer["code"] == "stop-timeout"


@pytest.mark.parametrize(("prologue", "runs_on_s"), [(True, 60), (False, 1)])
def test_a_job_whose_mom_cannot_wait_in_the_prologue_lets_its_victims_run_on_for_a_second_only(
    owner: Owner, prologue: bool, runs_on_s: float
) -> None:
    warned(owner, 60, 120)
    owner.observe = lambda name: None  # type: ignore[method-assign]
    request = Claim(id=1, session="0" * 16, job=msgspec.structs.replace(JOB, prologue=prologue))
    until: list[float | None] = []

    async def scene() -> dict[str, Any]:
        asked = asyncio.create_task(claims.Claims(owner).request("p1", request))
        await asyncio.sleep(0.01)  # of virtual time: the claim waits now
        (victim,) = owner.host.domain("n1").jobs  # type: ignore[union-attr]
        until.append(plan.warned_until(owner.host, victim))
        return await asked

    answer = virtual_time.run(scene())
    assert until == [pytest.approx(owner.host.now + runs_on_s)]
    assert answer["ok"] is prologue, "without the hook it would start beside a job that has not stopped"


def test_a_job_whose_mom_cannot_wait_does_not_join_while_others_still_have_time(owner: Owner) -> None:
    warned(owner, 60, 120)
    owner.observe = lambda name: None  # type: ignore[method-assign]
    made = claims.Claims(owner)
    assert virtual_time.run(made.request("p1", CLAIM))["ok"]
    joins = msgspec.structs.replace(JOB, id="10.srv", prologue=False)
    assert virtual_time.run(made.request("p1", Claim(id=2, session="0" * 16, job=joins)))["code"] == "stop-timeout"


def test_the_prologue_waits_until_warned_jobs_have_stopped(owner: Owner) -> None:
    warned(owner, 60, 120)
    owner.observe = lambda name: None  # type: ignore[method-assign]
    asked = claims.Claims(owner)
    virtual_time.run(asked.request("p1", CLAIM))
    switch = owner.switch = Lacking(p1=None)
    prepared = Prepared(id=1, session="0" * 16, job=GuestJob(id="9.srv", run=1), vnodes=[])
    switch.warned = frozenset({("n1", JobKey("1.srv", 1))})
    told = "waits for jobs that were warned: 1 of them stop within 60 s"
    assert virtual_time.run(asked.request("p1", prepared)) == {"ok": True, "ready": False, "text": told}
    switch.warned = frozenset()
    assert virtual_time.run(asked.request("p1", prepared)) == {"ok": True, "ready": True}


def test_a_job_waits_as_long_as_its_prologue_asks_whatever_processes_of_it_are_seen() -> None:
    """An escaped process of an earlier run has the job's id, so the agent reports a launch."""
    owner = Owner(run(host("exclusive", cpus=8, n1="normal", p1="priority"), "p1", "9.srv", cpus=1))
    key = JobKey("9.srv", 1)
    job = owner.host.domain("p1").job(key)  # type: ignore[union-attr]
    assert job is not None and job.launched
    asked = claims.Claims(owner)
    prepared = Prepared(id=1, session="0" * 16, job=GuestJob(id="9.srv", run=1), vnodes=[])
    told = "waits for its memory: p1 takes 10 of 900 MiB"

    owner.switch = Lacking(n1=None, p1=COMING)
    virtual_time.run(asked.request("p1", prepared))
    assert asked.waits() == {("p1", key): told}

    virtual_time.run(asked.request("p1", Launched(id=2, session="0" * 16, job=GuestJob(id="9.srv", run=1))))
    assert asked.waits() == {}, "as far as is known its prologue is over"
    virtual_time.run(asked.request("p1", prepared))
    assert asked.waits() == {("p1", key): told}, "it is not: it asks again"

    owner.switch = Lacking(n1=None, p1=None)
    virtual_time.run(asked.request("p1", prepared))
    assert asked.waits() == {}


def test_a_claim_is_refused_with_the_reason_if_jobs_do_not_stop_in_time(owner: Owner) -> None:
    answer = virtual_time.run(claims.Claims(owner).request("p1", CLAIM))
    assert (answer["ok"], answer["code"]) == (False, "stop-timeout")
    assert "1.srv" in answer["text"]
    assert owner.told == [("p1", JobKey("9.srv", 1), "stop-timeout")]


def test_a_claim_that_was_taken_back_meanwhile_is_not_granted(owner: Owner) -> None:
    async def claim() -> dict[str, Any]:
        asked = asyncio.create_task(claims.Claims(owner).request("p1", CLAIM))
        await asyncio.sleep(0.01)  # of virtual time: the claim waits now
        owner.apply(ev.Released(owner.now(), "p1", JobKey("9.srv", 1)))
        return await asked

    answer = virtual_time.run(claim())
    assert (answer["ok"], answer["code"]) == (False, "released")
