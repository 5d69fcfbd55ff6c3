"""The libpbs client against a real server: what it reads and sets, what PBS refuses, deadlines, restarts, threads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import FIRST_UID, HEAD, USERS, PrivateOpenPbs
from scheduler_plugin.pbs.base import Code

ROOT = Path(__file__).parents[2]
BOUND_S = 60.0

RESOURCES = (
    "create resource magrathea type=string,flag=h\n"
    "create resource magrathea_accepts type=string_array,flag=h\n"
    "create resource magrathea_siblings type=string_array,flag=h\n"
    "create resource magrathea_rank type=long,flag=h\n"
)


class Refused(Exception):
    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["text"])
        self.code: int = answer["code"]
        self.transient: bool = answer["transient"]
        self.seconds: float = answer["seconds"]


class Remote:
    """Connections of a process on the server's machine (pbs_calls.py)."""

    def __init__(self, cluster: PrivateOpenPbs) -> None:
        argv = cluster.argv(HEAD, [sys.executable, "-m", "tests.openpbs.pbs_calls"], env={"PYTHONPATH": str(ROOT)})
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, op: str, *arguments: Any, connection: int = 0) -> None:
        assert self.process.stdin is not None
        asked = {"connection": connection, "op": op, "arguments": arguments}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended with {self.process.wait()}"
        answer = json.loads(line)
        if "code" in answer:
            raise Refused(answer)
        return answer["value"]

    def __call__(self, op: str, *arguments: Any, connection: int = 0) -> Any:
        self.send(op, *arguments, connection=connection)
        return self.receive()

    def code(self, op: str, *arguments: Any) -> int:
        with pytest.raises(Refused) as refused:
            self(op, *arguments)
        return refused.value.code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def pbs_cluster() -> Iterator[PrivateOpenPbs]:
    with PrivateOpenPbs(["n1", "n2"]) as cluster:
        cluster.qmgr(RESOURCES)
        yield cluster


@pytest.fixture
def pbs(pbs_cluster: PrivateOpenPbs) -> Iterator[Remote]:
    remote = Remote(pbs_cluster)
    try:
        remote("connect", 20)
        yield remote
    finally:
        remote.close()


@pytest.fixture
def job(pbs_cluster: PrivateOpenPbs, pbs: Remote) -> Iterator[str]:
    """A job that runs on n1."""
    id = pbs_cluster.qsub("alice", "-l", "select=1:ncpus=1:vnode=n1", "-l", "walltime=500", script="sleep 1000")
    pbs_cluster.wait_job(id, "R")
    yield id
    pbs_cluster.run(HEAD, ["qdel", "-W", "force", id], check=False)
    pbs_cluster.wait(lambda: pbs("job", id) is None, "the job's end", BOUND_S)


def suspended(pbs: Remote, cluster: PrivateOpenPbs, job: str) -> None:
    """Suspend it, as soon as its MoM lets that happen."""

    def tried() -> bool:
        try:
            pbs("admin_suspend", job)
        except Refused as refused:
            assert refused.code == Code.BAD_STATE
            return False
        return True

    cluster.wait(tried, "the suspend", BOUND_S)


def fix(cluster: PrivateOpenPbs) -> None:
    """After its restart a server has vnodes in maintenance whose suspended jobs went long ago: it never takes the
    last name out of `maintenance_jobs` in its database. Only making such a vnode anew ends that."""
    for name in cluster.moms:
        cluster.qmgr(f"delete node {name}\ncreate node {name}\nset node {name} resources_available.ncpus=4")
    cluster.wait_free(*cluster.moms)


def vnode(pbs: Remote, name: str = "n1") -> dict[str, Any]:
    found: dict[str, Any] = next(v for v in pbs("vnodes") if v["name"] == name)
    return found


def test_all_attributes_of_a_vnode_are_set_by_one_call_and_read_back(pbs: Remote) -> None:
    wanted = {
        "resources_available.magrathea": "occupied-would-preempt",
        "resources_available.magrathea_accepts": "preemptible,protected",
        "resources_available.magrathea_rank": "-5",
        "resources_available.ncpus": "3",
        "resources_available.mem": "2048mb",
        "Priority": "-5",
    }
    pbs("set_vnode", "n1", wanted)
    shown = vnode(pbs)["attributes"]
    assert {name: shown[name] for name in wanted} == wanted


