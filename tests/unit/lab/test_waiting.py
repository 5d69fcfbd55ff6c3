"""Waiting for a condition: its result, and its message if nothing comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from magrathea_lab.rigs.virtual_time import run
from magrathea_lab.waiting import BOUND_S, NotInTime, eventually, until


def virtually(condition: Callable[[], Any], what: str, bound_s: float = BOUND_S) -> Any:
    return run(eventually(condition, what, bound_s))


@pytest.mark.parametrize("wait", [until, virtually])
def test_the_value_of_the_condition_is_returned(wait: Callable[..., Any]) -> None:
    numbers = itertools.count()
    assert wait(lambda: [n for n in (next(numbers),) if n == 3], "three") == [3]


@pytest.mark.parametrize("wait", [until, virtually])
@pytest.mark.parametrize(("seen", "shown"), [([], "; last seen: []"), (None, ""), (False, "")])
def test_a_wait_in_vain_names_the_condition_and_the_last_value(
    wait: Callable[..., Any], seen: object, shown: str
) -> None:
    with pytest.raises(NotInTime) as failure:
        wait(lambda: seen, "the end", 0.01)
    assert str(failure.value) == f"not within 0.01 s: the end{shown}"


def test_the_text_is_asked_for_when_the_time_is_over() -> None:
    looks = itertools.count()
    with pytest.raises(NotInTime, match="after more than one look"):
        until(lambda: next(looks) < 0, lambda: f"after {'more than one look' if next(looks) > 1 else 'none'}", 0.02)


def test_looks_become_rarer() -> None:
    looks: list[float] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        await eventually(lambda: looks.append(loop.time()), "nothing", 60)

    with pytest.raises(NotInTime):
        run(work())
    pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert pauses[0] < 0.01 and 0.1 < pauses[-1] < 1.0 and len(looks) < 1000
