"""What a node daemon reports about a planned sleep of its whole host: the answer of its control socket."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from magrathea.messages import MOST_DOMAINS, Count, Sentence, Time, Word

LONGEST_S = 86400.0
"""The most that a shutdown may be given for its saves."""


class SleepStage(StrEnum):
    """How far a domain has come. `STOPPING`: its jobs are being stopped, and booked in PBS. `READY`: they are, and it
    waits for its turn. `LEFT`: the time does not suffice, so it is left to the ordinary shutdown. `FAILED`: it is not
    asleep, and nothing more is done about that."""

    AWAKE = "awake"
    STOPPING = "stopping"
    READY = "ready"
    SAVING = "saving"
    ASLEEP = "asleep"
    LEFT = "left"
    FAILED = "failed"

    @property
    def is_last(self) -> bool:
        return self in (SleepStage.ASLEEP, SleepStage.LEFT, SleepStage.FAILED)


class SleeperReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain that is put to sleep. `expected_s`: how long its save takes, as measured here before. `took_s`: how long
    it has taken; 0 before its end. `text`: what is going on, for people."""

    name: Word
    stage: SleepStage
    mib: Count
    jobs: Count
    expected_s: Time
    took_s: Time = 0.0
    text: Sentence = ""


class HostSleepReport(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A host's sleep: the one that is going on, or the plan for one. `expected_s`: until the last domain is on disk.
    `left_s`: after this no save begins."""

    host: Word
    going_on: bool
    expected_s: Time
    left_s: Time
    sleepers: list[SleeperReport]
    """In the order of their saves; those that the time does not suffice for come last."""


class HostSleepAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The control socket's answer to `host-sleep-plan`, `host-sleep` and `host-sleep-report`."""

    sleep: HostSleepReport


def decoded(answer: bytes) -> HostSleepReport:
    """The report in an answer. Raises what msgspec raises for other bytes (decoding.UNDECODABLE)."""
    report = msgspec.json.decode(answer, type=HostSleepAnswer).sleep
    if len(report.sleepers) > MOST_DOMAINS:
        raise msgspec.ValidationError(f"{len(report.sleepers)} domains; a host has at most {MOST_DOMAINS}")
    return report
