"""The runjob hook: every rule by name, run through a `pbs` module as PBS does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from magrathea.pbs_text.select import CLASS_RESOURCE, MAX_SELECT
from magrathea_lab.pbs_standin.pbs_module import Entity, Hook, HookJob, HookOutcome, Server
from scheduler_plugin.setup.hook_texts import hook_text
from tests.steps import lines_run

HOOK = ("magrathea_server", hook_text("magrathea_server"))

Run = Callable[..., HookOutcome]


def job(id: str, cls: str | None, *vnodes: str, cpus: int = 1) -> dict[str, Any]:
    """A job's attributes; each vnode has a chunk of `cpus` CPUs. `gives`: the class of its queue."""
    asks = f"1:ncpus={cpus}" + (f":magrathea_accepts={cls}" if cls else "")
    return {
        "id": id,
        "queue": "q",
        "gives": cls,
        "schedselect": "+".join([asks] * max(1, len(vnodes))),
        "exec_vnode": "+".join(f"({name}:ncpus={cpus})" for name in vnodes),
    }


def cpus_by_vnode(exec_vnode: str) -> dict[str, int]:
    parts = [part.strip("()").split(":ncpus=") for part in exec_vnode.split("+")]
    return {name: int(cpus) for name, cpus in parts}


def vnode(siblings: str | None, host_ncpus: int | None = None, jobs: str = "") -> dict[str, Any]:
    available: dict[str, Any] = {"ncpus": 4}
    if siblings is not None:
        available["magrathea_siblings"] = siblings
    if host_ncpus is not None:
        available["magrathea_host_ncpus"] = host_ncpus
    return {"resources_available": available, "resources_assigned": {"ncpus": 0}, "jobs": jobs or None}


@pytest.fixture
def heartbeat(tmp_path: Path) -> Path:
    file = tmp_path / "heartbeat"
    file.touch()
    return file


@pytest.fixture
def run(tmp_path: Path, heartbeat: Path) -> Run:
    """Run the hook for a job; the other jobs run on the vnodes of their exec_vnode."""
    config = tmp_path / "hook.json"
    config.write_text(json.dumps({"heartbeat": str(heartbeat), "heartbeat_max_age_s": 30}))

    def run(
        new: dict[str, Any],
        vnodes: dict[str, dict[str, Any]],
        *others: dict[str, Any],
        server_gives: dict[str, str] | None = None,
    ) -> HookOutcome:
        for other in others:
            for name in vnodes:
                if f"({name}:" in other["exec_vnode"]:
                    have = vnodes[name]["jobs"]
                    vnodes[name]["jobs"] = f"{have}, {other['id']}/0" if have else f"{other['id']}/0"
                    vnodes[name]["resources_assigned"]["ncpus"] += cpus_by_vnode(other["exec_vnode"])[name]
        server = Server("srv", vnodes, {other["id"]: other for other in others}, server_gives)
        gives = {CLASS_RESOURCE: new["gives"]} if new["gives"] else {}
        return Hook(*HOOK, config).run("runjob", server=server, job=HookJob(new["id"], new, gives))

    return run


def code(outcome: HookOutcome) -> str:
    """The refusal's code."""
    assert not outcome.accepted
    return outcome.message.removeprefix("magrathea: ").partition(":")[0]


def exclusive() -> dict[str, dict[str, Any]]:
    return {"n1": vnode("p1,p2"), "p1": vnode("n1,p2"), "p2": vnode("n1,p1"), "plain": vnode(None)}


def counted() -> dict[str, dict[str, Any]]:
    return {"n1": vnode("n2,p1", 4), "n2": vnode("n1,p1", 4), "p1": vnode("n1,n2", 4)}


def test_a_vnode_that_is_not_ours_is_accepted_whatever_runs(run: Run) -> None:
    assert run(job("2.srv", None, "plain"), exclusive(), job("1.srv", None, "plain")).accepted


def test_an_idle_host_takes_every_class(run: Run) -> None:
    for cls, name in (("priority", "p1"), ("preemptible", "n1"), ("protected", "n1")):
        assert run(job("2.srv", cls, name), exclusive()).accepted


