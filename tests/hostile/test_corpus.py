"""Attacks that are known, and mutations of them, against whatever reads foreign bytes (tests/fuzz). `make fuzz` tries
more."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count, repeat
from pathlib import Path

import pytest

from magrathea.core.events import Note
from node_daemon.journal import open_journal
from scheduler_plugin.hub.owners import NAME as OWNERS
from tests.fuzz import __main__ as command
from tests.fuzz.daemon_targets import lines_to_daemon
from tests.fuzz.driver import CORPUS, Outcome, Reader, Target, inputs, run
from tests.fuzz.hub_targets import messages_to_hub
from tests.fuzz.targets import TARGETS

each = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)

MUTATIONS = 200
"""Of each target's samples; fewer of slow targets."""
MOST_INPUTS = 6000
"""Of all these tests together: on an idle machine they take under 30 s."""


def told(outcome: Outcome) -> str:
    return "\n".join(f"{failure.kind}\n{failure.text}\n{failure.data!r:.500}" for failure in outcome.failures.values())


def mutations(target: Target) -> int:
    return int(MUTATIONS * target.share)


@each
def test_no_known_attack_is_more_than_refused(target: Target) -> None:
    outcome = run(target, (data for _, data in target.samples()))
    assert not outcome.failures, told(outcome)


@each
def test_valid_samples_are_accepted(target: Target) -> None:
    valid = [data for name, data in target.samples() if name.startswith("valid")]
    assert valid
    assert run(target, valid).refused == 0


@each
def test_mutations_of_the_samples_are_no_more_than_refused(target: Target) -> None:
    number = mutations(target)
    outcome = run(target, inputs([data for _, data in target.samples()], number, seed=1))
    assert outcome.inputs == number
    assert not outcome.failures, told(outcome)


@pytest.mark.parametrize(("name", "mode"), [("valid-preemption", "exclusive"), ("valid-counted-preemption", "counted")])
def test_the_samples_of_preemptions_preempt(name: str, mode: str, tmp_path: Path) -> None:
    """Otherwise nothing behind a preemption would be reached by their mutations."""
    read = lines_to_daemon(tmp_path)
    try:
        read((CORPUS / "lines-to-daemon" / name).read_bytes())
    finally:
        read.close()  # type: ignore[attr-defined]
    journal = open_journal(tmp_path / mode / "state" / "journal.sqlite")
    assert any(f'"what":"{Note.PREEMPTED}"' in entry.data for entry in journal.history())
    journal.close()


def test_the_sample_of_a_move_moves(tmp_path: Path) -> None:
    """Otherwise nothing behind a grant would be reached by its mutations."""
    read = messages_to_hub(tmp_path)
    try:
        read((CORPUS / "messages-to-hub" / "valid-move").read_bytes())
    finally:
        read.close()  # type: ignore[attr-defined]
    assert '"owner":"h2"' in (tmp_path / OWNERS).read_text(encoding="utf-8")


def test_each_folder_of_samples_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {target.name for target in TARGETS}


def test_a_run_of_all_tests_feeds_no_more_than_it_has_time_for() -> None:
    fed = [target.samples() for target in TARGETS]
    valid = sum(name.startswith("valid") for samples in fed for name, _ in samples)
    assert sum(len(samples) for samples in fed) + valid + sum(map(mutations, TARGETS)) < MOST_INPUTS


# The driver itself


def against(read: Reader, number: int = 300, growth_mib: float = 64.0, slow_s: float = 2.0) -> Outcome:
    return run(Target("itself", lambda folder: read, (ValueError,)), repeat(b"x", number), growth_mib, slow_s)


def test_the_driver_counts_refusals_and_reports_nothing_else() -> None:
    def read(data: bytes) -> None:
        raise ValueError(data)

    outcome = against(read)
    assert (outcome.inputs, outcome.refused, outcome.failures) == (300, 300, {})


def test_the_driver_notices_a_crash_and_keeps_its_input() -> None:
    def read(data: bytes) -> None:
        raise KeyError(data)

    (failure,) = against(read).failures.values()
    assert failure.kind.startswith("KeyError at test_corpus.py:")
    assert failure.data == b"x"


def test_the_driver_notices_growth() -> None:
    kept = []
    outcome = against(lambda data: kept.append(bytearray(b"x" * 2**17)), number=2000, growth_mib=8.0)
    assert list(outcome.failures) == ["growth"]
    assert outcome.inputs < 2000


def writes_to_the_log(data: bytes) -> None:
    logging.getLogger("magrathea.anything").warning("%r is bad", data)


def writes_to_stderr(data: bytes) -> None:
    os.write(2, b"bad\n")


@pytest.mark.parametrize("read", [writes_to_the_log, writes_to_stderr])
def test_the_driver_notices_a_flood_of_lines(read: Callable[[bytes], None]) -> None:
    assert list(against(read, number=1000).failures) == ["flood"]


def test_the_driver_notices_an_input_that_takes_long() -> None:
    def read(data: bytes) -> None:
        for number in count():
            if number == 200_000:
                return

    assert list(against(read, number=1, slow_s=0.0001).failures) == ["slow"]


def test_a_seed_repeats_its_inputs() -> None:
    samples = [b'{"a":1}', b"text"]
    assert list(inputs(samples, 50, seed=3)) == list(inputs(samples, 50, seed=3))
    assert list(inputs(samples, 50, seed=3)) != list(inputs(samples, 50, seed=4))


def test_the_command_writes_what_failed_to_a_file_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crashes(folder: Path) -> Reader:
        def read(data: bytes) -> None:
            raise KeyError(data)

        return read

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "TARGETS", (Target("pbs-conf", crashes),))
    monkeypatch.setattr(sys, "argv", ["fuzz", "--inputs", "10"])
    assert command.main() == 1
    (found,) = (tmp_path / ".fuzz").iterdir()
    printed = capsys.readouterr().out
    assert f"cp .fuzz/{found.name} " in printed and "KeyError at test_corpus.py" in printed


def test_the_command_prints_a_row_for_each_target_that_was_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", "50", "--targets", "pbs-conf,host-to-hub"],
        cwd=CORPUS.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["seed", "target", "pbs-conf", "host-to-hub"]
