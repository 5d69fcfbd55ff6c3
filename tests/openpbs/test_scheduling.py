"""Scheduler settings that a site may have, and requests that users may make, together with preemption."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from magrathea.pbs_text.amounts import duration_s
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_right_end,
    wait_running,
    wait_state,
    wait_stoppable,
)

from .conftest import EAGER
from .jobs import hanging_mom, stopped

ON_N4 = "1:ncpus=1:host=n4"


def end(fleet: OpenPbsCluster, *jobs: str) -> None:
    for job in jobs:
        fleet.delete(job)
    wait_all_free(fleet, EAGER)


def read_again(fleet: OpenPbsCluster) -> None:
    pid = (fleet.pbs.pbs_home(HEAD) / "sched_priv/sched.lock").read_text().strip()
    fleet.pbs.run(HEAD, ["kill", "-HUP", pid])


@contextmanager
def scheduler(fleet: OpenPbsCluster, **settings: str) -> Iterator[None]:
    """Inside the `with` these lines of sched_config are different."""
    path = fleet.pbs.pbs_home(HEAD) / "sched_priv/sched_config"
    before = text = path.read_text()
    for name, value in settings.items():
        text, times = re.subn(rf"(?m)^{name}:.*$", f"{name}: {value}", text)
        assert times, f"{path} has no line {name}"
    path.write_text(text)
    read_again(fleet)
    try:
        yield
    finally:
        path.write_text(before)
        read_again(fleet)


@contextmanager
def hub_set_to(fleet: OpenPbsCluster, setting: str) -> Iterator[None]:
    """Inside the `with` the hub has this additional line in [pbs]."""
    path = fleet.directory / "hub.toml"
    before = path.read_text()
    path.write_text(before.replace("[pbs]\n", f"[pbs]\n{setting}\n"))
    fleet.crash("hub")
    try:
        yield
    finally:
        path.write_text(before)
        fleet.crash("hub")


def walltime_limit_s(fleet: OpenPbsCluster, job: str) -> int:
    return duration_s(fleet.pbs.job(job)["Resource_List"]["walltime"])


def test_walltime_that_ran_on_because_the_stop_was_booked_late_is_given_back(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG, walltime_s=300)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n4")
        with hanging_mom(fleet, "n4"):
            high = fleet.submit("high", LONG)
            wait(fleet, "the job computes", lambda: fleet.counter(high) > 0)
            began = time.monotonic()
            stands_still(fleet, low)
            wait(fleet, "more than a second is lost", lambda: time.monotonic() - began > 1)
            assert fleet.jobs()[low].state == "R"
            lost_s = time.monotonic() - began
        wait_state(fleet, low, "S")
        wait(fleet, "the limit is raised", lambda: walltime_limit_s(fleet, low) > 300)
        assert 300 + lost_s <= walltime_limit_s(fleet, low) <= 300 + lost_s + 30
        end(fleet, high, low)


def test_a_refused_start_shows_its_owner_what_it_waits_for(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n4")
        with stopped(fleet.parts["agent-n4"]):
            high = fleet.submit("high", LONG)
            reason = f"stop-timeout: not stopped within 1.4 s: {low}"
            wait(fleet, "the reason is its comment", lambda: reason in fleet.jobs()[high].comment)
        wait_running(fleet, high)
        assert fleet.jobs()[high].comment.startswith("Job run at")
        end(fleet, high, low)


def test_no_reservation_is_made_on_a_managed_vnode(fleet: OpenPbsCluster) -> None:
    """A preemption would degrade the reservation, so `magrathea pbs install` sets resv_enable to False."""
    assert {vnode["resv_enable"] for vnode in fleet.pbs.vnodes().values()} == {"False"}
    start = time.strftime("%H%M.%S", time.localtime(time.time() + 60))
    asks = ["pbs_rsub", "-I", "10", "-R", start, "-D", "60", "-l", "select=1:ncpus=1"]
    assert "DENIED" in fleet.pbs.run(HEAD, asks, user="alice").stdout


def test_a_wide_job_is_reserved_for_and_only_short_jobs_go_before_it(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE, EAGER), scheduler(fleet, strict_ordering="true ALL"):
        busy = fleet.submit("low", LONG, select=ON_N4, walltime_s=60)
        wait_running(fleet, busy)
        with fleet.pbs.stopped_scheduling():
            wide = fleet.submit("low", LONG, select="1:ncpus=2:host=n1+1:ncpus=2:host=n4", walltime_s=60)
            long = fleet.submit("low", LONG, select="1:ncpus=1:host=n1", walltime_s=600)
            short = fleet.submit("low", 20, select="1:ncpus=1:host=n1", walltime_s=20)
        wait_right_end(fleet, short, 20)
        assert {fleet.jobs()[job].state for job in (wide, long)} == {"Q"}
        assert "n4" in fleet.pbs.job(wide)["estimated"]["exec_vnode"]
        fleet.delete(long)
        wait_stoppable(fleet, "n4")
        high = fleet.submit("high", 20, select="1:ncpus=1:host=p4", walltime_s=60)
        wait_state(fleet, busy, "S")  # a reservation for a job of another class does not keep priority jobs away
        wait_right_end(fleet, high, 20)
        wait_state(fleet, busy, "R")
        fleet.delete(busy)
        wait_state(fleet, wide, "R")
        end(fleet, wide)
        wait_all_free(fleet, EXCLUSIVE)


def test_strict_ordering_keeps_no_priority_job_from_preempting(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), scheduler(fleet, strict_ordering="true ALL"):
        first = fleet.submit("low", LONG, cpus=2, walltime_s=600)
        wait_running(fleet, first)
        wait_stoppable(fleet, "n4")
        second = fleet.submit("low", LONG, cpus=2, walltime_s=600)
        wait(fleet, "the scheduler has looked at it", lambda: fleet.jobs()[second].comment)
        high = fleet.submit("high", LONG, walltime_s=600)
        wait_running(fleet, high)
        wait_state(fleet, first, "S")
        assert fleet.jobs()[second].state == "Q"
        end(fleet, second, high, first)


def test_jobs_that_differ_in_class_only_do_not_share_a_can_never_run(fleet: OpenPbsCluster) -> None:
    """The scheduler treats jobs as equal if they differ only in resources outside its `resources:` line."""
    there = [("n1", 1), ("n4", 1), ("n2", 2), ("n3", 2)]
    filling = [fleet.submit("normal", LONG, select=f"1:ncpus={cpus}:host={name}") for name, cpus in there]
    wait_running(fleet, *filling)
    wait(
        fleet,
        "no vnode accepts priority",
        lambda: not any("priority" in vnode.accepts for vnode in fleet.vnodes().values()),
    )
    with fleet.pbs.stopped_scheduling():
        high, low = fleet.submit("high", 10), fleet.submit("low", 10)
    wait_right_end(fleet, low, 10)
    assert fleet.jobs()[high].comment.startswith("Can Never Run")
    assert "magrathea_accepts" in fleet.jobs()[high].comment
    fleet.delete(filling[0])
    wait_right_end(fleet, high, 10)
    for job in filling[1:]:
        fleet.delete(job)


def test_fair_share_orders_who_waits_and_preempts_as_ever(fleet: OpenPbsCluster) -> None:
    groups = fleet.pbs.pbs_home(HEAD) / "sched_priv/resource_group"
    before = groups.read_text()
    groups.write_text(before + "alice 60 root 10\nbob 61 root 10\n")
    try:
        with fleet.only(EAGER), scheduler(fleet, fair_share="true ALL", fairshare_usage_res="ncpus*walltime"):
            fleet.pbs.run(HEAD, ["pbsfs", "-s", "alice", "100000"])
            first = fleet.submit("low", LONG, cpus=2)
            wait_running(fleet, first)
            wait_stoppable(fleet, "n4")
            with fleet.pbs.stopped_scheduling():
                hers = fleet.submit("low", LONG, cpus=2)
                his = fleet.pbs.qsub("bob", "-q", "low", "-l", "select=1:ncpus=2", script="sleep 1000")
            high = fleet.submit("high", LONG)
            wait_state(fleet, first, "S")
            finish(fleet, high)
            wait_state(fleet, first, "R")
            fleet.delete(first)
            wait_state(fleet, his, "R")
            assert fleet.jobs()[hers].state == "Q"
            fleet.pbs.run(HEAD, ["qdel", his])
            end(fleet, hers)
    finally:
        groups.write_text(before)
        (groups.parent / "usage").unlink(missing_ok=True)
        read_again(fleet)


def test_the_rank_as_node_sort_key_where_a_site_uses_priority_itself(fleet: OpenPbsCluster) -> None:
    """By rank a free domain comes before one that would preempt; by the site's own key the site decides."""
    with fleet.only(EXCLUSIVE, EAGER), hub_set_to(fleet, "set_priority = false"):
        fleet.pbs.qmgr("set node p4 Priority=100\nset node p1 Priority=7\nset node p2 Priority=7")
        low = fleet.submit("low", LONG, select=ON_N4)
        wait_running(fleet, low)
        wait_domain(fleet, "p4", "occupied-would-preempt")
        wait_domain(fleet, "p1", "free")
        with scheduler(fleet, node_sort_key='"magrathea_rank HIGH" ALL'):
            high = fleet.submit("high", 10)
            wait_right_end(fleet, high, 10)
            assert fleet.jobs()[high].vnodes[0] in ("p1", "p2")
            assert fleet.jobs()[low].state == "R"
        wait_domain(fleet, "p1", "free")
        high = fleet.submit("high", LONG)  # the shipped key: the vnode's Priority
        wait_running(fleet, high)
        assert fleet.jobs()[high].vnodes == ("p4",)
        wait_state(fleet, low, "S")
        assert [fleet.pbs.vnode(name)["Priority"] for name in ("p4", "p1", "p2")] == [100, 7, 7]
        end(fleet, high, low)
    wait(fleet, "the hub's own rank is back", lambda: fleet.pbs.vnode("p1").get("Priority") == 500)


