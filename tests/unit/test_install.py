"""The decisions of `magrathea pbs install`, without a PBS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler_plugin.setup.install import CONFIG, RESOURCES, SCRIPT, changes, wanted_hooks
from scheduler_plugin.setup.sched_config import InstallError, with_resources, without_resources
from scheduler_plugin.setup.setup_model import InstallOptions, Present, SetupChange, SubmittedJob

SHIPPED = 'a: 1\nresources: "ncpus, mem, arch, host, vnode, aoe, eoe"\nb: 2\n'
OPTIONS = InstallOptions(priority=("high",), preemptible=("low",))


def commands(found: list[SetupChange]) -> list[str]:
    return [change.qmgr or "sched_config" for change in found]


@pytest.fixture
def fresh() -> Present:
    return Present(
        queues={"workq": {"queue_type": "Execution"}},
        vnodes={"n1": {"resv_enable": "True"}, "x": {"resv_enable": "True"}},
        server={"default_queue": "workq"},
        sched_config=SHIPPED,
    )


@pytest.fixture
def done(fresh: Present) -> Present:
    """PBS after all changes for OPTIONS."""
    hooks, contents = {}, {}
    for name, (attributes, script, config) in wanted_hooks(OPTIONS).items():
        order = "1" if attributes["event"] == "periodic" else "1000"
        hooks[name] = {**attributes, "order": order, "enabled": "true", "user": "pbsadmin"}
        contents[name, SCRIPT] = script
        if config is not None:
            contents[name, CONFIG] = config
    queue = {"queue_type": "Execution", "enabled": "True", "started": "True"}
    return replace(
        fresh,
        resources={name: {"type": kind, "flag": "hr"} for name, kind in RESOURCES.items()},
        hooks=hooks,
        contents=contents,
        queues={
            "high": {**queue, "default_chunk.magrathea_accepts": "priority"},
            "low": {**queue, "default_chunk.magrathea_accepts": "preemptible"},
        },
        vnodes={n: {"resources_available.magrathea_accepts": "priority,preemptible,protected"} for n in ("n1", "x")},
        server={"default_chunk.magrathea_accepts": "protected"},
        sched_config=with_resources(SHIPPED, RESOURCES),
    )


def test_a_second_run_changes_nothing(done: Present) -> None:
    assert changes(done, OPTIONS) == []


def test_a_fresh_server_gets_everything(fresh: Present) -> None:
    found = commands(changes(fresh, OPTIONS))
    for name in RESOURCES:
        assert any(command.startswith(f"create resource {name} ") and "flag=hr" in command for command in found)
    assert "sched_config" in found
    assert "create queue high queue_type=Execution" in found
    assert 'set queue high default_chunk.magrathea_accepts = "priority"' in found
    assert 'set queue low default_chunk.magrathea_accepts = "preemptible"' in found


def test_no_job_is_shut_out_at_any_moment(fresh: Present) -> None:
    """A job has a class once the server has a default: by then every vnode accepts it and the scheduler knows it."""
    found = commands(changes(fresh, OPTIONS))
    last = found.index('set server default_chunk.magrathea_accepts = "protected"')
    assert last == len(found) - 1
    for name in ("n1", "x"):
        assert any(c.startswith(f"set node {name} resources_available.magrathea_accepts") for c in found[:last])


def test_a_hook_has_its_script_before_it_has_an_event(fresh: Present) -> None:
    found = commands(changes(fresh, OPTIONS))
    for name in ("magrathea_server", "magrathea_mom"):
        imports = [i for i, c in enumerate(found) if c.startswith(f"import hook {name} ")]
        assert imports and max(imports) < next(i for i, c in enumerate(found) if c.startswith(f"set hook {name} event"))


def test_the_hook_of_vnodes_runs_the_rarer_the_more_of_them_it_has_to_read() -> None:
    freqs = [
        wanted_hooks(OPTIONS, vnodes)["magrathea_vnodes"][0]["freq"] for vnodes in (0, 4, 100, 101, 500, 501, 8000)
    ]
    assert freqs == ["2", "2", "2", "5", "10", "30", "30"]


def test_a_hook_is_disabled_while_its_freq_is_set(fresh: Present, done: Present) -> None:
    """Otherwise PBS's server would start its own timer for it, which outlives the hook."""
    faster = {**done.hooks, "magrathea_mom": {**done.hooks["magrathea_mom"], "freq": "5"}}
    for found in (commands(changes(fresh, OPTIONS)), commands(changes(replace(done, hooks=faster), OPTIONS))):
        order = [c for c in found if c.startswith("set hook magrathea_mom ") and ("enabled" in c or "freq" in c)]
        assert [c.split()[3:] for c in order] == [
            ["enabled", "=", '"false"'],
            ["freq", "=", '"15"'],
            ["enabled", "=", '"true"'],
        ]


