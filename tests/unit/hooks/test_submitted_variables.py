"""What the server's hook refuses, or takes back, in the variables of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea_lab.pbs_standin.pbs_module import Hook, HookJob, Server
from scheduler_plugin.setup.hook_texts import hook_text

HOOK = ("magrathea_server", hook_text("magrathea_server"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("MAGRATHEA_SIGNAL", "KILL", "warning-unclear"),
        ("MAGRATHEA_SIGNAL", "B:USR1@1.5", "warning-unclear"),
        ("MAGRATHEA_SIGNAL", "USR1@" + "9" * 5000, "warning-unclear"),
        ("MAGRATHEA_REFUSED", "hook-failed", "own-class"),
        ("MAGRATHEA_SIGNAL", "B:SIGUSR1@30", None),
        ("MAGRATHEA_SIGNAL", "", None),
        ("OTHER", "KILL", None),
    ],
)
def test_a_submitted_job_has_no_wrong_variable_of_ours_and_is_told_so(name: str, text: str, said: str | None) -> None:
    outcome = Hook(*HOOK).run(
        "queuejob", server=Server("srv", {}, {}), job=HookJob("9.srv", {"Variable_List": {name: text}})
    )
    assert outcome.accepted if said is None else said in outcome.message
    assert len(outcome.message) < 300
    moved = Hook(*HOOK).run(
        "movejob", server=Server("srv", {}, {}), job=HookJob("9.srv", {"Variable_List": {name: text}})
    )
    assert moved.accepted, "it was submitted before"


@pytest.mark.parametrize(
    ("attributes", "refused"),
    [({"Submit_arguments": "-V -- /bin/true"}, True), ({}, False), ({"Submit_arguments": "", "Priority": 1}, False)],
)
def test_a_job_whose_variables_pbs_cannot_show_is_refused(attributes: dict[str, object], refused: bool) -> None:
    """PBS would drop them all. Without arguments it was no qsub; then nobody knows whether there were any."""
    outcome = Hook(*HOOK).run("queuejob", server=Server("srv", {}, {}), job=HookJob("9.srv", attributes))
    assert outcome.accepted is not refused
    assert ("variables-lost" in outcome.message and "UTF-8" in outcome.message) is refused


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize("id", ["9[1].srv", "9.srv"])
def test_a_mark_that_a_user_has_set_past_the_hook_is_taken_back_at_the_start(
    tmp_path: Path, id: str, *, managed: bool
) -> None:
    """MoM would refuse the subjob without end, and PBS would try it as often."""
    (tmp_path / "hook.json").write_text("{}")
    available = {"magrathea_siblings": "none"} if managed else {}
    vnodes = {"p1": {"resources_available": available, "jobs": None}}
    attributes = {
        "schedselect": "1:ncpus=1:magrathea_accepts=protected",
        "exec_vnode": "(p1:ncpus=1)",
        "Resource_List": {"select": "1:ncpus=1"},
        "Variable_List": {"MAGRATHEA_REFUSED": "hook-failed", "HOME": "/"},
    }
    job = HookJob(id, attributes, {"magrathea_accepts": "protected"})
    outcome = Hook(*HOOK, tmp_path / "hook.json").run("runjob", server=Server("srv", vnodes, {}), job=job)
    assert outcome.accepted, outcome.message
    assert bool(job.Variable_List["MAGRATHEA_REFUSED"]) is not managed
    assert job.Variable_List["HOME"] == "/"
