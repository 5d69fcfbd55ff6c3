"""Job ids from a hostile guest or host: PBS reads some texts as several jobs, as all, or as another name of a job."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from magrathea.core.model import JobKey
from magrathea.job_ids import MOST, PATTERN, is_job_id, is_typed_id
from magrathea.messages import BadMessage, RefusedClaim, decode_to_hub, encode
from node_daemon.agent import values
from node_daemon.agent.lines import BadValue
from node_daemon.guest_channel.messages import Claim, Jobs, Launched, Prepared, Release, decode
from scheduler_plugin.hub.bindings import Bindings
from scheduler_plugin.pbs.base import Code, PbsError, PbsJob
from scheduler_plugin.pbs.libpbs import LibPbs
from tests.fakes.pbs import Connection, FakePbs
from tests.fakes.reports import domain, job, report, snapshot, stopped
from tests.unit.hub.simulated_hub import SimHub

LONGEST = "1.srv" + ".a" * 125
GOOD = ["12.srv", "7[3].pbs-server.example.org", "999999999999.a_b", "5[1000000].srv", "7.srv:15011", LONGEST]
BAD = {
    "subjobs of another array": "5[900,1-1000]@,7",
    "a range": "5[1-3].srv",
    "an array": "5[].srv",
    "overflows find_arrayparent": "1." + "A" * 250 + "[",
    "overflows it after the server": "1.srv[" + "1" * 240,
    "all jobs": "@",
    "all jobs too": "\0",
    "nothing": "",
    "another name": "7@0",
    "one more": "7.srv@0",
    "no server": "7",
    "two jobs": "7.srv,8.srv",
    "ends in NUL": "7.srv\0",
    "ends in a newline": "7.srv\n",
    "a blank": "7 .srv",
    "escape": "7.srv\x1b[2J",
    "other digits": "\u0667.srv",
    "other letters": "7.\u0455rv",
    "a reservation": "R12.srv",
    "too long a number": "1234567890123.srv",
    "too long": LONGEST + "aa",
    "a path": "7./../x",
    "two dots": "7.srv..x",
    "a dot at the end": "7.srv.",
    "minus": "-1.srv",
}

good = pytest.mark.parametrize("id", GOOD)
bad = pytest.mark.parametrize("id", BAD.values(), ids=BAD.keys())


def test_the_longest_id_is_as_long_as_it_may_be() -> None:
    assert len(LONGEST) == MOST


# The doors


def from_guest(id: str) -> list[bytes]:
    """Everything in which a guest names a job, apart from answers."""
    head = {"type": "request", "id": 1, "session": "0" * 16}
    named = {"id": id, "run": 1}
    whole = {**named, "cpus": 1, "class": "priority"}
    requests: list[dict[str, object]] = [
        {"op": op, "job": whole if op == "claim" else named} for op in ("claim", "release", "launched")
    ]
    requests += [{"op": "prepared", "job": named, "vnodes": []}, {"op": "jobs", "jobs": [named]}]
    answer = {"type": "answer", "id": 1, "session": "0" * 16, "ok": True, "jobs": [named]}
    return [json.dumps({**head, **request}).encode() for request in requests] + [json.dumps(answer).encode()]


def from_host(id: str) -> list[bytes]:
    """Everything in which a host names a job."""
    refused = RefusedClaim(id=id, run=1, domain="n1", code="occupied", text="", at=0.0)
    asked = {"type": "parts-asked", "sender": "h1", "id": 1, "job": id, "run": 1, "vnodes": []}
    return [
        encode(snapshot(domain("n1", [report(id)]))),
        encode(structs.replace(snapshot(domain("n1")), refused=[refused])),
        json.dumps(asked).encode(),
    ]


@good
def test_ids_as_pbs_makes_them_pass_all_doors(id: str) -> None:
    kinds = [type(decode(line).message) for line in from_guest(id)]
    assert kinds[:5] == [Claim, Release, Launched, Prepared, Jobs]
    for data in from_host(id):
        decode_to_hub(data)
    assert values.job_key({"id": id, "run": 0}) == (id, 0)
    assert is_job_id(id) and is_typed_id(id)


@bad
def test_a_guest_cannot_name_anything_else(id: str) -> None:
    for line in from_guest(id):
        with pytest.raises(BadValue):
            decode(line)


@bad
def test_a_host_cannot_name_anything_else(id: str) -> None:
    for data in from_host(id):
        with pytest.raises(BadMessage):
            decode_to_hub(data)


@bad
def test_the_agent_takes_nothing_else(id: str) -> None:
    with pytest.raises(BadValue):
        values.job_key({"id": id, "run": 1})


def test_the_agents_copy_of_the_pattern_is_the_same() -> None:
    assert (values.JOB_ID.pattern, values.LONGEST_JOB_ID) == (PATTERN, MOST)


@pytest.mark.parametrize("text", ["12", "12[3]", "12[]", "12[].srv", "12.srv"])
def test_people_may_leave_out_the_server_or_name_an_array(text: str) -> None:
    assert is_typed_id(text)


@pytest.mark.parametrize("text", ["", "@", "12@srv", "12[1-3]", "-x", "12,13", "12\n", "12\0", "12." + "a" * 300])
def test_but_not_name_several_jobs(text: str) -> None:
    assert not is_typed_id(text)


# The last door: the calls of PBS's library


class Library:
    """PBS's library: it knows all jobs by all names and does whatever it is asked for."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.called: list[str] = []
        self.errno = ctypes.c_int(0)

    def __getattr__(self, name: str) -> Any:
        if name == "__pbs_errno_location":
            return lambda: SimpleNamespace(contents=self.errno)
        return lambda *arguments: self.called.append(name)