def test_hooks_come_last_of_their_event(fresh: Present) -> None:
    assert 'set hook magrathea_mom order = "1000"' in commands(changes(fresh, OPTIONS))


def test_the_prologue_hook_exists_only_if_memory_moves(done: Present) -> None:
    moving = replace(OPTIONS, memory_moves=True)
    assert "create hook magrathea_prologue" in commands(changes(done, moving))
    with_it = replace(done, hooks={**done.hooks, "magrathea_prologue": {}})
    assert commands(changes(with_it, OPTIONS)) == ["delete hook magrathea_prologue"]


def test_events_at_the_end_of_a_job_are_taken_away(done: Present) -> None:
    """A hook for one of them costs each job a second, or the site its epilogue script."""
    mine = done.hooks["magrathea_mom"]
    assert not {"execjob_end", "execjob_epilogue"} & set(mine["event"].split(","))
    earlier = {**mine, "event": mine["event"] + ",execjob_end"}
    [change] = changes(replace(done, hooks={**done.hooks, "magrathea_mom": earlier}), OPTIONS)
    assert change.qmgr == f'set hook magrathea_mom event = "{mine["event"]}"'


def test_an_old_script_is_replaced(done: Present) -> None:
    script = '"""Magrathea\'s hook for MoM: an older one."""\nimport pbs\n'
    old = replace(done, contents={**done.contents, ("magrathea_mom", SCRIPT): script})
    [change] = changes(old, OPTIONS)
    assert change.qmgr == "import hook magrathea_mom application/x-python default {file}"
    assert change.content is not None and "execjob_begin" in change.content


def test_somebody_elses_hook_of_that_name_is_refused(done: Present) -> None:
    with pytest.raises(InstallError, match="not ours"):
        changes(replace(done, contents={("magrathea_mom", SCRIPT): "import pbs\n"}), OPTIONS)


def test_a_hook_without_a_script_after_a_broken_installation_is_ours(done: Present) -> None:
    half = replace(done, contents={key: value for key, value in done.contents.items() if key[0] != "magrathea_mom"})
    assert len(changes(half, OPTIONS)) == 1


def test_events_in_another_order_are_the_same(done: Present) -> None:
    events = ",".join(reversed(done.hooks["magrathea_mom"]["event"].split(",")))
    assert (
        changes(
            replace(done, hooks={**done.hooks, "magrathea_mom": {**done.hooks["magrathea_mom"], "event": events}}),
            OPTIONS,
        )
        == []
    )


def test_an_admins_change_is_corrected_and_the_old_value_printed(done: Present) -> None:
    low = {**done.queues["low"], "default_chunk.magrathea_accepts": "priority", "enabled": "False"}
    [change] = changes(replace(done, queues={**done.queues, "low": low}), OPTIONS)
    assert "(was priority)" in change.text


def test_an_existing_queue_keeps_its_being_stopped(done: Present) -> None:
    low = {**done.queues["low"], "enabled": "False", "started": "False"}
    assert changes(replace(done, queues={**done.queues, "low": low}), OPTIONS) == []


def test_values_that_the_hub_publishes_are_not_changed(done: Present) -> None:
    published = {"resources_available.magrathea_accepts": "none", "resv_enable": "False"}
    assert changes(replace(done, vnodes={"n1": published}), OPTIONS) == []


def test_managed_vnodes_take_no_reservations(done: Present) -> None:
    known = {
        "resources_available.magrathea_accepts": "none",
        "resources_available.magrathea_host": "h1",
        "resv_enable": "True",
    }
    assert commands(changes(replace(done, vnodes={"n1": known}), OPTIONS)) == ['set node n1 resv_enable = "False"']
    named = replace(OPTIONS, vnodes=("x",))
    assert commands(changes(done, named)) == ['set node x resv_enable = "False"']


