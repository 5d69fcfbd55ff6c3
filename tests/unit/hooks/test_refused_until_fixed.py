"""A job that cannot start until somebody changes something is tried ever later, not in each of PBS's cycles."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.pbs_standin.pbs_module import Hook, HookJob, HookOutcome, Server
from scheduler_plugin.setup.hook_texts import hook_text

MEMORY = "magrathea_server_memory"


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    sys.modules.pop(MEMORY, None)
    config = tmp_path / "hook.json"
    config.write_text(json.dumps({"heartbeat": str(tmp_path / "heartbeat"), "heartbeat_max_age_s": 30}))
    yield Hook("magrathea_server", hook_text("magrathea_server"), config)
    sys.modules.pop(MEMORY, None)


def run(hook: Hook, cpus: int, id: str = "1.srv", assigned: int = 0, cls: str = "protected") -> HookOutcome:
    """On a counted host of 4 CPUs."""
    vnode: dict[str, Any] = {
        "resources_available": {"magrathea_siblings": "none", "magrathea_host": "h1", "magrathea_host_ncpus": 4},
        "resources_assigned": {"ncpus": assigned},
        "jobs": None,
    }
    job = {
        "id": id,
        "queue": "q",
        "schedselect": f"1:ncpus={cpus}:magrathea_accepts={cls}",
        "exec_vnode": f"(n1:ncpus={cpus})",
        "Variable_List": {},
    }
    server = Server("srv", {"n1": vnode}, {}, {"magrathea_accepts": "protected"})
    return hook.run("runjob", server=server, job=HookJob(id, job, {}))


def wait_s(outcome: HookOutcome) -> int:
    """The wait that the hook sets, in seconds."""
    assert not outcome.accepted
    return round(int(outcome.changes["Execution_Time"]) - time.time())


def test_each_wait_is_twice_the_one_before_up_to_ten_minutes(hook: Hook) -> None:
    waits = [wait_s(run(hook, cpus=5)) for _ in range(12)]
    assert all(abs(wait - right) <= 2 for wait, right in zip(waits, [5, 10, 20, 40, 80, 160, 320], strict=False))
    assert all(abs(wait - 600) <= 2 for wait in waits[7:])


def test_other_jobs_and_a_job_that_has_started_meanwhile_begin_anew(hook: Hook) -> None:
    for _ in range(5):
        run(hook, cpus=5)
    assert wait_s(run(hook, cpus=5, id="2.srv")) <= 7
    assert run(hook, cpus=4).accepted
    assert wait_s(run(hook, cpus=5)) <= 7


def test_so_is_a_job_of_another_class_than_its_queues(hook: Hook) -> None:
    assert wait_s(run(hook, cpus=1, cls="priority")) <= 7


def test_a_job_that_only_has_to_wait_for_others_is_tried_in_the_next_cycle(hook: Hook) -> None:
    refused = run(hook, cpus=2, assigned=3)
    assert not refused.accepted
    assert "no-cpus" in refused.message
    assert "Execution_Time" not in refused.changes


def test_a_subjob_gets_no_later_time_because_pbs_ends_an_array_whose_last_subjobs_wait(hook: Hook) -> None:
    sent_on = run(hook, cpus=5, id="7[1].srv")
    assert sent_on.accepted
    assert "Execution_Time" not in sent_on.changes


def test_the_number_of_jobs_that_it_counts_is_bounded(hook: Hook, tmp_path: Path) -> None:
    text = hook_text("magrathea_server")
    assert text.count("MOST_TRIED = 10000 ") == 1
    few = Hook("magrathea_server", text.replace("MOST_TRIED = 10000 ", "MOST_TRIED = 3 "), Path(str(hook.config)))
    for number in range(9):
        run(few, cpus=5, id=f"{number}.srv")
    assert len(sys.modules[MEMORY].tried) == 3
