"""While a prologue waits for memory, the job's comment shows its owner the progress."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from magrathea.core.model import JobKey
from magrathea.messages import RefusedClaim, Snapshot
from scheduler_plugin.hub.job_actions import say
from scheduler_plugin.hub.job_comments import (
    BURST,
    MOST,
    OVER,
    OWN_BURST,
    PER_S,
    TOLD_AGAIN_S,
    Comment,
    JobComments,
)
from scheduler_plugin.hub.shares import OWN_PER_S
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, job, report, snapshot

KEY = JobKey("1.srv", 1)


def told(text: str) -> Comment:
    return Comment(text, frozenset({"n1"}))


def heard(waits: str, *, gone: bool = False, host: str = "h1") -> Snapshot:
    jobs = [] if gone else [structs.replace(report(), waits=waits)]
    return snapshot(structs.replace(domain(), jobs=jobs), host=host)


def test_progress_is_shown_at_once_then_periodically_and_at_the_end() -> None:
    waits = JobComments()
    waits.heard(heard("waits: 10 of 100"), {"n1"}, 0.0)
    assert waits.waiting_due() == {KEY: told("magrathea: waits: 10 of 100")}
    waits.heard(heard("waits: 20 of 100"), {"n1"}, TOLD_AGAIN_S / 2)
    assert waits.waiting_due() == {}
    waits.heard(heard("waits: 50 of 100"), {"n1"}, TOLD_AGAIN_S)
    assert waits.waiting_due() == {KEY: told("magrathea: waits: 50 of 100")}
    waits.heard(heard(""), {"n1"}, TOLD_AGAIN_S + 1)
    assert waits.waiting_due() == {KEY: told(f"magrathea: {OVER}")}
    waits.heard(heard(""), {"n1"}, TOLD_AGAIN_S + 2)
    assert waits.waiting_due() == {}


def test_a_job_that_waits_no_more_because_it_is_gone_gets_no_comment() -> None:
    waits = JobComments()
    waits.heard(heard("waits"), {"n1"}, 0.0)
    assert KEY in waits.waiting_due()
    waits.heard(heard("", gone=True), {"n1"}, 1.0)
    assert waits.waiting_due() == {}


@pytest.mark.parametrize(("state", "run", "set_"), [("R", 1, True), ("S", 1, False), ("R", 2, False), ("Q", 1, False)])
def test_only_this_run_of_a_started_job_gets_it(state: str, run: int, set_: bool) -> None:
    pbs = FakePbs("n1")
    pbs.put(replace(job(), state=state))
    say(pbs.connect(), JobKey("1.srv", run), told("told"))
    assert (pbs.jobs["1.srv"].comment == "told") is set_


def test_a_job_on_a_vnode_of_another_host_gets_none() -> None:
    pbs = FakePbs("n1", "n2")
    pbs.put(job(vnodes=("n2",)))
    say(pbs.connect(), KEY, told("told"))
    assert pbs.jobs["1.srv"].comment != "told"


def test_a_hosts_reports_about_other_hosts_vnodes_are_ignored() -> None:
    comments = JobComments()
    comments.heard(structs.replace(heard("waits"), refused=[claim("why")]), set(), 0.0)
    assert comments.waiting_due() == comments.refused_due() == {}


def refusing(*ids: str, by: str = "n1") -> Snapshot:
    claims = [RefusedClaim(id=id, run=1, domain=by, code="busy", text="why", at=NOW) for id in ids]
    return structs.replace(snapshot(domain(), domain("n2")), refused=claims)


@pytest.mark.long
def test_each_host_has_its_own_limit_of_comments() -> None:
    comments = JobComments()
    for n in range(1000):
        comments.heard(refusing(*(f"{n}-{m}.srv" for m in range(64))), {"n1"}, now=10.0 + n * 0.01)
    assert len(comments.refused_due()) <= BURST + 10 * PER_S + OWN_BURST + 10 * OWN_PER_S + 1
    comments.heard(heard("waits", host="h2"), {"n1"}, 20.0)
    assert comments.waiting_due() == {KEY: told("magrathea: waits")}


def test_a_guest_that_causes_as_many_as_it_can_leaves_some_to_its_siblings() -> None:
    comments = JobComments()
    for n in range(100):
        comments.heard(refusing(*(f"{n}-{m}.srv" for m in range(64))), {"n1", "n2"}, now=10.0 + n * 0.01)
    assert len(comments.refused_due()) > BURST
    comments.heard(refusing(*(f"{m}.own" for m in range(3)), by="n2"), {"n1", "n2"}, now=11.0)
    assert set(comments.refused_due()) == {JobKey(f"{m}.own", 1) for m in range(3)}


def test_the_end_of_a_wait_is_shown_later_if_the_host_caused_too_many_comments() -> None:
    comments = JobComments()
    many = refusing(*(f"{n}.srv" for n in range(80))).refused
    comments.heard(structs.replace(heard("waits"), refused=many), {"n1"}, 0.0)
    comments.heard(structs.replace(heard("waits"), refused=[]), {"n1"}, 15.0)
    comments.heard(structs.replace(heard("waits"), refused=many), {"n1"}, 15.0)
    assert KEY in comments.waiting_due()
    comments.heard(heard(""), {"n1"}, 15.1)
    assert comments.waiting_due() == {}
    comments.heard(heard(""), {"n1"}, 25.0)
    assert comments.waiting_due() == {KEY: told(f"magrathea: {OVER}")}


def test_a_comment_is_one_short_line_of_ascii_whatever_a_host_says() -> None:
    comments = JobComments()
    evil = "x\nResource_List.walltime = 1\x1b[2J\u202e\u017e \0" + "y" * 4000
    comments.heard(structs.replace(refusing("1.srv"), refused=[claim(evil)]), {"n1"}, 0.0)
    comments.heard(heard(evil), {"n1"}, 0.0)
    texts = [c.text for c in (*comments.refused_due().values(), *comments.waiting_due().values())]
    assert len(texts) == 2, "one of each kind"
    for text in texts:
        assert text.isascii() and text.isprintable() and len(text) == MOST, text


def claim(text: str) -> RefusedClaim:
    return RefusedClaim(id="1.srv", run=1, domain="n1", code="busy", text=text, at=NOW)
