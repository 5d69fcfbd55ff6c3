"""Texts from strangers can neither forge a line of the log nor flood it."""

from __future__ import annotations

import logging

import pytest

from magrathea import logs
from magrathea.logs import BAR, Formatter, RationedLog, SiteRation
from magrathea.text import printable
from tests.steps import lines_run

FORM = "%(levelname)s %(message)s"


def record(text: str, *arguments: object, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("x", logging.INFO, "file", 1, text, arguments, info)
    return Formatter(FORM).format(made)


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r\n"])
def test_no_line_end_in_a_job_id_begins_a_line(end: str) -> None:
    line = record("job %s: suspended", f"1.srv{end}ERROR ALERT the disk is on fire")
    assert len(line.splitlines()) == 1
    assert line.startswith("INFO job 1.srv\\")


@pytest.mark.parametrize("text", ["\x1b[2J", "\x00", "\x7f", "\x9b31m", "\u202e", "\ud800", "\u200b"])
def test_no_control_character_gets_through(text: str) -> None:
    line = record("%s", text)
    assert line.isprintable()
    line.encode()


def test_the_lines_of_a_traceback_are_marked_as_such() -> None:
    lines = record("failed", error=ValueError("x\n<0>ERROR forged\nERROR forged")).splitlines()
    assert lines[0] == "INFO failed"
    assert len(lines) > 2
    assert all(line.startswith(BAR) for line in lines[1:])


def test_a_text_that_is_too_long_is_cut() -> None:
    assert len(record("%s", "x" * 100_000)) < logs.MOST + 10
    assert printable("x" * 10, 4) == "xxx…"
    assert printable("žluťoučký kůň 1[3].srv") == "žluťoučký kůň 1[3].srv"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def complaints(clock: Clock) -> RationedLog:
    return RationedLog(logging.getLogger("test"), clock=clock)


def test_one_line_for_each_kind_and_minute_with_the_number_left_out(
    complaints: RationedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(1000):
        complaints.say("bad", f"bad line {n}")
        complaints.say("other", f"other line {n}")
    assert [r.getMessage() for r in caplog.records] == ["bad line 0", "other line 0"]
    clock.now += logs.PERIOD_S
    complaints.say("bad", "bad again")
    assert caplog.records[-1].getMessage() == "bad again (and 999 more like this since)"


def test_a_defect_is_logged_with_its_traceback(complaints: RationedLog, caplog: pytest.LogCaptureFixture) -> None:
    complaints.say("defect", "cannot be handled", ValueError("why"))
    assert caplog.records[0].levelno == logging.ERROR
    assert "ValueError: why" in caplog.text


@pytest.mark.long
def test_kinds_beyond_the_limit_share_a_line_and_are_forgotten_after_a_minute(
    complaints: RationedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def flood() -> None:
        for n in range(10 * logs.MOST_KINDS):
            complaints.say(n, f"kind {n}")

    _, lines = lines_run(flood)
    assert lines < 100 * 10 * logs.MOST_KINDS  # looking at all known kinds for each new one: 4,000
    assert len(caplog.records) == logs.MOST_KINDS + 1
    clock.now += logs.PERIOD_S
    caplog.clear()
    complaints.say("new", "new")
    assert len(caplog.records) == 1


def test_a_burst_is_logged_whole_and_then_one_line_each_period(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    told = RationedLog(logging.getLogger("test"), burst=20, period_s=0.5, clock=clock)
    for n in range(1000):
        clock.now += 0.01
        told.say("n1", f"line {n}", level=logging.WARNING)
    assert 20 + 10 / 0.5 - 1 <= len(caplog.records) <= 20 + 10 / 0.5 + 1
    assert "more like this since" in caplog.records[-1].getMessage()


def test_each_place_in_the_program_is_rationed_but_for_debugging(clock: Clock) -> None:
    ration = SiteRation(clock)

    def logged(level: int, line: int) -> bool:
        return ration.filter(logging.LogRecord("x", level, "file", line, "100 %s", ("%",), None))

    assert sum(logged(logging.INFO, 1) for _ in range(5000)) == logs.SITE_BURST
    assert logged(logging.INFO, 2)
    assert all(logged(logging.DEBUG, 1) for _ in range(5000))
    clock.now += 1.5 * logs.SITE_PERIOD_S
    made = logging.LogRecord("x", logging.INFO, "file", 1, "100 %s", ("%",), None)
    assert ration.filter(made)
    assert made.getMessage() == "100 % (and 4000 more like this since)"


def test_configured_logs_are_rationed_and_printable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    logs.configure("info", FORM)
    try:
        for _ in range(5000):
            logging.getLogger("x").info("job %s", "1\nERROR forged")
        lines = capsys.readouterr().err.splitlines()
        assert 1000 <= len(lines) < 3000
        assert all(line.endswith("INFO job 1\\nERROR forged") for line in lines[:1000])
    finally:
        root.setLevel(logging.WARNING)
