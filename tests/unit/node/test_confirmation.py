"""A claim that would cost a sibling something waits for a hub's answer whether PBS has given the job to its domain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from magrathea.core.model import Amount, Host, JobClass, JobKey
from magrathea_lab.rigs import virtual_time
from node_daemon.claims.claims import Claims
from node_daemon.claims.confirmation import QUESTIONS_BURST, Confirmation, Given
from node_daemon.claims.inquiries import Verdict
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.guest_channel.messages import Claim, ClaimedJob, GuestJob, Jobs, ListedJob, Release
from tests.unit.core.builders import host, job_ids, run, set_domain, stopped

from .test_claims import CLAIM, Owner

KEY = JobKey("9.srv", 1)
RELEASE = Release(id=2, session="0" * 16, job=GuestJob(id="9.srv", run=1))


def busy() -> Host:
    return run(host("exclusive", cpus=4, n1="normal", p1="priority"), "n1", "1.srv", cpus=4)


class Granted(Owner):
    """Its claims may be granted."""

    def observe(self, name: str) -> None:
        assert name == "answer"


class Slow(Owner):
    """Its hub answers after a second of virtual time."""

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        await asyncio.sleep(1.0)
        return await super().given(domain, key, within_s)


@pytest.mark.parametrize(("pbs_says", "code"), [(False, "not-given"), (None, "unconfirmed")])
def test_nobody_is_stopped_for_a_job_that_pbs_has_not_given_or_cannot_tell_about(
    pbs_says: bool | None, code: str
) -> None:
    owner = Owner(busy())
    owner.pbs_gave = pbs_says
    answer = virtual_time.run(Claims(owner).request("p1", CLAIM))
    assert (answer["ok"], answer["code"]) == (False, code)
    assert "9.srv" in answer["text"] and answer["retry_after_s"] > 0
    assert owner.asked == [("p1", KEY)] and owner.told == [("p1", KEY, code)]
    assert owner.host == busy()


def test_a_job_that_pbs_has_given_preempts() -> None:
    owner = Owner(busy())
    answer = virtual_time.run(Claims(owner).request("p1", CLAIM))
    assert answer["code"] == "stop-timeout", "it got that far: in this test nothing ever stops"
    assert stopped(owner.host) == {"1.srv"} and owner.asked == [("p1", KEY)]


def test_victims_are_chosen_for_the_size_that_pbs_says() -> None:
    owner = Owner(
        run(run(host("counted", n1="normal", n2="normal", p1="priority"), "n1", "1.srv", cpus=4), "n2", "2.srv", cpus=4)
    )
    owner.pbs_size = Amount(5, 0)
    virtual_time.run(Claims(owner).request("p1", CLAIM))
    assert stopped(owner.host) == {"1.srv", "2.srv"}, "the guest has said one CPU"


def test_a_claim_that_costs_nobody_anything_is_not_asked_about() -> None:
    owner = Granted(host("exclusive", cpus=4, n1="normal", p1="priority"))
    owner.switch = Idle()
    owner.pbs_gave = None
    assert virtual_time.run(Claims(owner).request("p1", CLAIM)) == {"ok": True}
    assert owner.asked == []


def caught(owner: Owner) -> Claims:
    """Claims of a host whose p1 has claimed a job that PBS has not given to it."""
    claims, ghost = Claims(owner), ("p1", JobKey("8.srv", 1))
    owner.host = run(owner.host, "p1", "8.srv", given=False)
    for verdict in (Verdict.NOTHING, Verdict.DENIED):
        assert claims._inquiries.answered(owner.host, ghost, False, owner.now()) is verdict
    owner.host = set_domain(owner.host, "p1", jobs=())
    return claims


@pytest.mark.parametrize(("pbs_says", "code"), [(False, "not-given"), (None, "unconfirmed"), (True, "")])
def test_a_guest_that_was_caught_waits_for_pbs_with_each_claim(pbs_says: bool | None, code: str) -> None:
    owner = Granted(host("exclusive", cpus=4, n1="normal", p1="priority"))
    owner.switch, owner.pbs_gave = Idle(), pbs_says
    claims = caught(owner)
    assert virtual_time.run(claims.request("p1", CLAIM)).get("code", "") == code
    assert job_ids(owner.host, "p1") == (set() if code else {"9.srv"}) and owner.asked == [("p1", KEY)]
    other = Claim(id=2, session="0" * 16, job=ClaimedJob("7.srv", 1, JobClass.PREEMPTIBLE, 1))
    if code:
        assert virtual_time.run(claims.request("n1", other)) == {"ok": True}, "its sibling is believed"


def test_without_a_hub_even_a_guest_that_was_caught_is_believed() -> None:
    owner = Granted(host("exclusive", cpus=4, hub=False, n1="normal", p1="priority"))
    owner.switch = Idle()
    assert virtual_time.run(caught(owner).request("p1", CLAIM)) == {"ok": True}
    assert owner.asked == []


def test_a_list_of_a_guest_that_was_caught_makes_no_jobs_until_pbs_has_given_them() -> None:
    owner = Granted(host("exclusive", cpus=4, n1="normal", p1="priority"))
    claims = caught(owner)
    listed = Jobs(3, "0" * 16, [ListedJob(id="8.srv", run=1), ListedJob(id="7.srv", run=1)])
    virtual_time.run(claims.request("p1", listed))
    assert job_ids(owner.host, "p1") == set()
    claims._inquiries.answered(owner.host, ("p1", JobKey("7.srv", 1)), True, owner.now())
    claims._list("p1", listed)
    assert job_ids(owner.host, "p1") == {"7.srv"}


class Idle:
    """A switch with nothing to do."""

    @property
    def progress(self) -> Idle:
        return self

    def pending(self, domain: str) -> None:
        return


def test_the_question_takes_none_of_the_changes_that_the_guest_may_make() -> None:
    """Else a guest with many preempting jobs would wait for its turn after half of them."""

    async def claims_and_releases() -> float:
        claims, began = Claims(owner), asyncio.get_running_loop().time()
        for run_ in range(1, 51):
            job = ClaimedJob("9.srv", run_, JobClass.PRIORITY, 1, 0)
            assert await claims.request("p1", Claim(2 * run_, "0" * 16, job)) == {"ok": True}
            release = Release(id=2 * run_ + 1, session="0" * 16, job=GuestJob("9.srv", run_))
            assert await claims.request("p1", release) == {"ok": True}
        return asyncio.get_running_loop().time() - began

    owner = Granted(busy())
    owner.switch = Idle()
    assert virtual_time.run(claims_and_releases()) == 0.0
    assert len(owner.asked) == 50


def test_a_claim_that_is_taken_back_before_the_answer_is_not_granted() -> None:
    async def claim() -> dict[str, Any]:
        claims = Claims(owner)
        asked = asyncio.create_task(claims.request("p1", CLAIM))
        await asyncio.sleep(0.5)
        assert await claims.request("p1", RELEASE) == {"ok": True}
        return await asked

    owner = Slow(busy())
    answer = virtual_time.run(claim())
    assert (answer["ok"], answer["code"]) == (False, "released")
    assert job_ids(owner.host, "p1") == set() and stopped(owner.host) == set()


def test_a_claim_that_is_taken_back_before_its_turn_is_not_granted_either() -> None:
    async def claim() -> dict[str, Any]:
        claims = Claims(owner)
        asked = asyncio.create_task(claims.request("p1", CLAIM))
        released = asyncio.create_task(claims.request("p1", RELEASE))
        assert await released == {"ok": True}
        return await asked

    owner = Slow(busy())
    answer = virtual_time.run(claim())
    assert (answer["ok"], answer["code"]) == (False, "released")
    assert job_ids(owner.host, "p1") == set() and stopped(owner.host) == set()


def test_a_claim_after_one_that_was_taken_back_is_a_new_one() -> None:
    async def claims_twice() -> None:
        confirmation = Confirmation(owner)
        first = asyncio.create_task(confirmation.given(("p1", KEY)))
        await asyncio.sleep(0.5)
        confirmation.withdraw(("p1", KEY))
        assert (await first).answer is Given.WITHDRAWN
        confirmation.withdraw(("p1", KEY))
        assert (await confirmation.given(("p1", KEY))).answer is Given.YES

    owner = Slow(busy())
    virtual_time.run(claims_twice())


def test_a_guest_that_claims_jobs_that_are_not_there_leaves_its_siblings_their_questions() -> None:
    async def flood() -> None:
        confirmation = Confirmation(owner)
        most = int(QUESTIONS_BURST) // 2 + int(QUESTIONS_BURST) // 6
        said = [(await confirmation.given(("p1", JobKey(f"{n}.srv", 1)))).answer for n in range(most + 10)]
        assert said == [Given.NO] * most + [Given.TOO_MANY] * 10
        assert len(owner.asked) == most
        owner.pbs_gave = True
        assert (await confirmation.given(("p2", KEY))).answer is Given.YES

    owner = Owner(host("exclusive", n1="normal", p1="priority", p2="priority"))
    owner.pbs_gave = False
    virtual_time.run(flood())