SITE_SERVER = """
import pbs
event = pbs.event()
if event.type == pbs.QUEUEJOB:
    event.job.project = "site"
elif str(event.job.Job_Name) == "forbidden":
    event.reject("the site does not allow it")
"""

SITE_MOM = """
import pbs
pbs.event().env["SITE"] = "was here"
"""


@contextmanager
def hook(fleet: OpenPbsCluster, name: str, event: str, script: str) -> Iterator[None]:
    """A hook of the site. For a MoM hook, all MoMs have it inside the `with`."""
    file = fleet.directory / f"{name}.py"
    file.write_text(script)
    fleet.pbs.qmgr(
        f"create hook {name}\nset hook {name} event='{event}'\nimport hook {name} application/x-python default {file}"
    )
    try:
        if event.startswith("exec"):
            scripts = [fleet.pbs.pbs_home(mom) / f"mom_priv/hooks/{name}.PY" for mom in fleet.pbs.moms]
            wait(fleet, f"hook {name} at all MoMs", lambda: all(path.exists() for path in scripts))
        yield
    finally:
        fleet.pbs.qmgr(f"delete hook {name}")


def test_the_sites_own_hooks_work_beside_ours(fleet: OpenPbsCluster) -> None:
    with (
        fleet.only(EAGER),
        hook(fleet, "site_server", "queuejob,runjob", SITE_SERVER),
        hook(fleet, "site_mom", "execjob_launch", SITE_MOM),
    ):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n4")
        assert fleet.pbs.job(low)["project"] == "site"
        forbidden = fleet.submit("high", 10, name="forbidden")
        wait(fleet, "the site's word is its comment", lambda: "does not allow" in fleet.jobs()[forbidden].comment)
        step = fleet.counter(low)
        goes_on(fleet, low, step)  # a job that the site refuses preempts nobody
        assert fleet.jobs()[low].state == "R"
        fleet.delete(forbidden)
        high = fleet.pbs.qsub("alice", "-q", "high", "-l", "select=1:ncpus=1", script='echo "site $SITE"; sleep 1')
        wait_state(fleet, low, "S")
        wait_state(fleet, high, "F")
        assert fleet.pbs.output("alice", high) == "site was here\n"
        wait_state(fleet, low, "R")
        end(fleet, low)


