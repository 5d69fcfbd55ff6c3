"""The real daemon with real agents: what fails around it, and what it reports and does then."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from magrathea_lab.rigs.agent_rig import state
from magrathea_lab.waiting import eventually
from node_daemon.journal import open_journal

from .rig import Job, Rig, ask, rig, running, states_of, stopped
from .test_crash import short

DOMAINS = {"n1": "normal", "p1": "priority"}


def play(folder: Path, test: Callable[[Rig], Awaitable[None]], extra: str = "") -> None:
    link = short(folder)

    async def all_of_it() -> None:
        async with rig(link, "exclusive", DOMAINS, extra=extra) as r:
            await test(r)

    try:
        asyncio.run(all_of_it())
    finally:
        link.unlink()


async def low_job(r: Rig) -> Job:
    job = Job("1.srv", 1, "preemptible", 2)
    await r.start_job("n1", job)
    await eventually(lambda: r.report("n1").state == "running-preemptible", lambda: str(r.report("n1")))
    return job


def log(r: Rig) -> str:
    return (r.folder / "noded.log").read_text()


async def control(r: Rig, **request: Any) -> dict[str, Any]:
    return await ask(r.folder / "run" / "control.sock", request)


def test_a_job_of_another_test_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    """Parallel workers, and several runs on one machine, have jobs with the same ids and users at the same time."""

    async def test(r: Rig) -> None:
        other = subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "PBS_JOBID": "1.srv"})
        try:
            low = await low_job(r)
            await r.start_job("p1", Job("2.srv", 1, "priority"), 1)
            assert stopped(states_of(low.session)) and state(other.pid) == "S"
        finally:
            other.kill()
            other.wait()

    play(tmp_path, test)


def test_a_repeated_claim_is_answered_like_the_first(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        high = Job("2.srv", 1, "priority")
        answers = await asyncio.gather(*(r.claim("p1", high) for _ in range(5)))
        assert answers == [{"ok": True}] * 5
        assert stopped(states_of(low.session))
        assert (await r.claim("p1", high)) == {"ok": True}
        assert [j.id for j in r.report("p1").jobs] == ["2.srv"]

    play(tmp_path, test)


def test_a_job_that_does_not_stop_makes_the_claim_refused_and_all_goes_back(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        agent = r.domains["n1"].agent
        assert agent is not None
        agent.send_signal(signal.SIGSTOP)  # connected, but it does nothing
        answer = await r.claim("p1", Job("2.srv", 1, "priority"))
        assert answer["code"] == "stop-timeout" and "1.srv" in answer["text"] and answer["retry_after_s"] > 0
        agent.send_signal(signal.SIGCONT)
        await eventually(lambda: not r.report("p1").jobs and not r.report("n1").jobs[0].stopper, "all back")
        await eventually(lambda: running(states_of(low.session)), "the job runs")

    play(tmp_path, test)


def test_without_its_hub_nothing_is_preempted(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        await r.hub.close()
        end = asyncio.get_running_loop().time() + 30
        while (await r.status())["hub_connected"]:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.1)
        assert (await r.claim("p1", Job("2.srv", 1, "priority")))["code"] == "hub-lost"
        assert running(states_of(low.session))

    play(tmp_path, test)


def test_on_a_full_disk_new_claims_are_refused_and_running_jobs_are_not_lost(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        assert r.daemon is not None
        none = resource.prlimit(r.daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(r.daemon.pid, resource.RLIMIT_FSIZE, (1, none[1]))
        high = Job("2.srv", 1, "priority")
        answer = await r.claim("p1", high)
        assert answer["code"] == "journal" and "make room" in answer["text"]
        assert running(states_of(low.session))
        assert any("journal" in note for note in (await r.status())["notes"])
        assert await r.end_job("n1", low) == {"ok": True}  # a release is accepted even if it cannot be written to disk
        await eventually(lambda: not r.report("n1").jobs, "the release is known")
        resource.prlimit(r.daemon.pid, resource.RLIMIT_FSIZE, none)
        assert await r.claim("p1", high) == {"ok": True}
        assert not any("journal" in note for note in (await r.status())["notes"])
        await r.stop_daemon(signal.SIGKILL)
        journal = open_journal(r.journal)
        facts = journal.facts()
        journal.close()
        assert facts is not None
        assert [(d.name, [j.key.id for j in d.jobs]) for d in facts.domains] == [("n1", []), ("p1", ["2.srv"])]

    play(tmp_path, test)


def test_with_a_damaged_journal_the_daemon_starts_finds_the_jobs_and_accepts_no_new_ones(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        await r.stop_daemon()
        damaged = b"this is no database any more " * 500
        r.journal.write_bytes(damaged)
        for name in ("-wal", "-shm"):
            r.journal.with_name(r.journal.name + name).unlink(missing_ok=True)
        r.hub.snapshots.clear()
        await r.start_daemon()
        await eventually(lambda: r.settled() and r.report("n1").jobs, "the job is found by MoM's list")
        assert (r.report("n1").jobs[0].id, r.report("n1").jobs[0].cls) == ("1.srv", "protected")
        assert (await r.claim("n1", Job("3.srv", 1, "preemptible")))["code"] == "journal"
        assert running(states_of(low.session)) and r.journal.read_bytes() == damaged
        assert "move it aside" in log(r)

    play(tmp_path, test)


def test_a_domain_taken_out_of_the_file_is_kept_while_it_has_jobs(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        await r.stop_daemon()
        text = r.config.read_text()
        r.config.write_text(text[: text.index("[domain.n1]")] + text[text.index("[domain.p1]") :])
        r.hub.snapshots.clear()
        await r.start_daemon()
        await eventually(r.settled, "daemon, agents and hub are there")
        assert r.report("n1").state == "draining" and "no longer configured" in log(r)
        assert (await r.claim("p1", Job("2.srv", 1, "priority")))["ok"]  # its job is stopped like any other
        assert stopped(states_of(low.session))
        await r.end_job("p1", Job("2.srv", 1, "priority"))
        await eventually(lambda: running(states_of(low.session)), "it is continued like any other")
        await r.end_job("n1", low)
        await eventually(lambda: [d.name for d in r.hub.snapshots[-1].domains] == ["p1"], "then it is forgotten")

    play(tmp_path, test)


def test_sighup_applies_what_can_change_and_reports_what_cannot(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        assert r.daemon is not None
        text = r.config.read_text()
        r.config.write_text(text.replace("min_run_s = 0.0", "min_run_s = -1"))
        r.daemon.send_signal(signal.SIGHUP)
        await eventually(lambda: "configuration not taken over" in log(r), "a bad file is refused")
        changed = text.replace("min_run_s = 0.0", "min_run_s = 50.0").replace('"exclusive"', '"counted"')
        (r.folder / "n2.pid").write_text(f"{r.domains['n1'].root.pid if r.domains['n1'].root else 0}\n")
        r.config.write_text(changed + f'[domain.n2]\nkind = "normal"\nlocal.pid_file = "{r.folder}/n2.pid"\n')
        r.daemon.send_signal(signal.SIGHUP)
        await eventually(lambda: "configuration read again" in log(r), "a good one is taken")
        assert "`mode` in [host] stays" in log(r)
        await eventually(lambda: [d.name for d in r.hub.snapshots[-1].domains] == ["n1", "n2", "p1"], "a new domain")
        await eventually(lambda: r.report("n2").state in ("free", "occupied"), lambda: str(r.report("n2")))
        await r.start_job("n1", Job("1.srv", 1, "preemptible", 2))
        assert (await r.claim("p1", Job("2.srv", 1, "priority")))["code"] == "host-busy"  # younger than 50 s

    play(tmp_path, test)


def test_a_domain_that_goes_down_takes_its_jobs_with_it(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        low = await low_job(r)
        root = r.domains["n1"].root
        assert root is not None
        r.domains["n1"].jobs.clear()
        root.kill()
        await eventually(lambda: r.report("n1").state == "down" and not r.report("n1").jobs, "down, without jobs")
        r.domains["n1"].jobs[low.id] = low  # for the rig to end its processes

    play(tmp_path, test)


def test_an_admin_drains_and_undrains_and_reads_the_history(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        assert (await control(r, op="drain", domain="n1", reason="new kernel"))["ok"]
        assert (await r.claim("n1", Job("1.srv", 1, "preemptible")))["code"] == "domain-draining"
        assert (await control(r, op="undrain", domain="n1"))["ok"]
        assert (await r.claim("n1", Job("1.srv", 2, "preemptible")))["ok"]
        assert (await control(r, op="drain", domain="n9"))["code"] == "unknown-domain"
        entries = (await control(r, op="history", limit=50, about="n1"))["entries"]
        assert [e["name"] for e in entries if e["name"].startswith("Drain")] == ["DrainRequested", "DrainEnded"]
        assert json.loads(next(e["data"] for e in entries if e["name"] == "DrainRequested"))["reason"] == "new kernel"

    play(tmp_path, test)


def test_a_second_daemon_of_the_same_host_is_kept_out(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        first = r.daemon
        await r.start_daemon()
        assert r.daemon is not None and await r.daemon.wait() == 3
        assert "another magrathea-noded" in log(r)
        r.daemon = first
        assert (await r.status())["host"] == "h1"

    play(tmp_path, test)


def test_scripts_run_beside_a_switch_and_cannot_stop_it(tmp_path: Path) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    names = ("before-preempt", "after-preempt", "before-activate", "after-activate")
    for name in names:
        (folder / name).write_text(
            f'#!/bin/sh\necho "{name} $MAGRATHEA_DOMAIN $MAGRATHEA_JOB" >> {folder}/out\nsleep 20\n'
        )
        (folder / name).chmod(0o755)

    async def test(r: Rig) -> None:
        r.config.write_text(r.config.read_text().replace('scripts = ""', f'scripts = "{folder}"'))
        assert r.daemon is not None
        r.daemon.send_signal(signal.SIGHUP)
        await eventually(lambda: "configuration read again" in log(r), "read again")
        low = await low_job(r)
        high = Job("2.srv", 1, "priority")
        assert (await r.claim("p1", high))["ok"]
        await eventually(lambda: r.hub.booked, "booked")
        await r.end_job("p1", high)
        await eventually(lambda: running(states_of(low.session)), "continued")
        wanted = {f"{name} n1 1.srv" for name in names}
        await eventually(lambda: set((folder / "out").read_text().split("\n")) >= wanted, "all four have run")

    play(tmp_path, test)


def test_a_first_start_is_small(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        assert r.daemon is not None
        status = Path(f"/proc/{r.daemon.pid}/status").read_text()
        kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))
        assert kib < 45 * 1024

    play(tmp_path, test)
