"""When the copy of a domain that moves needs help to end (magrathea/core/passes.py)."""

from __future__ import annotations

import pytest

from magrathea.core.passes import Help, help_needed, rest_s

MIB = 2**20


@pytest.mark.parametrize("work", [[], [400], [400, 100], [400, 300], [400, 100, 20, 1]])
def test_jobs_run_while_each_pass_leaves_less_to_do(work: list[int]) -> None:
    assert help_needed(work, Help.NONE, None) is Help.NONE


@pytest.mark.parametrize("work", [[400, 400], [400, 500], [400, 100, 100], [400, 100, 99], [400, 301]])
def test_a_pass_that_leaves_not_less_stops_the_jobs(work: list[int]) -> None:
    assert help_needed(work, Help.NONE, None) is Help.STOP_JOBS


def test_only_the_last_two_passes_count() -> None:
    assert help_needed([400, 300, 300, 100], Help.NONE, None) is Help.NONE


def test_stopped_jobs_stay_stopped_although_passes_shrink_again() -> None:
    assert help_needed([400, 100, 100, 1], Help.STOP_JOBS, stopped_in=2) is Help.STOP_JOBS


@pytest.mark.parametrize(
    "work",
    [
        [400, 100, 100],  # the pass in which they were stopped
        [400, 100, 100, 100],  # what they had written in its first part
    ],
)
def test_what_jobs_had_written_before_their_stop_is_no_reason_to_pause_the_domain(work: list[int]) -> None:
    assert help_needed(work, Help.STOP_JOBS, stopped_in=2) is Help.STOP_JOBS


def test_a_guest_that_writes_on_with_stopped_jobs_is_paused() -> None:
    assert help_needed([400, 100, 100, 90, 90], Help.STOP_JOBS, stopped_in=2) is Help.PAUSE_DOMAIN


def test_a_paused_domain_stays_paused() -> None:
    assert help_needed([400, 100, 100, 90, 90, 1], Help.PAUSE_DOMAIN, stopped_in=2) is Help.PAUSE_DOMAIN


def test_the_rest_is_known_from_its_size_and_the_speed() -> None:
    assert rest_s(100 * MIB, 50 * MIB) == 2.0
    assert rest_s(100 * MIB, 0) is None
