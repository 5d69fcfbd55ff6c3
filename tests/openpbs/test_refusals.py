"""Refusals in great number leave nothing behind: PBS neither holds the job nor ends its array."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import finish, wait, wait_all_free, wait_state
from scheduler_plugin.setup.hook_texts import hook_text

from .jobs import LONG, command, site_hook, submit
from .library import call

REFUSALS = 200
MANY_STARTS_S = 600.0
"""Bound for so many starts on a busy machine; they take less than a minute."""
N1 = "select=1:ncpus=1:host=n1"
NO_WAIT = {"RETRY_S = 10 ": "RETRY_S = 0 ", "SHORTEST_WAIT_S = 1\n": "SHORTEST_WAIT_S = 0\n"}


@contextmanager
def without_waits(fleet: OpenPbsCluster) -> Iterator[None]:
    """Inside the `with` a refused job may start again at once. Otherwise these tests would take an hour."""
    text = hook_text("magrathea_mom")
    quick = text
    for old, new in NO_WAIT.items():
        assert quick.count(old) == 1
        quick = quick.replace(old, new)
    take(fleet, "magrathea_mom", quick)
    try:
        yield
    finally:
        take(fleet, "magrathea_mom", text)


def take(fleet: OpenPbsCluster, hook: str, text: str) -> None:
    """Give PBS this text of one of our hooks; returns when all MoMs have it."""
    file = fleet.directory / f"{hook}.text"
    file.write_text(text, encoding="utf-8")
    fleet.pbs.run(HEAD, ["qmgr", "-c", f"import hook {hook} application/x-python default {file}"])
    paths = [fleet.pbs.pbs_home(mom) / "mom_priv/hooks" / f"{hook}.PY" for mom in fleet.pbs.moms]
    wait(fleet, f"all MoMs have the new {hook}", lambda: all(path.read_text() == text for path in paths))


@contextmanager
def nobody_answers(fleet: OpenPbsCluster, *domains: str) -> Iterator[None]:
    """Inside the `with` these domains refuse every job, because their agents are gone, and PBS does not know it,
    because the hub is gone too."""
    accepted = {name: fleet.vnodes()[name].accepts for name in domains}
    fleet.parts["hub"].kill()
    for name in domains:
        fleet.parts[f"agent-{name}"].kill()
        values = ",".join(accepted[name])
        fleet.pbs.qmgr(f'set node {name} resources_available.magrathea_accepts="{values}"')
    yield
    for name in ["hub", *(f"agent-{name}" for name in domains)]:
        fleet.start_part(name)


def start_again_and_again(fleet: OpenPbsCluster, *jobs: str) -> None:
    """Returns when each of these jobs was sent to its MoM REFUSALS times; requires that PBS has held none of them."""

    def tried() -> bool:
        fleet.pbs.qmgr("set server scheduling=True")
        known = fleet.pbs.jobs("-t", *dict.fromkeys(job.partition("[")[0] + "[]" * ("[" in job) for job in jobs))
        states = {job: (known[job]["job_state"], known[job].get("Hold_Types", "n")) for job in known}
        assert all(state in "QRWBE" and hold == "n" for state, hold in states.values()), states
        return all(sent(fleet, job) >= REFUSALS for job in jobs)

    fleet.pbs.wait(tried, f"{jobs} were started {REFUSALS} times", MANY_STARTS_S, 0.2)


def sent(fleet: OpenPbsCluster, job: str) -> int:
    """How often the server's log has the job's start."""
    logs = (fleet.pbs.pbs_home(HEAD) / "server_logs").glob("*")
    return sum(path.read_text(errors="replace").count(f";Job;{job};Job Run at request of") for path in logs)


def run_count(fleet: OpenPbsCluster, job: str) -> int:
    return int(fleet.pbs.jobs("-t", job)[job]["run_count"])


def test_two_hundred_refusals_in_a_row_and_then_the_job_runs(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), without_waits(fleet):
        with nobody_answers(fleet, "n1"):
            job = fleet.submit("low", LONG, select="1:ncpus=1:host=n1")
            with fleet.pbs.stopped_scheduling():
                often = fleet.submit("low", LONG, select="1:ncpus=1:host=n1")
                fleet.pbs.run(HEAD, ["qalter", "-W", "run_count=40", often])  # reruns of its own, before
            start_again_and_again(fleet, job, often)
        for one in (job, often):
            wait(fleet, f"{one} computes", lambda one=one: fleet.counter(one) > 0)  # type: ignore[misc]
        assert (run_count(fleet, job), run_count(fleet, often)) == (1, 21)
        for one in (job, often):
            finish(fleet, one)
        wait_all_free(fleet, EXCLUSIVE)


def test_so_do_the_subjobs_of_an_array_and_the_array_does_not_end_without_them(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), without_waits(fleet):
        with nobody_answers(fleet, "n1"):
            asked = ["-J", "0-1", "-l", N1]
            array = submit(fleet, "low", f"exec {command(fleet, LONG)}", *asked)
            both = [array.replace("[]", f"[{number}]") for number in range(2)]
            start_again_and_again(fleet, *both)
        for one in both:
            wait(fleet, f"{one} computes", lambda one=one: fleet.counter(one) > 0)  # type: ignore[misc]
            assert run_count(fleet, one) == 1
            fleet.finish(one)
        wait(fleet, "the array ends", lambda: fleet.pbs.job(array)["job_state"] == "F")
        assert fleet.pbs.job(array)["Exit_status"] == 0
        wait_all_free(fleet, EXCLUSIVE)


REJECTING = "import pbs\npbs.event().reject('never')\n"


def test_a_hold_that_is_not_ours_is_set_and_stays(fleet: OpenPbsCluster) -> None:
    """PBS holds a job that another hook rejects, as without Magrathea; and nobody lifts an operator's hold."""
    with fleet.only(EXCLUSIVE), without_waits(fleet):
        with site_hook(fleet, "never", "execjob_begin", REJECTING, "n1"):
            rejected = fleet.submit("low", LONG, select="1:ncpus=1:host=n1")
            wait(fleet, "PBS holds it", lambda: fleet.jobs()[rejected].state == "H")
        with nobody_answers(fleet, "n1"):
            job = fleet.submit("low", LONG, select="1:ncpus=1:host=n1")
            wait(fleet, "it is refused", lambda: sent(fleet, job) > 2)
            fleet.pbs.run(HEAD, ["qhold", "-h", "s", job], check=False)
            wait(fleet, "it is held", lambda: fleet.jobs()[job].state == "H")
        wait_all_free(fleet, EXCLUSIVE)
        assert fleet.jobs()[rejected].state == fleet.jobs()[job].state == "H"
        fleet.pbs.run(HEAD, ["qdel", rejected, job])


