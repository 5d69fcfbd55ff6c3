"""The unions of events are closed: code that matches them handles every case."""

from __future__ import annotations

from typing import get_args

from magrathea.core import events as ev


def test_every_event_is_in_its_union() -> None:
    events = {kind for kind in vars(ev).values() if isinstance(kind, type) and issubclass(kind, ev.TimedEvent)}
    of_domains = {kind for kind in events if issubclass(kind, ev.EventOfDomain)}
    bases = {ev.TimedEvent, ev.EventOfDomain, ev.EventOfJob}
    assert set(get_args(ev.DomainEvent)) == of_domains - bases
    assert set(get_args(ev.HostEvent)) == events - of_domains - bases
