"""A real guest whose memory has nowhere to go sleeps for a priority job, and its own job finds every byte again.

As in test_memory.py the two guests cannot be large at the same time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.guest import Job, holding
from magrathea_lab.rigs.guest_host import Hypervisor, Machine, Size
from magrathea_lab.rigs.guest_host import machine as context

from .test_memory import (
    CAPACITY_MIB,
    FLOOR_MIB,
    SIZE_MIB,
    SMALL_MIB,
    goes_on,
    granted,
    has_mib,
    nothing_wrong,
    prepared,
    read_lines,
    resize,
    restart_if_dead,
    rounds,
    until_refused,
)
from .test_sleep import disk

HELD_MIB = 180
NEEDS_MIB = 260
"""More than n1 leaves while its job is there, even without anything else in it."""
STEPS = ("commit FreezeEnded", "boot n1", "save n1", "commit BooksReported", "register n1", "stop n1", "memory p1")
"""The daemon is killed after each of these, and after the first ones of them also on a slow machine."""
LEAST_STEPS, LONG_S = 2, 80.0


@pytest.fixture(scope="module")
def giving_hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor({"n1": Size(SIZE_MIB, swap_mib=512), "p1": Size(SIZE_MIB)}) as made:
        yield made


def host(hypervisor: Hypervisor, way: str, swap_mib: int = 0) -> Iterator[Machine]:
    resize(hypervisor.guests["p1"], SMALL_MIB)
    with context(
        hypervisor,
        memory_mib=CAPACITY_MIB,
        extra="memory_step_mib = 64\nmemory_time_limit_s = 100.0\n",
        limits=f'give_way = "{way}"\n',
        domain={"n1": f"floor_mib = {FLOOR_MIB}\nswap_mib = {swap_mib}\n", "p1": f"floor_mib = {FLOOR_MIB}\n"},
    ) as made:
        yield made


@pytest.fixture
def to_disk(giving_hypervisor: Hypervisor) -> Iterator[Machine]:
    yield from host(giving_hypervisor, "disk", swap_mib=512)


@pytest.fixture
def without_swap(giving_hypervisor: Hypervisor) -> Iterator[Machine]:
    giving_hypervisor.guests["n1"].sh("swapoff /dev/vda")
    try:
        yield from host(giving_hypervisor, "swap-then-disk")
    finally:
        giving_hypervisor.guests["n1"].sh("swapon /dev/vda; true")


def holds(m: Machine, *, locked: bool = False) -> Job:
    """A preemptible job in n1 that holds its memory, and has checked it once."""
    script, owner = holding(HELD_MIB, locked=locked), "root" if locked else "alice"
    job = m["n1"].qsub(Job("1.srv", "preemptible", script, owner=owner))
    m.until(lambda: rounds(m["n1"], job) >= 1, f"{HELD_MIB} MiB filled and checked")
    return job


def priority(m: Machine, id: str = "2.srv") -> Job:
    """A priority job that has its memory and uses it, while n1 sleeps."""
    favoured = granted(m, Job(id, "priority", holding(200)), NEEDS_MIB)
    m.until(lambda: prepared(m, favoured), "the priority job's memory is there")
    assert has_mib(m["p1"]) >= FLOOR_MIB + NEEDS_MIB - 2 and not m["n1"].up
    m["p1"].start(favoured)
    m.until(lambda: rounds(m["p1"], favoured) >= 1, "the priority job uses it")
    return favoured


def history(m: Machine, about: str) -> str:
    return json.dumps(m.ask(op="history", about=about))


def test_a_job_with_locked_memory_sleeps_for_a_priority_job_and_goes_on_after_it(to_disk: Machine) -> None:
    m = to_disk
    job = holds(m, locked=True)
    favoured = priority(m)
    report = m.report("n1")
    assert report.state == "asleep" and report.sleep.cause == "give-way" and report.sleep.wakes
    assert "p1 needs its memory" in report.why and "gives-way" in history(m, "n1")
    m["p1"].qdel(favoured)
    m.until(lambda: m.state("n1") not in ("asleep", "booting"), "n1 comes back by itself")
    m["n1"].wait()
    goes_on(m, job)
    assert [(j.id, j.run, j.preemptions) for j in m.report("n1").jobs] == [("1.srv", 1, 1)]
    assert m["n1"].jobs()["1.srv"]["swapped_mib"] == 0, "nothing was pushed out"
    times = json.loads((m.folder / "state" / "sleep-times.json").read_text())
    assert times["n1"]["mib"] >= FLOOR_MIB and times["n1"]["seconds"] > 0
    asked = m.ask(op="preview", cls="priority", chunks=[[1, 1, NEEDS_MIB]])
    roads = [road for answer in asked["chunks"][0]["answers"] for road in answer["roads"]]
    assert [(road["domain"], road["road"]) for road in roads] == [("n1", "disk")] and roads[0]["expected_s"] > 0
    nothing_wrong(m)


def test_a_guest_without_swap_sleeps_although_nobody_has_said_how_much_its_job_holds(without_swap: Machine) -> None:
    m = without_swap
    job = holds(m)
    favoured = priority(m)
    m["p1"].qdel(favoured)
    m.until(lambda: m.state("n1") not in ("asleep", "booting"), "n1 comes back by itself")
    m["n1"].wait()
    goes_on(m, job)
    nothing_wrong(m)


def test_without_room_for_the_image_the_job_is_refused_as_ever_and_the_victim_goes_on(to_disk: Machine) -> None:
    m = to_disk
    with disk(m, 16):
        m.ask(op="reload")
        m.until(lambda: any("16 MiB left" in note for note in m.status()["notes"]), "status shows it")
        job = holds(m, locked=True)
        refused = until_refused(m, Job("2.srv", "priority"), NEEDS_MIB)
        assert refused["code"] in ("memory", "memory-short") and "16 MiB left" in refused["text"], refused
        goes_on(m, job)
        assert m["n1"].up
    m["n1"].qdel(job)


def test_a_daemon_killed_after_any_step_of_it_is_followed_by_one_that_continues(to_disk: Machine) -> None:
    m = to_disk
    job = holds(m, locked=True)
    began = time.monotonic()
    for n, step in enumerate(STEPS, start=1):
        if n > LEAST_STEPS and time.monotonic() - began > LONG_S:
            break  # a slow machine: the steps tried so far are proof enough
        assert f"{step}#1" in cycle(m, n, step, job), f"it was never killed after {step}"
    assert [(j.id, j.run) for j in m.report("n1").jobs] == [("1.srv", 1)]
    nothing_wrong(m)


def cycle(m: Machine, n: int, step: str, job: Job) -> list[str]:
    """n1 sleeps for a priority job and comes back; the daemon is killed after the step. Returns its steps till then."""
    armed = m.folder / "armed"
    trace = armed.with_suffix(".trace")
    trace.unlink(missing_ok=True)
    m.stop_daemon()
    m.start_daemon(MAGRATHEA_CRASH_AFTER=f"{step}#1", MAGRATHEA_CRASH_ARMED=str(armed))
    m.until(lambda: m.settled() and m.state("n1") == "running-preemptible", f"{step}: calm before it")
    armed.write_text("self")
    try:
        favoured = granted(m, Job(f"{100 + n}.srv", "priority"), NEEDS_MIB)
        m.until(lambda: prepared(m, favoured), f"{step}: the priority job's memory is there")
        m["p1"].start(favoured)
        m["p1"].port.ask("kill", job=favoured.described())  # its release may come while the daemon is dead
        m.until(lambda: restart_if_dead(m) and awake(m), f"{step}: n1 is back")
        m["p1"].port.ask("forget", job=favoured.described())
        m["n1"].wait()
        goes_on(m, job)
    finally:
        armed.unlink(missing_ok=True)
    return read_lines(trace)


def awake(m: Machine) -> bool:
    """True if the present daemon reports that n1 is back, and p1 has no job."""
    try:
        status = m.status()
    except OSError:
        return False
    domains = {d["name"]: d for d in status["domains"]}
    return domains["n1"]["state"] == "running-preemptible" and not domains["p1"]["jobs"]
