"""The two seconds of a claim, added up; and limits that several programs repeat because they cannot import them."""

from __future__ import annotations

import ast
import itertools

import pytest

from magrathea import deadlines, messages, stop_warnings
from magrathea.core.model import JobClass
from magrathea.pbs_text import select, stop_signals
from node_daemon.agent import daemon_requests, mom_requests, parts, stopper, sweeper
from scheduler_plugin.hub import job_reports, job_wishes
from scheduler_plugin.setup.hook_texts import hook_text
from scheduler_plugin.setup.install import wanted_hooks
from scheduler_plugin.setup.setup_model import InstallOptions


def constants(text: str) -> dict[str, float]:
    """The named numbers in a program's source."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            [target], value = node.targets, node.value.value
            if isinstance(target, ast.Name) and isinstance(value, int | float):
                found[target.id] = float(value)
    return found


HOOK = constants(hook_text("magrathea_mom"))


def test_the_turns_of_all_add_up_to_the_two_seconds_and_no_more() -> None:
    hooks_own = deadlines.HOOK_MARGIN_S + deadlines.TAKE_BACK_S
    assert deadlines.AGENT_CLAIM_S + hooks_own == pytest.approx(deadlines.CLAIM_S) == 2.0


def test_each_gives_up_before_the_one_that_waits_for_it() -> None:
    waiting = (
        deadlines.UNINTERRUPTIBLE_S,
        deadlines.ORDER_S,
        deadlines.ORDER_S + deadlines.ORDER_MARGIN_S,
        deadlines.AGENT_CLAIM_S,
        deadlines.AGENT_CLAIM_S + deadlines.HOOK_MARGIN_S,
        deadlines.CLAIM_S,
    )
    assert all(inner < outer for inner, outer in itertools.pairwise(waiting))
    assert deadlines.ORDER_S + deadlines.ORDER_MARGIN_S <= deadlines.DAEMON_CLAIM_S + 1e-9
    assert deadlines.AGENT_CLAIM_S - deadlines.DAEMON_CLAIM_S >= 0.2 - 1e-9, "for the guest channel, to and fro"
    assert (
        max(deadlines.CONFIRM_S, deadlines.MEMORY_GLANCE_S, stop_warnings.WITHOUT_PROLOGUE_S) < deadlines.DAEMON_CLAIM_S
    )


def test_the_hook_has_the_same_numbers() -> None:
    assert HOOK["AGENT_CLAIM_S"] == deadlines.AGENT_CLAIM_S
    assert HOOK["HOOK_MARGIN_S"] == deadlines.HOOK_MARGIN_S
    assert HOOK["TAKE_BACK_S"] == deadlines.TAKE_BACK_S


def test_the_agent_has_the_same_numbers() -> None:
    assert pytest.approx(deadlines.AGENT_CLAIM_S + deadlines.HOOK_MARGIN_S) == mom_requests.HOOK_WAITS_S
    assert stopper.PENDING_COUNTS_S == deadlines.UNINTERRUPTIBLE_S
    assert deadlines.ORDER_S <= sweeper.ORDERS_S


def test_pbs_kills_no_hook_before_it_has_given_up() -> None:
    """A hook killed by its alarm sets no later execution time, so PBS would try again at once."""
    alarms = {name: float(hook[0]["alarm"]) for name, hook in wanted_hooks(InstallOptions(memory_moves=True)).items()}
    assert alarms["magrathea_mom"] > deadlines.CLAIM_S
    assert HOOK["TELL_S"] < alarms["magrathea_mom"]
    assert HOOK["WAIT_S"] + HOOK["PREPARED_S"] + HOOK["HOOK_MARGIN_S"] < alarms["magrathea_prologue"]


def test_a_warning_may_be_configured_ordered_and_reported_by_limits_that_fit() -> None:
    assert stop_warnings.LONGEST_S == daemon_requests.MAX_ORDERED_WARN_S == job_wishes.MAX_REPORTED_WARN_S
    assert HOOK["WAIT_S"] > stop_warnings.LONGEST_S, "the prologue of the job that preempts waits for it"
    assert {f"SIG{name}" for name in stop_signals.SIGNALS} == set(daemon_requests.WARN_SIGNALS)
    assert HOOK["WARNING_CHARS"] == mom_requests.WARNING_CHARS == stop_signals.LONGEST_TEXT


def test_hook_agent_and_hub_take_the_same_number_of_parts_in_one_question() -> None:
    assert HOOK["MAX_PARTS"] == mom_requests.MAX_PARTS == messages.MAX_PARTS


def test_the_hub_suspends_all_jobs_of_the_largest_domain_at_once() -> None:
    assert job_reports.BURST >= parts.MAX_JOBS


def test_hooks_and_agent_know_the_classes_of_the_core() -> None:
    assert set(select.CLASSES) == set(mom_requests.CLASSES) == {cls.value for cls in JobClass}
