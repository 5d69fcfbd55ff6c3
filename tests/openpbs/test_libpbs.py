"""The libpbs client with a real server, beyond its contract (test_pbs_contract.py): arrays, an operator's rights,
threads, deadlines, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import FIRST_UID, HEAD, USERS, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.pbs.base import Code

from .remote_pbs import RESOURCES, Refused, Remote

ROOT = Path(__file__).parents[2]


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
    """Suspend the job as soon as its MoM allows that."""

    def tried() -> bool:
        try:
            pbs("admin_suspend", job)
        except Refused as refused:
            assert refused.code == Code.BAD_STATE
            return False
        return True

    cluster.wait(tried, "the suspend", BOUND_S)


def fix(cluster: PrivateOpenPbs) -> None:
    """End the maintenance of vnodes without suspended jobs after the server's restart.

    The server never removes the last name from `maintenance_jobs` in its database. Only making such a vnode anew helps.
    """
    for name in cluster.moms:
        cluster.qmgr(f"delete node {name}\ncreate node {name}\nset node {name} resources_available.ncpus=4")
    cluster.wait_free(*cluster.moms)


def vnode(pbs: Remote, name: str = "n1") -> dict[str, Any]:
    found: dict[str, Any] = next(v for v in pbs("vnodes") if v["name"] == name)
    return found


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


def test_after_a_restart_of_the_server_the_old_connection_fails_and_a_new_one_works(
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
