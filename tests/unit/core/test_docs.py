"""docs/states.md is written from the code, and is up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest

from magrathea.core import events as ev
from magrathea.core.model import Mode, State
from tools import states_page

STALE = "stale: run `python -m tools.states_page`"


def searched(most_hosts: int) -> states_page.Found:
    found = states_page.Found()
    for mode in Mode:
        states_page.explore(states_page.first_host(mode), found, most_hosts)
    return found


@pytest.mark.long
def test_the_page_agrees_with_the_code() -> None:
    text = states_page.page(states_page.explored())
    assert states_page.PAGE.read_text(encoding="utf-8") == text, STALE


def cells(text: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """The words of each cell of the page's tables, with the cell's place."""
    heading = ""
    for line in text.splitlines():
        heading = line if line.startswith("#") else heading
        if line.startswith("| `"):
            first, second, *found = line.strip("| ").split(" | ")
            for number, cell in enumerate(found):
                yield (heading, first, second, str(number)), set(re.split(", |; | or ", cell)) - {"-", ""}


@pytest.mark.long
def test_all_that_a_short_search_finds_is_on_the_page() -> None:
    """The whole search takes a quarter of a minute."""
    on_page = dict(cells(states_page.PAGE.read_text(encoding="utf-8")))
    short = dict(cells(states_page.page(searched(60))))
    assert len(short) > 50
    assert not {
        place: words - on_page.get(place, set()) for place, words in short.items() if words - on_page.get(place, set())
    }, STALE


def test_every_state_is_explained() -> None:
    assert list(states_page.WHEN) == list(State)


def test_every_event_of_one_domain_that_can_change_a_state_has_a_word() -> None:
    assert set(get_args(ev.DomainEvent)) - set(states_page.WORDS) == {ev.MemoryReported, ev.DiskJudged}


@pytest.mark.long
def test_nothing_is_left_to_chance() -> None:
    assert states_page.page(searched(30)) == states_page.page(searched(30))
