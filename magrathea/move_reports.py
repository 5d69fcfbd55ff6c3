"""What a node daemon reports about moves of its domains: the answers of its control socket."""

from __future__ import annotations

import msgspec

from magrathea.message_base import Count, Sentence, Time, Word

LOOK_S = 0.5
"""How often the command asks for the progress."""


class CopiedDiskReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A disk that is copied with its domain."""

    path: Sentence
    mib: Count


class MovePlan(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A move that this host can begin. `hosts`: where the domain may go, tried in this order."""

    domain: Word
    source: Word
    hosts: list[Word]
    memory_mib: Count
    jobs: Count
    disks: list[CopiedDiskReport] = []


class MoveReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A move that is going on. `stage`: see docs/moves.md. `percent`: of the copy's present pass, if one is under way.
    `text`: for people."""

    domain: Word
    source: Word
    target: Word
    stage: Word
    text: Sentence
    percent: Count | None = None


class MoveEnd(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A move that has ended. `moved`: the domain is at its new host. `text`: where it is, or why it has stayed.
    `try_next`: this target did not take the domain, or the copy failed; another host may be tried."""

    domain: Word
    moved: bool
    at: Time
    text: Sentence
    try_next: bool = False


class MovesAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer to `moves`, `migrate` and `migrate-plan`. `now`: the daemon's time. `plan`: of the domain that was
    asked for. `moves`: those that go on. `ended`: the last end of each domain's move since the daemon's start.
    `elsewhere`: the domains that other hosts have by the hub's books, each with its host."""

    now: Time
    plan: MovePlan | None = None
    moves: list[MoveReport] = []
    ended: list[MoveEnd] = []
    elsewhere: dict[Word, Word] = {}

    def move(self, domain: str) -> MoveReport | None:
        return next((one for one in self.moves if one.domain == domain), None)

    def end(self, domain: str, since: float) -> MoveEnd | None:
        """The end of the domain's move, if that was after this time."""
        return next((one for one in self.ended if one.domain == domain and one.at >= since), None)


RUN_COPIES = "run-copies"
"""Asked of the hub: the lost host went off in one moment, so complete copies of its guests are not too old."""


class LostMove(msgspec.Struct, kw_only=True, frozen=True):
    """What follows for a domain on its way if one of its hosts is lost. `stage`, `text`: for people. `booked`: the hub
    changes its books; otherwise the other host decides by itself."""

    domain: Word
    source: Word
    target: Word
    stage: Sentence
    text: Sentence
    booked: bool


class LostAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The hub's answer to `lost` and `lost-plan`."""

    moves: list[LostMove] = []


def decoded(answer: bytes) -> MovesAnswer:
    """Raises what msgspec raises for other bytes (decoding.UNDECODABLE)."""
    return msgspec.json.decode(answer, type=MovesAnswer)
