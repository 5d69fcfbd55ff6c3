"""The facts about a host, and the journal that keeps them.

    event -> machine.handle -> journal (on disk) -> the facts

Rule 1: `Facts.apply` is the only door to the facts.
Rule 2: facts about moves have a door of their own, `apply_move`. What they say of a domain holds for all other events:
claims for a domain that moves are refused, and a configuration does not bring back one that has left.
Rule 3: a fact is on disk before it counts. If the journal fails, facts go on to change in memory, because jobs end
whether the disk works or not; but claims and restores are refused. What could not be written is written later.
A fact about a move never counts before it is on disk: another host may act on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magrathea.core import events as ev
from magrathea.core import machine, migration
from magrathea.core.arrivals import Rules
from magrathea.core.model import Host, JobKey
from magrathea.core.move_events import Decision as MoveDecision
from magrathea.core.move_events import MoveEvent
from magrathea.core.moves import HostWithMoves, Moves
from magrathea.core.reconfiguration import UNKNOWN_HOST
from magrathea.core.refusals import RefusalCode
from magrathea.core.states import state_of
from magrathea.history import Recorded

from .clock import Clock
from .journal import Journal, JournalError, open_journal, salvage, salvage_moves
from .journal_store import JournalStore, NoJournal, Since

log = logging.getLogger(__name__)

MAX_UNSAVED = 10_000
"""Decisions kept for a journal that fails."""
REFUSED_WITHOUT_JOURNAL = ev.Claimed | ev.DefrostRequested | ev.SleepRequested
"""Events that bind the host to something new."""
REFUSED_WHILE_MOVING = (
    ev.Claimed
    | ev.BootRequested
    | ev.ShutdownRequested
    | ev.FreezeRequested
    | ev.SleepRequested
    | ev.DefrostRequested
    | ev.DrainRequested
)
"""Requests that a domain cannot grant which is on its way to or from another host, or which another host has."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What an event led to. `taken`: it counts; if not, `decisions` holds the refusal. `changed`: a fact or a domain's
    state has changed."""

    decisions: tuple[ev.Decision, ...]
    taken: bool = True
    changed: bool = False


class Facts:
    """One host's facts. `observe` is called after each commit, `on_trouble` when the journal fails or works again."""

    def __init__(
        self,
        path: Path,
        make_clock: Callable[[float], Clock],
        observe: Callable[[str], None],
        on_trouble: Callable[[], None],
    ) -> None:
        self._path = path
        self._observe = observe
        self._on_trouble = on_trouble
        self.journal, facts, self.moves, self.since, self.trouble = _open(path)
        """`moves`: the facts about moves. `since`: the state of each domain and when it began. `trouble`: what is wrong
        with the journal, or empty."""
        self.host = facts or UNKNOWN_HOST
        """As the journal has it; the daemon's start lets the configuration change it."""
        self._clock = make_clock(self.host.now)
        self._unsaved: list[Recorded] = []
        self._dirty = False

    def now(self) -> float:
        return self._clock.now()

    def apply(self, event: ev.Event) -> Applied:
        """Make `event` a fact, and write it to disk. If the disk fails, a claim is refused; anything else counts."""
        before, event = self.host, self._as_moves_allow(event)
        if refused := self._refused_while_moving(event):
            self.journal.note(self.now(), event, (refused,))
            return Applied((refused,), taken=False)
        after, decisions = machine.handle(before, event)
        told = tuple(d for d in decisions if not ev.is_question(d))
        changed = differs(before, after)
        states = self._new_states(after) if changed or isinstance(event, ev.TimerFired) else {}
        if changed or states:
            if not self._commit(after, event, told, states) and isinstance(event, REFUSED_WITHOUT_JOURNAL):
                text = f"{self.trouble}; without its journal this host takes no new jobs"
                refusal = ev.Refused(event.domain, RefusalCode.JOURNAL, text, getattr(event, "key", None))
                return Applied((refusal,), taken=False)
        elif told:
            self.journal.note(after.now, event, told)
        self.host = after
        self.since.update(states)
        return Applied(decisions, changed=bool(changed or states))

    @property
    def place(self) -> HostWithMoves:
        return HostWithMoves(self.host, self.moves)

    def apply_move(self, event: MoveEvent, rules: Rules) -> tuple[MoveDecision, ...] | None:
        """Make `event` a fact about moves, and write it to disk. None if the disk fails: then nothing has changed."""
        place, decisions = migration.handle(self.place, event, rules)
        moved = place.moves != self.moves
        if moved or differs(self.host, place.host):
            states = self._new_states(place.host)
            if not self._commit(place.host, None, decisions, states, place.moves if moved else None, after=event):
                return None
            self.since.update(states)
        elif decisions:
            self.journal.note(place.host.now, None, decisions)
        changes = (place.host.domains, place.host.coming) != (self.host.domains, self.host.coming)
        self.host, self.moves = place.host, place.moves
        if changes:  # what is wanted of the siblings may be another thing now
            self.apply(ev.TimerFired(self.host.now))
        return decisions

    def _as_moves_allow(self, event: ev.Event) -> ev.Event:
        if isinstance(event, ev.Reconfigured):
            return replace(event, domains=migration.configured(self.place, event.domains))
        return event

    def _refused_while_moving(self, event: ev.Event) -> ev.Refused | None:
        if not isinstance(event, REFUSED_WHILE_MOVING) or (no := migration.refusal(self.place, event.domain)) is None:
            return None
        return ev.Refused(event.domain, no.code, no.text, getattr(event, "key", None))

    def _commit(
        self,
        host: Host,
        event: ev.Event | None,
        decisions: Sequence[Recorded],
        states: dict[str, Since],
        moves: Moves | None = None,
        after: MoveEvent | None = None,
    ) -> bool:
        try:
            self.journal.commit(host, event, [*self._unsaved, *decisions], states, moves)
        except JournalError as error:
            if not self.trouble:
                log.error("%s; no new jobs are taken until it works again", error)
                self._on_trouble()
            self.trouble = str(error)
            if after is None and not isinstance(event, REFUSED_WITHOUT_JOURNAL):
                self._unsaved = [*self._unsaved, *decisions][-MAX_UNSAVED:]
                self._dirty = True
            return False
        if self.trouble:
            log.warning("%s works again", self._path)
            self.trouble = ""
            self._on_trouble()
        self._unsaved.clear()
        self._dirty = False
        self._observe(f"commit {type(after or event).__name__}")
        return True

    def _new_states(self, host: Host) -> dict[str, Since]:
        states = {d.name: state_of(host, d).value for d in host.domains}
        return {
            name: Since(state, host.now)
            for name, state in states.items()
            if name not in self.since or self.since[name].state != state
        }

    def write_again(self) -> None:
        """Try to write what could not be written."""
        if self._dirty:
            self._commit(self.host, None, (), {})

    def tidy(self, keep_s: float) -> bool:
        """Remove what is older from the journal's history. True if there is more to remove."""
        try:
            return self.journal.tidy(self.now() - keep_s)
        except JournalError as error:
            if not self.trouble:
                log.error("%s", error)
            return False

    def preempted_by(self) -> dict[tuple[str, JobKey], str]:
        """What each stopped job was preempted for, as the history has it. Only people see it."""
        if not isinstance(self.journal, Journal):
            return {}
        found: dict[tuple[str, JobKey], str] = {}
        for domain in self.host.domains:
            for job in domain.stopped:
                try:
                    by = self.journal.preempted_by(domain.name, job.key)
                except JournalError as error:
                    log.error("%s", error)
                    return found
                if by:
                    found[domain.name, job.key] = by
        return found

    def close(self) -> None:
        self.journal.close()


def differs(one: Host, other: Host) -> bool:
    """Whether a fact differs. The time of the last event is not one."""
    return one is not other and replace(one, now=0.0) != replace(other, now=0.0)


def _open(path: Path) -> tuple[JournalStore, Host | None, Moves, dict[str, Since], str]:
    """The journal, its facts, those about moves, its states, and its damage. A damaged journal is left as it is."""
    try:
        journal = open_journal(path)
        return journal, journal.facts(), journal.moves(), journal.states(), ""
    except JournalError as error:
        log.error("%s", error)
        facts = salvage(path)
        log.error("%s", "its last facts could be read" if facts else "no facts: jobs are found again by MoM's lists")
        return NoJournal(error), facts, salvage_moves(path), {}, str(error)
