"""Ending MoM's connections to PBS, as the agent's loop sees it.

On a real MoM: tests/openpbs/test_mom_connections.py.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.agent import mom_connections
from node_daemon.agent.loop import Loop
from node_daemon.agent.mom_connections import Connection, MomConnections


def asked(work: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch, times: int = 1) -> list[dict[str, Any]]:
    """The answers to requests whose child does `work`."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mom_connections, "end_all", work)
    loop, answers = Loop(), []
    connections = MomConnections(loop, True)

    def answered(answer: dict[str, Any]) -> None:
        answers.append(answer)
        if len(answers) == times:
            loop.stop()

    for _ in range(times):
        connections.reconnect(answered)
    loop.after(BOUND_S, loop.stop)
    loop.run()
    assert connections.child is None
    return answers


def test_the_answer_tells_how_many_connections_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(lambda: (2, 1), monkeypatch) == [{"ok": True, "found": 2, "ended": 1}]


def test_what_is_not_possible_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> tuple[int, int]:
        raise OSError(38, "Function not implemented")

    (answer,) = asked(fails, monkeypatch)
    assert answer["code"] == "failed" and "not implemented" in answer["text"]


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mom_connections, "LIMIT_S", 0.1)

    def hangs() -> tuple[int, int]:
        time.sleep(10 * BOUND_S)
        return 0, 0

    (answer,) = asked(hangs, monkeypatch)
    assert answer["code"] == "timeout"


def test_a_second_request_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = asked(lambda: (1, 1), monkeypatch, times=2)
    assert (first["code"], second["ok"]) == ("busy", True)


@pytest.mark.parametrize(("is_guest", "uid"), [(False, 0), (True, 1000)])
def test_outside_of_a_guest_and_without_root_moms_are_left_alone(
    is_guest: bool, uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    connections = MomConnections(Loop(), is_guest)
    answers: list[dict[str, Any]] = []
    connections.reconnect(answers.append)
    assert connections.can() == [] and answers[0]["code"] == "not-permitted"


class Vain:
    """Ends nothing: the connection is not there any more, or the kernel cannot."""

    def end(self, inode: int, one: Connection) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def connections(monkeypatch: pytest.MonkeyPatch, *seen: set[int]) -> None:
    """MoM's connections at each look."""
    looks: Iterator[set[int]] = iter(seen)
    monkeypatch.setattr(mom_connections, "moms", lambda: [1])
    monkeypatch.setattr(mom_connections, "ports_of", lambda pid: set())
    monkeypatch.setattr(
        mom_connections,
        "connections_of",
        lambda pid, ports: {inode: Connection(pid, 3, (1, 2), (3, 4)) for inode in next(looks)},
    )
    for name in ("Shutter", "Destroyer"):
        monkeypatch.setattr(mom_connections, name, Vain)


@pytest.mark.parametrize(("later", "ended"), [(set(), 2), ({9}, 2), ({6, 9}, 1)])
def test_a_connection_that_mom_has_ended_itself_in_the_meantime_has_ended(
    later: set[int], ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections(monkeypatch, {5, 6}, later)
    assert mom_connections.end_all() == (2, ended)


def test_connections_that_nothing_can_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connections(monkeypatch, {5, 6}, {5, 6})
    with pytest.raises(OSError, match="No such file"):
        mom_connections.end_all()


def test_a_mom_without_connections_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    connections(monkeypatch, set())
    assert mom_connections.end_all() == (0, 0)
