"""What users may try in order to get more than their queue gives: each is refused with its message, or undone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_running,
    wait_state,
    wait_stoppable,
)

from .conftest import EAGER
from .jobs import LONG, preempt

RESOURCES = {
    "": "free",
    "_accepts": "priority",
    "_rank": "9",
    "_host": "h1",
    "_siblings": "p1",
    "_host_ncpus": "9",
}
"""With a value of each one's type. PBS drops what is no number for a numeric resource, without a word, if a `queuejob`
hook reads the job's resources."""

SAY = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(sys.argv[2].encode() + b"\\n")
print(link.makefile().readline())
"""


def tries(fleet: OpenPbsCluster, *argv: str, machine: str = HEAD, user: str = "alice") -> str:
    """The message that refuses the user's command; fails if it is not refused."""
    done: subprocess.CompletedProcess[str] = fleet.pbs.run(machine, argv, user=user, check=False)
    assert done.returncode != 0, f"{user} was let: {argv}\n{done.stdout}"
    return done.stderr


def may(fleet: OpenPbsCluster, *argv: str) -> str:
    said: str = fleet.pbs.run(HEAD, argv, user="alice").stdout.strip()
    return said


def class_of(fleet: OpenPbsCluster, job: str) -> str:
    (word,) = {w for w in fleet.pbs.job(job)["schedselect"].split(":") if w.startswith("magrathea")}
    cls: str = word.partition("=")[2]
    return cls


@contextmanager
def held(fleet: OpenPbsCluster, queue: str = "low", select: str = "1:ncpus=1") -> Iterator[str]:
    """A job of alice's that waits until she releases it."""
    job = may(fleet, "qsub", "-h", "-q", queue, "-l", f"select={select}", "--", "/bin/sleep", "100")
    try:
        yield job
    finally:
        fleet.pbs.run(HEAD, ["qdel", "-W", "force", job], check=False)


@pytest.mark.parametrize(("name", "value"), RESOURCES.items())
def test_a_resource_of_ours_in_a_submission_is_refused(fleet: OpenPbsCluster, name: str, value: str) -> None:
    said = tries(fleet, "qsub", "-q", "low", "-l", f"select=1:ncpus=1:magrathea{name}={value}", "--", "/bin/true")
    assert f'Resource invalid in "select" specification: magrathea{name}' in said
    said = tries(fleet, "qsub", "-q", "low", "-l", f"magrathea{name}={value}", "--", "/bin/true")
    assert "own-class" in said


@pytest.mark.parametrize("wish", ["select=1:ncpus=1:vnode=p1", "select=1:ncpus=1:host=p1", "nodes=p1"])
def test_the_name_of_a_priority_domain_is_no_way_into_it(fleet: OpenPbsCluster, wish: str) -> None:
    job = may(fleet, "qsub", "-q", "low", "-l", wish, "--", "/bin/sleep", "100")
    assert class_of(fleet, job) == "preemptible"
    wait(fleet, "the scheduler has looked at it", lambda: fleet.jobs()[job].comment)
    assert "Insufficient amount of resource" in fleet.jobs()[job].comment
    assert fleet.jobs()[job].state == "Q"
    fleet.delete(job)


def test_a_queued_job_is_not_altered_to_another_class(fleet: OpenPbsCluster) -> None:
    """PBS itself lets users name our resources here; the hook does not."""
    with held(fleet) as job:
        for cls in ("priority", "protected"):
            said = tries(fleet, "qalter", "-l", f"select=1:ncpus=1:magrathea_accepts={cls}", job)
            assert "own-class" in said
            assert "qmove" in said
        assert "own-class" in tries(fleet, "qalter", "-l", "select=1:ncpus=1+1:ncpus=1:magrathea_rank=9", job)
        said = tries(fleet, "qalter", "-l", "magrathea_accepts=priority", job)
        assert "own-class" in said
        may(fleet, "qalter", "-l", "select=1:ncpus=2:vnode=p1", "-l", "walltime=100", job)
        assert class_of(fleet, job) == "preemptible"


