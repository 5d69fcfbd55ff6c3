"""A child process of the agent: its output and end are reported in order, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S, until
from node_daemon.agent.children import Child
from node_daemon.agent.loop import Loop


class Watched:
    """A child and the reports about it; the test turns the loop."""

    def __init__(self, become: Callable[[int], None]) -> None:
        self.loop = Loop()
        self.output = b""
        self.ends: list[tuple[int, bytes]] = []
        self.child = Child(
            self.loop, "/no/such/program", become, lambda status: self.ends.append((status, self.output)), self.take
        )

    def take(self, data: bytes) -> None:
        self.output += data

    def turn_until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + BOUND_S
        while not what():
            assert time.monotonic() < end
            self.loop.turn()

    def end(self) -> tuple[int, bytes]:
        """Its wait status, and all that it had written."""
        self.turn_until(lambda: self.ends)
        return self.ends[0]


@pytest.fixture
def watched() -> Iterator[Callable[[Callable[[int], None]], Watched]]:
    made: list[Watched] = []

    def make(become: Callable[[int], None]) -> Watched:
        made.append(Watched(become))
        return made[-1]

    yield make
    for one in made:
        one.child.signal(signal.SIGKILL)
        one.end()
        one.loop.selector.close()


Make = Callable[[Callable[[int], None]], Watched]


def test_a_child_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    loop = Loop()
    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BlockingIOError):
        Child(loop, "a child", lambda output: None, lambda status: None, lambda data: None)
    assert set(Path("/proc/self/fd").iterdir()) == before
    loop.selector.close()


def shell(text: str) -> Callable[[int], None]:
    def become(output: int) -> None:
        os.dup2(output, 1)
        os.execv("/bin/sh", ["sh", "-c", text])

    return become


def test_all_output_is_reported_before_the_end(watched: Make) -> None:
    status, output = watched(shell("head -c 300000 /dev/zero; exit 3")).end()
    assert os.WEXITSTATUS(status) == 3
    assert len(output) == 300000


def test_a_child_that_returns_has_ended_well(watched: Make) -> None:
    assert watched(lambda output: None).end() == (0, b"")


def test_a_program_that_cannot_run_is_reported_on_the_childs_stderr(
    watched: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    status, _ = watched(lambda output: os.execv("/no/such/program", ["x"])).end()
    assert os.WEXITSTATUS(status) == 127
    assert "/no/such/program" in capfd.readouterr().err


def test_it_handles_signals_as_any_process_does(watched: Make) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        status, output = watched(shell("grep SigIgn /proc/self/status; kill -HUP $$; sleep 600")).end()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert os.WTERMSIG(status) == signal.SIGHUP
    ignored = int(output.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1), "which Python ignores"


def test_its_own_children_are_signalled_with_it(watched: Make) -> None:
    one = watched(shell("sleep 600 & echo $!; wait"))
    one.turn_until(lambda: b"\n" in one.output)
    one.child.signal(signal.SIGTERM)
    assert os.WTERMSIG(one.end()[0]) == signal.SIGTERM
    until(lambda: not _alive(int(one.output)), "the end of its child")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_an_orphan_that_keeps_its_output_open_delays_nothing(watched: Make) -> None:
    one = watched(shell("sleep 600 & echo $!"))
    status, output = one.end()
    assert status == 0
    assert one.child.output == -1
    assert not one.loop.selector.get_map()
    os.kill(int(output), signal.SIGKILL)


def test_after_its_end_nobody_elses_process_is_signalled(watched: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = watched(lambda output: None)
    one.end()
    monkeypatch.setattr(os, "killpg", lambda pid, number: pytest.fail("its number may be somebody else's"))
    one.child.signal(signal.SIGTERM)