def test_one_bad_value_changes_nothing(pbs: Remote) -> None:
    pbs("set_vnode", "n1", {"Priority": "7"})
    assert pbs.code("set_vnode", "n1", {"Priority": "8", "resources_available.magrathea_rank": "x"}) == Code.BAD_VALUE
    assert pbs.code("set_vnode", "n1", {"Priority": "8", "resources_available.nosuch": "x"}) == Code.UNKNOWN_RESOURCE
    assert vnode(pbs)["attributes"]["Priority"] == "7"
    assert pbs.code("set_vnode", "nosuch", {"Priority": "8"}) == Code.UNKNOWN_VNODE


def test_a_job_as_it_runs_is_suspended_and_resumed(pbs: Remote, pbs_cluster: PrivateOpenPbs, job: str) -> None:
    before = pbs("job", job)
    assert (before["state"], before["run_version"], before["vnodes"]) == ("R", 1, ["n1"])
    assert (before["walltime_s"], before["rerunnable"]) == (500, True)
    suspended(pbs, pbs_cluster, job)
    during = pbs("job", job)
    assert (during["state"], during["substate"], during["vnodes"]) == ("S", 43, ["n1"])
    assert vnode(pbs)["state"] == ["maintenance"]
    assert vnode(pbs)["maintenance_jobs"] == [job]
    assert pbs.code("admin_suspend", job) == Code.BAD_STATE
    assert pbs.code("resume", job) == Code.WRONG_RESUME
    pbs("admin_resume", job)
    assert pbs("job", job)["state"] == "R"
    assert vnode(pbs)["maintenance_jobs"] in ([], None)
    assert pbs.code("admin_resume", job) == Code.WRONG_RESUME
    assert pbs.code("resume", job) == Code.BAD_STATE


def test_walltime_and_comment_of_a_suspended_job(pbs: Remote, pbs_cluster: PrivateOpenPbs, job: str) -> None:
    suspended(pbs, pbs_cluster, job)
    pbs("set_walltime", job, 700)
    pbs("set_comment", job, "preempted by 9.head, on h1: 'now' — since \"Nov 21\"")
    found = pbs("job", job)
    assert (found["walltime_s"], found["comment"]) == (700, "preempted by 9.head, on h1: 'now' — since \"Nov 21\"")


def test_a_suspended_job_is_requeued_by_force_only(pbs: Remote, pbs_cluster: PrivateOpenPbs, job: str) -> None:
    suspended(pbs, pbs_cluster, job)
    assert pbs.code("rerun", job) == Code.BAD_STATE
    pbs("rerun", job, True)
    pbs_cluster.wait(lambda: pbs("job", job)["run_version"] == 2, "its second run", BOUND_S)
    assert vnode(pbs)["maintenance_jobs"] in ([], None)


def test_jobs_are_those_that_moms_have_suspended_ones_and_subjobs_too(
    pbs: Remote, pbs_cluster: PrivateOpenPbs, job: str
) -> None:
    array = pbs_cluster.qsub("alice", "-J", "1-2", "-l", "select=1:ncpus=1:vnode=n2", script="sleep 1000")
    waiting = pbs_cluster.qsub("alice", "-a", "12312359", script="true")
    subjobs = [array.replace("[]", f"[{index}]") for index in (1, 2)]
    try:
        pbs_cluster.wait(
            lambda: {*subjobs, job} <= {one["id"] for one in pbs("jobs") if one["state"] == "R"},
            "both subjobs run",
            BOUND_S,
        )
        suspended(pbs, pbs_cluster, job)
        suspended(pbs, pbs_cluster, subjobs[0])
        found = {one["id"]: one["state"] for one in pbs("jobs") if one["vnodes"]}
        assert found == {job: "S", subjobs[0]: "S", subjobs[1]: "R"}
        assert waiting not in {one["id"] for one in pbs("jobs")}
    finally:
        pbs_cluster.run(HEAD, ["qdel", "-W", "force", array, waiting], check=False)
        pbs_cluster.wait(lambda: all(pbs("job", one) is None for one in subjobs), "their end", BOUND_S)


def test_a_job_that_pbs_does_not_know(pbs: Remote) -> None:
    assert pbs("job", "99999.head") is None
    for operation in ("admin_suspend", "admin_resume", "resume", "rerun"):
        assert pbs.code(operation, "99999.head") == Code.UNKNOWN_JOB


