"""What the tests of sleeping domains share: requests, views, and the way to sleep and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import states
from magrathea.core.events import (
    AgentConnected,
    Booking,
    DomainStarted,
    FreezeEnded,
    SleepRequested,
)
from magrathea.core.life import LifeStep, Seen, step
from magrathea.core.model import Host, SleepCause

from .builders import (
    T,
    after,
    ask,
    books,
    get,
)

both = pytest.mark.parametrize("mode", ["exclusive", "counted"])
UP, DOWN = Seen(up=True, was_up=True, agent=True), Seen(up=False, was_up=False)
SAVED = replace(DOWN, saved=True)


def sleep_request(
    domain: str, *, cause: SleepCause = SleepCause.ADMIN, within_s: float | None = None
) -> SleepRequested:
    return SleepRequested(T, domain, "a new disk", cause, within_s)


def put_to_sleep(h: Host, domain: str) -> Host:
    """The domain falls asleep: its jobs are stopped, PBS suspends them, it is saved."""
    h = ask(h, sleep_request(domain)).host
    h = books(h, *(Booking(j.key, booked=True) for d in h.domains for j in d.stopped))
    return after(h, FreezeEnded(h.now, domain))


def woken(h: Host, domain: str) -> Host:
    return after(h, DomainStarted(h.now, domain), AgentConnected(h.now, domain))


def why(h: Host, domain: str) -> str:
    return states.why(h, get(h, domain))


def next_step(h: Host, domain: str, seen: Seen = UP) -> type[LifeStep] | None:
    due = step(h, get(h, domain), seen)
    return None if due is None else type(due)
