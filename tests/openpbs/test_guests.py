"""Magrathea's main job on a real OpenPBS with real guests: MoM, agent and hook inside; memory and CPU really move.

One cluster for the module (guests.py): its start takes half a minute.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from magrathea.pbs_text.amounts import duration_s
from magrathea_lab.clusters.guest_openpbs import FLOOR_MIB, HOSTS, SIZE_MIB, Fleet
from magrathea_lab.clusters.openpbs import USER
from magrathea_lab.scenarios.scenarios import require, wait, wait_all_free, wait_domain, wait_state, wait_stoppable
from magrathea_lab.waiting import BOUND_S

H1, H2 = HOSTS
ENOUGH = f"/home/{USER}/enough"
"""When this file exists, a job checks its memory a last time and ends."""
ASKED_MIB, HELD_MIB = 240, 220
"""Memory of a job: more than a guest at its floor has room for."""
MOVED_S = 2 * BOUND_S
FAIL_REQUEUE_S = 5
"""`node_fail_requeue` of the server here; the default is 310 s."""
BACK_S = 2 * BOUND_S
"""Bound until a job is requeued if its MoM came back without it: a minute of MoM's lists, and a refused claim."""
WATCHED_S = 4.0
SLOW_SWAP_MIB = 15
"""MiB per second: moving a stopped job's memory to swap takes a quarter of a minute."""
KERNEL_MIB = 48
"""The part of a guest's memory that its kernel does not report."""
CAP = 0.10
"""Of one CPU, for a preempted domain: the default."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Fleet]:
    fleet = Fleet()
    with fleet:
        yield fleet


@pytest.fixture
def fleet(cluster: Fleet) -> Iterator[Fleet]:
    """All domains free, at their sizes, and without files of jobs in the guests, before and after the test."""
    yield cluster
    for name in cluster.pbs.moms:
        if not cluster.guest(name).up:
            cluster.guest(name).boot()
            cluster.guest(name).wait()
        cluster.guest(name).sh(f"rm -f {ENOUGH}")
    cluster.restore()


def holding(mib: int) -> str:
    """A script that holds so much incompressible memory, and checks it byte for byte until ENOUGH exists."""
    return f"exec python3 -S -E /usr/lib/magrathea-test/hold.py {mib} {ENOUGH}"


def chunk(domain: str, mib: int = ASKED_MIB) -> str:
    return f"1:ncpus=1:mem={mib}mb:host={domain}"


def submit(fleet: Fleet, queue: str, domain: str, *argv: str) -> str:
    return fleet.qsub(queue, holding(HELD_MIB), "-l", f"select={chunk(domain)}", *argv)


def rounds(fleet: Fleet, domain: str, job: str) -> int:
    """How often the job has found all of its memory unchanged."""
    printed = fleet.printed(domain, job)
    require(fleet, "BAD" not in printed, f"{job} found its memory changed: {printed[-300:]!r}")
    return max(map(int, re.findall(r"round (\d+) ok", printed)), default=0)


def checks(fleet: Fleet, domain: str, job: str, more: int) -> None:
    """Wait until the job has checked its memory `more` times more."""
    before = rounds(fleet, domain, job)
    what = f"{job} in {domain} has checked its memory {more} times more than {before}"
    wait(fleet, what, lambda: rounds(fleet, domain, job) >= before + more, MOVED_S)


def holders(fleet: Fleet, domain: str) -> dict[str, tuple[str, int, int]]:
    """The guest's processes that hold a job's memory: pid -> (state, processor time in 1/100 s, resident MiB)."""
    processes = "grep -ls 'magrathea-test/hol[d]' /proc/[0-9]*/cmdline | sed s/cmdline/stat/"
    found = fleet.guest(domain).sh(f"cat $({processes}) < /dev/null")
    rows = [(line.split()[0], line.rpartition(")")[2].split()) for line in found.splitlines()]
    return {pid: (row[0], int(row[11]) + int(row[12]), int(row[21]) * 4 // 1024) for pid, row in rows}


def stood_still(fleet: Fleet, domain: str) -> dict[str, int]:
    """Require that all these processes are stopped; return their processor time by pid."""
    found = holders(fleet, domain)
    require(fleet, all(state == "T" for state, _, _ in found.values()), f"all are stopped in {domain}: {found}")
    return {pid: used for pid, (_, used, _) in found.items()}


def wait_running(fleet: Fleet, domain: str, job: str) -> None:
    wait_state(fleet, job, "R", MOVED_S)
    checks(fleet, domain, job, 1)


def run_of(fleet: Fleet, job: str) -> int:
    return fleet.jobs()[job].run_version


def ends_right(fleet: Fleet, domain: str, job: str, *domains: str, run: int) -> None:
    """The job ends by itself, still in that run, and all of its processes have found all of their memory unchanged."""
    for name in {domain, *domains}:
        fleet.guest(name).sh(f"touch {ENOUGH}")
    view = wait_state(fleet, job, "F", MOVED_S)
    printed = fleet.printed(domain, job)
    parts = 1 + len(domains)
    right = (view.exit_status, view.run_version, printed.count("all right")) == (0, run, parts)
    require(fleet, right and "BAD" not in printed, f"{view} has printed {printed!r}")
    for name in {domain, *domains}:
        fleet.guest(name).sh(f"rm {ENOUGH}")


def swap_bytes_per_s(fleet: Fleet, domain: str, most: int) -> None:
    """Set the speed of the guest's swap; 0: no limit."""
    fleet.guest(domain).domain.setBlockIoTune("vda", {"total_bytes_sec": most})


