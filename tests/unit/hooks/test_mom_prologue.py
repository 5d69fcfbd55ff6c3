"""MoM's hook before the job's script: it waits for memory."""

from __future__ import annotations

import time

import pytest

from .mom_rig import FakeAgent, a_job, run


def test_the_prologue_asks_until_the_memory_is_there(agent: FakeAgent) -> None:
    agent.answers["prepared"] = [{"ok": True, "ready": False}, {"ok": True, "ready": True}]
    assert run("execjob_prologue", a_job()).accepted
    assert [request["op"] for request in agent.heard] == ["prepared", "prepared"]


def test_memory_that_is_known_not_to_come_is_not_waited_for(agent: FakeAgent) -> None:
    numbers = "p1 needs 1692 MiB and can have 768"
    agent.answers["prepared"] = {"ok": False, "code": "memory-short", "text": numbers, "retry_after_s": 60}
    refused = run("execjob_prologue", a_job())
    assert not refused.accepted and numbers in refused.message
    assert len(agent.heard) == 1


SEVERAL = "(n1:ncpus=2)+(n2:ncpus=1:mem=1kb+n2:ncpus=1)+(n3:ncpus=1)"


def test_the_first_host_of_several_asks_for_all_of_them(agent: FakeAgent) -> None:
    agent.answers["prepared"] = {"ok": True, "ready": True}
    assert run("execjob_prologue", a_job(exec_vnode=SEVERAL)).accepted
    assert run("execjob_prologue", a_job(exec_vnode="(n1:ncpus=1)+(n1:ncpus=1)")).accepted
    several, single = agent.heard
    assert several["vnodes"] == ["n1", "n2", "n3"]
    assert single["vnodes"] == ["n1"]


def test_very_many_parts_are_asked_for_in_turns(agent: FakeAgent) -> None:
    """All parts together would not fit a line of the guest channel."""
    agent.answers["prepared"] = [{"ok": True, "ready": ready} for ready in (True, False, True, True)]
    names = [f"n{number:03}" for number in range(450)]
    assert run("execjob_prologue", a_job(exec_vnode="+".join(f"({name}:ncpus=1)" for name in names))).accepted
    first, second, again, last = [request["vnodes"] for request in agent.heard]
    assert second == again
    assert first + second + last == names


@pytest.mark.parametrize("code", ["hub-lost", "domain-unknown"])
def test_unknown_parts_are_not_waited_for(agent: FakeAgent, code: str) -> None:
    agent.answers["prepared"] = {"ok": False, "code": code, "text": "nothing was heard for 60 s", "retry_after_s": 5}
    refused = run("execjob_prologue", a_job(exec_vnode=SEVERAL))
    assert not refused.accepted and "nothing was heard" in refused.message
    assert len(agent.heard) == 1


def test_a_prologue_that_gives_up_names_what_it_waited_for(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.answers["prepared"] = {"ok": True, "ready": False, "text": "waits for its memory: h2: n2"}
    slept = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + slept[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(slept.pop() + 600))
    refused = run("execjob_prologue", a_job(exec_vnode=SEVERAL))
    assert not refused.accepted and "waits for its memory: h2: n2" in refused.message


def test_on_a_sister_the_prologue_returns_at_once(agent: FakeAgent) -> None:
    assert run("execjob_prologue", a_job(mother_superior=False)).accepted
    assert agent.heard == []


def test_the_prologue_gives_up_a_job_that_was_deleted_meanwhile(agent: FakeAgent) -> None:
    agent.answers["prepared"] = {"ok": False, "code": "deleted", "text": "job 12.srv is being deleted"}
    refused = run("execjob_prologue", a_job())
    assert not refused.accepted
    assert refused.changes == {"delete": True}
