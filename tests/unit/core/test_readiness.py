"""When a job of several parts may begin, and when it stops waiting."""

from __future__ import annotations

import pytest

from magrathea.core.model import MemoryComing, MemoryShort, Stage
from magrathea.core.readiness import UNHEARD_S, Unready, held_back, together, unready

COMING, SHORT, UNHEARD = (Unready(stage, f"{stage} on h2") for stage in Stage)


def test_the_lack_of_a_domain_shows_the_progress_of_the_part() -> None:
    assert unready(None, "p2") is None
    assert unready(MemoryComing(), "p2 takes 1 of 9 MiB") == Unready(Stage.COMING, "p2 takes 1 of 9 MiB")
    assert unready(MemoryShort("p2 needs 9 MiB and can have 1"), "p2") == Unready(
        Stage.SHORT, "p2 needs 9 MiB and can have 1"
    )


def test_memory_on_its_way_is_waited_for() -> None:
    assert held_back((COMING,), 10 * UNHEARD_S, hub=True) is None


def test_memory_that_does_not_come_is_never_waited_for() -> None:
    refused = held_back((COMING, SHORT, UNHEARD), 0.0, hub=True)
    assert refused is not None and (refused.code, refused.text) == ("memory-short", SHORT.text)


@pytest.mark.parametrize(("hub", "code"), [(True, "domain-unknown"), (False, "hub-lost")])
def test_silent_parts_are_waited_for_a_while(hub: bool, code: str) -> None:
    assert held_back((COMING, UNHEARD), UNHEARD_S - 1, hub=hub) is None
    refused = held_back((COMING, UNHEARD), UNHEARD_S, hub=hub)
    assert refused is not None and refused.code == code and UNHEARD.text in refused.text


def test_the_answer_of_the_hub_that_knows_most_counts() -> None:
    """Another hub may serve another PBS, or may have just started."""
    assert together([]) is None
    assert together([(UNHEARD,), ()]) == ()
    assert together([(UNHEARD, UNHEARD), (COMING, UNHEARD)]) == (COMING, UNHEARD)
