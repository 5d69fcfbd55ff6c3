"""What PBS has given a job on a vnode, as the hub tells it to the vnode's host."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from magrathea.core.model import Amount
from magrathea.messages import MOST_COUNT, GivenAsked, decode_to_hub, encode
from scheduler_plugin.hub.placements import MOMENT_S, MOST_REMEMBERED, READING_S, Placements, size_on, told
from tests.fakes.reports import NOW, job


@pytest.mark.parametrize(
    ("exec_vnode", "size"),
    [
        ("(n1:ncpus=2)", Amount(2, 0)),
        ("(n1:ncpus=2:mem=1gb)+(n2:ncpus=9)+(n1:ncpus=1:mem=1kb)", Amount(3, 1025)),
        ("(n1)", Amount(0, 0)),
        ("(n11:ncpus=2)", Amount(0, 0)),
        (f"(n1:ncpus={10**400})", Amount(MOST_COUNT, 0)),
        ("(n1:ncpus=two)", None),
        ("(n1:ncpus=2", None),
    ],
)
def test_the_size_on_a_vnode_is_that_of_all_its_chunks(exec_vnode: str, size: Amount | None) -> None:
    assert size_on("n1", exec_vnode) == size


def asked(id: str = "1.srv", *, claim: bool) -> GivenAsked:
    return GivenAsked(sender="h1", id=1, job=id, run=1, vnode="n1", claim=claim)


def made() -> Placements:
    return Placements(lambda host, vnode: host == "h1", lambda host, vnode: (host, vnode))


@pytest.mark.parametrize(("claim", "for_s"), [(True, 0.0), (False, READING_S)])
def test_only_questions_without_a_claim_are_answered_by_the_last_reading(claim: bool, for_s: float) -> None:
    placements = made()
    placements.read({"1.srv": job()}, NOW)
    assert (placements.known("h1", asked(claim=claim), NOW) is not None) is bool(for_s)
    assert placements.known("h1", asked(claim=claim), NOW + for_s) is None
    assert placements.known("h2", asked(claim=claim), NOW) is None, "the vnode is another host's"


@pytest.mark.parametrize("claim", [True, False])
def test_an_answer_counts_for_a_moment_and_only_a_yes(claim: bool) -> None:
    placements = made()
    placements.answered("1.srv", job(), NOW)
    placements.answered("2.srv", None, NOW)
    assert placements.known("h1", asked(claim=claim), NOW) is not None
    assert placements.known("h1", asked(claim=claim), NOW + MOMENT_S) is None
    assert placements.known("h1", asked("2.srv", claim=claim), NOW) is None


def test_a_host_that_knows_no_sizes_is_told_none_and_its_questions_are_for_claims() -> None:
    """Hosts are upgraded after their hub. Until then they understand an answer without new fields only."""
    old = decode_to_hub(b'{"type":"given-asked","sender":"h1","id":7,"job":"1.srv","run":1,"vnode":"n1"}')
    assert isinstance(old, GivenAsked) and old.urgent
    given = replace(job(), exec_vnode="(n1:ncpus=2:mem=5mb)")
    assert json.loads(encode(told(old, given))) == {"type": "given-told", "id": 7, "given": True}
    assert set(json.loads(encode(told(asked(claim=True), given)))) == {"type", "id", "given", "cpus", "memory_mib"}


def test_of_a_job_that_runs_nobody_can_read_where_nothing_is_known() -> None:
    unreadable = replace(job(), vnodes=(), exec_vnode="(n1:ncpus=1")
    assert told(asked(claim=False), unreadable).given is None
    assert told(asked(claim=False), replace(unreadable, exec_vnode="")).given is False, "it waits"


def test_a_newer_reading_replaces_the_one_before() -> None:
    placements = made()
    placements.read({"1.srv": job()}, NOW)
    placements.read({"1.srv": replace(job(), vnodes=("n2",))}, NOW + 1)
    assert placements.known("h1", asked(claim=False), NOW + 1) is None


def test_few_answers_are_remembered() -> None:
    placements = made()
    for number in range(MOST_REMEMBERED + 1):
        placements.answered(f"{number}.srv", job(f"{number}.srv"), NOW)
    assert placements.known("h1", asked("0.srv", claim=True), NOW) is None
    assert placements.known("h1", asked("1.srv", claim=True), NOW) is not None
