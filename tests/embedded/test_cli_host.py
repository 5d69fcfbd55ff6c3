"""`magrathea pause`, `drain`, `history`, `give-back`, and `status` in a guest, with a real daemon and real agents."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from magrathea import qstat
from magrathea.cli import main
from magrathea_lab.waiting import BOUND_S, eventually

from .rig import Job, Rig, rig, running, states_of, stopped

DOMAINS = {"n1": "normal", "n2": "normal", "p1": "priority"}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def magrathea(host: Rig, *arguments: str) -> Result:
    return CliRunner().invoke(main.cli, [*arguments, "--socket", str(host.folder / "run" / "control.sock")])


def said(host: Rig, *arguments: str) -> Any:
    result = magrathea(host, *arguments, "--format", "json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def states(host: Rig) -> dict[str, str]:
    return {domain["name"]: domain["state"] for domain in said(host, "status")["domains"]}


async def preempted(host: Rig) -> tuple[Job, Job]:
    """12 in n1 is stopped for 13 in p1, also in PBS's books."""
    low, high = Job("12.srv", 1, "preemptible"), Job("13.srv", 1, "priority")
    await host.start_job("n1", low)
    await eventually(lambda: host.report("p1").accepts, "p1 inviting")
    await host.start_job("p1", high)
    await eventually(lambda: stopped(states_of(low.session)), "12 stopped")
    await eventually(lambda: any(job.booked for job in host.report("n1").jobs), "12 booked")
    return low, high


@pytest.mark.parametrize("mode", ["exclusive", "counted"])
def test_paused_in_mid_preemption_over_a_restart_nothing_continues_until_unpaused(tmp_path: Path, mode: str) -> None:
    async def test() -> None:
        async with rig(tmp_path, mode, DOMAINS, cpus=1) as host:
            low, high = await preempted(host)
            told = said(host, "pause", "h1", "--reason", "a look")["said"]
            assert told == [
                "h1 is paused: nobody is stopped or continued, nothing is moved; 1 stopped job will stay so"
            ]
            await host.end_job("p1", high)
            await eventually(lambda: not host.report("p1").jobs, "13 gone")
            await host.stop_daemon()
            host.hub.snapshots.clear()
            await host.start_daemon()
            await eventually(host.settled, "the daemon back, its agents too")
            status = said(host, "status")
            assert (status["paused"], states(host)["n1"]) == ("a look", "preempted")
            assert any("1 stopped job stays so" in note for note in status["notes"])
            assert stopped(states_of(low.session))
            assert all(job.stop and not job.ready for job in host.report("n1").jobs)
            assert magrathea(host, "unpause").stdout == "h1 acts again\n"
            await eventually(lambda: running(states_of(low.session)), "12 going on")

    run(test())


def test_while_paused_a_claim_that_stops_nobody_is_granted_and_one_that_would_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "exclusive", DOMAINS) as host:
            low = Job("12.srv", 1, "preemptible")
            magrathea(host, "pause")
            await host.start_job("n1", low)
            await eventually(lambda: host.report("n1").state.value == "running-preemptible", "12 stoppable")
            assert host.report("p1").state.value == "occupied"
            assert not host.report("p1").accepts
            answer = await host.claim("p1", Job("13.srv", 1, "priority"))
            assert (answer["ok"], answer["code"]) == (False, "paused")
            assert running(states_of(low.session))
            magrathea(host, "unpause")
            await eventually(lambda: host.report("p1").accepts, "p1 inviting again")

    run(test())


def test_a_claim_that_needs_cpus_moved_is_refused_while_paused(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "counted", DOMAINS, cpus=4) as host:
            await host.start_job("n1", Job("12.srv", 1, "preemptible"))
            await eventually(lambda: host.report("n1").cpu_percent == 100, "n1 capped at its job's CPU")
            magrathea(host, "pause")
            answer = await host.claim("n1", Job("14.srv", 1, "preemptible"))
            assert (answer["ok"], answer["code"]) == (False, "paused")
            assert [job.id for job in host.report("n1").jobs] == ["12.srv"]
            magrathea(host, "unpause")
            await host.start_job("n1", Job("15.srv", 1, "preemptible"))

    run(test())


