"""`magrathea history`: from the daemon, from the journal's file, and without either; each entry as a sentence."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from magrathea import history
from magrathea.cli import main
from magrathea.cli.history import moment
from magrathea.core import events as ev
from magrathea.core.model import Host, JobClass, JobKey, Mode, Patience
from magrathea.core.refusals import RefusalCode
from magrathea.history import Query, recorded
from magrathea.history_sentences import sentence
from magrathea.messages import HistoryEntry
from node_daemon.journal import Journal, open_journal
from tests.fakes.control_socket import answering

KEY = JobKey("12.srv", 1)
CLAIMED = ev.Claimed(1_800_000_000.25, "n1", KEY, JobClass.PREEMPTIBLE, 2)
REFUSED = ev.Refused("p1", RefusalCode.PAUSED, "n1 would be preempted", JobKey("13.srv", 1))
STORY: list[tuple[float, ev.Event | None, tuple[ev.Decision, ...]]] = [
    (1_800_000_000.25, CLAIMED, (ev.Accepted("n1", KEY),)),
    (1_800_000_100.0, ev.PauseRequested(1_800_000_100.0, "new disk"), (REFUSED,)),
]


def write(journal: Journal) -> None:
    for at, event, decisions in STORY:
        journal.commit(Host("h1", Mode.EXCLUSIVE, 1, 64, now=at), event, decisions)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    opened = open_journal(path)
    write(opened)
    opened.close()
    return path


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, ["history", *arguments])


# Queries


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        ([], {"about": "", "since": 0.0, "limit": 100}),
        (["n1", "-n", "5"], {"about": "n1", "since": 0.0, "limit": 5}),
        (["--since", "2033-05-18T03:33:20+00:00"], {"about": "", "since": 2_000_000_000.0, "limit": 100}),
    ],
)
def test_the_daemon_is_asked(tmp_path: Path, arguments: list[str], request_: dict[str, object]) -> None:
    with answering(tmp_path / "socket", b'{"ok":true,"entries":[]}\n') as questions:
        assert asked(*arguments, "--socket", str(tmp_path / "socket")).exit_code == 0
    assert json.loads(questions[0]) == {"op": "history", **request_}


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("90s", "2026-11-21T11:58:30"),
        ("15min", "2026-11-21T11:45:00"),
        ("1.5h", "2026-11-21T10:30:00"),
        ("3d", "2026-11-18T12:00:00"),
        ("8:30", "2026-11-21T08:30:00"),
        ("08:30:15", "2026-11-21T08:30:15"),
        ("2026-11-20", "2026-11-20T00:00:00"),
        ("2026-11-20 07:00", "2026-11-20T07:00:00"),
    ],
)
def test_since_is_a_span_an_hour_or_a_date(text: str, when: str) -> None:
    now = datetime(2026, 11, 21, 12).timestamp()
    assert moment(text, now) == datetime.fromisoformat(when).timestamp()


@pytest.mark.parametrize("text", ["yesterday", "2 weeks", "25:00", "2026-13-01", "-3h"])
def test_another_since_is_wrong_usage(text: str) -> None:
    result = asked("--since", text)
    assert result.exit_code == 2
    assert "is not a time like 90s" in result.stderr


# Output


def test_plain_is_lines_with_stable_columns(journal: Path) -> None:
    lines = [line.split("\t") for line in asked("--journal", str(journal), "--format", "plain").stdout.splitlines()]
    assert lines[0][0].endswith(".250")
    assert [line[1:5] for line in lines] == [
        ["event", "Claimed", "n1", "12.srv"],
        ["decision", "Accepted", "n1", "12.srv"],
        ["event", "PauseRequested", "-", "-"],
        ["decision", "Refused", "p1", "13.srv"],
    ]
    assert json.loads(lines[0][5])["cpus"] == 2


def test_the_table_shows_entries_as_sentences(journal: Path) -> None:
    lines = asked("--journal", str(journal)).stdout.splitlines()
    assert lines[0].split() == ["TIME", "DOMAIN", "JOB", "WHAT"]
    assert [line.partition("srv")[2].strip() or line.split("-  ")[-1].strip() for line in lines[1:]] == [
        "asked for: a job of class preemptible, CPUs: 2",
        "accepted",
        "paused: new disk",
        "refused (paused): n1 would be preempted",
    ]


def test_json_has_the_data_and_the_sentence(journal: Path) -> None:
    entries = json.loads(asked("--journal", str(journal), "--format", "json").stdout)
    assert [entry["at"] for entry in entries] == [1_800_000_000.25] * 2 + [1_800_000_100.0] * 2
    assert (entries[2]["data"]["reason"], entries[2]["sentence"]) == ("new disk", "paused: new disk")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["12"], ["Claimed", "Accepted"]),
        (["12.srv"], ["Claimed", "Accepted"]),
        (["1"], []),
        (["p1"], ["Refused"]),
        (["-n", "1"], ["Refused"]),
        (["--since", "2027-01-15T08:01:00+00:00"], ["PauseRequested", "Refused"]),
    ],
)
def test_entries_are_selected_by_job_domain_or_time(journal: Path, arguments: list[str], names: list[str]) -> None:
    entries = json.loads(asked(*arguments, "--journal", str(journal), "--format", "json").stdout)
    assert [entry["name"] for entry in entries] == names


def test_entries_that_are_not_on_disk_yet_are_found_too(tmp_path: Path) -> None:
    opened = open_journal(tmp_path / "journal.sqlite")
    write(opened)
    opened.note(1_800_000_200.0, None, (REFUSED,))
    queries = (Query(), Query("13"), Query("p1", since=1_800_000_150.0), Query("n1"), Query(limit=1))
    before = [opened.history(query) for query in queries]
    opened.tidy(0.0)
    assert [opened.history(query) for query in queries] == before
    opened.close()


# Sources


def test_without_a_daemon_the_file_is_read(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "DEFAULT_FILE", journal)
    monkeypatch.setattr("magrathea.client.DEFAULT_SOCKET", journal.with_name("none"))
    result = asked("12", "--format", "plain")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
    assert f"read from {journal}" in result.stderr


def test_a_file_that_cannot_be_read_is_reported_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no journal " * 100, encoding="utf-8")
    for name, why in (("none", "No such file"), ("text", "not a database")):
        result = asked("--journal", str(tmp_path / name))
        assert result.exit_code == 1
        assert why in result.stderr


HUBS_ANSWER = {
    "ok": True,
    "hosts": [
        {"host": "h1", "entries": [{"at": 20.0, "kind": "event", "name": "HubFound"}]},
        {"host": "h2", "entries": [{"at": 10.0, "kind": "event", "name": "HubLost"}]},
        {"host": "h3", "entries": [], "trouble": "no answer within 3 s"},
    ],
}


def test_on_other_machines_the_hub_is_asked_and_entries_are_sorted_by_time(tmp_path: Path) -> None:
    with answering(tmp_path / "hub", json.dumps(HUBS_ANSWER).encode() + b"\n") as questions:
        table = asked("12", "--hub", str(tmp_path / "hub"))
        plain = asked("12", "--hub", str(tmp_path / "hub"), "--format", "plain")
        last = json.loads(asked("12", "-n", "1", "--hub", str(tmp_path / "hub"), "--format", "json").stdout)
    assert json.loads(questions[0])["about"] == "12"
    assert table.exit_code == 0
    assert table.stderr == "magrathea history: h3: no answer within 3 s\n"
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["HOST", "TIME", "DOMAIN", "JOB", "WHAT"]
    assert [line.split()[0] for line in lines[1:]] == ["h2", "h1"]
    assert [line.split("\t")[6] for line in plain.stdout.splitlines()] == ["h2", "h1"]
    assert [(entry["host"], entry["name"]) for entry in last] == [("h1", "HubFound")]


def test_on_a_machine_with_a_hub_and_no_host_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magrathea.client.DEFAULT_SOCKET", tmp_path / "none")
    monkeypatch.setattr(history, "DEFAULT_FILE", tmp_path / "none")
    monkeypatch.setenv("MAGRATHEA_HUB_CONTROL", str(tmp_path / "hub"))
    with answering(tmp_path / "hub", json.dumps(HUBS_ANSWER).encode() + b"\n"):
        assert "h2" in asked().stdout


def test_if_nobody_answers_the_exit_code_is_3_and_the_fix_is_shown(tmp_path: Path) -> None:
    for option in ("--socket", "--hub"):
        result = asked(option, str(tmp_path / "none"))
        assert result.exit_code == 3
        assert "run this there, or beside the hub" in result.stderr


# Sentences


def entry(what: Any, kind: str = "event") -> HistoryEntry:
    return HistoryEntry(0.0, kind, type(what).__name__, data=msgspec.json.encode(what).decode())


def kept(event: ev.Event, *decisions: ev.Decision) -> object:
    """What the history has of the event."""
    return recorded(event, decisions)[0][1]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (ev.Claimed(0, "n1", KEY, JobClass.PRIORITY, 2, 100), "asked for: a job of class priority, CPUs: 2, 100 MiB"),
        (ev.JobsReported(0, "n1", (ev.ReportedJob(KEY),)), "MoM lists 12.srv"),
        (ev.JobsReported(0, "n1", ()), "MoM lists no jobs"),
        (kept(ev.JobsReported(0, "n1", (ev.ReportedJob(KEY),))), "MoM lists 12.srv"),
        (
            kept(ev.JobsReported(0, "n1", ()), ev.Noted("n1", ev.Note.MISSING, KEY)),
            "MoM lists no jobs (1 gone)",
        ),
        (
            kept(ev.JobsReported(0, "n1", tuple(ev.ReportedJob(KEY, ending=True) for _ in range(4000)))),
            f"MoM lists {', '.join(['12.srv'] * 10)} and 3990 more (4000 ending)",
        ),
        (ev.BooksReported(0, (ev.Booking(KEY, True, True),)), "suspended in PBS's books: 12.srv; another host wants"),
        (ev.DrainRequested(0, "n1", "new disk"), "drains: new disk"),
        (ev.FreezeEnded(0, "p1", "disk full"), "could not be saved: disk full"),
        (ev.FreezeEnded(0, "p1"), "is saved to disk"),
        (ev.DomainStopped(0, "n1", "it crashed"), "is down: it crashed"),
        (ev.ShutdownRequested(0, "n1"), "is to be shut down when its jobs have ended"),
        (ev.ShutdownRequested(0, "n1", True, Patience.NOW), "is to be rebooted at once"),
        (ev.Accepted("p1", KEY, ("n1", "n2")), "accepted, preempting n1, n2"),
        (ev.Refused("p1", RefusalCode.CPUS, "too few", KEY), "refused (cpus): too few"),
        (ev.Noted("n1", ev.Note.PREEMPTED, KEY, "13.srv (run 1)"), "stopped for 13.srv"),
        (ev.Noted("n1", ev.Note.CONTINUED, KEY, "", 2.04), "runs again, after 2.0 s"),
        (ev.Noted("n1", ev.Note.RELEASED, KEY, "", 35.0), "released; preempted for 35 s in all"),
        (ev.Noted("n1", ev.Note.BOOT_FAILED), "boot failed"),
    ],
)
def test_an_entry_is_shown_as_a_sentence(what: Any, told: str) -> None:
    assert sentence(entry(what)).startswith(told)


@pytest.mark.parametrize(
    "event", [ev.JobsReported(0, "n1", ()), ev.JobsDenied(0, "n1", tuple(JobKey(f"{n}", 1) for n in range(4000)))]
)
def test_of_thousands_of_jobs_that_go_the_first_are_kept_and_all_that_happens_to_other_domains(event: ev.Event) -> None:
    gone = [ev.Noted("n1", ev.Note.MISSING, JobKey(f"{number}", 1)) for number in range(4000)]
    others = [ev.Noted("n2", ev.Note.CONTINUED, KEY)] * 3
    told = [what for kind, what in recorded(event, (*gone, *others)) if kind == "decision"]
    assert told == [*gone[:100], *others]


@pytest.mark.parametrize("note", ev.Note)
def test_every_note_has_a_sentence_with_its_text(note: ev.Note) -> None:
    told = sentence(entry(ev.Noted("n1", note, KEY, "the reason", 35.0), "decision"))
    assert ("after 35 s" if note is ev.Note.CONTINUED else "the reason") in told


def test_an_unknown_entry_is_shown_as_data() -> None:
    unknown = HistoryEntry(0.0, "event", "MoonRisen", data='{"at":0.0,"domain":"n1","height_m":3}')
    assert sentence(unknown) == "moon risen: height_m 3"
    assert sentence(HistoryEntry(0.0, "event", "Claimed", data='{"at":1}')) == 'Claimed {"at":1}'
    assert sentence(HistoryEntry(0.0, "event", "Claimed", data="[")) == "Claimed ["