def walltime_s(fleet: Fleet, job: str) -> int:
    return duration_s(fleet.pbs.job(job)["resources_used"]["walltime"])


def cpu_share(fleet: Fleet, *domains: str) -> list[float]:
    """CPUs that each guest uses, according to the hypervisor."""
    before, since = [fleet.guest(name).cpu_seconds() for name in domains], time.monotonic()
    time.sleep(WATCHED_S)
    after, passed = [fleet.guest(name).cpu_seconds() for name in domains], time.monotonic() - since
    return [(now - then) / passed for now, then in zip(after, before, strict=True)]


def test_a_preempted_job_gives_memory_and_cpu_to_the_priority_job_and_has_every_byte_back(fleet: Fleet) -> None:
    submitted = time.monotonic()
    low = submit(fleet, "low", "n1", "-l", "walltime=300")
    wait_running(fleet, "n1", low)
    wait_stoppable(fleet, "n1")
    run = run_of(fleet, low)
    require(fleet, fleet.has_mib("n1") >= FLOOR_MIB + ASKED_MIB, f"n1 has {fleet.has_mib('n1')} MiB")

    high = submit(fleet, "high", "p1")
    assert wait_state(fleet, low, "S", MOVED_S).substate == 43
    suspended = time.monotonic()
    wait_running(fleet, "p1", high)
    wait_domain(fleet, "n1", "preempted")
    wait_domain(fleet, "p1", "running-priority")

    has = {name: fleet.has_mib(name) for name in ("n1", "p1")}
    require(fleet, has["p1"] >= FLOOR_MIB + ASKED_MIB, f"the priority domain has the memory: {has}")
    require(fleet, sum(has.values()) <= H1.memory_mib + 2, f"and nobody else has the same: {has}")
    stopped, before = holders(fleet, "n1"), holders(fleet, "p1")
    [(state, stood, kept_mib)], [(_, used, held_mib)] = stopped.values(), before.values()
    require(fleet, state == "T", f"the job's process is stopped: {stopped}")
    require(fleet, kept_mib < HELD_MIB // 2 and held_mib >= HELD_MIB, f"{kept_mib} and {held_mib} MiB are resident")
    swap = {name: fleet.guest(name).memory() for name in ("n1", "p1")}
    require(fleet, swap["p1"]["SwapFree"] == swap["p1"]["SwapTotal"], f"the priority job has real memory: {swap}")
    idle, busy = cpu_share(fleet, "n1", "p1")
    require(fleet, idle <= CAP + 0.05, f"the preempted guest takes {idle:.2f} CPUs")
    require(fleet, busy > 3 * idle, f"the priority guest takes {busy:.2f} CPUs, the preempted one {idle:.2f}")
    require(fleet, list(stood_still(fleet, "n1").values()) == [stood], "the stopped process uses no CPU")
    [(_, used_then, _)] = holders(fleet, "p1").values()
    require(fleet, used_then - used > 100 * WATCHED_S * busy / 4, f"of them its job {(used_then - used) / 100} s")

    ends_right(fleet, "p1", high, run=run_of(fleet, high))
    wait_state(fleet, low, "R", MOVED_S)
    away_s = time.monotonic() - suspended
    checks(fleet, "n1", low, 2)
    wait(fleet, "n1 has its memory back", lambda: fleet.has_mib("n1") >= SIZE_MIB - 2, MOVED_S)
    wait_domain(fleet, "n1", "running-preemptible")
    ends_right(fleet, "n1", low, run=run)
    lived_s = time.monotonic() - submitted
    used_s = walltime_s(fleet, low)
    require(fleet, used_s <= lived_s - away_s + 3, f"walltime {used_s} s of {lived_s:.0f}, {away_s:.0f} of them S")
    wait_all_free(fleet, H1)


def frozen(fleet: Fleet, domain: str) -> bool:
    """True if users and admins see it as frozen: offline, with our comment."""
    comment = str(fleet.pbs.vnode(domain).get("comment", ""))
    view = fleet.vnodes()[domain]
    return "offline" in view.state and comment.startswith("magrathea: ") and "defrost" in comment


def test_a_frozen_guest_is_offline_with_a_reason_lends_its_cpus_and_returns_for_the_waiting_job(
    fleet: Fleet,
) -> None:
    require(fleet, bool(fleet.ask("h1", op="domain", do="freeze", domain="p1")["ok"]), "the wish is taken")
    wait_domain(fleet, "p1", "frozen")
    wait(fleet, "p1 is offline and says why", lambda: frozen(fleet, "p1"), MOVED_S)
    require(fleet, not fleet.guest("p1").up, "it is on disk")
    wait(fleet, "only what can be stopped may borrow", lambda: fleet.vnodes()["n1"].accepts == ("preemptible",))

    low = submit(fleet, "low", "n1")
    wait_running(fleet, "n1", low)
    wait_stoppable(fleet, "n1")
    run = run_of(fleet, low)
    high = submit(fleet, "high", "p1")
    checks(fleet, "n1", low, 1)
    require(fleet, fleet.jobs()[high].state == "Q", "nothing is sent to what is on disk")

    require(fleet, bool(fleet.ask("h1", op="domain", do="defrost", domain="p1")["ok"]), "the wish is taken")
    comments = set()

    def started() -> bool:
        comments.add(fleet.jobs()[high].comment)
        if fleet.jobs()[low].state != "S" or not fleet.guest("p1").up:
            return False
        return "round 1 ok" in fleet.printed("p1", high)

    wait(fleet, f"{high} runs in p1, for which {low} is stopped", started, 2 * MOVED_S)
    require(fleet, any("waits for its memory" in one for one in comments), f"its comment says why: {comments}")
    after = fleet.pbs.vnode("p1")
    require(fleet, "offline" not in str(after["state"]) and not after.get("comment"), f"p1 is back: {after}")
    ends_right(fleet, "p1", high, run=run_of(fleet, high))
    wait_state(fleet, low, "R", MOVED_S)
    ends_right(fleet, "n1", low, run=run)
    wait_all_free(fleet, H1)


def test_a_job_on_two_hosts_is_stopped_in_both_guests_and_continues(fleet: Fleet) -> None:
    """h1 wants the job stopped; h2, where its other half runs, does not. PBS suspends it as a whole."""
    select = f"{chunk('n1', 100)}+{chunk('n2', 100)}"
    script = f"/opt/pbs/bin/pbsdsh -- /usr/bin/python3 -S -E /usr/lib/magrathea-test/hold.py 60 {ENOUGH}"
    low = fleet.qsub("low", script, "-l", f"select={select}", "-l", "place=scatter")
    wait_state(fleet, low, "R", MOVED_S)
    wait(fleet, "both halves compute", lambda: fleet.printed("n1", low).count("round 1 ok") == 2, MOVED_S)
    wait_stoppable(fleet, "n1", "n2")
    run = run_of(fleet, low)

    high = submit(fleet, "high", "p1")
    wait_state(fleet, low, "S", MOVED_S)
    stopped = {name: stood_still(fleet, name) for name in ("n1", "n2")}
    require(fleet, all(stopped.values()), f"both halves are stopped: {stopped}")
    wait_running(fleet, "p1", high)
    require(fleet, stopped == {name: stood_still(fleet, name) for name in stopped}, f"and stay so: {stopped}")

    ends_right(fleet, "p1", high, run=run_of(fleet, high))
    wait_state(fleet, low, "R", MOVED_S)
    ends_right(fleet, "n1", low, "n2", run=run)
    for host in HOSTS:
        wait_all_free(fleet, host)


def test_a_job_on_two_hosts_starts_when_the_slower_one_has_its_memory(fleet: Fleet) -> None:
    """p1's memory arrives within seconds, because n1 is idle. In n2 a job holds what p2 needs, and n2's swap is
    slow."""
    low = submit(fleet, "low", "n2")
    wait_running(fleet, "n2", low)
    wait_stoppable(fleet, "n2")
    swap_bytes_per_s(fleet, "n2", SLOW_SWAP_MIB << 20)
    try:
        pbsdsh = "/opt/pbs/bin/pbsdsh"
        there = f"{pbsdsh} -n 1 -- /bin/grep MemTotal /proc/meminfo"
        script = f"{there}\n{pbsdsh} -- /usr/bin/python3 -S -E /usr/lib/magrathea-test/hold.py {HELD_MIB} {ENOUGH}"
        high = fleet.qsub("high", script, "-l", f"select={chunk('p1')}+{chunk('p2')}", "-l", "place=scatter")
        wait_state(fleet, low, "S", MOVED_S)
        wait(fleet, "p1 has its memory", lambda: fleet.has_mib("p1") >= FLOOR_MIB + ASKED_MIB, MOVED_S)
        wait(fleet, "its comment says where it waits", lambda: "h2: n2 gives" in fleet.jobs()[high].comment, MOVED_S)
        require(fleet, fleet.has_mib("p2") < FLOOR_MIB + ASKED_MIB, f"p2 has {fleet.has_mib('p2')} MiB by then")
        require(fleet, not fleet.printed("p1", high), "and the script has not begun")
        wait(fleet, "it has begun", lambda: "MemTotal" in fleet.printed("p1", high), MOVED_S)
    finally:
        swap_bytes_per_s(fleet, "n2", 0)
    found = re.search(r"MemTotal: *(\d+) kB", fleet.printed("p1", high))
    require(fleet, found is not None and int(found[1]) // 1024 >= FLOOR_MIB + ASKED_MIB - KERNEL_MIB, f"p2 had {found}")
    wait(fleet, "both halves hold it", lambda: fleet.printed("p1", high).count("round 1 ok") == 2, MOVED_S)
    ends_right(fleet, "p1", high, "p2", run=run_of(fleet, high))
    wait_state(fleet, low, "R", MOVED_S)
    ends_right(fleet, "n2", low, run=run_of(fleet, low))
    for host in HOSTS:
        wait_all_free(fleet, host)


@pytest.mark.parametrize("missed", [True, False], ids=["later", "soon"])
def test_a_preempted_job_of_a_killed_guest_runs_again_later_and_the_priority_job_continues(
    fleet: Fleet, missed: bool
) -> None:
    """The guest's root is in memory, so MoM comes back without the job. `missed`: PBS has noticed that it was down."""
    fleet.pbs.qmgr(f"set server node_fail_requeue={FAIL_REQUEUE_S}")
    try:
        low = submit(fleet, "low", "n1", "-r", "y")
        wait_running(fleet, "n1", low)
        wait_stoppable(fleet, "n1")
        high = submit(fleet, "high", "p1")
        wait_state(fleet, low, "S", MOVED_S)
        wait_running(fleet, "p1", high)

        fleet.guest("n1").end()
        wait_domain(fleet, "n1", "down")
        if missed:
            wait(fleet, "PBS misses it", lambda: "down" in fleet.vnodes()["n1"].state, MOVED_S)
            wait(fleet, "people are told", lambda: "requeued once it is back" in fleet.jobs()[low].comment, MOVED_S)
        checks(fleet, "p1", high, 1)
        require(fleet, fleet.jobs()[low].state == "S", "PBS would never start a job again that is requeued now")
        fleet.guest("n1").boot()
        fleet.guest("n1").wait()
        ends_right(fleet, "p1", high, run=run_of(fleet, high))
        wait(fleet, f"{low} runs again", lambda: run_of(fleet, low) > 1 and fleet.jobs()[low].state == "R", BACK_S)
        wait_running(fleet, "n1", low)
        ends_right(fleet, "n1", low, run=run_of(fleet, low))
    finally:
        fleet.pbs.qmgr("unset server node_fail_requeue")
    wait_all_free(fleet, H1)
