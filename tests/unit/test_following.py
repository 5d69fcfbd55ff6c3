"""A command that follows a daemon bears that it is away for a while, and tells when it stays away."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from magrathea import client
from magrathea.cli import following


def away() -> client.Unreachable:
    return client.Unreachable(Path("/run/x"), "not there", "start it")


def test_a_daemon_that_is_restarted_is_asked_again_and_one_that_stays_away_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    says: list[int | Exception] = [1, away(), msgspec.DecodeError("half an answer"), 2, *[away() for _ in range(10)]]

    def pause() -> None:
        nonlocal now_s
        now_s += 10.0

    def look() -> int:
        said = says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    found = following.answers(look, pause)
    assert (next(found), next(found)) == (1, 2)
    began_s = now_s
    with pytest.raises(client.Unreachable):
        next(found)
    assert now_s - began_s == following.DAEMON_AWAY_S + 10.0
