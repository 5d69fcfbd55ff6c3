"""Memory of a stopped job really moves, and returns byte for byte; none is lost, whichever part is killed.

The two guests cannot be large at the same time: p1 is made small before each test, and needs n1's memory for its job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from magrathea_lab.rigs.guest import Guest, GuestError, Job, holding
from magrathea_lab.rigs.guest_host import Hypervisor, Machine, Size
from magrathea_lab.rigs.guest_host import machine as context
from magrathea_lab.waiting import BOUND_S, until

SIZE_MIB = 448
SMALL_MIB = 176
FLOOR_MIB = 160
CAPACITY_MIB = SIZE_MIB + SMALL_MIB
NEEDS_MIB = 200
"""Memory of the priority job: more than p1 has before n1 has given some."""
MOVING = {"stop n1", "memory n1", "memory p1"}
"""The daemon must have been killed after each of these steps."""
"""Under emulation, beside other work: far more than needed."""
SETTINGS: dict[str, Any] = {
    "memory_mib": CAPACITY_MIB,
    "extra": "memory_step_mib = 64\nmemory_time_limit_s = 100.0\n",
    "domain": {"n1": f"floor_mib = {FLOOR_MIB}\nswap_mib = 512\n", "p1": f"floor_mib = {FLOOR_MIB}\n"},
}


@pytest.fixture(scope="module")
def memory_hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor({"n1": Size(SIZE_MIB, swap_mib=512), "p1": Size(SIZE_MIB)}) as made:
        yield made


def has_mib(guest: Guest) -> int:
    """The size from QEMU itself: libvirt's `info` may be a second old."""
    return int(guest.domain.memoryStats()["actual"]) // 1024


