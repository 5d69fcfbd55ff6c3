"""The owner of a job whose prologue waits for memory sees in its comment how far that is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from magrathea.core.model import JobKey
from magrathea.messages import Snapshot
from scheduler_plugin.hub.job_actions import say
from scheduler_plugin.hub.waiting_comments import OVER, TOLD_AGAIN_S, WaitingComments
from tests.fakes.pbs import FakePbs

from .builders import domain, job, report, snapshot

KEY = JobKey("1.srv", 1)


def heard(waits: str, *, gone: bool = False) -> Snapshot:
    jobs = [] if gone else [structs.replace(report(), waits=waits)]
    return snapshot(structs.replace(domain(), jobs=jobs))


def test_it_is_told_at_once_then_now_and_then_and_when_it_is_over() -> None:
    waits = WaitingComments()
    waits.heard(heard("waits: 10 of 100"), 0.0)
    assert waits.due() == {KEY: "magrathea: waits: 10 of 100"}
    waits.heard(heard("waits: 20 of 100"), TOLD_AGAIN_S / 2)
    assert waits.due() == {}
    waits.heard(heard("waits: 50 of 100"), TOLD_AGAIN_S)
    assert waits.due() == {KEY: "magrathea: waits: 50 of 100"}
    waits.heard(heard(""), TOLD_AGAIN_S + 1)
    assert waits.due() == {KEY: OVER}
    waits.heard(heard(""), TOLD_AGAIN_S + 2)
    assert waits.due() == {}


def test_a_job_that_waits_no_more_because_it_is_gone_gets_no_comment() -> None:
    waits = WaitingComments()
    waits.heard(heard("waits"), 0.0)
    assert KEY in waits.due()
    waits.heard(heard("", gone=True), 1.0)
    assert waits.due() == {}


@pytest.mark.parametrize(("state", "run", "set_"), [("R", 1, True), ("S", 1, False), ("R", 2, False), ("Q", 1, False)])
def test_only_this_run_of_a_started_job_gets_it(state: str, run: int, set_: bool) -> None:
    pbs = FakePbs("n1")
    pbs.put(replace(job(), state=state))
    say(pbs.connect(), JobKey("1.srv", run), "told")
    assert (pbs.jobs["1.srv"].comment == "told") is set_
