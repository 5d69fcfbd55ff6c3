"""A job that has a protected resource is no victim (docs/rules.md, "Stoppable")."""

from __future__ import annotations

import pytest

from magrathea.core.events import Booking, Claimed, Refused
from magrathea.core.model import State

from .builders import HIGH, LOW, ask, books, claim, get_job, host, key, later, launch, run, state, wanted


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_it_is_not_stopped_and_the_refusal_names_the_resource(mode: str) -> None:
    h = run(host(mode, n1="normal", p1="priority"), "n1", "1", cpus=8, keeps="lic_a")
    assert state(h, "n1") is State.RUNNING and state(h, "p1") is State.OCCUPIED
    refused = claim(h, "p1", "2", cpus=4)
    assert isinstance(refused.decisions[-1], Refused) and wanted(refused.host) == set()
    if mode == "exclusive":
        assert "1 (run 1) has lic_a, which a stop would not give back" in refused.decisions[-1].text


def test_it_protects_its_domain_like_a_protected_job_and_another_domain_is_chosen() -> None:
    h = host("counted", n1="normal", n2="normal", p1="priority")
    h = run(run(h, "n1", "1", cpus=4, keeps="lic_a"), "n2", "2", cpus=4)
    assert wanted(claim(h, "p1", "3", cpus=4).host) == {"2"}
    assert isinstance(claim(h, "p1", "3", cpus=5).decisions[-1], Refused)


def test_a_claim_tells_what_the_job_keeps_for_good() -> None:
    h = host("exclusive", n1="normal", p1="priority")
    h = ask(h, Claimed(h.now, "n1", key("1"), LOW, 1, keeps="lic_a")).host
    again = ask(h, Claimed(h.now, "n1", key("1"), LOW, 1)).host
    assert get_job(h, "n1", "1").keeps == get_job(again, "n1", "1").keeps == "lic_a"
    h = later(launch(h, "n1", "1"), 1000)
    assert state(h, "n1") is State.RUNNING and state(h, "p1") is State.OCCUPIED


def test_another_host_of_the_job_does_not_hold_it_either() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1", keeps="lic_a")
    h = books(h, Booking(key("1"), booked=False, held=True))
    assert not get_job(h, "n1", "1").held_elsewhere and wanted(h) == set()


def test_without_the_resource_the_same_job_is_stopped() -> None:
    h = run(host("exclusive", n1="normal", p1="priority"), "n1", "1")
    assert wanted(claim(h, "p1", "2", cls=HIGH).host) == {"1"}
