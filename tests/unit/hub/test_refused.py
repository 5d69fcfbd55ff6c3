"""If a job's start was refused, its comment has the reason as soon as PBS has it back from its MoM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from magrathea.core.model import JobKey
from magrathea.messages import RefusedClaim
from scheduler_plugin.hub.job_actions import RefusalProgress, explain
from scheduler_plugin.hub.job_comments import Comment
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, domain, job, snapshot

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
TEXT = "magrathea: host-busy: n1 on h1 has jobs; tried again soon"
COMMENT = Comment(TEXT, frozenset({"n1"}))


def refused(run: int = 1) -> RefusedClaim:
    return RefusedClaim(id="1.srv", run=run, domain="n1", code="host-busy", text="n1 on h1 has jobs", at=NOW)


def told(hub: SimHub, revision: int, *claims: RefusedClaim) -> dict[JobKey, str]:
    made = structs.replace(snapshot(domain(), revision=revision), refused=list(claims))
    hub.farm.snapshot(made, NOW, NOW)
    return {key: comment.text for key, comment in hub.farm.comments.refused_due().items()}


def test_each_refusal_is_explained_once() -> None:
    hub = SimHub(FakePbs("n1"))
    assert told(hub, 1, refused()) == {KEY: TEXT}
    assert told(hub, 2, refused()) == {}
    assert told(hub, 3, refused(), refused(run=2)) == {JobKey("1.srv", 2): TEXT}


@pytest.mark.parametrize("state", ["W", "Q"])
def test_a_job_that_waits_gets_its_comment(state: str) -> None:
    pbs = FakePbs("n1")
    pbs.put(replace(job(), state=state))
    assert explain(pbs.connect(), KEY, COMMENT, RefusalProgress.SEEN) is RefusalProgress.OVER
    assert pbs.jobs["1.srv"].comment == TEXT


def test_a_job_that_its_mom_still_has_is_looked_at_again() -> None:
    pbs = FakePbs("n1")
    pbs.put(job())
    assert explain(pbs.connect(), KEY, COMMENT, RefusalProgress.UNSEEN) is RefusalProgress.SEEN
    assert pbs.jobs["1.srv"].comment != TEXT


@pytest.mark.parametrize("vnodes", [("n2",), ("n2", "n1")])
def test_a_job_that_was_never_on_a_vnode_of_the_refusing_host_gets_none(vnodes: tuple[str, ...]) -> None:
    pbs = FakePbs("n1", "n2")
    pbs.put(job(vnodes=vnodes))
    so_far = explain(pbs.connect(), KEY, COMMENT, RefusalProgress.UNSEEN)
    pbs.change("1.srv", state="Q", vnodes=())
    assert explain(pbs.connect(), KEY, COMMENT, so_far) is RefusalProgress.OVER
    assert (pbs.jobs["1.srv"].comment == TEXT) is ("n1" in vnodes)


@pytest.mark.parametrize("there", [True, False])
def test_a_later_run_and_a_job_that_is_gone_get_none(there: bool) -> None:
    pbs = FakePbs("n1")
    if there:
        pbs.put(replace(job(), state="Q", run_version=2))
    assert explain(pbs.connect(), KEY, COMMENT, RefusalProgress.SEEN) is RefusalProgress.OVER
    assert not there or pbs.jobs["1.srv"].comment != TEXT