@pytest.mark.parametrize(
    "options",
    [InstallOptions(priority=("a",), preemptible=("a",)), InstallOptions(vnodes=("nowhere",))],
    ids=["both classes", "no vnode"],
)
def test_a_contradiction_is_refused_before_anything_is_changed(fresh: Present, options: InstallOptions) -> None:
    with pytest.raises(InstallError):
        changes(fresh, options)


@pytest.mark.parametrize("wrong_one", [{"type": "string", "flag": "hr"}, {"type": "string_array", "flag": "h"}])
def test_a_resource_of_another_type_or_flag_is_refused(done: Present, wrong_one: dict[str, str]) -> None:
    wrong = {**done.resources, "magrathea_accepts": wrong_one}
    with pytest.raises(InstallError, match="magrathea_accepts"):
        changes(replace(done, resources=wrong), OPTIONS)


def test_the_resources_line_keeps_other_words() -> None:
    text = with_resources(SHIPPED, ["magrathea_accepts", "mem"])
    assert 'resources: "ncpus, mem, arch, host, vnode, aoe, eoe, magrathea_accepts"\n' in text
    assert text.startswith("a: 1\n") and text.endswith("b: 2\n")
    assert with_resources(text, ["magrathea_accepts"]) == text


def test_without_a_resources_line_the_scheduler_regards_all_and_none_is_added() -> None:
    for text in ("", "a: 1\n", '# resources: "ncpus"\n'):
        assert with_resources(text, ["magrathea_accepts"]) == text


@pytest.mark.parametrize(
    "line",
    [
        'resources: "ncpus, mem',
        "resources: ncpus",
        'resources: "ncpus" prime',
        'resources: "ncpus, \\\nmem"',
        "resources:",
    ],
)
def test_a_resources_line_that_is_not_understood_is_refused(fresh: Present, line: str) -> None:
    with pytest.raises(InstallError, match="line 2"):
        changes(replace(fresh, sched_config=f"a: 1\n{line}\n"), OPTIONS)


def test_the_last_of_several_resources_lines_gets_our_words() -> None:
    text = 'resources: "ncpus, mem"\r\nb: 2\n  resources : "host"\tALL\r\nc: 3'
    new = with_resources(text, ["magrathea", "mem"])
    assert new == 'resources: "ncpus, mem"\r\nb: 2\n  resources : "host, magrathea"\tALL\r\nc: 3'
    assert without_resources(new, ["magrathea"]) == text


def waiting(queue: str, schedselect: str = "1:ncpus=1", state: str = "Q", select: str = "1:ncpus=1") -> SubmittedJob:
    return SubmittedJob(id="7.srv", state=state, queue=queue, select=select, schedselect=schedselect)


@pytest.mark.parametrize(
    ("job", "cls"),
    [
        (waiting("low"), "preemptible"),
        (waiting("high", state="H"), "priority"),
        (waiting("workq", state="W"), "protected"),
        (waiting("low", state="B"), "preemptible"),
        (waiting("low", "1:ncpus=1:magrathea_accepts=protected"), "preemptible"),
        (waiting("low", "1:ncpus=1:magrathea_accepts=preemptible+1:ncpus=2"), "preemptible"),
    ],
)
def test_a_waiting_job_gets_its_queues_class_last_of_all(done: Present, job: SubmittedJob, cls: str) -> None:
    [change] = changes(replace(done, jobs=(job,)), OPTIONS)
    assert change.command == ("qalter", "-l", f"select={job.select}", "7.srv")
    assert cls in change.text
    assert changes(replace(done, server={}, jobs=(job,)), OPTIONS)[-1] == change


@pytest.mark.parametrize(
    "job",
    [
        waiting("low", state="R"),
        waiting("low", state="S"),
        waiting("low", state="F"),
        waiting("low", "1:ncpus=1:magrathea_accepts=preemptible"),
        waiting("low", select="1:ncpus=1:magrathea_accepts=priority"),
        waiting("routing", schedselect=""),
        waiting("routing"),
    ],
)
def test_other_jobs_are_left_alone(done: Present, job: SubmittedJob) -> None:
    queues = {**done.queues, "routing": {"queue_type": "Route"}}
    assert changes(replace(done, queues=queues, jobs=(job,)), OPTIONS) == []


def test_a_queue_that_only_routes_is_refused(fresh: Present) -> None:
    with pytest.raises(InstallError, match="Route"):
        changes(replace(fresh, queues={"low": {"queue_type": "Route"}}), OPTIONS)