def test_a_refused_subjob_is_tried_again_and_keeps_the_scheduler_from_nothing(fleet: OpenPbsCluster) -> None:
    """Not even if its array is deleted. It waits in state Q, and the hub wakes the scheduler for it."""
    with nobody_answers(fleet, "n1"):
        arrays = [submit(fleet, "low", f"exec {command(fleet, LONG)}", "-J", "0-1", "-l", N1) for _ in range(2)]
        first = arrays[0].replace("[]", "[0]")
        wait(fleet, f"{first} is refused", lambda: sent(fleet, first) > 0)
        beside = fleet.submit("low", LONG, select="1:ncpus=1:host=n2")
        wait(fleet, f"{beside} computes", lambda: fleet.counter(beside) > 0)
        finish(fleet, beside)
        fleet.pbs.run(HEAD, ["qdel", arrays[1]], user=USER)
        beside = fleet.submit("low", LONG, select="1:ncpus=1:host=n2")
        wait(fleet, f"{beside} computes", lambda: fleet.counter(beside) > 0)
        finish(fleet, beside)
    wait(fleet, f"{first} computes", lambda: fleet.counter(first) > 0)
    fleet.pbs.run(HEAD, ["qdel", arrays[0]], user=USER)
    wait_all_free(fleet, EXCLUSIVE)


TOO_MUCH = {"cpus, memory_mib = own_part(job, here)": "cpus, memory_mib = own_part(job, here)[0], 10**6"}
"""A change of MoM's hook: it claims so much memory that the host refuses what its vnode seems to take."""
PAUSES = 4


@contextmanager
def refused_by_the_host(fleet: OpenPbsCluster) -> Iterator[None]:
    """Inside the `with` the host refuses each claim, although the vnode accepts the job's class."""
    text = changed = hook_text("magrathea_mom")
    for old, new in TOO_MUCH.items():
        assert changed.count(old) == 1
        changed = changed.replace(old, new)
    take(fleet, "magrathea_mom", changed)
    try:
        yield
    finally:
        take(fleet, "magrathea_mom", text)


def test_a_subjob_that_its_host_refuses_is_tried_a_few_times_after_ever_longer_pauses(fleet: OpenPbsCluster) -> None:
    """Its vnode is published without the class meanwhile. Else PBS would try it several times a second."""

    def pauses() -> int:
        return fleet.log("noded-h1").count("it has refused subjob")

    with fleet.only(EXCLUSIVE):
        with refused_by_the_host(fleet):
            array = submit(fleet, "low", f"exec {command(fleet, LONG)}", "-J", "0-1", "-l", N1)
            both = [array.replace("[]", f"[{number}]") for number in range(2)]
            wait(fleet, f"{PAUSES} pauses", lambda: pauses() >= PAUSES)
            assert sum(sent(fleet, one) for one in both) <= 10 * PAUSES
        for one in both:
            wait(fleet, f"{one} computes", lambda one=one: fleet.counter(one) > 0)  # type: ignore[misc]
        fleet.pbs.run(HEAD, ["qdel", array], user=USER)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_user_cannot_mark_a_subjob_as_one_that_mom_refuses(fleet: OpenPbsCluster) -> None:
    """PBS would try it without end, and it would take its vnode from others. No hook sees this call."""
    array = submit(fleet, "low", "exit 0", "-h", "-J", "1-2")
    _, error = call(fleet, "asyalter", array, ("Variable_List", "", "MAGRATHEA_REFUSED=hook-failed"))
    assert not error, error
    wait(fleet, "it is marked", lambda: "MAGRATHEA_REFUSED" in fleet.pbs.job(array)["Variable_List"])
    fleet.pbs.run(HEAD, ["qrls", "-h", "u", array], user="alice")
    wait_state(fleet, array, "F")
    assert [sent(fleet, array.replace("[]", f"[{number}]")) for number in (1, 2)] == [1, 1]