def test_an_admins_scheduling_false_stands(pbs: Remote, pbs_cluster: PrivateOpenPbs) -> None:
    assert pbs("wake_scheduler") is True
    with pbs_cluster.stopped_scheduling():
        assert pbs("wake_scheduler") is False
        assert pbs("server")["scheduling"] == "False"


def test_an_operator_may_do_all_of_it(pbs_cluster: PrivateOpenPbs, job: str) -> None:
    pbs_cluster.qmgr("set server operators += bob@*")
    bob = Remote(pbs_cluster)
    try:
        bob("become", FIRST_UID + USERS.index("bob"))
        bob("connect", 20)
        bob("set_vnode", "n1", {"resources_available.magrathea_accepts": "none", "Priority": "3"})
        assert bob("wake_scheduler") is True
        bob("set_offline", "n2", "magrathea: saved to disk")
        assert (vnode(bob, "n2")["state"], vnode(bob, "n2")["attributes"]["comment"]) == (
            ["offline"],
            "magrathea: saved to disk",
        )
        bob("set_offline", "n2", "")
        assert vnode(bob, "n2")["state"] == ["free"] and "comment" not in vnode(bob, "n2")["attributes"]
        suspended(bob, pbs_cluster, job)
        bob("set_walltime", job, 700)
        bob("set_comment", job, "preempted")
        found = next(v for v in bob("vnodes") if v["name"] == "n1")
        assert found["state"] == ["maintenance"]
        assert found["maintenance_jobs"] is None, "PBS shows it to managers only"
        assert next(j for j in bob("jobs") if j["id"] == job)["run_version"] == 0, "that, too"
        bob("admin_resume", job)
        suspended(bob, pbs_cluster, job)
        bob("rerun", job, True)
    finally:
        bob.close()
        pbs_cluster.qmgr("set server operators -= bob@*")


def test_threads_work_side_by_side_each_on_its_own_connection(pbs: Remote) -> None:
    assert pbs("threads", 6, 50) == []


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(pbs: Remote, pbs_cluster: PrivateOpenPbs) -> None:
    pbs("connect", 2, connection=1)
    server = (pbs_cluster.pbs_home(HEAD) / "server_priv/server.lock").read_text().strip()
    pbs_cluster.run(HEAD, ["kill", "-STOP", server])
    try:
        with pytest.raises(Refused) as refused:
            pbs("vnodes", connection=1)
        assert refused.value.transient
        assert 1.5 < refused.value.seconds < 15
    finally:
        pbs_cluster.run(HEAD, ["kill", "-CONT", server])
    with pytest.raises(Refused) as again:
        pbs("vnodes", connection=1)
    assert again.value.transient, "that connection is of no use any more"
    pbs("connect", 20, connection=1)
    assert pbs("vnodes", connection=1)


def test_after_a_restart_of_the_server_the_old_connection_says_so_and_a_new_one_works(
    pbs: Remote, pbs_cluster: PrivateOpenPbs
) -> None:
    pbs("vnodes")
    pbs_cluster.kill_server()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            pbs("vnodes")
        assert refused.value.transient
    with pytest.raises(Refused) as refused:
        pbs("connect", 20)
    assert (refused.value.code, refused.value.transient) == (Code.NO_SERVER, True)
    pbs_cluster.start_server()
    pbs("connect", 20)
    assert {v["name"] for v in pbs("vnodes")} == {"n1", "n2"}
    fix(pbs_cluster)


def test_a_suspend_that_a_starved_mom_does_not_answer_happens_when_it_wakes(
    pbs: Remote, pbs_cluster: PrivateOpenPbs, job: str
) -> None:
    pbs_cluster.wait(lambda: pbs("job", job)["substate"] == 42, "the job's start", BOUND_S)
    pbs("connect", 2, connection=1)
    mom = (pbs_cluster.pbs_home("n1") / "mom_priv/mom.lock").read_text().strip()
    pbs_cluster.run("n1", ["kill", "-STOP", mom])
    try:
        with pytest.raises(Refused) as refused:
            pbs("admin_suspend", job, connection=1)
        assert refused.value.transient
        assert pbs("job", job)["state"] == "R", "others are not held up"
    finally:
        pbs_cluster.run("n1", ["kill", "-CONT", mom])
    pbs_cluster.wait(lambda: pbs("job", job)["state"] == "S", "the late suspend", BOUND_S)
    assert vnode(pbs)["state"] == ["maintenance"]
