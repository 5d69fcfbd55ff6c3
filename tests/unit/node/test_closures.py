"""A domain that has refused a subjob is published for a while without its class. Else PBS would try it without end."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from magrathea.core.model import JobClass, JobKey
from magrathea_lab.rigs import virtual_time
from node_daemon.claims.claims import Claims
from node_daemon.claims.closures import FIRST_S, MOST_S, Closures
from node_daemon.guest_channel.messages import Claim, GuestJob, Launched
from node_daemon.snapshot import Beside, snapshot
from tests.unit.core.builders import HIGH, LOW, PROTECTED, T, host, run

from .test_claims import CLAIM, Owner

SUBJOB = JobKey("9[3].srv", 1)


def test_a_pause_grows_with_each_refusal_up_to_a_limit_and_is_over_by_itself() -> None:
    closures, now = Closures(), T
    for pause_s in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S, MOST_S, MOST_S):
        assert closures.refused("n1", LOW, now) == pytest.approx(now + pause_s)
        assert closures.refused("n1", LOW, now + pause_s - 0.1) is None, "it had been sent before"
        assert closures.closed(now + pause_s - 0.1) == {"n1": {LOW}}
        now += pause_s
        assert closures.closed(now) == {}
    assert closures.refused("n1", LOW, now + 2 * MOST_S) == pytest.approx(now + 2 * MOST_S + FIRST_S)


def test_a_start_ends_it_and_other_classes_and_domains_are_not_closed() -> None:
    closures = Closures()
    closures.refused("n1", LOW, T)
    closures.refused("n2", PROTECTED, T)
    assert closures.closed(T) == {"n1": {LOW}, "n2": {PROTECTED}}
    closures.started("n1", LOW)
    assert closures.closed(T) == {"n2": {PROTECTED}}
    assert closures.refused("n1", LOW, T) == pytest.approx(T + FIRST_S)


class Watched(Owner):
    """Counts how often something is published."""

    published = 0

    def actual_changed(self) -> None:
        self.published += 1


def claim(id: str) -> Claim:
    """It is refused: nobody stops n1's job in time. PBS sees that p1 would take it."""
    return Claim(id=1, session="0" * 16, job=msgspec.structs.replace(CLAIM.job, id=id))


@pytest.mark.parametrize(("id", "closed"), [(SUBJOB.id, {"p1": {HIGH}}), ("9.srv", {})])
def test_a_refused_subjob_closes_its_domain_for_its_class_and_a_job_does_not(
    id: str, closed: dict[str, set[JobClass]]
) -> None:
    async def scene() -> None:
        owner = Watched(run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cpus=4))
        made = Claims(owner)
        assert (await made.request("p1", claim(id)))["code"] == "stop-timeout"
        assert made.closed() == closed
        assert owner.published == len(closed)
        await asyncio.sleep(2 * FIRST_S)
        assert owner.published == 2 * len(closed), "it is published when it is over, too"
        made.close()

    virtual_time.run(scene())


def test_a_domain_that_does_not_accept_the_class_anyway_is_not_closed_for_it() -> None:
    """It is open again as soon as the facts say so."""

    async def scene() -> None:
        facts = run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cls=PROTECTED, cpus=4)
        owner = Watched(facts)
        made = Claims(owner)
        assert (await made.request("p1", claim(SUBJOB.id)))["code"] == "host-busy"
        assert made.closed() == {} and owner.published == 0
        made.close()

    virtual_time.run(scene())


def test_it_is_open_again_when_a_job_of_the_class_has_started() -> None:
    async def scene() -> None:
        owner = Watched(run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cpus=4))
        made = Claims(owner)
        await made.request("p1", claim(SUBJOB.id))
        owner.host = run(owner.host, "p1", "10.srv", cpus=1)
        started = Launched(id=2, session="0" * 16, job=GuestJob(id="10.srv", run=1))
        assert (await made.request("p1", started))["ok"]
        assert made.closed() == {}
        made.close()

    virtual_time.run(scene())


def test_what_is_published_says_why() -> None:
    facts = host("exclusive", n1="normal", p1="priority")
    open_ = snapshot(facts, Beside("b")).domains[0]
    closed = snapshot(facts, Beside("b", closed={"n1": frozenset({LOW})})).domains[0]
    assert set(open_.accepts) - set(closed.accepts) == {LOW} and closed.accepts
    assert "refused a subjob" in closed.why
