"""Hubs are asked about jobs in the background, and the answers become facts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from magrathea.core import events as ev
from magrathea.core import machine
from magrathea.core.model import Amount, Host, JobKey, Lifecycle, Sleep, SleepCause
from magrathea_lab.rigs import virtual_time
from node_daemon.claims.inquirer import ANSWER_S, BEFORE_WAKE_S, BURST, PER_S, TOGETHER_S, Inquirer
from node_daemon.claims.inquiries import AGAIN_S, CHECK_S, YOUNG_S, Inquiries
from node_daemon.claims.pbs_says import PbsSays
from tests.unit.core.builders import PROTECTED, T, get_job, host, job_ids, key, run, set_domain

LIST_S = 15.0
"""MoM's list comes that often."""

Pbs = Callable[[str, JobKey], PbsSays]


class Asked:
    """A daemon whose hub answers as `pbs` says; with `silent`, it never answers."""

    def __init__(self, facts: Host, pbs: Pbs) -> None:
        self.host, self.pbs = facts, pbs
        self.asked: list[tuple[str, JobKey]] = []
        self.events: list[ev.Event] = []
        self.silent = self.waking = False
        self.begun = asyncio.get_running_loop().time()
        self.inquirer = Inquirer(self, Inquiries())
        self.inquirer.start()

    def now(self) -> float:
        return T + asyncio.get_running_loop().time() - self.begun

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        self.events.append(event)
        self.host, decisions = machine.handle(self.host, event)
        self.inquirer.look_soon()
        return decisions

    async def given(self, domain: str, key: JobKey, within_s: float, *, claim: bool = True) -> PbsSays:
        assert claim is self.waking, "only a claim and a wake wait for the answer"
        self.asked.append((domain, key))
        if self.silent:
            await asyncio.sleep(within_s)
            return PbsSays(None)
        return self.pbs(domain, key)


def play(facts: Host, pbs: Pbs, for_s: float, *, silent: bool = False) -> Asked:
    async def scene() -> Asked:
        made = Asked(facts, pbs)
        made.silent = silent
        await asyncio.sleep(for_s)
        made.inquirer.close()
        return made

    return virtual_time.run(scene())


def ghosts(number: int) -> Host:
    h = host("counted", n1="normal", p1="priority")
    for each in range(number):
        h = run(h, "p1", f"{each}.srv", cls=PROTECTED, age=YOUNG_S, given=False, cpus=0)
    return h


def test_what_pbs_has_given_becomes_a_fact_with_its_size_and_is_not_asked_about_again_soon() -> None:
    made = play(ghosts(1), lambda domain, key: PbsSays(True, Amount(3, 100)), CHECK_S / 2)
    job = get_job(made.host, "p1", "0.srv")
    assert (job.given, job.cpus, job.memory_mib) == (True, 3, 100)
    assert len(made.asked) == 1


def test_what_pbs_does_not_have_is_removed_after_a_second_question() -> None:
    made = play(ghosts(1), lambda domain, key: PbsSays(False), AGAIN_S - 0.5)
    assert job_ids(made.host, "p1") == {"0.srv"}
    made = play(ghosts(1), lambda domain, key: PbsSays(False), AGAIN_S + 1)
    assert job_ids(made.host, "p1") == set() and len(made.asked) == 2


def test_what_no_hub_can_say_changes_nothing() -> None:
    made = play(ghosts(1), lambda domain, key: PbsSays(None), 100)
    assert made.events == [] and 2 <= len(made.asked) <= 6


@pytest.mark.parametrize("said", [True, False, None])
def test_questions_have_a_rate_and_answers_are_entered_together(said: bool | None) -> None:
    made = play(ghosts(400), lambda domain, key: PbsSays(said), 60)
    assert len(made.asked) <= BURST + 60 * PER_S + 1
    assert len(made.events) <= 60 / TOGETHER_S, "each is a write to disk of all of the domain's jobs"