def test_a_domain_alone_on_its_host_has_no_siblings(run: Run) -> None:
    assert run(job("2.srv", "protected", "n1"), {"n1": vnode("none")}).accepted


def test_exclusive_a_priority_job_may_preempt_preemptible_ones(run: Run) -> None:
    lows = [job("1.srv", "preemptible", "n1"), job("3.srv", "preemptible", "n1")]
    assert run(job("2.srv", "priority", "p1"), exclusive(), *lows).accepted


def test_exclusive_a_priority_job_waits_for_a_protected_one(run: Run) -> None:
    others = [job("1.srv", "preemptible", "n1"), job("3.srv", "protected", "n1")]
    refused = run(job("2.srv", "priority", "p1"), exclusive(), *others)
    assert code(refused) == "host-busy"
    assert "3.srv" in refused.message


def test_exclusive_a_priority_job_waits_for_a_sibling_of_its_kind(run: Run) -> None:
    assert code(run(job("2.srv", "priority", "p1"), exclusive(), job("1.srv", "priority", "p2"))) == "host-busy"


@pytest.mark.parametrize("cls", ["preemptible", "protected"])
def test_exclusive_others_wait_for_any_job_of_a_sibling(run: Run, cls: str) -> None:
    assert code(run(job("2.srv", cls, "n1"), exclusive(), job("1.srv", "priority", "p1"))) == "host-busy"


def test_exclusive_a_job_without_a_class_on_a_sibling_is_not_stopped(run: Run) -> None:
    assert code(run(job("2.srv", "priority", "p1"), exclusive(), job("1.srv", None, "n1"))) == "host-busy"


def test_exclusive_jobs_of_the_same_domain_are_no_matter(run: Run) -> None:
    assert run(job("2.srv", "protected", "n1"), exclusive(), job("1.srv", "protected", "n1")).accepted


def test_exclusive_chunks_in_two_domains_of_a_host_are_refused(run: Run) -> None:
    assert code(run(job("2.srv", "priority", "p1", "p2"), exclusive())) == "two-domains"


def test_a_job_that_has_ended_meanwhile_is_no_matter(run: Run) -> None:
    vnodes = exclusive()
    vnodes["p1"]["jobs"] = "1.srv/0"  # still in the list, but unknown to the server
    assert run(job("2.srv", "protected", "n1"), vnodes).accepted


def test_a_job_on_several_slots_is_looked_at_once(run: Run) -> None:
    vnodes = exclusive()
    vnodes["n1"]["jobs"] = "1.srv/0, 1.srv/1, 1.srv/2"
    assert run(job("2.srv", "priority", "p1"), vnodes, job("1.srv", "preemptible", "n1")).accepted


def test_without_a_class_on_a_managed_vnode_the_fix_is_named(run: Run) -> None:
    refused = run(job("2.srv", None, "n1"), exclusive())
    assert code(refused) == "no-class"
    assert "default_chunk.magrathea_accepts" in refused.message


@pytest.mark.parametrize("cls", ["priority", "protected", "preemptible"])
@pytest.mark.parametrize("gives", ["priority", "protected", "preemptible", None])
def test_a_job_starts_only_with_the_class_that_its_queue_gives(run: Run, cls: str, gives: str | None) -> None:
    outcome = run({**job("2.srv", cls, "n1"), "gives": gives}, {"n1": vnode("none")})
    assert outcome.accepted or code(outcome) == "class-differs"
    assert outcome.accepted == (cls == gives)


def test_the_server_gives_a_class_to_jobs_of_queues_that_give_none(run: Run) -> None:
    server_gives = {CLASS_RESOURCE: "protected"}
    for cls in ("priority", "protected"):
        new = {**job("2.srv", cls, "n1"), "gives": None}
        assert run(new, {"n1": vnode("none")}, server_gives=server_gives).accepted == (cls == "protected")
    new = {**job("2.srv", "protected", "n1"), "gives": "priority"}
    assert code(run(new, {"n1": vnode("none")}, server_gives=server_gives)) == "class-differs", (
        "the queue's comes first"
    )


