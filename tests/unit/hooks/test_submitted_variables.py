"""What the server's hook refuses in the variables of a submitted job."""

from __future__ import annotations

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
