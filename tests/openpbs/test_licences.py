"""A licence of the whole server, held by a job that is preempted: whether PBS gives it away, and jobs that it protects.

Facts of OpenPBS that kept_resources.py relies on, each with Magrathea's own preemption.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from magrathea.pbs_text.listing import listed
from magrathea_lab import work
from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, PBS_HOME
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import LONG, wait, wait_domain, wait_running, wait_state
from scheduler_plugin.setup.install import wanted_hooks
from scheduler_plugin.setup.kept_resources import ATTRIBUTE, KEEPS, KEEPS_FLAG, KEEPS_TYPE, value
from scheduler_plugin.setup.sched_config import with_resources
from scheduler_plugin.setup.setup_model import InstallOptions

from .conftest import EAGER
from .jobs import preempt

LICENCE = "lic_a"


@pytest.fixture
def licensed(fleet: OpenPbsCluster) -> Iterator[OpenPbsCluster]:
    """The server has one licence, and its scheduler counts it."""
    config = fleet.pbs.pbs_home(HEAD) / "sched_priv/sched_config"
    before = config.read_text()
    config.write_text(with_resources(before, [LICENCE]))
    create(fleet, LICENCE, "type=long,flag=q")
    fleet.pbs.qmgr(f"set server resources_available.{LICENCE}=1")
    read_again(fleet)
    yield fleet
    if ATTRIBUTE in server(fleet):
        fleet.pbs.qmgr(f"unset server {ATTRIBUTE}")
    config.write_text(before)
    read_again(fleet)


def create(fleet: OpenPbsCluster, resource: str, attributes: str) -> None:
    """PBS deletes no resource that a remembered job has, so it may be there from the test before."""
    if resource not in listed(fleet.pbs.qmgr("list resource"), ["Resource"]):
        fleet.pbs.qmgr(f"create resource {resource} {attributes}")


def read_again(fleet: OpenPbsCluster) -> None:
    """Let the scheduler read its file."""
    pid = (fleet.pbs.pbs_home(HEAD) / "sched_priv/sched.lock").read_text().strip()
    fleet.pbs.run(HEAD, ["kill", "-HUP", pid])


def server(fleet: OpenPbsCluster) -> dict[str, str]:
    return next(iter(listed(fleet.pbs.qmgr("list server"), ["Server"]).values()))


def assigned(fleet: OpenPbsCluster) -> int:
    return int(server(fleet).get(f"resources_assigned.{LICENCE}", "0"))


def submit(fleet: OpenPbsCluster, queue: str) -> str:
    """A job with the licence."""
    command = f'exec python3 -S "{fleet.directory}/work.py" {LONG} {work.PAUSE_S} "$HOME/$PBS_JOBID.count"'
    return fleet.pbs.qsub(USER, "-q", queue, "-l", "select=1:ncpus=1", "-l", f"{LICENCE}=1", script=command)


def preempted(fleet: OpenPbsCluster) -> tuple[str, str]:
    """A job with the licence, and the job that has preempted it."""
    low = submit(fleet, "low")
    wait_running(fleet, low)
    assert assigned(fleet) == 1
    return low, preempt(fleet, low)


def test_without_the_attribute_a_stopped_jobs_licence_is_given_away(licensed: OpenPbsCluster) -> None:
    fleet = licensed
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        wait(fleet, "the licence is free", lambda: assigned(fleet) == 0)
    with fleet.only(EXCLUSIVE, EAGER):
        second = submit(fleet, "normal")
        wait_running(fleet, second)
        fleet.delete(high)
        wait_state(fleet, low, "R")
        wait(fleet, "two jobs have one licence", lambda: assigned(fleet) == 2)


def test_with_the_attribute_a_stopped_job_keeps_its_licence_and_gives_back_its_cpus(licensed: OpenPbsCluster) -> None:
    fleet = licensed
    fleet.pbs.qmgr(f'set server {ATTRIBUTE} = "{value(InstallOptions())}"')
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        wait_domain(fleet, "n1", "preempted")
        assert assigned(fleet) == 1
        assert fleet.pbs.vnode("n1")["resources_assigned"].get("ncpus", 0) == 0
    with fleet.only(EXCLUSIVE, EAGER):
        second = submit(fleet, "normal")
        wait(fleet, "the second job waits for the licence", lambda: LICENCE in fleet.jobs()[second].comment)
        fleet.delete(high)
        wait_state(fleet, low, "R")
        assert assigned(fleet) == 1 and fleet.jobs()[second].state == "Q"
        assert fleet.pbs.vnode("n1")["resources_assigned"]["ncpus"] == 1
        fleet.delete(low)
        wait_running(fleet, second)
        assert assigned(fleet) == 1


def deleted(fleet: OpenPbsCluster, job: str) -> None:
    fleet.delete(job)


def rerun(fleet: OpenPbsCluster, job: str) -> None:
    fleet.pbs.run(HEAD, ["qhold", job])
    fleet.pbs.run(HEAD, ["qrerun", "-W", "force", job])


def server_restarted(fleet: OpenPbsCluster, job: str) -> None:
    fleet.pbs.kill_server()
    fleet.pbs.start_server()
    wait(fleet, "the licence is counted again", lambda: assigned(fleet) == 1)
    fleet.delete(job)


@pytest.mark.parametrize("ends", [deleted, rerun, server_restarted])
def test_a_stopped_job_that_ends_gives_back_what_it_kept(
    licensed: OpenPbsCluster, ends: Callable[[OpenPbsCluster, str], None]
) -> None:
    fleet = licensed
    fleet.pbs.qmgr(f'set server {ATTRIBUTE} = "{value(InstallOptions())}"')
    with fleet.only(EXCLUSIVE):
        low, _ = preempted(fleet)
        assert assigned(fleet) == 1
        ends(fleet, low)
        wait(fleet, "the licence is free", lambda: assigned(fleet) == 0)


def test_a_stopped_job_that_is_killed_leaves_its_licence_taken_until_the_server_is_restarted(
    licensed: OpenPbsCluster,
) -> None:
    """A limit of OpenPBS (docs/known-limits.md): `on_job_exit` gives nothing back of what a suspended job has kept."""
    fleet = licensed
    fleet.pbs.qmgr(f'set server {ATTRIBUTE} = "{value(InstallOptions())}"')
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        session = wait(fleet, "PBS knows its session", lambda: fleet.pbs.job(low).get("session_id"))
        fleet.pbs.run("n1", ["kill", "-9", "--", f"-{session}"])
        fleet.pbs.wait_job(low, "F")
        fleet.delete(high)
        fleet.wait_free([EXCLUSIVE])
        assert assigned(fleet) == 1
        fleet.pbs.kill_server()
        fleet.pbs.start_server()
        wait(fleet, "the licence is free", lambda: assigned(fleet) == 0)


@pytest.fixture
def protecting(licensed: OpenPbsCluster) -> Iterator[OpenPbsCluster]:
    """What `magrathea pbs install --protect lic_a` adds."""
    fleet = licensed
    for options in (InstallOptions(protecting=(LICENCE,)), InstallOptions()):
        if options.protecting:
            create(fleet, KEEPS, f"type={KEEPS_TYPE},flag={KEEPS_FLAG}")
        config = wanted_hooks(options)["magrathea_server"][2]
        assert config is not None
        file = fleet.directory / "server-hook.json"
        file.write_text(json.dumps(json.loads(config) | {"heartbeat": f"{PBS_HOME}/magrathea.heartbeat"}))
        command = f"import hook magrathea_server application/x-config default {file}\n"
        fleet.pbs.run(HEAD, ["qmgr"], text=command)  # it prints that it has overwritten the former one
        if options.protecting:
            yield fleet


def magrathea(fleet: OpenPbsCluster, *args: str) -> str:
    argv = [sys.executable, "-c", "from magrathea.cli.main import main; main()", *args]
    done = fleet.pbs.run(HEAD, argv, env=fleet.environment, check=False)
    return done.stdout + done.stderr


def test_a_job_with_a_protected_resource_is_not_preempted_and_that_is_the_reason(protecting: OpenPbsCluster) -> None:
    fleet = protecting
    with fleet.only(EXCLUSIVE):
        low = submit(fleet, "low")
        wait_running(fleet, low)
        assert fleet.pbs.job(low)["Resource_List"][KEEPS] == LICENCE
        wait_domain(fleet, "n1", "running")
        high = fleet.submit("high", LONG)
        hub = ("--hub", str(fleet.directory / "hub-control.sock"))
        said = wait(
            fleet, "the reason is told", lambda: _with(LICENCE, magrathea(fleet, "preview", "-q", "high", *hub))
        )
        assert f"{low} (run" in said and f"has {LICENCE}, which a stop would not give back" in said, said
        assert fleet.jobs()[low].state == "R" and fleet.jobs()[high].state == "Q"
        fleet.pbs.run(HEAD, ["qrun", "-H", "(p1:ncpus=1)", high], check=False)
        wait(fleet, "explain tells it, too", lambda: LICENCE in magrathea(fleet, "explain", high, *hub))
        assert fleet.jobs()[low].state == "R"
        fleet.delete(low)
        wait_running(fleet, high)


def test_a_job_without_it_is_preempted_as_before(protecting: OpenPbsCluster) -> None:
    fleet = protecting
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        preempt(fleet, low)


def test_a_user_cannot_mark_a_job_as_protected(protecting: OpenPbsCluster) -> None:
    pbs, mark = protecting.pbs, f"{KEEPS}={LICENCE}"
    with pbs.stopped_scheduling():
        job = protecting.submit("low", LONG)
        for argv in (["qsub", "-q", "low", "-l", mark, "--", "/bin/true"], ["qalter", "-l", mark, job]):
            assert pbs.run(HEAD, argv, user=USER, check=False).returncode != 0
        assert KEEPS not in pbs.job(job)["Resource_List"]
        protecting.delete(job)


def _with(word: str, text: str) -> str:
    return text if word in text else ""