def library_connection(library: Library, monkeypatch: pytest.MonkeyPatch) -> LibPbs:
    connection = LibPbs.__new__(LibPbs)
    for name, value in {"_library": library, "_fd": 3, "_cut": False, "_deadline_s": 1.0, "until": None}.items():
        setattr(connection, name, value)
    attributes = {"job_state": "R", "exec_vnode": "(n1:ncpus=1)"}

    def statuses(what: str, function: str, *arguments: object) -> list[tuple[str, dict[str, str]]]:
        library.called.append("pbs_statjob")
        return [(name, dict(attributes)) for name in library.names]

    monkeypatch.setattr(connection, "_statuses", statuses)
    return connection


@bad
def test_pbs_is_not_called_about_anything_else(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library("7.srv", "8.srv")
    pbs = library_connection(library, monkeypatch)
    calls: list[Callable[[], object]] = [
        lambda: pbs.job(id),
        lambda: pbs.admin_suspend(id),
        lambda: pbs.admin_resume(id),
        lambda: pbs.resume(id),
        lambda: pbs.rerun(id, force=True),
        lambda: pbs.set_walltime(id, 1),
        lambda: pbs.set_comment(id, "x"),
    ]
    for call in calls:
        with pytest.raises(PbsError) as refused:
            call()
        assert (refused.value.code, refused.value.transient) == (Code.UNKNOWN_JOB, False)
        assert str(refused.value).isprintable()
    assert library.called == []


@pytest.mark.parametrize("names", [[], ["7.srv.example.org"], ["7.srv", "8.srv"], ["8.srv", "7.srv"], ["7.srv"] * 2])
def test_only_one_answer_with_that_very_name_is_about_a_job(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_connection(Library(*names), monkeypatch).job("7.srv") is None


def test_an_answer_with_that_name_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library_connection(Library("7.srv"), monkeypatch).job("7.srv")
    assert found is not None and (found.id, found.vnodes) == ("7.srv", ("n1",))


# The hub, with a PBS that answers to other names and shows no run versions


class OtherNames(FakePbs):
    def connect(self) -> Connection:
        connection = super().connect()
        by_id = connection.job
        connection.job = lambda job: by_id(job.split(".")[0] + ".srv")  # type: ignore[method-assign]
        return connection


@pytest.fixture
def pbs() -> FakePbs:
    pbs = OtherNames("n1", "n2")
    pbs.put(job(vnodes=("n1",), walltime_s=600, run=0))
    return pbs


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    hub = SimHub(pbs)
    hub.farm.bind(Bindings({"h1": frozenset({"n1"}), "h2": frozenset({"n2"})}))
    return hub


def test_an_answer_about_a_job_of_another_name_makes_no_report_count(hub: SimHub, pbs: FakePbs) -> None:
    hub.says("h1", domain("n1", [stopped("1.other")]))
    hub.after(100)
    assert pbs.count("job") > 0 and pbs.count("admin_suspend") == 0 and not hub.farm.entries
    assert hub.farm.parts.unready("h1", JobKey("1.other", 1), ["n2"])[0].text.startswith("PBS does not have")


def given_s(found: PbsJob) -> int:
    return (found.walltime_s or 0) - 600


@pytest.mark.parametrize("order", [range(1, 31), range(30, 0, -1)], ids=["upwards", "downwards"])
def test_other_run_numbers_do_not_get_the_same_walltime_again(hub: SimHub, pbs: FakePbs, order: range) -> None:
    """The job started 100 s ago; PBS cannot suspend it yet, so its walltime runs on while it is stopped."""
    pbs.starting.add("1.srv")
    began = hub.at
    for run in order:
        hub.says("h1", domain("n1", [stopped(run=run, since=1.0)]))
        hub.settle(1)
    hub.says("h1", domain("n1"))
    pbs.starting.clear()
    hub.after(100)
    assert given_s(pbs.jobs["1.srv"]) <= 100 + (hub.at - began)


def test_several_runs_at_once_are_one_job(hub: SimHub, pbs: FakePbs) -> None:
    pbs.starting.add("1.srv")
    began = hub.at
    hub.says("h1", domain("n1", [stopped(run=run, since=1.0) for run in range(1, 31)]))
    hub.settle(5)
    assert [key.run for key in hub.farm.entries] == [30]
    hub.says("h1", domain("n1"))
    pbs.starting.clear()
    hub.after(100)
    assert given_s(pbs.jobs["1.srv"]) <= 100 + (hub.at - began)


def test_a_second_run_of_a_job_replaces_the_first(hub: SimHub) -> None:
    hub.says("h1", domain("n1", [stopped(run=1)]))
    hub.settle(1)
    hub.says("h1", domain("n1", [stopped(run=1), report(run=2)]))
    hub.after(60)
    assert hub.state() == "R", "the first run's wish is over"
