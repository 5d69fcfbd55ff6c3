"""docs/states.md is written from the code, and is up to date."""

from __future__ import annotations

from typing import get_args

from magrathea.core import events as ev
from magrathea.core.model import Mode, State
from tools import states_page


def test_the_page_agrees_with_the_code() -> None:
    text = states_page.page(states_page.explored())
    assert states_page.PAGE.read_text(encoding="utf-8") == text, "stale: run `python -m tools.states_page`"


def test_every_state_is_explained() -> None:
    assert list(states_page.WHEN) == list(State)


def test_every_event_of_one_domain_that_can_change_a_state_has_a_word() -> None:
    assert set(get_args(ev.DomainEvent)) - set(states_page.WORDS) == {ev.MemoryReported, ev.DiskJudged}


def test_nothing_is_left_to_chance() -> None:
    def small() -> states_page.Found:
        found = states_page.Found()
        for mode in Mode:
            states_page.explore(states_page.first_host(mode), found, most_hosts=30)
        return found

    assert states_page.page(small()) == states_page.page(small())
