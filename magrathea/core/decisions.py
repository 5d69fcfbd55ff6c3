"""What the machine answers and notes when something happens to a host.

The daemon answers with the first two and writes all of them into the journal's history. It acts on none: what it must
do follows from the facts alone (plan.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from .model import JobKey
from .refusals import RefusalCode


@dataclass(frozen=True, slots=True)
class Accepted:
    """A claim or request is granted. `victims`: domains that are preempted for it."""

    domain: str
    key: JobKey | None = None
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A claim or request is refused, and nothing has changed. `code` is for programs and never changes, `text` is for
    people."""

    domain: str
    code: RefusalCode
    text: str
    key: JobKey | None = None


def is_question(decision: Accepted | Refused | Noted) -> bool:
    """True if the claim has no answer yet, because a hub must be asked first. The answer is another decision."""
    return isinstance(decision, Refused) and decision.code is RefusalCode.UNCONFIRMED


class Note(StrEnum):
    """The kinds of notes. The words are in the journals of all hosts, so none of them ever changes.

    About a job: it is stopped for another, runs again, or was found in MoM's list without a claim. Or it is gone:
    it ended (`RELEASED`), was never confirmed (`EXPIRED`), is in no list any more (`MISSING`), its domain went down,
    a newer run of it came, PBS has not given it to the domain (`NOT_GIVEN`), or had given it and no longer has it
    there (`OVER`). About a domain: a boot or freeze failed; it is put to sleep because others need its memory
    (`GIVES_WAY`), or no longer so (`STAYS_AWAKE`); it comes back from its sleep (`WAKES`); a new configuration left
    something as it was (`KEPT`) or removed the domain (`FORGOTTEN`); its guest did too much for facts or history to
    hold all (`LEFT_OUT`). About the host: it got another name.
    """

    PREEMPTED = "preempted"
    CONTINUED = "continued"
    ADOPTED = "adopted"
    RELEASED = "released"
    EXPIRED = "expired"
    MISSING = "missing"
    DOMAIN_DOWN = "domain-down"
    NEWER_RUN = "newer-run"
    NOT_GIVEN = "not-given"
    OVER = "over"
    BOOT_FAILED = "boot-failed"
    FREEZE_FAILED = "freeze-failed"
    KEPT = "kept"
    FORGOTTEN = "forgotten"
    RENAMED = "renamed"
    LEFT_OUT = "left-out"
    WAKES = "wakes"
    GIVES_WAY = "gives-way"
    STAYS_AWAKE = "stays-awake"


JobGone = Literal[
    Note.RELEASED, Note.EXPIRED, Note.MISSING, Note.DOMAIN_DOWN, Note.NEWER_RUN, Note.NOT_GIVEN, Note.OVER
]
"""Why a job is no longer there."""


@dataclass(frozen=True, slots=True)
class Noted:
    """For the history. `text`: for whom or why. `preempted_s`: for how long the job had been stopped by us, if that
    ended now. `domain` is empty if the note is about the host.
    """

    domain: str
    what: Note
    key: JobKey | None = None
    text: str = ""
    preempted_s: float = 0.0


Decision = Accepted | Refused | Noted