def test_a_host_drains_as_a_whole_and_takes_jobs_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "counted", DOMAINS) as host:
            await host.start_job("n1", Job("12.srv", 1, "preemptible"))
            told = said(host, "drain", "h1", "--reason", "new switch")["said"]
            assert told == [
                "n1 takes no more jobs; it finishes 12.srv",
                "n2 takes no more jobs; it has none",
                "p1 takes no more jobs; it has none",
            ]
            assert set(states(host).values()) == {"draining"}
            assert said(host, "undrain", "n1")["said"] == ["n1 takes jobs again"]
            assert said(host, "undrain", "h1")["said"][0] == "n1 was not draining"
            assert "draining" not in states(host).values()
            assert magrathea(host, "drain", "n9").exit_code == 1
            assert magrathea(host, "pause", "h2").exit_code == 1

    run(test())


def test_history_shows_a_preemption_at_once_and_without_the_daemon(tmp_path: Path) -> None:
    async def test() -> None:
        async with rig(tmp_path, "exclusive", DOMAINS) as host:
            await preempted(host)
            why = next(d["why"] for d in said(host, "status")["domains"] if d["name"] == "n1")
            assert why == "its job stopped for 13.srv in p1"
            sentences = [entry["sentence"] for entry in said(host, "history", "12")]
            assert sentences[:2] == ["asked for: a job of class preemptible, CPUs: 1", "accepted"]
            assert any(sentence.startswith("stopped for 13.srv") for sentence in sentences)
            await host.stop_daemon()
            offline = CliRunner().invoke(
                main.cli, ["history", "12", "--journal", str(host.journal), "--format", "json"]
            )
            assert [entry["sentence"] for entry in json.loads(offline.stdout)][: len(sentences)] == sentences

    run(test())


def test_give_back_is_refused_while_the_daemon_runs_and_works_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = {"Job_Owner": f"{getpass.getuser()}@login"}
    monkeypatch.setattr(qstat, "job", lambda id: (id, me))

    async def test() -> None:
        async with rig(tmp_path, "exclusive", DOMAINS) as host:
            low, _ = await preempted(host)
            command = ["give-back", "h1", "--yes", "--config", str(host.config)]
            refused = CliRunner().invoke(main.cli, command)
            assert refused.exit_code == 1
            assert "systemctl stop magrathea-noded" in refused.stderr
            assert stopped(states_of(low.session))
            await host.stop_daemon()
            for domain in host.domains.values():
                assert domain.agent is not None
                domain.agent.terminate()
                await asyncio.wait_for(domain.agent.wait(), BOUND_S)
            given = CliRunner().invoke(main.cli, command)
            assert given.exit_code == 0, given.output
            assert "12.srv in n1:" in given.stdout
            await eventually(lambda: running(states_of(low.session)), "12 going on")

    run(test())


def test_in_a_guest_its_root_sees_its_jobs_and_their_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with rig(tmp_path, "exclusive", DOMAINS) as host:
            await preempted(host)
            monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(host.domains["n1"].config))
            monkeypatch.setattr("magrathea.client.DEFAULT_SOCKET", tmp_path / "none")
            monkeypatch.setattr("magrathea.client.HUB_SOCKET", tmp_path / "none")

            def shown() -> Any:
                result = CliRunner().invoke(main.cli, ["status", "--format", "json"])
                assert result.exit_code == 0, result.output
                guest = json.loads(result.stdout)
                assert (guest["host"], guest["domain"], guest["connected"]) == ("h1", "n1", True)
                (job,) = guest["jobs"]
                assert (job["id"], job["order"]) == ("12.srv", "stop")
                return job

            # Pending: stopped between its fork and its exec, for which its parent waits in uninterruptible sleep. On a
            # busy machine a process of somebody else may not be read yet, and counts until it is.
            await eventually(
                lambda: (job := shown())["stopped"] + job["pending"] == job["processes"] > 0, "all stopped"
            )

    run(test())
