"""The decisions of `magrathea pbs uninstall` and `check`, without a PBS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scheduler_plugin.setup import checks, records, uninstall
from scheduler_plugin.setup.install import CONFIG, RESOURCES, SCRIPT, wanted_hooks
from scheduler_plugin.setup.records import Record, merged, updated
from scheduler_plugin.setup.sched_config import InstallError, with_resources, without_resources
from scheduler_plugin.setup.setup_model import InstallOptions, Present, SubmittedJob

CONF = 'a: 1\nnode_sort_key: "sort_priority HIGH" ALL\nresources: "ncpus,  mem" ALL\nb: 2\n'
OPTIONS = InstallOptions(priority=("high",), preemptible=("low",), vnodes=("n1",), heartbeat="/b")
CLASS = "default_chunk.magrathea_accepts"
RES = "resources_available."
BEFORE = Present(
    queues={"low": {"queue_type": "Execution", "Priority": "10"}},
    vnodes={"n1": {"resv_enable": "True", f"{RES}ncpus": "4", f"{RES}mem": "9gb"}, "x": {}},
    server={"default_queue": "low"},
    sched_config=CONF,
    scheds={"default": {"preempt_order": "SCR", "preempt_queue_prio": "150", "job_run_wait": "runjob_hook"}},
)


def installed() -> tuple[Present, Record]:
    record = updated(None, BEFORE, OPTIONS)
    hooks: dict[str, dict[str, str]] = {}
    contents: dict[tuple[str, str], str] = {}
    for name, (attributes, script, config) in wanted_hooks(OPTIONS).items():
        hooks[name] = {**attributes, "order": "1000", "enabled": "true"}
        contents |= {(name, SCRIPT): script, (name, CONFIG): config or ""}
    published = {f"{RES}magrathea_accepts": "none", f"{RES}magrathea_host": "h1", f"{RES}ncpus": "2", "Priority": "-4"}
    now = replace(
        BEFORE,
        resources={name: {"type": kind, "flag": "hr"} for name, kind in RESOURCES.items()},
        hooks=hooks,
        contents=contents,
        queues={
            "low": {**BEFORE.queues["low"], CLASS: "preemptible"},
            "high": {"queue_type": "Execution", CLASS: "priority"},
        },
        vnodes={
            "n1": {**BEFORE.vnodes["n1"], **published, "resv_enable": "False"},
            "x": {f"{RES}magrathea_accepts": "priority,preemptible,protected"},
        },
        server={**BEFORE.server, CLASS: "protected"},
        sched_config=with_resources(CONF, RESOURCES),
    )
    return now, record


def job(id: str, state: str, schedselect: str = "1:ncpus=1:magrathea_accepts=preemptible") -> SubmittedJob:
    return SubmittedJob(id=id, state=state, queue="low", select="1:ncpus=1", schedselect=schedselect)


def commands(now: Present, record: Record | None, *, delete_history: bool = False) -> list[str]:
    found = uninstall.changes(now, record, delete_history=delete_history)
    return [change.qmgr or " ".join(change.command) or "sched_config" for change in found]


def test_everything_of_ours_goes_and_the_resources_last() -> None:
    found = commands(*installed())
    assert found[0] == f"unset server {CLASS}"
    assert found[-len(RESOURCES) :] == [f"delete resource {name}" for name in RESOURCES]
    for command in (
        f"unset queue low {CLASS}",
        "delete hook magrathea_server",
        "delete hook magrathea_mom",
        "delete queue high",
        f"unset node x {RES}magrathea_accepts",
        f"unset node n1 {RES}magrathea_host",
    ):
        assert command in found
    assert "delete queue low" not in found


def test_only_the_hubs_values_on_vnodes_are_restored() -> None:
    found = commands(*installed())
    assert f'set node n1 {RES}ncpus = "4"' in found and "unset node n1 Priority" in found
    assert 'set node n1 resv_enable = "True"' in found
    assert not [command for command in found if f"{RES}mem" in command], "it is what it was"
    assert not [command for command in found if " node x " in command and "magrathea" not in command]


def test_a_hook_is_called_periodic_before_it_goes_so_that_its_timer_goes_too() -> None:
    found = commands(*installed())
    at = found.index("delete hook magrathea_mom")
    names = ("enabled = false", "event += periodic")
    assert found[at - 2 : at] == [f"set hook magrathea_mom {setting}" for setting in names]


def test_the_schedulers_file_is_back_byte_for_byte() -> None:
    now, record = installed()
    [config] = [change.content for change in uninstall.changes(now, record) if change.content is not None]
    assert config == CONF


def test_others_changes_of_the_schedulers_file_stay() -> None:
    now, record = installed()
    more = replace(now, sched_config=now.sched_config + "c: 3\n")
    assert [c.content for c in uninstall.changes(more, record) if c.content] == [CONF + "c: 3\n"]
    theirs = replace(now, sched_config=now.sched_config.replace('"ncpus', '"foo, ncpus'))
    [config] = [change.content for change in uninstall.changes(theirs, record) if change.content is not None]
    assert config == CONF.replace('"ncpus,  mem"', '"foo, ncpus, mem"')


def test_without_a_record_our_things_are_removed_too() -> None:
    now, _ = installed()
    found = commands(now, None)
    assert "delete resource magrathea" in found and "delete queue high" not in found
    assert [c.content for c in uninstall.changes(now, None) if c.content] == [
        without_resources(with_resources(CONF, RESOURCES), RESOURCES)
    ]
    [sentence] = uninstall.unknown_values(now, None)
    assert "n1" in sentence


def test_nothing_of_ours_nothing_to_do() -> None:
    assert uninstall.changes(BEFORE, None) == []
    assert uninstall.leftovers(BEFORE, None) == []


@pytest.mark.parametrize("state", list("QHWB"))
def test_waiting_jobs_lose_their_class(state: str) -> None:
    now, record = installed()
    assert "qalter -l select=1:ncpus=1 7.srv" in commands(replace(now, jobs=(job("7.srv", state),)), record)


@pytest.mark.parametrize("one", [job("7.srv", "R"), job("7[1].srv", "Q"), job("7.srv", "Q", "1:ncpus=1")])
def test_other_jobs_do_not(one: SubmittedJob) -> None:
    now, record = installed()
    assert not [c for c in commands(replace(now, jobs=(one,)), record) if "qalter" in c]


def test_history_is_deleted_on_request_and_arrays_as_a_whole() -> None:
    now, record = installed()
    past = (job("7.srv", "F"), job("8[].srv", "F", "1:ncpus=1"), job("8[1].srv", "F"), job("8[2].srv", "X"))
    now = replace(now, jobs=past)
    assert not [c for c in commands(now, record) if "qdel" in c]
    deleted = [c for c in commands(now, record, delete_history=True) if "qdel" in c]
    assert deleted == ["qdel -x 7.srv", "qdel -x 8[].srv"]


def test_leftovers_are_reported_with_the_fix() -> None:
    now, record = installed()
    only = Present(resources={"magrathea_accepts": now.resources["magrathea_accepts"]}, queues={"high": {}})
    assert any("ended" in text for text in uninstall.leftovers(replace(only, jobs=(job("7.srv", "R"),)), record))
    assert any(
        "--delete-history" in text for text in uninstall.leftovers(replace(only, jobs=(job("7.srv", "F"),)), record)
    )
    assert any("queue high" in text for text in uninstall.leftovers(only, record))


def test_jobs_suspended_on_managed_vnodes_are_ours_to_resume() -> None:
    now, _ = installed()
    held = {**now.vnodes, "n1": {**now.vnodes["n1"], "maintenance_jobs": "7.srv,8[1].srv"}}
    held["x"] = {**held["x"], "maintenance_jobs": "9.srv"}
    jobs = (job("7.srv", "S"), job("8[1].srv", "S"), job("9.srv", "S"), job("10.srv", "S"))
    assert [one.id for one in uninstall.preempted(replace(now, vnodes=held, jobs=jobs))] == ["7.srv", "8[1].srv"]


# The record


def test_the_record_never_forgets_and_learns_of_new_vnodes() -> None:
    now, record = installed()
    new = {**now.vnodes, "y": {"Priority": "3", f"{RES}magrathea_accepts": "none"}, "z": {f"{RES}magrathea_host": "h"}}
    later = updated(record, replace(now, vnodes=new), OPTIONS)
    assert later.vnodes == {**record.vnodes, "y": {"Priority": "3"}}
    assert later.sched_config == CONF and later.queues == ["high"] and later.at == record.at


def test_a_site_that_took_our_words_out_itself_has_a_new_before() -> None:
    _, record = installed()
    own = replace(BEFORE, sched_config=CONF + "c: 3\n")
    assert updated(record, own, OPTIONS).sched_config == CONF + "c: 3\n"


def test_earlier_options_are_remembered_and_the_last_one_for_a_queue_counts() -> None:
    options = merged(OPTIONS, InstallOptions(priority=("low",), vnodes=("x",)), {"n1", "x"}, set())
    assert (options.priority, options.preemptible, options.vnodes) == (("high", "low"), (), ("n1", "x"))
    assert merged(OPTIONS, InstallOptions(), {"x"}, set()).vnodes == ()


def test_a_record_comes_back_from_its_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "server_priv").mkdir()
    assert records.load(tmp_path) is None
    record = updated(None, replace(BEFORE, sched_config="\xe9\r\n" + CONF), OPTIONS)
    records.save(tmp_path, record)
    assert records.load(tmp_path) == record and record.options() == OPTIONS
    assert (tmp_path / records.NAME).stat().st_mode & 0o077 == 0
    (tmp_path / records.NAME).write_text("{")
    with pytest.raises(InstallError, match="damaged"):
        records.load(tmp_path)


# check


def statuses(now: Present) -> dict[str, str]:
    return {item.name: item.status for item in checks.check(now, OPTIONS)}


def test_check_finds_all_ok_and_each_thing_that_is_not() -> None:
    now, _ = installed()
    assert set(statuses(now).values()) == {checks.OK}
    hooks = {**now.hooks, "magrathea_mom": {**now.hooks["magrathea_mom"], "order": "5"}}
    resources = {name: kind for name, kind in now.resources.items() if name != "magrathea_rank"}
    wrong = statuses(replace(now, hooks=hooks, resources=resources, server={}, sched_config=CONF))
    assert {name: status for name, status in wrong.items() if status != checks.OK} == {
        "resource magrathea_rank": checks.MISSING,
        "sched_config": checks.MISSING,
        "hook magrathea_mom": checks.DIFFERENT,
        "server": checks.MISSING,
    }


def test_check_reports_what_install_would_refuse() -> None:
    now, _ = installed()
    bad = replace(now, sched_config=CONF + "resources: x", contents={("magrathea_mom", SCRIPT): "import pbs"})
    assert statuses(bad) == {"sched_config": checks.DIFFERENT, "hook magrathea_mom": checks.DIFFERENT}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"queues": {**BEFORE.queues, "express": {"Priority": "150"}}}, "queue express"),
        ({"scheds": {"default": {"job_run_wait": "execjob_hook"}}}, "sched default"),
        ({"scheds": {"default": {"preempt_order": "SCR", "preempt_prio": "fairshare, normal_jobs"}}}, "sched default"),
        ({"scheds": {"second": {}}}, "sched second"),
        ({"vnodes": {n: {"Mom": "m", "Port": "15002"} for n in ("n1", "n1[0]")}}, "MoM m"),
        ({"vnodes": {"n1": {"Priority": "5"}}}, "node n1"),
        ({"hooks": {"own": {"event": "execjob_begin", "order": "1000", "enabled": "true"}}}, "hook own"),
        (
            {"pbs_hooks": {"PBS_power": {"event": "execjob_begin", "order": "2000", "enabled": "true"}}},
            "hook PBS_power",
        ),
        ({"sched_config": 'node_sort_key: "ncpus HIGH"\n'}, "sched_config"),
        ({"server": {"node_fail_requeue": "10"}}, "server node_fail_requeue"),
    ],
)
def test_conflicting_settings_get_a_warning_with_the_fix(change: dict[str, object], name: str) -> None:
    assert list(checks.warnings(BEFORE, OPTIONS)) == []
    [item] = checks.warnings(replace(BEFORE, **change), OPTIONS)  # type: ignore[arg-type]
    assert item.name == name and item.status == checks.WARNING and item.text and item.fix


@pytest.mark.parametrize(
    "change",
    [
        {"queues": {"express": {"Priority": "149"}}},
        {
            "queues": {"express": {"Priority": "150"}},
            "scheds": {"default": {"preempt_order": "CR", "preempt_queue_prio": "150"}},
        },
        {"hooks": {"own": {"event": "execjob_begin", "order": "1000", "enabled": "false"}}},
        {"hooks": {"own": {"event": "queuejob", "order": "2000", "enabled": "true"}}},
        {"vnodes": {"n1": {"Mom": "a"}, "m": {"Mom": "m"}, "m[0]": {"Mom": "m"}}},
        {"server": {"node_fail_requeue": "310"}},
        {"server": {"node_fail_requeue": "0"}},
    ],
)
def test_harmless_settings_get_no_warning(change: dict[str, object]) -> None:
    assert list(checks.warnings(replace(BEFORE, **change), OPTIONS)) == []  # type: ignore[arg-type]