CGROUPS = Path("/sys/fs/cgroup")

ESCAPED = """
cd $HOME
env -i HOME="$HOME" PATH="$PATH" setsid -f python3 -S -c '
import sys, time
while True:
    with open(sys.argv[1], "w") as file:
        file.write(str(time.monotonic()))
    time.sleep(0.05)
' $PBS_JOBID.escaped
sleep 1000
"""


def why_no_cgroups() -> str:
    """Why pbs_cgroups cannot run here; empty if it can."""
    for controller in ("cpuacct", "cpuset", "memory"):
        here = CGROUPS / controller
        if not (here / "cgroup.procs").exists():
            return f"pbs_cgroups as shipped needs the {controller} controller of cgroup version 1 at {here}"
        if not os.access(here, os.W_OK):
            return f"pbs_cgroups needs to write to {here}"
        if any(path.is_dir() for path in here.glob("pbs_jobs.service/jobid/*")):
            return f"{here}/pbs_jobs.service is another PBS's on this machine"
    return ""


def has_pbs_cgroups(hooks: Path) -> bool:
    """True if a MoM has it enabled and configured. MoM's file has only attributes that differ from PBS's defaults."""
    files = [hooks / f"pbs_cgroups.{kind}" for kind in ("HK", "CF", "PY")]
    if not all(file.exists() for file in files):
        return False
    return "enabled=" not in files[0].read_text() and '["n4"]' in files[1].read_text()