def resize(guest: Guest, mib: int) -> None:
    guest.domain.setMemoryFlags(mib * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    until(lambda: abs(has_mib(guest) - mib) <= 1, lambda: f"{guest.name} has {has_mib(guest)} instead of {mib} MiB")


@pytest.fixture
def machine(memory_hypervisor: Hypervisor) -> Iterator[Machine]:
    resize(memory_hypervisor.guests["p1"], SMALL_MIB)
    with context(memory_hypervisor, **SETTINGS) as made:
        yield made


def rounds(guest: Guest, job: Job) -> int:
    """How often the job has found all its memory unchanged. Raises AssertionError if it has not."""
    row = guest.jobs()[job.id]
    assert "BAD" not in row["output"], f"{job.id} in {guest.name} found its memory changed: {row['output'][-300:]}"
    assert row["code"] is None, f"{job.id} in {guest.name} has ended: {row}"
    lines = [line.split() for line in row["output"].splitlines() if line.startswith("round")]
    return int(lines[-1][1]) if lines else 0


def hold(machine: Machine, mib: int, cgroup: bool = False) -> Job:
    """A preemptible job in n1 that holds so much memory, and has checked it once."""
    job = machine["n1"].qsub(Job("1.srv", "preemptible", holding(mib), cgroup=cgroup))
    machine.until(lambda: rounds(machine["n1"], job) >= 1, f"{mib} MiB filled and checked")
    return job


def granted(machine: Machine, job: Job, mib: int = NEEDS_MIB) -> Job:
    """A priority job of that size whose claim is granted; tries again if necessary, as PBS does."""
    job.memory_mib = mib
    end = time.monotonic() + BOUND_S
    while True:
        restart_if_dead(machine)
        with contextlib.suppress(GuestError):
            answer = machine["p1"].claim(job)
            if answer.get("ok"):
                break
        assert time.monotonic() < end, f"never granted: {answer}\n{inside(machine)}"
        job.run += 1
        time.sleep(0.2)
    return job


def inside(machine: Machine) -> str:
    """The logs of agents and daemon, to find out the reason for a failure."""
    said = [machine.log.read_text()[-4000:]]
    for guest in machine.guests.values():
        with contextlib.suppress(GuestError):
            said.append(guest.sh("cat /run/agent.log /var/lib/magrathea/agent-state.json; ps | grep -v ' .root *.\\['"))
    return "\n".join(said)


def prepared(machine: Machine, job: Job) -> bool:
    restart_if_dead(machine)
    said = machine["p1"].port.ask("prepared", job=job.described())
    assert said.get("code") != "memory-short", said
    return bool(said.get("ready"))


def restart_if_dead(machine: Machine) -> bool:
    """Start a daemon that has ended, as systemd does."""
    if machine.daemon is not None and machine.daemon.poll() is not None:
        machine.start_daemon()
    return True


def goes_on(machine: Machine, job: Job) -> None:
    """The job runs again, and finds every byte unchanged."""
    before = rounds(machine["n1"], job)

    def checked() -> bool:
        restart_if_dead(machine)
        return rounds(machine["n1"], job) >= before + 2

    machine.until(checked, f"{job.id} runs on and has checked its memory twice")


def nothing_wrong(machine: Machine) -> None:
    assert "Killed process" not in machine["n1"].console()
    assert "out of memory" not in machine["n1"].console().lower()


@pytest.mark.parametrize("cgroup", [False, True], ids=["by-process", "by-cgroup"])
def test_a_job_holding_nine_tenths_of_its_guest_gives_way_and_finds_every_byte_again(
    machine: Machine, cgroup: bool
) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    mib = n1.memory()["MemTotal"] * 9 // 10
    job = hold(machine, mib, cgroup)
    favoured = granted(machine, Job("2.srv", "priority", holding(150)))
    moves: list[Any] = []

    def there() -> bool:
        moves.append(machine.report("n1").move)
        return prepared(machine, favoured)

    machine.until(there, "the priority job's memory is there")
    assert has_mib(p1) >= FLOOR_MIB + NEEDS_MIB - 2
    assert any(move is not None and move.what == "gives" and move.of_mib > 0 for move in moves), "progress is told"
    machine.until_states("n1", job, "T")
    p1.start(favoured)
    machine.until(lambda: rounds(p1, favoured) >= 1, "the priority job uses it")
    left = n1.memory()
    assert left["MemAvailable"] + left["SwapCached"] >= 24, "what keeps the guest alive stays"
    assert n1.jobs()["1.srv"]["swapped_mib"] >= mib // 3
    assert has_mib(n1) + has_mib(p1) <= CAPACITY_MIB + 4
    p1.qdel(favoured)
    goes_on(machine, job)
    machine.until(lambda: machine.report("n1").move is None, "nothing moves any more")
    nothing_wrong(machine)


def test_a_guest_that_refuses_to_give_is_reported_with_numbers_and_its_job_continues(machine: Machine) -> None:
    n1 = machine["n1"]
    job = hold(machine, 60)
    n1.sh("rmmod virtio_balloon")
    try:
        refused = until_refused(machine, Job("2.srv", "priority"), NEEDS_MIB)
        assert refused["code"] == "memory-short"
        assert "n1" in refused["text"] and str(FLOOR_MIB + NEEDS_MIB) in refused["text"], refused
        goes_on(machine, job)
        assert machine.report("p1").mem_mib < NEEDS_MIB, "PBS knows, and sends nobody in vain"
    finally:
        n1.sh("insmod /lib/modules/virtio_balloon.ko")
    nothing_wrong(machine)


def until_refused(machine: Machine, job: Job, mib: int) -> dict[str, Any]:
    """The refusal of the claim or, later, of the prologue. The job is released then, as PBS does."""
    job.memory_mib = mib
    answer = machine["p1"].claim(job)
    if not answer.get("ok"):
        return answer
    found: list[dict[str, Any]] = []

    def told() -> bool:
        said = machine["p1"].port.ask("prepared", job=job.described())
        assert not said.get("ready"), "it cannot be there"
        if not said.get("ok"):
            found.append(said)
        return bool(found)

    machine.until(told, "the prologue is refused")
    machine["p1"].port.ask("release", job=job.described())
    return found[0]


def test_without_swap_only_free_memory_moves(machine: Machine) -> None:
    n1 = machine["n1"]
    n1.sh("swapoff /dev/vda")
    try:
        job = hold(machine, 180)
        refused = until_refused(machine, Job("2.srv", "priority"), NEEDS_MIB + 60)
        assert refused["code"] == "memory-short", refused
        goes_on(machine, job)
        assert n1.jobs()["1.srv"]["swapped_mib"] == 0
        assert n1.memory()["MemAvailable"] > 12
    finally:
        n1.sh("swapon /dev/vda")
    nothing_wrong(machine)


@pytest.mark.parametrize("moment", ["out", "back"])
def test_an_agent_killed_while_memory_moves_is_followed_by_one_that_continues(machine: Machine, moment: str) -> None:
    n1 = machine["n1"]
    job = hold(machine, 200)
    favoured = granted(machine, Job("2.srv", "priority"))

    def kill_when(condition: Callable[[], bool]) -> None:
        machine.until(condition, "the moment to kill the agent")
        n1.sh("pkill -9 -f magrathea-agent; true")

    if moment == "out":
        kill_when(lambda: n1.jobs()["1.srv"]["swapped_mib"] > 10 or has_mib(n1) < SIZE_MIB - 60)
    machine.until(lambda: prepared(machine, favoured), "the priority job's memory is there")
    machine.until_states("n1", job, "T")
    machine["p1"].start(favoured)
    machine["p1"].qdel(favoured)
    if moment == "back":
        kill_when(lambda: has_mib(n1) > SMALL_MIB + 40)
    goes_on(machine, job)
    nothing_wrong(machine)


@pytest.mark.parametrize("victim", ["n1", "p1"])
def test_a_qemu_killed_while_memory_moves_leaves_a_host_that_works(machine: Machine, victim: str) -> None:
    job = hold(machine, 120)
    favoured = granted(machine, Job("2.srv", "priority"))
    machine.until(lambda: has_mib(machine["n1"]) < SIZE_MIB - 30, "memory moves")
    os.kill(machine.hypervisor.libvirtd.qemu(machine[victim].libvirt_name), signal.SIGKILL)
    machine.until_state(victim, "down")
    if victim == "n1":  # its last known memory counts
        machine.until(lambda: prepared(machine, favoured), "the priority job's memory is there")
        machine["p1"].start(favoured)
        machine["p1"].qdel(favoured)
    else:
        goes_on(machine, job)
        nothing_wrong(machine)


def test_a_daemon_killed_after_any_step_that_moves_memory_is_followed_by_one_that_continues(machine: Machine) -> None:
    job = hold(machine, 100)
    steps = cycle(machine, 0, "", job)
    first = {step.partition("#")[0]: step for step in reversed(steps)}
    assert {"stop n1", "memory n1", "memory p1", "lift n1", "run n1"} <= set(first), steps
    last = {step.partition("#")[0]: step for step in steps if step.startswith(("memory", "push", "fetch"))}
    chosen = sorted({*first.values(), *last.values()}, key=steps.index)
    began = time.monotonic()
    killed: list[str] = []
    for n, step in enumerate(chosen, start=1):
        if time.monotonic() - began > 80 and {step.partition("#")[0] for step in killed} >= MOVING:
            break  # a slow machine: the steps tried so far are proof enough
        if step in cycle(machine, n, step, job):
            killed.append(step)
    assert {step.partition("#")[0] for step in killed} >= MOVING, killed
    nothing_wrong(machine)


def cycle(machine: Machine, n: int, step: str, job: Job) -> list[str]:
    """One preemption and its end; the daemon is killed after the step. Returns the daemon's steps until then."""
    armed = machine.folder / "armed"
    trace = armed.with_suffix(".trace")
    trace.unlink(missing_ok=True)
    machine.stop_daemon()
    resize_if_agreed(machine)
    machine.start_daemon(MAGRATHEA_CRASH_AFTER=step, MAGRATHEA_CRASH_ARMED=str(armed))
    machine.until(lambda: machine.settled() and calm(machine), f"{step}: calm before it")
    armed.write_text("self")
    try:
        favoured = granted(machine, Job(f"{100 + n}.srv", "priority"))
        machine.until(lambda: prepared(machine, favoured), f"{step}: the priority job's memory is there")
        machine.until_states("n1", job, "T")
        machine["p1"].start(favoured)
        machine["p1"].port.ask("kill", job=favoured.described())  # its release may come while the daemon is dead
        machine.until(lambda: restart_if_dead(machine) and calm(machine), f"{step}: all is given back")
        machine["p1"].port.ask("forget", job=favoured.described())
        machine.until_states("n1", job, "RSD")
        goes_on(machine, job)
        assert has_mib(machine["n1"]) + has_mib(machine["p1"]) <= CAPACITY_MIB + 4
    finally:
        armed.unlink(missing_ok=True)
    return read_lines(trace)


def resize_if_agreed(machine: Machine) -> None:
    """Restore the sizes of the first cycle, so that each preemption has memory to move."""
    resize(machine["p1"], SMALL_MIB)
    resize(machine["n1"], SIZE_MIB)


def calm(machine: Machine) -> bool:
    """True if the present daemon reports that no job is stopped or to be stopped, and p1 has no job."""
    try:
        status = machine.status()
    except OSError:
        return False
    jobs = {d["name"]: d["jobs"] for d in status["domains"]}
    agents = all(d["agent"] for d in status["domains"])
    return (
        agents and not jobs["p1"] and not any(j["stop"] or j["stopped_since"] for j in jobs["n1"]) and bool(jobs["n1"])
    )


def read_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []
