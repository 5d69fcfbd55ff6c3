"""Doors beside qsub, qalter and qmove through which a job could get another class than its queue's: all closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from magrathea.pbs_text.select import job_class
from magrathea.pbs_text.states import RUNNING_SUBSTATE
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import wait, wait_running, wait_state

from .jobs import LONG, command, pbs, refused, submit
from .library import HELD, Attribute, call, select
from .test_refusals import sent

RESOURCES = {"magrathea_accepts": "priority", "MAGRATHEA_Accepts": "priority", "magrathea_host_ncpus": "9"}
NAMED = "1:ncpus=1:magrathea_accepts="


def class_of(fleet: OpenPbsCluster, job: str) -> str | None:
    return job_class(fleet.pbs.job(job)["schedselect"])


def submitted(fleet: OpenPbsCluster, queue: str, *attributes: Attribute) -> str:
    job, error = call(fleet, "submit", queue, HELD, *attributes)
    assert not error, error
    return job


def released(fleet: OpenPbsCluster, job: str) -> None:
    fleet.pbs.run(HEAD, ["qrls", "-h", "u", job], user="alice")


def starts_nowhere(fleet: OpenPbsCluster, job: str) -> None:
    wait(fleet, "the hook has refused it", lambda: "magrathea: class-differs" in fleet.jobs()[job].comment)
    wait_state(fleet, job, "W")
    assert fleet.jobs()[job].run_version == 0


def altered_past_the_hook(fleet: OpenPbsCluster, job: str, cls: str) -> None:
    """PBS runs no modifyjob hook for this call."""
    _, error = call(fleet, "asyalter", job, select(NAMED + cls))
    assert not error, error
    wait(fleet, "it has another class", lambda: class_of(fleet, job) == cls)


@pytest.mark.parametrize("cls", ["priority", "protected"])
def test_an_alteration_that_no_hook_sees_lets_the_job_start_nowhere_until_it_is_undone(
    fleet: OpenPbsCluster, cls: str
) -> None:
    job = submitted(fleet, "low")
    altered_past_the_hook(fleet, job, cls)
    released(fleet, job)
    starts_nowhere(fleet, job)
    fleet.pbs.run(HEAD, ["qalter", "-l", "select=1:ncpus=1", job], user="alice")
    fleet.pbs.qmgr("set server scheduling=True")
    wait(fleet, "it has started", lambda: fleet.jobs()[job].run_version == 1)
    assert class_of(fleet, job) == "preemptible"


@pytest.mark.parametrize(("cls", "sign"), [("priority", "a"), ("protected", "a\\")])
def test_an_array_that_is_altered_so_is_held_and_stops_nobody_elses_job(
    fleet: OpenPbsCluster, cls: str, sign: str
) -> None:
    """PBS's scheduler would try a refused subjob for ever, and look at no other job. It is told once."""
    array = submit(fleet, "low", "exit 0", "-h", "-J", "1-2", "-v", f"SIGN={sign}")
    altered_past_the_hook(fleet, array, cls)
    released(fleet, array)
    wait_state(fleet, array, "H")
    assert fleet.pbs.job(array)["Hold_Types"] == "s"
    assert [sent(fleet, array.replace("[]", f"[{number}]")) for number in (1, 2)] in ([1, 0], [1, 1])
    other = submit(fleet, "low", "exit 0")
    wait_state(fleet, other, "F")
    # its subjobs keep the select of their last start, and MoM would take the class from there
    fleet.pbs.run(HEAD, ["qalter", "-l", "select=1:ncpus=1", array], user="alice")
    fleet.pbs.run(HEAD, ["qrls", "-h", "s", array])
    another = submit(fleet, "low", "exit 0")  # tried after the array
    wait_state(fleet, another, "F")
    assert "Running:0 Exiting:0 Expired:0" in fleet.pbs.job(array)["array_state_count"]


@pytest.mark.parametrize("variables", ["CONTACT=J\udcfcrgen", "", "A=1\nCONTACT=J\udcfcrgen"])
def test_an_array_whose_variables_no_hook_can_read_is_held_too(fleet: OpenPbsCluster, variables: str) -> None:
    """A byte that is not UTF-8: PBS gives a hook no variable at all, and lets it set none. So there is another mark."""
    array = submit(fleet, "low", "exit 0", "-h", "-J", "1-2")
    _, error = call(fleet, "asyalter", array, ("Variable_List", "", variables))
    assert not error, error
    altered_past_the_hook(fleet, array, "priority")
    released(fleet, array)
    wait_state(fleet, array, "H")
    assert fleet.pbs.job(array)["Hold_Types"] == "s"
    assert sum(sent(fleet, array.replace("[]", f"[{number}]")) for number in (1, 2)) <= 2
    other = submit(fleet, "low", "exit 0")
    wait_state(fleet, other, "F")


