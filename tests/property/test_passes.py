"""Every copy ends, whatever the guest writes (magrathea/core/passes.py), in a plain model of a hypervisor's passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.passes import LEAST_SHRINK, Help, help_needed

SMALL = 16
"""The hypervisor ends the copy if no more than this is left."""
MOST = 10**6


@dataclass
class Copied:
    """A copy that has ended. `live`: bytes sent in passes that began with running jobs."""

    work: list[int] = field(default_factory=list)
    live: int = 0
    help: Help = Help.NONE


def copied(memory: int, writes: Callable[[int], int], strays: Callable[[int], int], late: int) -> Copied:
    """Copy a guest. `writes`, `strays`: bytes that its jobs, and that the rest of it write in a pass, by the pass's
    number. `late`: passes that end between the request and the jobs' stop."""
    done = Copied(work=[memory])
    stopped_in: int | None = None
    asked_in: int | None = None
    while done.work[-1] > SMALL:
        number = len(done.work) - 1
        assert number < 1000, "it does not end"
        done.live += done.work[-1] if stopped_in is None else 0
        needed = help_needed(done.work, done.help, stopped_in)
        assert needed >= done.help, "help once given is not taken back"
        done.help = needed
        if needed and asked_in is None:
            asked_in = number
        if asked_in is not None and stopped_in is None and number >= asked_in + late:
            stopped_in = number
        jobs = writes(number) if stopped_in is None or stopped_in == number else 0
        left = 0 if needed is Help.PAUSE_DOMAIN else min(memory, jobs + strays(number))
        done.work.append(left)
    return done


def series(most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, most), min_size=1, max_size=20)


def repeated(values: list[int]) -> Callable[[int], int]:
    return lambda number: values[number % len(values)]


@given(st.integers(1, MOST), series(MOST), series(MOST), st.integers(0, 3))
def test_every_copy_ends(memory: int, jobs: list[int], strays: list[int], late: int) -> None:
    copied(memory, repeated(jobs), repeated(strays), late)


@given(st.integers(1, MOST), series(MOST))
def test_running_jobs_cost_four_times_the_memory_at_most(memory: int, jobs: list[int]) -> None:
    done = copied(memory, repeated(jobs), lambda number: 0, late=0)
    assert done.live <= memory / LEAST_SHRINK + memory  # the pass that shows that it was not less, too


@given(st.integers(1, MOST), series(MOST))
def test_a_guest_that_is_quiet_once_its_jobs_are_stopped_is_never_paused(memory: int, jobs: list[int]) -> None:
    assert copied(memory, repeated(jobs), lambda number: 0, late=0).help < Help.PAUSE_DOMAIN


@given(st.integers(SMALL, MOST), st.integers(2, 50))
def test_jobs_that_write_little_are_never_stopped(memory: int, divisor: int) -> None:
    shrinking: list[int] = [memory]

    def half(number: int) -> int:
        shrinking.append(shrinking[-1] // divisor)
        return shrinking[-1]

    assert copied(memory, half, lambda number: 0, late=0).help is Help.NONE