def test_a_job_with_two_classes_starts_nowhere(run: Run) -> None:
    for select in (
        "1:ncpus=1:magrathea_accepts=priority+1:ncpus=1:magrathea_accepts=protected",
        "1:ncpus=1:magrathea_accepts=priority+1:ncpus=1",
        "1:ncpus=1:magrathea_accepts=priority:magrathea_accepts=priority",
    ):
        new = {**job("2.srv", "priority", "n1"), "schedselect": select}
        assert code(run(new, {"n1": vnode("none")})) == "class-differs"


@pytest.mark.parametrize(
    ("select", "is_accepted"),
    [
        ("1:ncpus=1", True),
        ("1:ncpus=1:magrathea_accepts=priority", True),  # PBS writes it so if the job gives vnodes back
        ("1:ncpus=1:MAGRATHEA_ACCEPTS=protected", False),
        ("1:ncpus=1+1:ncpus=1:magrathea_accepts=protected", False),
        ("1:note=(unreadable):magrathea_accepts=priority", False),
        ("1:ncpus=1:", True),
    ],
)
def test_a_jobs_own_select_names_no_other_class(run: Run, select: str, is_accepted: bool) -> None:
    """MoM takes a subjob's class from there."""
    new = {**job("2.srv", "priority", "n1"), "Resource_List": {"select": select}}
    outcome = run(new, {"n1": vnode("none")})
    assert outcome.accepted == is_accepted
    assert outcome.accepted or code(outcome) == "class-differs"


def test_a_job_in_a_users_reservation_is_refused_and_in_one_for_maintenance_it_is_not(run: Run) -> None:
    for id, is_accepted in (("R7.srv", False), ("S7.srv", False), ("M7.srv", True)):
        new = {**job("2.srv", "protected", "n1"), "reserve_ID": id}
        outcome = run(new, {"n1": vnode("none")})
        assert outcome.accepted == is_accepted
        assert outcome.accepted or code(outcome) == "no-reservation"
    elsewhere = {**job("2.srv", "protected", "plain"), "reserve_ID": "R7.srv"}
    assert run(elsewhere, exclusive()).accepted


def reserves(vnodes: dict[str, dict[str, Any]], *jobs: dict[str, Any], **attributes: Any) -> HookOutcome:
    """The hook's answer to a pbs_rsub."""
    server = Server("srv", vnodes, {one["id"]: one for one in jobs})
    return Hook(*HOOK).run("resvsub", server=server, resv=Entity("resvid", "", attributes))


def test_a_reservation_is_not_made_from_a_job_on_a_vnode_of_ours() -> None:
    here, plain = job("1.srv", "preemptible", "plain", "n1"), job("2.srv", "preemptible", "plain")
    assert code(reserves(exclusive(), here, plain, reserve_job="1.srv")) == "no-reservation"
    assert code(reserves(exclusive(), here, plain, reserve_job="1")) == "no-reservation"
    assert reserves(exclusive(), here, plain, reserve_job="2.srv").accepted
    assert reserves(exclusive(), here, plain, reserve_job="9.srv").accepted, "PBS refuses an unknown job itself"
    assert reserves(exclusive(), here, plain, Resource_List={"select": "1:ncpus=1", "walltime": "60"}).accepted


def test_a_reservation_names_no_resource_of_ours() -> None:
    for resources in ({"select": "1:Magrathea_accepts=priority"}, {"select": "1", "magrathea_rank": "9"}):
        assert code(reserves({}, Resource_List=resources)) == "own-class"
    assert code(reserves({}, Resource_List={"select": "1:ngpus='1:magrathea_accepts=priority'"})) == "select-unclear"


SUBJOB = "2[7].srv"


