"""The stand-in's `pbs` module: hooks see what OpenPBS shows them, and their answers are understood."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab import fleet
from magrathea_lab.pbs_standin import pbs_module
from magrathea_lab.pbs_standin.pbs_module import Hook, HookJob, HookOutcome, Server
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.setup.hook_texts import hook_text

SERVER = Server("srv", {}, {})
SERVER_HOOK = ("magrathea_server", hook_text("magrathea_server"))
MOM_HOOK = ("magrathea_mom", hook_text("magrathea_mom"))


def job(**attributes: Any) -> HookJob:
    given = {"queue": "low", "run_version": 3, "schedselect": "1:ncpus=1", "exec_vnode": "(n1:ncpus=1)", **attributes}
    return HookJob("12.srv", given)


def run(tmp_path: Path, text: str, event: str = "execjob_begin", **parameters: Any) -> HookOutcome:
    return Hook("hook", "import pbs\ne = pbs.event()\n" + text).run(event, server=SERVER, vnode="n1", **parameters)


def test_a_hook_that_ends_has_accepted(tmp_path: Path) -> None:
    assert run(tmp_path, "x = 1").accepted


def test_accept_ends_the_hook(tmp_path: Path) -> None:
    assert run(tmp_path, "e.accept()\ne.reject('never reached')").accepted


def test_reject_carries_its_message(tmp_path: Path) -> None:
    outcome = run(tmp_path, "e.reject('host-busy')")
    assert (outcome.accepted, outcome.message) == (False, "host-busy")


def test_an_exception_is_a_reject_with_its_trace_in_the_log(tmp_path: Path) -> None:
    outcome = run(tmp_path, "1 / 0")
    assert not outcome.accepted
    assert "ZeroDivisionError" in "".join(outcome.log)


def test_a_hook_reads_builtins_as_its_name_as_in_pbs(tmp_path: Path) -> None:
    assert run(tmp_path, "pbs.logmsg(pbs.LOG_DEBUG, __name__)").log == ["builtins"]


def test_attributes_compare_by_str_only(tmp_path: Path) -> None:
    said = run(
        tmp_path, "pbs.logmsg(1, '%s %s' % (e.job.euser == 'al', str(e.job.euser) == 'al'))", job=job(euser="al")
    )
    assert said.log == ["False True"]


def test_an_attribute_that_is_unset_is_none(tmp_path: Path) -> None:
    assert run(tmp_path, "pbs.logmsg(1, str(e.job.exec_host2 is None))", job=job()).log == ["True"]


def test_a_parameter_of_another_event_is_an_error(tmp_path: Path) -> None:
    assert not run(tmp_path, "e.job_list", job=job()).accepted


def test_attributes_that_the_hook_sets_on_its_job_are_returned(tmp_path: Path) -> None:
    outcome = run(tmp_path, "e.job.Execution_Time = 1234\ne.reject('later')", job=job())
    assert outcome.changes == {"Execution_Time": 1234}


def test_setting_an_attribute_that_pbs_protects_is_an_error(tmp_path: Path) -> None:
    assert not run(tmp_path, "e.job.euser = 'root'", job=job()).accepted


def test_the_periodic_event_has_runs_and_substates(tmp_path: Path) -> None:
    text = "pbs.logmsg(1, ' '.join('%s/%d/%d' % (i, j.run_version, j.substate) for i, j in e.job_list.items()))"
    jobs = {"12.srv": job(substate=43)}
    assert run(tmp_path, text, "exechost_periodic", job_list=jobs).log == ["12.srv/3/43"]


def test_no_pbs_module_stays_behind(tmp_path: Path) -> None:
    run(tmp_path, "")
    assert "pbs" not in sys.modules


def test_as_a_program_it_handles_one_event_per_process(tmp_path: Path) -> None:
    path = tmp_path / "hook.py"
    path.write_text("import pbs\npbs.event().reject(pbs.get_local_nodename())\n", encoding="utf-8")
    given = {"hook": str(path), "event": "execjob_begin", "server": "srv", "vnode": "n1", "job": {"id": "1.srv"}}
    program = [sys.executable, "-I", "-S", pbs_module.__file__]
    done = subprocess.run(program, input=json.dumps(given), capture_output=True, text=True, timeout=BOUND_S, check=True)
    outcome = json.loads(done.stdout)
    assert (outcome["accepted"], outcome["message"]) == (False, "n1")


# The real server hook


def vnode(siblings: str | None, jobs: str | None = None) -> dict[str, Any]:
    available = {"ncpus": "2", **({} if siblings is None else {"magrathea_siblings": siblings})}
    return {"resources_available": available, "jobs": jobs}


def ask_runjob(tmp_path: Path, cls: str, other: str | None, managed: bool = True) -> HookOutcome:
    """The hook's outcome for a job of class `cls` in p1, while the sibling n1 has a job of class `other`."""
    (tmp_path / "heartbeat").touch()
    config = tmp_path / "hook.json"
    config.write_text(fleet.hook_json(tmp_path / "heartbeat"), encoding="utf-8")
    vnodes = {"p1": vnode("n1" if managed else None), "n1": vnode("p1", None if other is None else "7.srv/0")}
    present = {} if other is None else {"7.srv": {"schedselect": f"1:ncpus=1:magrathea_accepts={other}"}}
    attributes = {"schedselect": f"1:ncpus=1:magrathea_accepts={cls}", "exec_vnode": "(p1:ncpus=1)"}
    asked = HookJob("12.srv", attributes, {"magrathea_accepts": cls})
    return Hook(*SERVER_HOOK, config).run("runjob", server=Server("srv", vnodes, present), job=asked)


@pytest.mark.parametrize(
    ("cls", "other", "accepted"),
    [
        ("priority", None, True),
        ("priority", "preemptible", True),
        ("priority", "protected", False),
        ("priority", "priority", False),
        ("preemptible", "preemptible", False),
    ],
)
def test_the_server_hook_decides_by_the_siblings_jobs(
    tmp_path: Path, cls: str, other: str | None, accepted: bool
) -> None:
    outcome = ask_runjob(tmp_path, cls, other)
    assert outcome.accepted is accepted, outcome


def test_the_server_hook_leaves_other_vnodes_alone(tmp_path: Path) -> None:
    assert ask_runjob(tmp_path, "preemptible", "protected", managed=False).accepted


# The real MoM hook


def test_the_mom_hook_returns_at_once_if_no_agent_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(tmp_path / "none.json"))
    assert Hook(*MOM_HOOK).run("execjob_begin", server=SERVER, vnode="n1", job=job(euser="al")).accepted


def test_the_mom_hook_refuses_with_a_later_time_if_the_agent_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = tmp_path / "agent.json"
    configured.write_text(fleet.agent_json(tmp_path, tmp_path / "guest.sock"), encoding="utf-8")
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(configured))
    outcome = Hook(*MOM_HOOK).run("execjob_begin", server=SERVER, vnode="n1", job=job(euser="al"))
    assert not outcome.accepted
    assert outcome.changes["Execution_Time"] > time.time()
