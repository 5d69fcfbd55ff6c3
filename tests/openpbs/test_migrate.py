"""Domains move with their jobs between two hosts of a real OpenPBS: MoM, agent and jobs in real guests, each host with
a libvirtd, a node daemon and a network namespace of its own (magrathea_lab/clusters/moving_openpbs.py).

Running jobs of missing machines are requeued after seconds here. While its memory is copied an emulated guest is
paused, because QEMU before 9.0 would lose some of what it writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from magrathea_lab.clusters.moving_openpbs import MovingFleet
from magrathea_lab.clusters.openpbs import USER
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.scenarios.scenarios import require, wait, wait_domain, wait_state, wait_stoppable
from magrathea_lab.waiting import BOUND_S

from .jobs import stopped
from .test_guests import (
    ENOUGH,
    FAIL_REQUEUE_S,
    MOVED_S,
    checks,
    chunk,
    ends_right,
    holding,
    rounds,
    run_of,
    stood_still,
    wait_running,
)

N1, P1, N2 = "n1", "p1", "n2"
HELD_MIB = 60
LOOK_S = 0.05
"""How often PBS is asked about a vnode during a move."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[MovingFleet]:
    with MovingFleet() as fleet:
        fleet.pbs.qmgr(f"set server node_fail_requeue={FAIL_REQUEUE_S}")
        yield fleet


@pytest.fixture
def fleet(cluster: MovingFleet) -> Iterator[MovingFleet]:
    """n1 is at h1, and all domains are free, before and after the test."""
    yield cluster
    for name in cluster.pbs.moms:
        cluster.guest(name).sh(f"rm -f {ENOUGH}")
    cluster.restore()
    cluster.bring(N1, "h1")
    cluster.wait_free()


def submit(fleet: MovingFleet, queue: str, domain: str, cpus: int = 1) -> str:
    select = chunk(domain, HELD_MIB + 20).replace("ncpus=1", f"ncpus={cpus}")
    return fleet.qsub(queue, holding(HELD_MIB), "-l", f"select={select}")


@contextmanager
def watched(fleet: MovingFleet, name: str) -> Iterator[None]:
    """Inside the `with`, PBS answers qstat, and never shows the domain's vnode as down."""
    over, seen, answers = threading.Event(), set[str](), set[int]()

    def look() -> None:
        while not over.wait(LOOK_S):
            seen.add(str(fleet.pbs.vnode(name).get("state")))
            answers.add(fleet.pbs.run(HEAD, ["qstat", "-answ1"], check=False).returncode)

    with ThreadPoolExecutor(1) as pool:
        looks = pool.submit(look)
        try:
            yield
        finally:
            over.set()
        looks.result()
    require(fleet, not any("down" in state or "unknown" in state for state in seen), f"{name} was {seen}")
    require(fleet, answers == {0}, f"qstat returned {answers}")


def run_of_all(fleet: MovingFleet, *jobs: str) -> dict[str, tuple[object, ...]]:
    """Run version and run count of each job."""
    return {job: (run_of(fleet, job), fleet.pbs.job(job)["run_count"]) for job in jobs}


