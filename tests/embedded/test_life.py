"""Domains and agents go up and down under the real daemon, with real agents and processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from magrathea_lab.waiting import eventually

from .rig import DomainRig, Job, Rig, running, states_of, stopped
from .test_daemon import control, low_job, play


async def lose(r: Rig, domain: DomainRig) -> None:
    """Kill the domain's agent, and let the grace time pass."""
    assert domain.agent is not None
    domain.agent.kill()
    await domain.agent.wait()
    await eventually(lambda: r.report(domain.name).state == "unknown", lambda: str(r.report(domain.name)))


async def impatient(r: Rig) -> None:
    """Set a short grace time for agents."""
    r.config.write_text(r.config.read_text().replace("min_run_s = 0.0", "min_run_s = 0.0\nagent_silent_s = 0.5"))
    assert (await control(r, op="reload"))["ok"]


def continue_session(session: int) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    os.kill(int(entry.name), signal.SIGCONT)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile


def test_an_agent_that_was_lost_stops_again_the_jobs_that_must_be_stopped(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        await impatient(r)
        low = await low_job(r)
        await r.start_job("p1", Job("2.srv", 1, "priority"), 1)
        await eventually(lambda: stopped(states_of(low.session)), "stopped")
        await lose(r, r.domains["n1"])
        assert [j.id for j in r.report("n1").jobs] == ["1.srv"], "kept, and counted"
        continue_session(low.session)
        await eventually(lambda: running(states_of(low.session)), "somebody has let it run")
        await r.start_agent(r.domains["n1"])
        await eventually(lambda: stopped(states_of(low.session)), "stopped again")
        await eventually(lambda: r.report("n1").state == "preempted", lambda: str(r.report("n1")))

    play(tmp_path, test)


def test_an_agent_that_was_lost_continues_the_jobs_that_may_run_when_it_is_back(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        await impatient(r)
        low = await low_job(r)
        high = Job("2.srv", 1, "priority")
        await r.start_job("p1", high, 1)
        await eventually(lambda: stopped(states_of(low.session)), "stopped")
        await lose(r, r.domains["n1"])
        await r.end_job("p1", high)
        await eventually(lambda: not r.report("p1").jobs, "the priority job is gone")
        assert stopped(states_of(low.session)), "nobody there can let it run"
        await r.start_agent(r.domains["n1"])
        await eventually(lambda: running(states_of(low.session)), "runs again")
        await eventually(lambda: r.report("n1").state == "running-preemptible", lambda: str(r.report("n1")))

    play(tmp_path, test)


def test_moms_list_is_the_truth_after_a_loss(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        await impatient(r)
        await low_job(r)
        domain = r.domains["n1"]
        await lose(r, domain)
        ended = domain.jobs.pop("1.srv")
        domain.jobs["7.srv"] = Job("7.srv", 1, "preemptible", session=ended.session)
        assert [j.id for j in r.report("n1").jobs] == ["1.srv"]
        await r.start_agent(domain)
        await eventually(lambda: [j.id for j in r.report("n1").jobs] == ["7.srv"], lambda: str(r.report("n1")))
        assert r.report("n1").jobs[0].cls == "protected", "nobody claimed it"

    play(tmp_path, test)


@pytest.mark.parametrize("do", ["boot", "shutdown", "reboot", "freeze", "defrost"])
def test_calls_that_the_local_driver_cannot_do_are_refused(tmp_path: Path, do: str) -> None:
    async def test(r: Rig) -> None:
        answer = await control(r, op="domain", do=do, domain="p1")
        assert answer["code"] == "not-supported" and "local driver" in answer["text"]
        assert (await control(r, op="domain", do="dance", domain="p1"))["code"] == "bad-request"

    play(tmp_path, test)
