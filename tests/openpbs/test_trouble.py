"""Parts die in the middle of a preemption: everything converges, no job is lost, none stays stopped."""

from __future__ import annotations

import pytest

from magrathea_lab.clusters.openpbs import PERIODIC_S, VNODES_HOOK_S, OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_right_end,
    wait_running,
    wait_state,
    wait_stoppable,
)

from .jobs import preempt
from .test_cheating import SAY

STEPS = 70
"""Enough for a job to be preempted long before its end."""


def preempted(fleet: OpenPbsCluster, *, rerunnable: bool = True) -> tuple[str, str]:
    """A preempted low job (state S), and the priority job that preempted it."""
    low = fleet.submit("low", STEPS, rerunnable=rerunnable)
    wait_running(fleet, low)
    return low, preempt(fleet, low)


def test_the_hub_is_killed_while_a_job_is_preempted(fleet: OpenPbsCluster) -> None:
    """The stop is booked in PBS, so it ends with the hub's admin-resume, not before."""
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        fleet.parts["hub"].kill()
        fleet.delete(high)
        wait_state(fleet, high, "F")
        step = stands_still(fleet, low)
        fleet.start_part("hub")
        goes_on(fleet, low, step)
        wait_right_end(fleet, low, STEPS)
        wait_all_free(fleet, EXCLUSIVE)


@pytest.mark.parametrize("parts", [["agent-n1"], ["noded-h1", "agent-n1", "agent-p1"]], ids="+".join)
def test_parts_of_the_host_are_killed_while_a_job_is_preempted(fleet: OpenPbsCluster, parts: list[str]) -> None:
    with fleet.only(EXCLUSIVE):
        low, high = preempted(fleet)
        for part in parts:
            fleet.parts[part].kill()
        step = stands_still(fleet, low)
        for part in parts:
            fleet.start_part(part)
        wait_domain(fleet, "n1", "preempted")
        assert fleet.counter(low) == step
        fleet.delete(high)
        goes_on(fleet, low, step)
        wait_right_end(fleet, low, STEPS)
        wait_all_free(fleet, EXCLUSIVE)


def test_without_its_hub_nothing_new_is_preempted(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n1")
        said = len(fleet.log("noded-h1"))
        fleet.parts["hub"].kill()
        wait(fleet, "the daemon misses its hub", lambda: "no hub answers" in fleet.log("noded-h1")[said:])
        high = fleet.submit("high", LONG)
        wait_state(fleet, high, "W")  # the claim was refused, with a later execution time
        assert fleet.jobs()[low].state == "R"
        step = fleet.counter(low)
        goes_on(fleet, low, step)
        fleet.start_part("hub")
        wait_state(fleet, low, "S")
        finish(fleet, high)
        wait_state(fleet, low, "R")
        fleet.delete(low)
        wait_all_free(fleet, EXCLUSIVE)


def test_a_domain_without_its_agent_starts_nothing_and_the_job_comes_back_by_itself(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE):
        fleet.parts["agent-p1"].kill()
        high = fleet.submit("high", 10, select="1:ncpus=1:host=p1")
        wait(fleet, "it is not held", lambda: fleet.jobs()[high].state in "WQ")
        assert fleet.counter(high) == 0
        fleet.start_part("agent-p1")
        view = wait_state(fleet, high, "F")
        assert view.exit_status == 0
        wait_all_free(fleet, EXCLUSIVE)


def test_a_stale_publication_is_caught_by_the_runjob_hook(fleet: OpenPbsCluster) -> None:
    """An admin's mistake makes the scheduler try a job that may not start; the hook sees what runs at this moment."""
    with fleet.only(EXCLUSIVE):
        protected = fleet.submit("normal", LONG)
        wait_running(fleet, protected)
        wait_domain(fleet, "n1", "running")
        wait(fleet, "p1 accepts none", lambda: fleet.vnodes()["p1"].accepts == ("none",))
        high = fleet.submit("high", 10)

        def refused() -> bool:
            """Make the mistake again: the hub may have corrected it before the scheduler looked."""
            fleet.pbs.qmgr("set node p1 resources_available.magrathea_accepts=priority\nset server scheduling=true")
            return "host-busy" in fleet.jobs()[high].comment

        wait(fleet, "the hook has refused it", refused)
        assert fleet.jobs()[high].state == "Q"
        assert fleet.jobs()[high].run_version == 0
        assert fleet.jobs()[protected].state == "R"
        fleet.delete(high)
        fleet.delete(protected)
        fleet.parts["hub"].kill()
        fleet.start_part("hub")  # at its start it corrects PBS
        wait_all_free(fleet, EXCLUSIVE)


def test_the_set_up_can_be_repeated(fleet: OpenPbsCluster) -> None:
    fleet.install()  # back from the tests' short interval of lists to 15 s
    try:
        assert fleet.install() == "nothing to change\n"
    finally:
        fleet.pbs.qmgr(
            "\n".join(
                f"set hook {hook} {setting}"
                for hook, freq_s in (("magrathea_mom", PERIODIC_S), ("magrathea_vnodes", VNODES_HOOK_S))
                for setting in ("enabled=false", f"freq={freq_s}", "enabled=true")
            )
        )


def test_users_cannot_ask_for_a_class(fleet: OpenPbsCluster) -> None:
    refused = fleet.pbs.run(
        HEAD, ["qsub", "-l", "select=1:magrathea_accepts=priority", "--", "/bin/true"], user="bob", check=False
    )
    assert refused.returncode != 0
    assert "magrathea_accepts" in refused.stderr


def say(fleet: OpenPbsCluster, line: str) -> None:
    """To h1's daemon, as root."""
    told = fleet.pbs.run("n1", ["python3", "-c", SAY, f"{fleet.directory}/h1/run/control.sock", line]).stdout
    assert '"ok":true' in told, told


def test_a_start_that_only_the_host_refuses_has_a_comment_that_says_why(fleet: OpenPbsCluster) -> None:
    """The hub must have seen the job in the host's hands, since PBS takes it back at once."""
    with fleet.only(EXCLUSIVE):
        say(fleet, '{"op":"drain","domain":"n1","reason":"the test"}')
        try:
            wait_domain(fleet, "n1", "draining")
            low = fleet.submit("low", 10)

            def refused() -> bool:  # the published state is what else keeps it away
                fleet.pbs.qmgr("set node n1 resources_available.magrathea_accepts=preemptible")
                fleet.pbs.qmgr("set server scheduling=true")
                return "magrathea: domain-draining" in fleet.jobs()[low].comment

            wait(fleet, "its comment says why", refused)
        finally:
            say(fleet, '{"op":"undrain","domain":"n1"}')
        wait_state(fleet, low, "F")
        wait_all_free(fleet, EXCLUSIVE)
