"""Text of guests and hosts on the terminal of an admin: no command prints a control character of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec import structs

from magrathea.cli import guest_status, view
from magrathea.cli.doctor import FORMS as DOCTOR_FORMS
from magrathea.cli.main import cli
from magrathea.doctor import Check, Status
from magrathea.messages import FarmView, HostView, Snapshot, encode
from tests.fakes.control_socket import answering
from tests.fakes.reports import domain, report, snapshot

EVIL = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028\r\x08\x7f\U000e0001y"
"""Sets the window's title, clears the screen, colours (also with the one-byte CSI), turns the writing round, ends lines
in several ways, goes back, and has a character beyond 16 bits."""

form = pytest.mark.parametrize("form", ["table", "plain", "json"])


def is_harmless(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def evil_snapshot() -> Snapshot:
    job = structs.replace(report("7.srv", stop=True), id=EVIL, preempted_by=EVIL, waits=EVIL)
    of_domain = structs.replace(domain("n1", [job]), why=EVIL, vnode=EVIL, lacks=EVIL)
    return structs.replace(snapshot(of_domain), host=EVIL, notes=[EVIL], paused=EVIL, paused_since=1.0, driver=EVIL)


def run(path: Path, answer: bytes, *arguments: str, socket: str = "--socket") -> Result:
    with answering(path, answer):
        return CliRunner().invoke(cli, [*arguments, socket, str(path)])


@form
def test_status(form: str) -> None:
    assert is_harmless(view.FORMS[form](evil_snapshot()))
    assert "owned" in view.FORMS[form](evil_snapshot())


def test_json_is_escaped_and_still_the_same() -> None:
    for compact in (True, False):
        assert json.loads(view.FORMS["json"](evil_snapshot(), compact))["host"] == EVIL


@form
def test_status_in_a_guest(form: str) -> None:
    job = guest_status.AgentStatusJob(id=EVIL, run=1, owner=EVIL, order=None, processes=1, stopped=0)
    memory = guest_status.AgentStatusMemory(1, 1)
    guest = guest_status.AgentStatus(True, EVIL, EVIL, EVIL, [job], memory, 0.0)
    assert is_harmless(guest_status.FORMS[form](guest, 0.0))


@form
def test_doctor(form: str) -> None:
    assert is_harmless(DOCTOR_FORMS[form]([Check("host", "agents", Status.WARN, EVIL, EVIL, EVIL)]))


@pytest.mark.parametrize("command", [["drain", "n1"], ["undrain", "n1"], ["clear", "n1"], ["pause"], ["reload"]])
@pytest.mark.parametrize(
    "answer", [{"ok": True, "said": [EVIL]}, {"ok": False, "code": EVIL, "text": EVIL}], ids=["granted", "refused"]
)
def test_what_the_daemon_answers_an_admin(tmp_path: Path, command: list[str], answer: dict[str, object]) -> None:
    result = run(tmp_path / "s", json.dumps(answer, separators=(",", ":")).encode() + b"\n", *command)
    assert "owned" in result.output and is_harmless(result.output)


@form
def test_history(tmp_path: Path, form: str) -> None:
    data = json.dumps({"text": EVIL}, ensure_ascii=False)
    entry = {"at": 1.0, "kind": "event", "name": "JobGone", "domain": EVIL, "job": EVIL, "data": data}
    answer = json.dumps({"ok": True, "entries": [entry]}).encode() + b"\n"
    result = run(tmp_path / "s", answer, "history", "--format", form)
    assert result.exit_code == 0 and "owned" in result.output and is_harmless(result.output)


@form
def test_why_a_host_has_no_history(tmp_path: Path, form: str) -> None:
    hosts = [{"host": EVIL, "trouble": EVIL, "entries": []}]
    answer = json.dumps({"ok": True, "hosts": hosts}).encode() + b"\n"
    result = run(tmp_path / "s", answer, "history", "--format", form, socket="--hub")
    assert "owned" in result.stderr and is_harmless(result.output)


@form
def test_explain(tmp_path: Path, form: str) -> None:
    job = structs.replace(report("7.srv", stop=True), preempted_by=EVIL)
    made = snapshot(structs.replace(domain("n1", [job]), vnode=EVIL))
    view_of_all = FarmView(at=1.0, knows_pbs=True, hosts=[HostView(live=True, snapshot=made)], booked=[])
    result = run(tmp_path / "s", encode(view_of_all) + b"\n", "explain", "7", "--format", form, socket="--hub")
    assert result.exit_code == 0 and "owned" in result.output and is_harmless(result.output)
