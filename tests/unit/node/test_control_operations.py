"""Who may use which operation of the node daemon's control socket, and the answers: the operations on bare facts."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from magrathea import client
from magrathea.core import events as ev
from magrathea.core.machine import handle
from magrathea.core.model import Host, JobClass, JobKey, SleepCause
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.history_sentences import sentence
from magrathea.messages import HistoryAsked, HistoryEntry, HistoryTold, decode_to_hub
from magrathea_lab.waiting import BOUND_S
from node_daemon import journal
from node_daemon.control_operations import Admin
from node_daemon.hypervisor.base import SAVE
from node_daemon.journal import JournalError, open_journal
from node_daemon.journal_store import JournalStore, NoJournal

from ..core.builders import get, host, run, stop

NOBODY = (65534, 65534)
CHANGING: list[dict[str, object]] = [
    {"op": op, "domain": "n1"} for op in ("drain", "undrain", "pause", "unpause", "clear", "reload")
]


class Owner:
    """A daemon with facts and a journal, which does not act."""

    def __init__(self, folder: Path, facts: Host) -> None:
        self.host = facts
        control = SimpleNamespace(group="")
        self.configuration: Any = SimpleNamespace(control_socket=folder / "control.sock", control=control)
        self.switch: Any = SimpleNamespace(clear=lambda domain: None)
        self.saves: Any = SimpleNamespace(estimates=lambda: lambda road, domain, mib: None)
        self.host_sleep: Any = SimpleNamespace()
        self.evacuation: Any = SimpleNamespace(closed="")
        self.move_requests: Any = SimpleNamespace(report=None, plan=None, migrate=None)
        self.hub: Any = SimpleNamespace(revision=1)
        self.driver: Any = SimpleNamespace(capabilities=frozenset())
        self.journal: JournalStore = open_journal(folder / "journal.sqlite")

    def now(self) -> float:
        return self.host.now

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]:
        self.host, decisions = handle(self.host, event)
        self.journal.commit(self.host, event, decisions)
        return decisions

    def snapshot(self, revision: int) -> Any:
        raise NotImplementedError

    async def reload(self) -> list[str]:
        return []


Ask = Callable[..., Awaitable[dict[str, Any]]]


def play(folder: Path, facts: Host, test: Callable[[Owner, Ask], Awaitable[None]], group: str = "") -> None:
    async def all_of_it() -> None:
        owner = Owner(folder, facts)
        owner.configuration.control.group = group
        admin = Admin(owner)
        await admin.start()

        async def ask(**request: object) -> dict[str, Any]:
            try:
                answer = await asyncio.to_thread(client.ask, owner.configuration.control_socket, request)
            except client.RequestRefused as error:
                return {"ok": False, "code": error.code, "text": str(error)}
            found: dict[str, Any] = json.loads(answer)
            return found

        try:
            await test(owner, ask)
        finally:
            await admin.close()
            owner.journal.close()

    asyncio.run(asyncio.wait_for(all_of_it(), BOUND_S))


def facts() -> Host:
    return stop(run(run(host("exclusive", n1="normal", p1="priority"), "n1", "12"), "p1", "13"), "n1", "12")


def test_everybody_may_look_but_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magrathea.control.peer", lambda connection: NOBODY)

    async def test(owner: Owner, ask: Ask) -> None:
        before = owner.host
        for request in CHANGING:
            assert (await ask(**request))["code"] == "not-permitted", request
        assert owner.host == before
        assert (await ask(op="history"))["ok"]

    play(tmp_path, facts(), test)


def test_the_listed_group_may_change_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magrathea.control.peer", lambda connection: NOBODY)
    monkeypatch.setattr("magrathea.control._in_group", lambda uid, gid, group: group == "operators")

    async def test(owner: Owner, ask: Ask) -> None:
        assert (await ask(op="pause"))["said"]
        assert owner.host.paused

    play(tmp_path, facts(), test, group="operators")


def test_a_pause_is_a_fact_with_its_reason_and_reports_what_stays_stopped(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        said = (await ask(op="pause", reason="a look"))["said"]
        assert said == ["h1 is paused: nobody is stopped or continued, nothing is moved; 1 stopped job will stay so"]
        assert owner.host.paused is not None and owner.host.paused.reason == "a look"
        assert (await ask(op="pause", domain="n1"))["code"] == "wrong-host"
        assert (await ask(op="unpause", domain="h1"))["said"] == ["h1 acts again"]
        assert (await ask(op="unpause"))["said"] == ["h1 was not paused"]
        assert owner.host.paused is None

    play(tmp_path, facts(), test)


def test_a_domain_of_the_hosts_own_name_is_meant_before_the_host(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        assert len((await ask(op="drain", domain="h1"))["said"]) == 1
        assert get(owner.host, "h1").draining
        assert not get(owner.host, "n1").draining

    play(tmp_path, host("exclusive", h1="normal", n1="normal"), test)


def saving(owner: Owner, refusal: Refusal | None = None) -> None:
    """The hypervisor saves domains; `refusal`: why it cannot at the moment."""
    owner.driver = SimpleNamespace(capabilities=frozenset({SAVE}))

    async def refused(name: str) -> Refusal | None:
        return refusal

    owner.saves = SimpleNamespace(refusal=refused)


def test_a_domain_is_put_to_sleep_with_its_jobs_and_the_reason(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        saving(owner)
        [said] = (await ask(op="domain", do="freeze", domain="n1", with_jobs=True, reason="new memory"))["said"]
        assert said.startswith("n1 is draining: to be put to sleep: new memory; waits: 12 (run 1) is not")
        sleep = get(owner.host, "n1").sleep
        assert sleep is not None and (sleep.reason, sleep.cause) == ("new memory", SleepCause.ADMIN)
        assert (await ask(op="domain", do="defrost", domain="n1"))["said"], "gives it up"
        assert (await ask(op="domain", do="boot", domain="n1", with_jobs=True))["code"] == "bad-request"

    play(tmp_path, run(host("exclusive", n1="normal", p1="priority"), "n1", "12"), test)


def test_nobody_is_stopped_for_a_sleep_that_has_no_room(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        saving(owner, Refusal(RefusalCode.NO_SPACE, "saving n1 takes up to 320 MiB, and /images has 100 MiB left"))
        before = get(owner.host, "n1")
        for do in ({"with_jobs": True}, {}):
            assert (await ask(op="domain", do="freeze", domain="n1", **do))["code"] == "no-space"
        assert get(owner.host, "n1") == before
        owner.driver.capabilities = frozenset()
        owner.configuration.host = SimpleNamespace(driver="local")
        answer = await ask(op="domain", do="freeze", domain="n1", with_jobs=True)
        assert answer["code"] == "not-supported" and "local driver" in answer["text"]

    play(tmp_path, run(host("exclusive", n1="normal", p1="priority"), "n1", "12"), test)


def test_a_refused_operation_has_its_code(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        for op in ("drain", "undrain", "clear"):
            assert (await ask(op=op, domain="n9"))["code"] == "unknown-domain"
        assert (await ask(op="drain", domain="s1"))["code"] == "wrong-kind"

    play(tmp_path, host("exclusive", n1="normal", s1="service cpus=1"), test)


def test_the_history_is_asked_by_job_domain_and_host(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        owner.apply(ev.Released(owner.now(), "n1", JobKey("12", 1)))
        owner.apply(ev.Claimed(owner.now() + 60, "p1", JobKey("14.srv", 1), JobClass.PRIORITY, 1))

        async def names(**query: object) -> list[str]:
            return [entry["name"] for entry in (await ask(op="history", **query))["entries"]]

        assert await names(about="14") == ["Claimed", "Accepted"]
        assert await names(about="n1") == ["Released", "Noted"]
        assert await names(about="h1") == ["Released", "Noted", "Claimed", "Accepted"]
        assert await names(about="h1", limit=1) == ["Accepted"]
        assert await names(since=owner.now()) == ["Claimed", "Accepted"]
        told = decode_to_hub(await Admin(owner).answer_history(HistoryAsked(id=7, about="14")))
        assert isinstance(told, HistoryTold)
        assert (told.sender, told.id, told.trouble) == ("h1", 7, "")
        assert [entry.name for entry in told.entries] == ["Claimed", "Accepted"]
        owner.journal = NoJournal(JournalError("the disk is full"))
        assert b"cannot be read" in await Admin(owner).answer_history(HistoryAsked(id=8))

    play(tmp_path, facts(), test)


def test_a_guests_long_list_is_no_long_history(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        jobs = tuple(ev.ReportedJob(JobKey(f"{n:0240}.srv", 1)) for n in range(20_000))
        owner.journal.commit(owner.host, ev.JobsReported(owner.now(), "n1", jobs), ())
        owner.journal.commit(owner.host, ev.DrainRequested(owner.now(), "n1", "x" * 5_000_000), ())
        owner.journal.commit(owner.host, None, (ev.Noted("n1", ev.Note.RELEASED, JobKey("12", 1), "y" * 5_000_000),))
        listed, drained, noted = (await ask(op="history"))["entries"]
        assert json.loads(listed["data"])["jobs"] == 20_000
        assert json.loads(drained["data"])["shortened_from_bytes"] > 5_000_000
        assert len(listed["data"]) + len(drained["data"]) + len(noted["data"]) < 10_000

    play(tmp_path, facts(), test)


def test_one_row_of_an_older_version_that_is_too_long_for_an_answer_is_shortened(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        row = (1.0, "event", "JobsReported", "n1", "", b'{"jobs":["' + b"x" * 5_000_000 + b'"]}')
        with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
            connection.execute("INSERT INTO history (at, kind, name, domain, job, data) VALUES (?, ?, ?, ?, ?, ?)", row)
        connection.close()
        (found,) = (await ask(op="history"))["entries"]
        assert sentence(msgspec.convert(found, HistoryEntry)).startswith("JobsReported, shortened from 5000013 bytes: ")

    play(tmp_path, facts(), test)


@pytest.mark.long
def test_the_newest_entries_that_fit_are_the_answer(tmp_path: Path) -> None:
    async def test(owner: Owner, ask: Ask) -> None:
        for n in range(400):
            owner.journal.commit(owner.host, ev.DrainRequested(float(n), "n1", "x" * 15_000), ())
        entries = (await ask(op="history", limit=400))["entries"]
        assert 200 < len(entries) < 400
        assert json.loads(entries[-1]["data"])["at"] == 399.0

    play(tmp_path, facts(), test)


def test_who_reads_the_history_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, others_answered = threading.Event(), threading.Event()

    def slow(*_: object) -> list[HistoryEntry]:
        reading.set()
        assert others_answered.wait(BOUND_S / 2)
        return []

    monkeypatch.setattr(journal, "read_file", slow)

    async def test(owner: Owner, ask: Ask) -> None:
        asked = asyncio.ensure_future(ask(op="history"))
        assert await asyncio.to_thread(reading.wait, BOUND_S)
        assert (await ask(op="ping"))["ok"]
        others_answered.set()
        assert (await asked)["ok"]

    play(tmp_path, facts(), test)


def test_a_history_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magrathea.history.READ_S", -1.0)

    async def test(owner: Owner, ask: Ask) -> None:
        owner.apply(ev.Released(owner.now(), "n1", JobKey("12", 1)))
        assert "not read within" in (await ask(op="history"))["text"]

    play(tmp_path, facts(), test)
