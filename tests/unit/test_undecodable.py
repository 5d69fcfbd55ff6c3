"""Invalid bytes in messages, requests and files: every reader refuses them with its own error, and none crashes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magrathea import client, qstat
from magrathea.configuration import ConfigurationError, parse
from magrathea.core import events as ev
from magrathea.core.model import Host, JobKey, Mode
from magrathea.history_sentences import sentence
from magrathea.messages import BadMessage, HistoryEntry, decode_to_host, decode_to_hub
from node_daemon.agent.lines import BadValue
from node_daemon.configuration import NodedConfiguration
from node_daemon.guest_channel import messages as guest_messages
from node_daemon.journal import JournalError, open_journal, salvage
from scheduler_plugin.hub import ledger
from scheduler_plugin.setup import records
from scheduler_plugin.setup.sched_config import InstallError
from tests.fakes.control_socket import answering

BAD = {
    "no UTF-8": b'{"type":"\xff"}',
    "no UTF-8 in a name": b'{"\xff":1}',
    "nested": b'{"x":' * 1500,
    "nested lists": b'{"type":"heartbeat","x":' + b"[" * 100_000,
    "huge integer": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":' + b"9" * 5000 + b"}",
    "huge float": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":1,"at":1e400}',
    "NaN": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":1,"at":NaN}',
    "half a surrogate": b'{"type":"\\ud800"}',
    "nothing": b"",
}
bad = pytest.mark.parametrize("data", BAD.values(), ids=BAD)


@bad
def test_messages(data: bytes) -> None:
    for decode in (decode_to_hub, decode_to_host):
        with pytest.raises(BadMessage):
            decode(data)
    with pytest.raises(BadValue):
        guest_messages.decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
TYPES = st.sampled_from(["snapshot", "heartbeat", "history-told", "parts-asked", "request", "answer", "hello", "books"])
FIELDS = st.sampled_from(
    ["sender", "host", "id", "op", "session", "job", "jobs", "domains", "at", "revision", "entries"]
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Bytes that look like a message, with anything in it, perhaps with one byte changed."""
    message = {"type": draw(TYPES), **draw(st.dictionaries(FIELDS, JSON, max_size=6))}
    data = bytearray(json.dumps(message).encode())
    if draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(deadline=None)
@given(lines() | st.binary(max_size=200))
def test_anything_is_a_message_or_none(data: bytes) -> None:
    for decode, refusal in (
        (decode_to_hub, BadMessage),
        (decode_to_host, BadMessage),
        (guest_messages.decode, BadValue),
    ):
        try:
            decode(data)
        except refusal as error:
            str(error).encode()


@bad
def test_the_ledger_is_put_aside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / ledger.NAME).write_bytes(data)
    assert ledger.load(tmp_path) == ledger.Kept([], {})
    assert (tmp_path / "books.damaged").read_bytes() == data


@bad
def test_the_record_of_an_installation_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "server_priv").mkdir()
    (tmp_path / records.NAME).write_bytes(data)
    with pytest.raises(InstallError, match="damaged"):
        records.load(tmp_path)


@bad
def test_the_journals_facts_are_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    open_journal(path).close()
    for value in (data, data.decode("latin-1"), 5):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (1, 0, ?)", (value,))
        with closing(open_journal(path)) as journal, pytest.raises(JournalError, match=r"journal\.sqlite"):
            journal.facts()
        assert salvage(path) is None


@bad
def test_a_row_of_the_history_that_cannot_be_read_is_left_out(tmp_path: Path, data: bytes) -> None:
    key = JobKey("1.srv", 1)
    host = Host("h1", Mode.EXCLUSIVE, 4, 64)
    with closing(open_journal(tmp_path / "journal.sqlite")) as journal:
        journal.commit(host, None, (ev.Noted("n1", ev.Note.PREEMPTED, key, "13.srv"),))
        journal.commit(host, None, (ev.Noted("n1", ev.Note.PREEMPTED, key, "14.srv"),))
        journal._connection.execute("UPDATE history SET data = ? WHERE id = 2", (data,))
        assert journal.preempted_by("n1", key) == "13.srv"
        entries = journal.history()
    assert sentence(entries[0]) == "stopped for 13.srv"
    assert len(entries) == 2


@bad
def test_an_undecodable_entry_of_a_history_is_shown_as_it_is(data: bytes) -> None:
    entry = HistoryEntry(at=0.0, kind="event", name="Claimed", data=data.decode(errors="replace"))
    assert sentence(entry).startswith("Claimed ")


@bad
def test_an_answer_of_a_daemon_is_strange(tmp_path: Path, data: bytes) -> None:
    for number, answer in enumerate((data, b'{"ok":false' + data)):
        path = tmp_path / f"control{number}.sock"
        with answering(path, answer + b"\n"), pytest.raises(client.Unreachable):
            client.status(path)


def test_the_name_of_a_job_that_is_no_utf_8_spoils_qstat_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qstat"
    program.write_bytes(b'#!/bin/sh\nprintf \'{"Jobs":{"1.srv":{"Job_Name":"\\377"}}}\'\n')
    program.chmod(0o755)
    assert subprocess.run([program], capture_output=True, check=True).stdout.count(b"\xff") == 1
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(qstat.NoQstat):
        qstat.job("1.srv")


@pytest.mark.parametrize("text", ["x = " + "[" * 3000, "x = " + "9" * 5000, 'x = "\\ud800"', "x = 1e999\n[", "\x00"])
def test_a_configuration_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"noded\.toml: not TOML"):
        parse(text, NodedConfiguration, "noded.toml")


@pytest.mark.parametrize("value", ['"/run/\\u0000"', '["ipc:///run/x", "ipc:///\\u0000"]'])
def test_nul_in_a_configuration_is_refused_with_its_line(value: str) -> None:
    key, table = ("endpoints", "hub") if value.startswith("[") else ("run_dir", "paths")
    with pytest.raises(ConfigurationError, match=rf"noded\.toml, line 5: `{key}` in \[{table}\] .*NUL"):
        text = f'[host]\nname = "h1"\nmode = "counted"\n[{table}]\n{key} = {value}\n'
        parse(text, NodedConfiguration, "noded.toml")
