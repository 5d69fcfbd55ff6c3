"""The site's scripts, and the guest's power and clock, as the daemon asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import Rig, running
from magrathea_lab.waiting import until


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def script(rig: Rig, name: str, text: str, mode: int = 0o755) -> Path:
    path = rig.directory / "hooks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(mode)
    return path


def test_scripts_run_in_order_with_a_clean_environment_and_their_output_in_the_log(rig: Rig) -> None:
    script(rig, "before-preempt", 'echo "first $MAGRATHEA_JOB $MAGRATHEA_X pid1=$PBS_JOBID"')
    script(rig, "before-preempt.d/20-c", "echo third >&2; exit 3")
    script(rig, "before-preempt.d/10-b", "echo second")
    script(rig, "before-preempt.d/30-open", "echo never", mode=0o777)
    script(rig, "before-preempt.d/40-data", "echo never", mode=0o644)
    env = {"MAGRATHEA_JOB": "12.srv", "X": "$(reboot)"}
    assert rig.host.request("script", name="before-preempt", env=env) == {
        "type": "answer", "id": 1, "session": rig.host.session, "ok": True, "scripts": 3,
    }  # fmt: skip
    until(lambda: "exit code 3" in rig.log_text(), "the last script")
    text = rig.log_text()
    assert text.index("first 12.srv $(reboot) pid1=") < text.index("second") < text.index("third")
    assert "never" not in text


def test_a_script_over_its_time_is_ended_and_nothing_waits_for_it() -> None:
    with running(script_time_limit_s=0.3) as rig:
        script(rig, "slow", "trap '' TERM; echo begun; sleep 600 & wait; sleep 600")
        assert rig.host.request("script", name="slow")["ok"]
        assert rig.host.request("ping")["ok"]
        until(lambda: "signal 9" in rig.log_text() and not rig.children(), "the end of the script")


@pytest.mark.parametrize("name", ["../evil", "", "A", "a/b", "a b", ".", "x" * 100])
def test_a_script_name_that_is_none_is_refused(rig: Rig, name: str) -> None:
    assert rig.host.request("script", name=name)["code"] == "bad-request"


def test_a_script_that_floods_does_not_fill_the_log(rig: Rig) -> None:
    script(rig, "flood", "yes magrathea | head -c 3000000; echo done > " + str(rig.directory / "done"))
    rig.host.request("script", name="flood")
    until((rig.directory / "done").exists, "the script")
    assert rig.host.request("ping")["ok"]
    assert len(rig.log_text()) < 20000


def test_a_request_to_wait_for_scripts_is_answered_after_the_last(rig: Rig) -> None:
    script(rig, "before-freeze", "sleep 0.3; echo one")
    script(rig, "before-freeze.d/10-b", "sleep 0.3; echo two; exit 1")
    assert rig.host.request("script", name="before-freeze", wait=True)["ok"]
    assert "two" in rig.log_text()
    assert rig.host.request("script", name="before-nothing", wait=True)["ok"]


def test_power_goes_off_as_configured_and_on_no_machine_that_is_not_known_to_be_a_guest(rig: Rig) -> None:
    assert "power" not in rig.host.agent["can"]
    assert rig.host.request("power", what="off")["code"] == "not-supported"
    assert rig.host.request("power", what="reboot")["code"] == "bad-request"
    assert rig.host.request("clock", unix_s=time.time() + 3600)["code"] == "not-permitted"
    assert rig.host.request("reconnect")["code"] == "not-permitted"
    with running(power_off=["/bin/sh", "-c", "kill $PPID"]) as other:
        assert "power" in other.host.agent["can"]
        assert other.host.request("power", what="off")["ok"]
        until(lambda: other.agent is not None and other.agent.poll() is not None, "what was configured")