@pytest.mark.parametrize("id", [SUBJOB, "2.srv"])
def test_a_subjob_that_has_to_wait_is_sent_on_and_its_claim_refused(run: Run, id: str) -> None:
    """PBS's scheduler tries a refused subjob again at once and for ever."""
    is_subjob = id == SUBJOB
    new = {**job(id, "protected", "n1"), "Variable_List": {}}
    assert run(new, exclusive(), job("1.srv", "priority", "p1")).accepted == is_subjob
    assert new["Variable_List"] == {}
    new = {**job(id, "protected", "n1", cpus=4), "Variable_List": {}}
    assert run(new, counted(), job("1.srv", "priority", "p1")).accepted == is_subjob
    assert new["Variable_List"] == {}


def test_a_subjob_that_can_never_start_as_it_is_is_marked_for_moms_hook(run: Run) -> None:
    for code, change in (
        ("class-differs", {"gives": "priority"}),
        ("no-class", {"schedselect": "1:ncpus=1"}),
        ("no-reservation", {"reserve_ID": "R7.srv"}),
        ("two-domains", {"exec_vnode": "(n1:ncpus=1)+(p1:ncpus=1)"}),
    ):
        new = {**job(SUBJOB, "protected", "n1"), "Variable_List": {"HOME": "/"}, **change}
        assert run(new, exclusive()).accepted
        assert new["Variable_List"] == {"MAGRATHEA_REFUSED": code}, "nothing of the user's beside it"
    vnodes = counted()
    vnodes["n1"]["resources_available"]["magrathea_host_ncpus"] = "four"
    new = {**job(SUBJOB, "protected", "n1"), "Variable_List": {}}
    assert run(new, vnodes).accepted and new["Variable_List"] == {"MAGRATHEA_REFUSED": "hook-failed"}


def test_a_subjob_without_variables_is_marked_by_its_output(run: Run) -> None:
    """PBS gives a hook none if a byte in them is not UTF-8, and lets it set none."""
    marked = run({**job(SUBJOB, "protected", "n1"), "Variable_List": None, "gives": "priority"}, exclusive())
    assert marked.accepted and marked.changes == {"Output_Path": "/magrathea-refused"}
    waits = run({**job(SUBJOB, "protected", "n1"), "Variable_List": None}, exclusive(), job("1.srv", "priority", "p1"))
    assert waits.accepted and waits.changes == {}


def test_a_class_within_a_quoted_value_is_not_a_class(run: Run) -> None:
    new = job("2.srv", None, "p1")
    new["schedselect"] = '1:ncpus=1:software="a:magrathea_accepts=priority"'
    assert code(run(new, exclusive())) == "no-class"


def test_counted_jobs_share_the_host_up_to_its_cpus(run: Run) -> None:
    other = job("1.srv", "protected", "n1", cpus=2)
    assert run(job("2.srv", "protected", "n2", cpus=2), counted(), other).accepted
    assert code(run(job("2.srv", "protected", "n2", cpus=3), counted(), other)) == "no-cpus"


def test_counted_the_own_domains_jobs_count(run: Run) -> None:
    others = [job("1.srv", "protected", "n1", cpus=3)]
    assert code(run(job("2.srv", "protected", "n1", cpus=2), counted(), *others)) == "no-cpus"


def test_counted_a_priority_job_leaves_preemptible_ones_out(run: Run) -> None:
    others = [job("1.srv", "preemptible", "n1", cpus=4), job("3.srv", "protected", "n2", cpus=1)]
    assert run(job("2.srv", "priority", "p1", cpus=3), counted(), *others).accepted
    assert code(run(job("2.srv", "priority", "p1", cpus=4), counted(), *others)) == "no-cpus"


def test_counted_a_job_in_two_domains_counts_with_both_and_once(run: Run) -> None:
    other = job("1.srv", "protected", "n1", "n2", cpus=1)
    assert run(job("2.srv", "protected", "n1", cpus=2), counted(), other).accepted
    assert code(run(job("2.srv", "protected", "n1", "n2", cpus=2), counted(), other)) == "no-cpus"


