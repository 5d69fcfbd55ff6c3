"""What a host reports about a domain that sleeps, and what an older hub makes of a host on which nobody does."""

from __future__ import annotations

import json

import pytest

from magrathea.core.events import DefrostRequested, Event, FreezeEnded, SleepRequested
from magrathea.core.model import JobClass, SleepCause, State
from magrathea.messages import DomainReport, SleepReport, Snapshot, decode_to_hub, encode
from magrathea.preview import host_of
from node_daemon.snapshot import Beside, snapshot
from tests.unit.core.builders import PROTECTED, T, after, claim, host, run, state

CAUSE = SleepCause.ADMIN
ASKED = SleepRequested(T, "n1", "a new disk", CAUSE)
SAVED = FreezeEnded(T, "n1")


def reported(*events: Event) -> Snapshot:
    facts = after(run(host("counted", n1="normal", n2="normal"), "n1", "1.srv", cls=PROTECTED, cpus=6), *events[:2])
    told = snapshot(after(run(facts, "n2", "2.srv", cpus=4), *events[2:]), Beside("boot"))
    assert decode_to_hub(encode(told)) == told
    return told


@pytest.mark.parametrize(
    ("events", "state", "wakes"),
    [
        ((ASKED,), State.DRAINING, False),
        ((ASKED, SAVED), State.ASLEEP, False),
        ((ASKED, SAVED, DefrostRequested(T, "n1", T)), State.ASLEEP, True),
    ],
)
def test_since_when_and_why_a_domain_sleeps_is_reported(events: tuple[Event, ...], state: State, wakes: bool) -> None:
    told: DomainReport = reported(*events).domains[0]
    assert told.state is state and "a new disk" in told.why
    assert told.sleep == SleepReport(since=T, reason="a new disk", cause=CAUSE, wakes=wakes)
    (job,) = told.jobs
    assert job.stop and not job.ready and job.cls is JobClass.PROTECTED and job.preempted_by == ""


def test_the_hub_previews_by_a_sleeper_what_the_host_itself_would_answer() -> None:
    asleep = host_of(reported(ASKED, SAVED))
    assert state(asleep, "n1") is State.ASLEEP and claim(asleep, "n2", "3.srv", cpus=4).ok
    in_line = host_of(reported(ASKED, SAVED, DefrostRequested(T, "n1", T)))
    assert claim(in_line, "n2", "3.srv", cpus=4).code == "cpus", "n1 is to come back first"


def test_what_a_hub_does_not_know_yet_is_not_in_the_message_of_a_domain_that_is_awake() -> None:
    assert "sleep" not in json.loads(encode(snapshot(host("counted", n1="normal"), Beside("boot"))))["domains"][0]