def test_all_of_a_long_list_is_removed_as_soon_as_its_guest_is_caught() -> None:
    made = play(ghosts(400), lambda domain, key: PbsSays(False), 2 * AGAIN_S)
    assert job_ids(made.host, "p1") == set()


def test_an_honest_job_of_a_guest_that_was_caught_is_back_with_the_next_list_after_pbs_has_given_it() -> None:
    """It was removed with the others, and would be remembered as ended for a minute."""
    ghost, honest = key("0.srv"), key("99.srv")

    async def scene() -> Asked:
        made = Asked(ghosts(200), lambda domain, key: PbsSays(key == honest))
        made.inquirer.close()
        inquiries = Inquiries()
        made.inquirer = Inquirer(made, inquiries)
        made.inquirer.start()
        for _ in range(2):
            await asyncio.sleep(LIST_S)
            out = inquiries.left_out(made.host, "p1", [ghost, honest], made.now())
            jobs = tuple(ev.ReportedJob(key, 1) for key in (ghost, honest) if key not in out)
            made.host = machine.handle(made.host, ev.JobsReported(made.now(), "p1", jobs))[0]
        made.inquirer.close()
        return made

    made = virtual_time.run(scene())
    assert any(isinstance(event, ev.JobsDenied) and honest in event.keys for event in made.events)
    assert job_ids(made.host, "p1") == {honest.id}


def test_a_domain_about_which_no_hub_can_say_anything_does_not_delay_its_sibling() -> None:
    h = run(ghosts(200), "n1", "1000.srv", age=YOUNG_S, given=False)
    made = play(h, lambda domain, key: PbsSays(True if domain == "n1" else None), 5)
    assert get_job(made.host, "n1", "1000.srv").given


def test_a_hub_that_does_not_answer_is_not_asked_about_one_job_after_the_other() -> None:
    made = play(ghosts(200), lambda domain, key: PbsSays(True), 10 * ANSWER_S, silent=True)
    assert len(made.asked) <= 11 and made.events == []


def test_a_job_that_is_claimed_meanwhile_is_asked_about_then() -> None:
    async def scene() -> None:
        made = Asked(host("counted", p1="priority"), lambda domain, key: PbsSays(True))
        await asyncio.sleep(1000)
        assert made.asked == []
        made.host = run(made.host, "p1", "9.srv", given=False)
        made.inquirer.look_soon()
        await asyncio.sleep(2)
        made.inquirer.close()
        assert get_job(made.host, "p1", "9.srv").given

    virtual_time.run(scene())


WAKES = Sleep(since=T - 1000.0, reason="a new disk", cause=SleepCause.ADMIN, wakes=True)


def woken(number: int, pbs: Pbs, *, silent: bool = False) -> Asked:
    """A domain with so many jobs has been asked about, when it came back from its sleep."""

    async def scene() -> Asked:
        made = Asked(set_domain(ghosts(number), "p1", sleep=WAKES, lifecycle=Lifecycle.BOOTING), pbs)
        made.inquirer.close()
        made.silent, made.waking = silent, True
        async with asyncio.timeout(BEFORE_WAKE_S + 0.1):
            await made.inquirer.ask_before_wake("p1")
        return made

    return virtual_time.run(scene())


def test_what_pbs_no_longer_has_when_a_domain_wakes_is_removed_at_once() -> None:
    made = woken(3, lambda domain, key: PbsSays(key.id != "1.srv"))
    assert job_ids(made.host, "p1") == {"0.srv", "2.srv"}
    assert len(made.asked) == 3 and len(made.events) == 1


def test_a_wake_waits_for_no_hub_that_does_not_answer() -> None:
    made = woken(100, lambda domain, key: PbsSays(False), silent=True)
    assert made.events == [] and len(job_ids(made.host, "p1")) == 100
    made = woken(3, lambda domain, key: PbsSays(None))
    assert made.events == [] and len(made.asked) == 1