def moves(fleet: MovingFleet, name: str, to: str) -> str:
    """An admin moves the domain; returns what the command has printed."""
    here = fleet.control_socket(fleet.pbs.home(name))
    command = [sys.executable, "-m", "magrathea.cli", "domain", "migrate", name, "--to", to, "--socket", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    require(fleet, done.returncode == 0 and f"{name}: it is at {to} now" in done.stdout, f"moved: {done}")
    return done.stdout


def is_published(fleet: MovingFleet, name: str, host: str, *siblings: str) -> None:
    """PBS shows the domain at that host, with these siblings, and each of them with it."""

    def so() -> bool:
        shown = fleet.at(name)
        theirs = [fleet.at(sibling)["siblings"].split(",") for sibling in siblings]
        ours = shown["siblings"] == ",".join(siblings)
        return shown["host"] == host and ours and all(name in names for names in theirs)

    wait(fleet, f"PBS shows {name} at {host} beside {siblings}: {fleet.at(name)}", so)


def is_refused(fleet: MovingFleet, host: str, job: str) -> bool:
    """True if a claim of the job was refused there because its domain moves."""
    lines = fleet.ask(host, op="history", about=job)
    return "domain-moving" in str(lines)


def is_copying(fleet: MovingFleet, name: str, host: str) -> bool:
    found = fleet.report(host, name)
    return found is None or found["travel"]["stage"] in ("copying", "handed")


def test_a_running_job_moves_with_its_domain_and_pbs_serves_it_before_meanwhile_and_after(fleet: MovingFleet) -> None:
    job, victim = submit(fleet, "low", N1), submit(fleet, "low", N1)
    for one in (job, victim):
        wait_running(fleet, N1, one)
    before = run_of_all(fleet, job)
    is_published(fleet, N1, "h1", P1)

    def command(*argv: str) -> None:
        fleet.pbs.run(HEAD, argv, user=USER, timeout=BOUND_S)

    with watched(fleet, N1), ThreadPoolExecutor(2) as pool:
        with stopped(fleet.parts["hub"]):  # so the move waits for its grant
            require(fleet, bool(fleet.migrate(N1, "h2")["ok"]), "the move is asked for")
            late = submit(fleet, "low", N1)
            wait(fleet, f"the claim of {late} is refused", lambda: is_refused(fleet, "h1", late), MOVED_S)
        wait(fleet, "it is being copied", lambda: is_copying(fleet, N1, "h1"), MOVED_S)
        signalled = pool.submit(command, "qsig", "-s", "SIGCONT", job)
        deleted = pool.submit(command, "qdel", victim)
        fleet.wait_settled(N1, "h2")
        signalled.result()
        deleted.result()
        wait_state(fleet, victim, "F", MOVED_S)
    is_published(fleet, N1, "h2", N2)
    wait_running(fleet, N1, late)
    checks(fleet, N1, job, 2)
    fleet.pbs.run(HEAD, ["qdel", late], user=USER, timeout=BOUND_S)
    wait_state(fleet, late, "F", MOVED_S)
    ends_right(fleet, N1, job, run=run_of(fleet, job))
    require(fleet, run_of_all(fleet, job) == before, f"{job} in {before}")


def test_a_preempted_job_stays_stopped_on_the_way_and_goes_on_where_there_is_room(fleet: MovingFleet) -> None:
    """n2 has all CPUs of h2 when n1 comes there with its stopped job."""
    low = submit(fleet, "low", N1)
    wait_running(fleet, N1, low)
    wait_stoppable(fleet, N1)
    high, other = submit(fleet, "high", P1, cpus=3), submit(fleet, "workq", N2, cpus=3)
    wait_state(fleet, low, "S", MOVED_S)
    wait_running(fleet, P1, high)
    wait_running(fleet, N2, other)
    before = run_of_all(fleet, low, high, other)
    stood = stood_still(fleet, N1)
    reached = rounds(fleet, N1, low)

    with watched(fleet, N1):
        moves(fleet, N1, "h2")
        fleet.wait_settled(N1, "h2")
    is_published(fleet, N1, "h2", N2)
    wait_domain(fleet, N1, "preempted")
    checks(fleet, P1, high, 1)
    require(fleet, stood_still(fleet, N1) == stood and rounds(fleet, N1, low) == reached, "it has not computed")
    require(fleet, fleet.jobs()[low].state == "S", "and PBS knows that")

    ends_right(fleet, N2, other, run=run_of(fleet, other))
    wait_state(fleet, low, "R", MOVED_S)
    checks(fleet, N1, low, 2)
    ends_right(fleet, P1, high, run=run_of(fleet, high))
    ends_right(fleet, N1, low, run=run_of(fleet, low))
    require(fleet, run_of_all(fleet, low, high, other) == before, f"all in {before}")


def test_a_part_of_a_job_on_two_hosts_moves_to_the_other_part_and_back(fleet: MovingFleet) -> None:
    select = f"{chunk(N1, 100)}+{chunk(N2, 100)}"
    script = f"/opt/pbs/bin/pbsdsh -- /usr/bin/python3 -S -E /usr/lib/magrathea-test/hold.py {HELD_MIB} {ENOUGH}"
    job = fleet.qsub("low", script, "-l", f"select={select}", "-l", "place=scatter")
    wait_state(fleet, job, "R", MOVED_S)
    wait(fleet, "both parts compute", lambda: parts_at(fleet, job, 1), MOVED_S)
    before = run_of_all(fleet, job)
    for host, sibling in (("h2", N2), ("h1", P1)):
        with watched(fleet, N1), watched(fleet, N2):
            moves(fleet, N1, host)
            fleet.wait_settled(N1, host)
        is_published(fleet, N1, host, sibling)
        both_go_on(fleet, job)
    ends_right(fleet, N1, job, N2, run=run_of(fleet, job))
    require(fleet, run_of_all(fleet, job) == before, f"{job} in {before}")


def rounds_of_parts(fleet: MovingFleet, job: str) -> list[int]:
    """How many rounds have been printed by one part only, and by both."""
    printed = fleet.printed(N1, job)
    require(fleet, "BAD" not in printed, f"{job} found its memory changed: {printed[-300:]!r}")
    return [int(number) for number in re.findall(r"round (\d+) ok", printed)]


def parts_at(fleet: MovingFleet, job: str, number: int) -> bool:
    """True if both parts have done this round."""
    return rounds_of_parts(fleet, job).count(number) == 2


def both_go_on(fleet: MovingFleet, job: str) -> None:
    last = max(rounds_of_parts(fleet, job))
    wait(fleet, f"both parts go on from round {last}", lambda: parts_at(fleet, job, last + 2), MOVED_S)
