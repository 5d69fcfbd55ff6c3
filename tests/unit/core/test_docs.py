"""docs/states.md is written from the code, and is not stale."""

from __future__ import annotations

import pytest

from magrathea import core_docs
from magrathea.core import events as ev
from magrathea.core.model import Mode, State


@pytest.mark.timeout(300)
def test_the_page_is_what_the_code_says() -> None:
    text = core_docs.page(core_docs.explored())
    assert core_docs.PAGE.read_text(encoding="utf-8") == text, "stale: run `python -m magrathea.core_docs`"


def test_every_state_is_explained() -> None:
    assert list(core_docs.WHEN) == list(State)


def test_every_event_of_one_domain_that_can_change_a_state_has_a_word() -> None:
    kinds = {k for k in vars(ev).values() if isinstance(k, type) and issubclass(k, ev.DomainEvent)}
    assert kinds - set(core_docs.WORDS) == {ev.DomainEvent, ev.JobEvent, ev.MemoryReported}


def test_nothing_is_left_to_chance() -> None:
    def small() -> core_docs.Found:
        found = core_docs.Found()
        for mode in Mode:
            core_docs.explore(core_docs.first_host(mode), found, most_hosts=30)
        return found

    assert core_docs.page(small()) == core_docs.page(small())