def test_a_running_job_is_not_altered(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        assert "own-class" in tries(fleet, "qalter", "-l", "select=1:ncpus=1:magrathea_accepts=protected", low)
        said = tries(fleet, "qalter", "-l", "select=1:ncpus=1", low)
        assert "Cannot modify attribute while job running" in said
        assert "Cannot modify attribute while job running" in tries(fleet, "qalter", "-l", "ncpus=2", low)
        assert "Request invalid for state of job" in tries(fleet, "qmove", "high", low)
        assert class_of(fleet, low) == "preemptible"
        fleet.delete(low)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_move_to_the_priority_queue_gives_its_class_and_needs_its_leave(fleet: OpenPbsCluster) -> None:
    with held(fleet) as job:
        fleet.pbs.qmgr("set queue high acl_user_enable=True\nset queue high acl_users=bob")
        try:
            assert "Unauthorized Request" in tries(fleet, "qmove", "high", job)
            assert class_of(fleet, job) == "preemptible"
            fleet.pbs.qmgr("set queue high acl_users+=alice")
            may(fleet, "qmove", "high", job)
            assert class_of(fleet, job) == "priority"
            may(fleet, "qmove", "low", job)
            assert class_of(fleet, job) == "preemptible"
        finally:
            fleet.pbs.qmgr("unset queue high acl_users\nset queue high acl_user_enable=False")


def test_nobody_suspends_or_resumes_without_being_an_operator(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n4")
        for word in ("suspend", "admin-suspend"):
            assert "Unauthorized Request" in tries(fleet, "qsig", "-s", word, low)
        high = fleet.submit("high", LONG)
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        for word in ("resume", "admin-resume"):
            assert "Unauthorized Request" in tries(fleet, "qsig", "-s", word, low)
        assert "Request invalid for state of job" in tries(fleet, "qsig", "-s", "SIGCONT", low)
        stands_still(fleet, low)
        for job in (high, low):
            fleet.delete(job)
        wait_all_free(fleet, EAGER)


def test_processes_that_their_owner_continues_are_stopped_by_the_next_sweep(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        high = preempt(fleet, low, domain="n4", by="p4")
        stands_still(fleet, low)
        fleet.pbs.run("n4", ["sh", "-c", "kill -CONT -1"], user="alice")  # all of her processes
        said = f"job {low} (run 1): somebody has continued"
        wait(fleet, "the agent tells of it", lambda: said in fleet.log("agent-n4"))
        step = stands_still(fleet, low)
        assert fleet.jobs()[low].state == "S"
        wait_domain(fleet, "n4", "preempted")
        fleet.delete(high)
        goes_on(fleet, low, step)
        fleet.delete(low)
        wait_all_free(fleet, EAGER)


def test_the_agents_socket_takes_no_claim_from_a_user(fleet: OpenPbsCluster) -> None:
    claim = '{"op":"claim","job":{"id":"1.head","run":1,"class":"priority","cpus":1,"memory_mib":0,"rerunnable":true}}'
    for path in ("/run/magrathea/agent.sock", f"{fleet.directory}/h1/run/guest/p1.sock"):
        said = tries(fleet, "python3", "-c", SAY, path, claim, machine="p1")
        assert "Permission denied" in said
    wait_domain(fleet, "p1", "free")


def test_the_daemons_socket_lets_users_look_and_nothing_else(fleet: OpenPbsCluster) -> None:
    path = f"{fleet.directory}/h1/run/control.sock"

    def say(line: str) -> str:
        return fleet.pbs.run("n1", ["python3", "-c", SAY, path, line], user="alice").stdout

    assert '"state":"free"' in say('{"op":"status"}')
    for op in ("drain", "clear"):
        assert '"code":"not-permitted"' in say(f'{{"op":"{op}","domain":"n1","reason":"mine"}}')
    wait_domain(fleet, "n1", "free")


def test_a_user_cannot_kill_or_stop_an_agent_or_read_what_it_keeps(fleet: OpenPbsCluster) -> None:
    (agent,) = fleet.pbs.run("n1", ["pgrep", "-f", "node_daemon.agent"]).stdout.split()
    for name in ("KILL", "STOP", "TERM"):
        assert "not permitted" in tries(fleet, "kill", f"-{name}", agent, machine="n1")
    assert "Permission denied" in tries(fleet, "cat", "/run/magrathea/agent-state.json", machine="n1")
    assert "Permission denied" in tries(fleet, "rm", "/run/magrathea/agent.sock", machine="n1")
    assert fleet.parts["agent-n1"].running()
