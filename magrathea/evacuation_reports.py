"""What a node daemon reports about the evacuation of its host: the answers of its control socket."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from magrathea.message_base import MOST_DOMAINS, Count, Sentence, Time, Word


class EvacuationStage(StrEnum):
    """How far a domain has come. `WAITING`: for its turn. `GOING`: it moves, falls asleep, or finishes its jobs.
    `OVER`: nothing more is done with it."""

    WAITING = "waiting"
    GOING = "going"
    OVER = "over"


class LeaverReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain of a host that is evacuated. `fate`: what becomes of it (core/evacuation.py, `Fate`); `to`: the host to
    which it moves. `why`: why it is nothing better; empty if it is what was asked for. `text`: how far it is. `up`: it
    runs here now."""

    name: Word
    fate: Word
    stage: EvacuationStage
    to: str = ""
    why: Sentence = ""
    text: Sentence = ""
    mib: Count = 0
    jobs: Count = 0
    up: bool = False


class EvacuationReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A host's evacuation, or the plan for one. `going_on`: it was begun, and not all domains are through. `since`: 0
    if it was not begun. `leavers`: in the order in which they leave."""

    host: Word
    going_on: bool
    leavers: list[LeaverReport]
    since: Time = 0.0
    reason: Sentence = ""


class EvacuationAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The control socket's answer to `evacuate-plan`, `evacuate` and `evacuation`. None: the host is not evacuated."""

    evacuation: EvacuationReport | None = None


def decoded(answer: bytes) -> EvacuationReport | None:
    """The report in an answer. Raises what msgspec raises for other bytes (decoding.UNDECODABLE)."""
    report = msgspec.json.decode(answer, type=EvacuationAnswer).evacuation
    if report is not None and len(report.leavers) > MOST_DOMAINS:
        raise msgspec.ValidationError(f"{len(report.leavers)} domains; a host has at most {MOST_DOMAINS}")
    return report