def test_an_array_in_two_domains_of_a_host_is_held_and_stops_nobody_elses_job(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        wish = ["-l", "select=1:ncpus=1:host=p1+1:ncpus=1:host=p2", "-l", "place=scatter"]
        array = pbs(fleet, "qsub", "-J", "1-2", "-q", "high", *wish, "--", "/bin/true", user="alice").stdout.strip()
        wait_state(fleet, array, "H")
        other = submit(fleet, "low", "exit 0")
        wait_state(fleet, other, "F")


def test_subjobs_are_not_altered_or_moved_and_arrays_get_the_class_of_their_queue(fleet: OpenPbsCluster) -> None:
    array = pbs(fleet, "qsub", "-h", "-J", "1-3", "-q", "low", "--", "/bin/true", user="alice").stdout.strip()
    subjob = array.replace("[]", "[2]")
    for job in (array, subjob):
        assert "own-class" in refused(fleet, "qalter", "-l", f"select={NAMED}priority", job, user="alice")
    assert "Invalid request" in call(fleet, "alter", subjob, select("1:ncpus=2"))[1]
    refused(fleet, "qmove", "high", subjob, user="alice")
    for queue, cls in (("high", "priority"), ("normal", "protected"), ("low", "preemptible")):
        fleet.pbs.run(HEAD, ["qmove", queue, array], user="alice")
        assert class_of(fleet, array) == cls


@pytest.mark.parametrize(("name", "value"), RESOURCES.items())
def test_no_resource_of_ours_is_set_beside_the_select(fleet: OpenPbsCluster, name: str, value: str) -> None:
    ours: Attribute = ("Resource_List", name, value)
    for others in ([], [select("1:ncpus=1")], [("Resource_List", "ncpus", "1")]):
        _, error = call(fleet, "submit", "low", HELD, *others, ours)
        assert "own-class" in error
    old, new = submitted(fleet, "low", ("Resource_List", "ncpus", "1")), submitted(fleet, "low", select("1:ncpus=1"))
    assert "own-class" in call(fleet, "alter", old, ours)[1]
    assert "own-class" in call(fleet, "alter", new, ours)[1]
    for job in (old, new):
        assert class_of(fleet, job) == "preemptible"


@pytest.mark.parametrize(
    "attribute",
    [
        ("schedselect", "", NAMED + "priority"),
        ("exec_vnode", "", "(p1:ncpus=1)"),
        ("Resource_List", "nodes", NAMED + "priority"),
        ("Resource_List", "neednodes", NAMED + "priority"),
        ("Resource_List", "default_chunk.magrathea_accepts", "priority"),
        ("Resource_List", "place", "scatter:group=magrathea_accepts"),
        ("default_chunk", "magrathea_accepts", "priority"),
        ("Variable_List", "", "magrathea_accepts=priority"),
        ("depend", "", "afterany:{other}"),
    ],
)
def test_no_other_attribute_changes_the_class(fleet: OpenPbsCluster, attribute: Attribute) -> None:
    other = submitted(fleet, "high")
    name, resource, value = attribute
    wish = (name, resource, value.format(other=other))
    job, _ = call(fleet, "submit", "low", HELD, wish)
    assert not job or class_of(fleet, job) == "preemptible"
    job = submitted(fleet, "low")
    call(fleet, "alter", job, wish)
    assert class_of(fleet, job) == "preemptible"


def test_the_queue_as_an_attribute_counts_as_a_choice_of_the_queue_with_its_rights(fleet: OpenPbsCluster) -> None:
    fleet.pbs.qmgr("set queue high acl_user_enable=True\nset queue high acl_users=bob")
    try:
        assert "Unauthorized" in call(fleet, "submit", "low", HELD, ("queue", "", "high"))[1]
    finally:
        fleet.pbs.qmgr("unset queue high acl_users\nset queue high acl_user_enable=False")
    job = submitted(fleet, "low", ("queue", "", "high"))
    assert (fleet.pbs.job(job)["queue"], class_of(fleet, job)) == ("high", "priority")
    call(fleet, "alter", job, ("queue", "", "low"))
    assert (fleet.pbs.job(job)["queue"], class_of(fleet, job)) == ("high", "priority")


def test_jobs_that_qorder_exchanges_between_queues_exchange_their_classes(fleet: OpenPbsCluster) -> None:
    low, high = submitted(fleet, "low"), submitted(fleet, "high")
    fleet.pbs.run(HEAD, ["qorder", low, high], user="alice")
    assert (fleet.pbs.job(low)["queue"], class_of(fleet, low)) == ("high", "priority")
    assert (fleet.pbs.job(high)["queue"], class_of(fleet, high)) == ("low", "preemptible")


def test_a_routing_queue_gives_the_class_of_the_queue_that_it_routes_to(fleet: OpenPbsCluster) -> None:
    fleet.pbs.qmgr(
        "create queue entry queue_type=Route\nset queue entry route_destinations=low\n"
        "set queue entry enabled=True\nset queue entry started=True"
    )
    try:
        _, error = call(fleet, "submit", "entry", HELD, select(NAMED + "priority"))
        assert "own-class" in error or "Resource invalid" in error, error
        job, error = call(fleet, "submit", "entry", select("1:ncpus=1:host=p1"))
        assert not error, error
        wait(fleet, "it is routed", lambda: fleet.pbs.job(job)["queue"] == "low")
        assert class_of(fleet, job) == "preemptible"
        fleet.pbs.run(HEAD, ["qdel", "-W", "force", job])
    finally:
        fleet.pbs.qmgr("delete queue entry")


def test_a_job_that_was_rerun_is_altered_like_one_that_never_ran(fleet: OpenPbsCluster) -> None:
    job = fleet.submit("low", LONG)
    wait_running(fleet, job)
    fleet.pbs.run(HEAD, ["qhold", "-h", "u", job], user="alice")
    fleet.pbs.run(HEAD, ["qrerun", job])
    wait_state(fleet, job, "H")
    assert "own-class" in refused(fleet, "qalter", "-l", f"select={NAMED}priority", job, user="alice")
    runs = fleet.jobs()[job].run_version
    altered_past_the_hook(fleet, job, "protected")
    released(fleet, job)
    wait(fleet, "it is refused", lambda: "magrathea: class-differs" in fleet.jobs()[job].comment)
    assert fleet.jobs()[job].run_version == runs


def test_a_job_that_gives_vnodes_back_keeps_its_class(fleet: OpenPbsCluster) -> None:
    wish = ["-l", "select=1:ncpus=1:host=n1+1:ncpus=1:host=n2", "-l", "place=scatter"]
    job = submit(fleet, "low", f"exec {command(fleet, LONG)}", *wish)
    wait(fleet, "MoM has started it", lambda: fleet.jobs()[job].substate == RUNNING_SUBSTATE)
    fleet.pbs.run(HEAD, ["pbs_release_nodes", "-j", job, "n2"], user="alice")
    wait(fleet, "n2 is given back", lambda: fleet.jobs()[job].vnodes == ("n1",))
    assert class_of(fleet, job) == "preemptible"


@contextmanager
def rewriting_hook(fleet: OpenPbsCluster, event: str, order: int) -> Iterator[None]:
    """Inside the `with` the site has a server hook that writes a class into each select."""
    file = fleet.directory / "rewrite.py"
    text = f'import pbs\npbs.event().job.Resource_List["select"] = pbs.select("{NAMED}protected")\n'
    file.write_text(text, encoding="utf-8")
    fleet.pbs.qmgr(
        f"create hook rewrite\nset hook rewrite event={event}\nset hook rewrite order={order}\n"
        f"import hook rewrite application/x-python default {file}"
    )
    try:
        yield
    finally:
        fleet.pbs.qmgr("delete hook rewrite")


def test_a_class_from_a_hook_of_the_site_that_runs_before_ours_is_refused(fleet: OpenPbsCluster) -> None:
    with rewriting_hook(fleet, "queuejob", 1):
        assert "own-class" in call(fleet, "submit", "low", HELD)[1]
    job = submitted(fleet, "low")
    with rewriting_hook(fleet, "modifyjob", 1):
        assert "own-class" in call(fleet, "alter", job, ("Job_Name", "", "x"))[1]
    assert class_of(fleet, job) == "preemptible"


def test_a_job_with_a_class_from_a_hook_of_the_site_that_runs_after_ours_starts_nowhere(fleet: OpenPbsCluster) -> None:
    with rewriting_hook(fleet, "queuejob", 1000):
        queued = submitted(fleet, "low")
    altered = submitted(fleet, "low")
    with rewriting_hook(fleet, "modifyjob", 1000):
        call(fleet, "alter", altered, ("Job_Name", "", "x"))
    for job in (queued, altered):
        assert class_of(fleet, job) == "protected", "the hook ran after ours"
        released(fleet, job)
        starts_nowhere(fleet, job)


@pytest.mark.parametrize("order", [1, 1000])
def test_a_runjob_hook_of_the_site_cannot_write_a_select(fleet: OpenPbsCluster, order: int) -> None:
    """PBS itself refuses the start."""
    job = submitted(fleet, "low")
    with rewriting_hook(fleet, "runjob", order):
        released(fleet, job)
        wait(fleet, "PBS has refused it", lambda: "not allowed" in fleet.jobs()[job].comment)
        assert (fleet.jobs()[job].state, class_of(fleet, job)) == ("Q", "preemptible")
        fleet.pbs.run(HEAD, ["qdel", "-W", "force", job])