def test_counted_no_job_is_looked_at_where_the_servers_sums_decide(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look costs half a millisecond of the server's only thread, and a big host has hundreds of jobs."""
    asked: list[str] = []
    look = Server.job

    def noted(server: Server, id: str) -> HookJob | None:
        asked.append(id)
        return look(server, id)

    monkeypatch.setattr(Server, "job", noted)
    others = [job(f"{number}.srv", "preemptible", "n1") for number in range(10, 13)]
    assert run(job("2.srv", "priority", "p1", cpus=1), counted(), *others).accepted
    assert run(job("2.srv", "protected", "n2", cpus=1), counted(), *others).accepted
    assert code(run(job("2.srv", "protected", "n2", cpus=2), counted(), *others)) == "no-cpus"
    assert asked == []
    assert run(job("2.srv", "priority", "p1", cpus=3), counted(), *others).accepted
    assert asked == ["10.srv", "11.srv"], "two of them make room enough"


def test_counted_a_job_larger_than_the_host_is_refused_as_too_big(run: Run) -> None:
    assert code(run(job("2.srv", "priority", "p1", cpus=5), counted())) == "too-big"


def silence(heartbeat: Path) -> None:
    old = time.time() - 60
    os.utime(heartbeat, (old, old))


def test_without_its_hub_nothing_preempts(run: Run, heartbeat: Path) -> None:
    silence(heartbeat)
    assert code(run(job("2.srv", "priority", "p1"), exclusive(), job("1.srv", "preemptible", "n1"))) == "hub-lost"
    full = job("1.srv", "preemptible", "n1", cpus=4)
    assert code(run(job("2.srv", "priority", "p1"), counted(), full)) == "hub-lost"


def test_without_the_hub_a_job_that_preempts_nobody_starts(run: Run, heartbeat: Path) -> None:
    silence(heartbeat)
    assert run(job("2.srv", "priority", "p1"), exclusive()).accepted
    assert run(job("2.srv", "priority", "p1", cpus=2), counted(), job("1.srv", "preemptible", "n1", cpus=2)).accepted


def test_a_hub_that_was_never_there_preempts_nothing(run: Run, heartbeat: Path) -> None:
    heartbeat.unlink()
    assert code(run(job("2.srv", "priority", "p1"), exclusive(), job("1.srv", "preemptible", "n1"))) == "hub-lost"


def test_an_error_on_a_managed_vnode_refuses(run: Run) -> None:
    vnodes = counted()
    vnodes["n1"]["resources_available"]["magrathea_host_ncpus"] = "four"
    refused = run(job("2.srv", "protected", "n1"), vnodes)
    assert not refused.accepted
    assert "hook failed on n1" in refused.message


def test_an_error_elsewhere_stops_nobody(run: Run) -> None:
    new = job("2.srv", "protected", "plain")
    new["exec_vnode"] = "(plain:ncpus=many)"
    accepted = run(new, exclusive())
    assert accepted.accepted
    assert any("hook failed" in line for line in accepted.log)


EVENTS = ("queuejob", "modifyjob", "movejob")


def asks(event: str, **resources: str) -> HookOutcome:
    """The hook's answer to a qsub, qalter or qmove."""
    asked = {"id": "7.srv", "Resource_List": resources}
    return Hook(*HOOK).run(event, server=Server("srv", {}, {}), job=HookJob("7.srv", asked))


@pytest.mark.parametrize(
    "select",
    [
        "1:ncpus=1:magrathea_accepts=priority",
        "1:ncpus=1+2:magrathea_rank=9:ncpus=1",
        "1:ncpus=1:MAGRATHEA_accepts=priority",
        "1:ncpus=1: magrathea_accepts=priority",
        "1:ncpus=1:note='a+b:c':magrathea_accepts=priority",
        "1:note=(unreadable):Magrathea_accepts=priority",
    ],
)
@pytest.mark.parametrize("event", EVENTS)
def test_a_select_that_names_a_resource_of_ours_is_refused(event: str, select: str) -> None:
    assert code(asks(event, select=select)) == "own-class"


@pytest.mark.parametrize(
    "select",
    [
        "1:note=(unreadable)",
        "1:ncpus=1:NCPUS=2",
        "1:note='open",
        "1:note='x:magrathea_accepts=priority'",
        "1:ngpus='1:Magrathea_Accepts =priority'",
        '1:note="it\'s""said"',
        """1:note="a':magrathea_accepts=priority:software='x"\"y\"""",
    ],
)
@pytest.mark.parametrize("event", EVENTS)
def test_a_select_that_pbs_would_read_differently_once_it_has_written_it_anew_is_refused(
    event: str, select: str
) -> None:
    assert code(asks(event, select=select)) == "select-unclear"


@pytest.mark.parametrize(
    "resources",
    [
        {},
        {"walltime": "10"},
        {"select": "2:ncpus=1:host=magrathea"},
        {"select": "1:note='x:y=magrathe_':host=magrathea"},
        {"select": '1:ncpus=1:note="it\'s"+2'},
    ],
)
@pytest.mark.parametrize("event", EVENTS)
def test_any_other_select_is_none_of_ours(event: str, resources: dict[str, str]) -> None:
    assert asks(event, **resources).accepted


@pytest.mark.parametrize("event", EVENTS)
def test_a_select_of_megabytes_is_refused_after_few_steps_and_with_a_short_text(event: str) -> None:
    """The hook has the server's one thread."""
    for select in (
        "1" + ":a=1" * 300_000,
        "1:a='" + "x" * 60_000,
        "1+" * 500_000,
        '1:ncpus=1:a="' + "x" * 1_000_000 + '"',
    ):
        outcome, lines = lines_run(partial(asks, event, select=select))
        assert code(outcome) == "select-unclear"
        assert lines < 60 * MAX_SELECT
        assert len(outcome.message) < 1000


def test_a_long_select_is_read_once_and_not_for_each_vnode(run: Run) -> None:
    def lines(hosts: int) -> int:
        vnodes = [f"v{n}" for n in range(hosts)]
        wide = job("9.srv", "protected", *vnodes)
        wide["Resource_List"] = {"select": "+".join(["1:ncpus=1:magrathea_accepts=protected"] * 500)}
        outcome, number = lines_run(partial(run, wide, {n: vnode("none") for n in vnodes}))
        assert outcome.accepted
        return number

    assert lines(20) - lines(2) < lines(2)


def sent_back(run: Run, id: str, runs: int, *vnodes: str) -> HookOutcome:
    return run({**job(id, "protected", *vnodes), "run_version": runs}, {n: vnode("none") for n in vnodes})


def test_no_subjob_waits_here(run: Run) -> None:
    """The scheduler would look at nothing else meanwhile."""
    for runs in range(3):
        assert sent_back(run, "70[1].srv", runs, "n1").accepted
        assert sent_back(run, "70[2].srv", runs, "n1", "n4").accepted


def test_a_job_on_several_hosts_that_was_just_refused_waits_a_moment_but_no_other_job(run: Run) -> None:
    for _ in range(2):
        assert sent_back(run, "71.srv", 0, "n1", "n4").accepted  # asked twice about the same run
    assert code(sent_back(run, "71.srv", 1, "n1", "n4")) == "sent-back"
    assert sent_back(run, "72.srv", 0, "n1").accepted
    assert sent_back(run, "72.srv", 1, "n1").accepted


def test_after_that_moment_it_may_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)  # a busy machine takes long for each call
    assert sent_back(run, "75.srv", 0, "n1", "n4").accepted
    for runs in range(1, 4):
        now += 3.5
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        assert code(sent_back(run, "75.srv", runs, "n1", "n4")) == "sent-back"
        now += 0.6
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        assert sent_back(run, "75.srv", runs, "n1", "n4").accepted


def test_a_job_without_cpus_starts_on_a_counted_host_that_is_more_than_full(run: Run) -> None:
    vnodes = counted()
    vnodes["n2"]["resources_assigned"]["ncpus"] = 5
    assert run(job("2.srv", "protected", "n1", cpus=0), vnodes).accepted
    assert code(run(job("2.srv", "protected", "n1", cpus=1), vnodes)) == "no-cpus"


def test_a_vnode_that_is_not_ours_has_no_such_wait(run: Run) -> None:
    for runs in range(3):
        outside = {**job("74.srv", None, "plain", "other"), "run_version": runs}
        assert run(outside, {"plain": vnode(None), "other": vnode(None)}).accepted