@pytest.fixture
def cgroups(fleet: OpenPbsCluster) -> Iterator[None]:
    """n4's MoM has OpenPBS's own pbs_cgroups, as shipped."""
    if why := why_no_cgroups():
        pytest.skip(why)
    config = json.loads(
        fleet.pbs.run(HEAD, ["qmgr", "-c", "export hook pbs_cgroups application/x-config default"]).stdout
    )
    config["run_only_on_hosts"] = ["n4"]  # otherwise several MoMs on one kernel would remove each other's jobs
    file = fleet.directory / "pbs_cgroups.json"
    file.write_text(json.dumps(config))
    lines = f"import hook pbs_cgroups application/x-config default {file}\nset hook pbs_cgroups enabled=true\n"
    fleet.pbs.run(HEAD, ["qmgr"], text=lines)
    hooks = fleet.pbs.pbs_home("n4") / "mom_priv/hooks"
    wait(fleet, "pbs_cgroups at n4", lambda: has_pbs_cgroups(hooks))
    try:
        yield
    finally:
        fleet.restore()
        fleet.pbs.qmgr("set hook pbs_cgroups enabled=false")
        for controller in ("cpuacct", "cpuset", "memory"):
            for path in ("pbs_jobs.service/jobid", "pbs_jobs.service"):
                with contextlib.suppress(FileNotFoundError):
                    (CGROUPS / controller / path).rmdir()


def test_with_pbs_cgroups_escaped_processes_are_stopped_too_and_a_new_mom_is_fixed(
    fleet: OpenPbsCluster, cgroups: None
) -> None:
    with fleet.only(EAGER):
        low = fleet.pbs.qsub("alice", "-q", "low", "-l", "select=1:ncpus=1:mem=200mb", script=ESCAPED)
        escaped = fleet.directory / "home/alice" / f"{low}.escaped"
        wait(fleet, "the process that left its session and its environment", escaped.exists)
        assert (CGROUPS / "memory/pbs_jobs.service/jobid" / low).is_dir()
        wait_stoppable(fleet, "n4")
        high = fleet.submit("high", LONG)
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        step = escaped.read_text()
        time.sleep(1)
        assert escaped.read_text() == step
        fleet.delete(high)
        wait(fleet, "it goes on", lambda: escaped.read_text() not in ("", step))
        wait_state(fleet, low, "R")
        end(fleet, low)
        start_mom_anew(fleet, "n4")
        wait(fleet, "pbs_cgroups' own figure", lambda: fleet.pbs.vnode("n4")["resources_available"]["mem"] != "4096mb")
        os.kill(fleet.parts["hub"].pid, signal.SIGHUP)  # the hub compares each minute anyway
        wait(fleet, "what the hub says", lambda: fleet.pbs.vnode("n4")["resources_available"]["mem"] == "4096mb")
        wait_all_free(fleet, EAGER)


def start_mom_anew(fleet: OpenPbsCluster, name: str) -> None:
    pid = (fleet.pbs.pbs_home(name) / "mom_priv/mom.lock").read_text().strip()
    fleet.pbs.run(name, ["kill", "-INT", pid])
    wait(fleet, f"MoM of {name} ends", lambda: "down" in fleet.vnodes()[name].state)
    fleet.pbs.start_mom(name)
    wait(fleet, f"MoM of {name} is back", lambda: "down" not in fleet.vnodes()[name].state)
