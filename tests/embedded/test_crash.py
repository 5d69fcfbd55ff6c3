"""Whatever is killed at any point of a switch, the host converges to what the facts demand.

A preemption and a resumption are recorded once. Then each of their steps, commits and answers in turn ends with a
SIGKILL of the daemon, of the agents, or of both, and they are started again. Each time the priority job gets its host
in the end, and the preempted jobs do not run beside it. Afterwards the very same processes run again: none is lost or
left stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from magrathea_lab.waiting import eventually

from .rig import Job, Rig, rig, running, states_of, stopped

MODES = {
    "exclusive": {"n1": "normal", "p1": "priority"},
    "counted": {"n1": "normal", "n2": "normal", "p1": "priority"},
}
VICTIMS = ("daemon", "agents", "both")
SWITCH = {
    f"{step}#1"
    for step in (
        *("commit Claimed", "stop n1", "cpu n1", "answer", "commit BooksReported"),
        *("commit Released", "lift n1", "run n1", "commit JobsContinued"),
    )
}
"""The parts of every preemption and resumption."""


def armed_with(r: Rig, victims: str) -> str:
    """The pids that the daemon must kill at its Nth step."""
    agents = [str(d.agent.pid) for d in r.domains.values() if d.agent is not None]
    return " ".join([*(agents if victims != "daemon" else []), *(["self"] if victims != "agents" else [])])


async def cycle(r: Rig, n: int, step: str, victims: str, jobs: dict[str, Job]) -> list[str]:
    """Preemption and resumption number `n`, with a kill after `step`. Returns the daemon's steps until then."""
    armed, trace = r.folder / "armed", r.folder / "armed.trace"
    trace.unlink(missing_ok=True)
    before = {name: len(states_of(job.session)) for name, job in jobs.items()}
    await r.stop_daemon()
    await r.start_daemon(MAGRATHEA_CRASH_AFTER=step, MAGRATHEA_CRASH_ARMED=str(armed))
    r.hub.snapshots.clear()
    over = asyncio.Event()
    restarts = asyncio.create_task(restart_the_killed(r, over))
    try:
        await eventually(lambda: calm(r, jobs), lambda: f"{step}: calm before it; {r.hub.last}")
        armed.write_text(armed_with(r, victims))
        high = Job(f"{1000 + n}.srv", 1, "priority", 3)
        await r.start_job("p1", high, 1)
        stand(jobs, f"{step}: beside {high}")
        await eventually(lambda: len(r.hub.booked) == len(jobs), f"{step}: all booked")
        stand(jobs, f"{step}: still")
        await r.end_job("p1", high)
        await eventually(lambda: calm(r, jobs), lambda: f"{step}: all continued; {r.hub.last}")
    finally:
        armed.unlink(missing_ok=True)
        over.set()  # not cancelled: a process that is just starting would belong to nobody
        await restarts
    for name, job in jobs.items():
        assert len(states_of(job.session)) >= before[name] - 1, f"{step}: processes of {job} are lost"
    return trace.read_text().split("\n")[:-1]


def stand(jobs: dict[str, Job], when: str) -> None:
    """Require that all their processes are stopped."""
    for name, job in jobs.items():
        letters = states_of(job.session)
        assert stopped(letters), f"{when}: {job} in {name} is not stopped: {letters}"


def calm(r: Rig, jobs: dict[str, Job]) -> bool:
    """True if nothing is stopped, booked or wanted, and all parts are connected."""
    if not r.settled() or r.hub.booked or r.report("p1").jobs:
        return False
    for name, job in jobs.items():
        reports = [j for j in r.report(name).jobs if (j.id, j.run) == (job.id, job.run)]
        if not reports or reports[0].stopper or reports[0].stop or not running(states_of(job.session)):
            return False
    return True


async def restart_the_killed(r: Rig, over: asyncio.Event) -> None:
    """Start killed parts again, as systemd does."""
    while not over.is_set():
        if r.daemon is not None and r.daemon.returncode is not None:
            await r.start_daemon()
        for domain in r.domains.values():
            if domain.agent is not None and domain.agent.returncode is not None:
                await r.start_agent(domain)
        await asyncio.sleep(0.05)


async def every_step(folder: Path, mode: str, victims: str) -> tuple[list[str], list[str]]:
    """All steps, and those after which something was killed."""
    killed = []
    async with rig(folder, mode, MODES[mode]) as r:
        jobs = {name: Job(f"{i}.srv", 1, "preemptible", 2) for i, name in enumerate(MODES[mode]) if name != "p1"}
        for name, job in jobs.items():
            await r.start_job(name, job)
        steps = await cycle(r, 0, "", victims, jobs)
        for n, step in enumerate(steps, start=1):
            if step in await cycle(r, n, step, victims, jobs):
                killed.append(step)
    return steps, killed


@pytest.mark.timeout(1800)  # a cycle for each of some twenty steps; each starts a daemon or agents again
@pytest.mark.parametrize("victims", VICTIMS)
@pytest.mark.parametrize("mode", MODES)
def test_killed_after_any_step_all_continues_as_the_facts_demand(tmp_path: Path, mode: str, victims: str) -> None:
    folder = short(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(folder.unlink)
        steps, killed = asyncio.run(every_step(folder, mode, victims))
    # Other steps depend on the moment: whether a report came, or a CPU cap was set already.
    assert set(steps) >= SWITCH, f"the switch has no {sorted(SWITCH - set(steps))}: {steps}"
    assert set(killed) >= SWITCH, f"nobody was killed after {sorted(SWITCH - set(killed))} of {steps}"


def short(folder: Path) -> Path:
    """A short name for a long folder, because the path of a unix socket has at most 107 bytes."""
    link = Path(f"/tmp/mr-{abs(hash(folder)) % 10**9}")
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return link
