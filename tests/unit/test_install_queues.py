"""Queues of `magrathea pbs install`: their names, queues that cannot give a class, and the way back out of one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from scheduler_plugin.setup import queue_names, records
from scheduler_plugin.setup.sched_config import InstallError
from tests.fakes.qmgr import FakeQmgr, magrathea

CLASS = "default_chunk.magrathea_accepts"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQmgr:
    one = FakeQmgr(tmp_path)
    one.objects["server"]["srv"] = {"default_queue": "workq"}
    one.objects["queue"]["workq"] = {"queue_type": "Execution"}
    one.objects["node"]["n1"] = {"resv_enable": "True"}
    return one.serving(monkeypatch)


@pytest.mark.parametrize("name", ["low", "L", "a-b_c9", "priorities", "R12x", "Rx1", "x" * 15, "s1"])
def test_a_name_that_qmgr_takes_is_good(name: str) -> None:
    assert queue_names.fault(name) == ""


BAD_WORDS = (
    "007 _low -low \xe9t\xe9 \u0131ow @srv a@srv a,b a=b a;b a'b a\"b a#b a\\ a\0b a\udcff a\xe9 a&b a.b a+b $low"
)
RESERVED = "Priority priority QUEUE comment scheduling state R123 S4 M5"


@pytest.mark.parametrize("name", [*BAD_WORDS.split(" "), *RESERVED.split(), "", "a b", "a\tb", "a\nb", "x" * 16])
def test_a_name_that_qmgr_does_not_take_is_refused_before_anything_is_changed(server: FakeQmgr, name: str) -> None:
    before = server.picture()
    for option in ("--priority", "--preemptible"):
        refused = magrathea(server, "install", option, name)
        assert refused.exit_code == 1 and "its name" in refused.output
    assert server.picture() == before and not (server.home / records.NAME).exists()
    assert magrathea(server, "install", "--preemptible", "low").exit_code == 0, "it stands in nobody's way"


def test_a_queue_without_a_type_or_that_only_routes_gives_no_class(server: FakeQmgr) -> None:
    server.objects["queue"] |= {"half": {}, "route": {"queue_type": "Route"}}
    for name, word in (("half", "queue_type = Execution"), ("route", "routes to")):
        refused = magrathea(server, "install", "--preemptible", name)
        assert refused.exit_code == 1 and word in refused.output


def test_a_name_that_an_older_release_remembered_is_forgotten(server: FakeQmgr) -> None:
    assert magrathea(server, "install", "--preemptible", "low").exit_code == 0
    record = records.load(server.home)
    assert record is not None
    old = msgspec.structs.replace(record, preemptible=["low", "007"], queues=["low", "007"])
    records.save(server.home, old)
    assert magrathea(server, "check").exit_code == 0
    assert magrathea(server, "install").exit_code == 0
    new = records.load(server.home)
    assert new is not None and new.preemptible == ["low"] and new.queues == ["low"]


def test_a_queue_that_the_server_refuses_is_not_remembered(server: FakeQmgr, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of the site may refuse it."""
    server.fail_at = next(
        at for at, step in enumerate(_steps(server, "--preemptible", "low")) if step.startswith("create queue low")
    )
    assert magrathea(server, "install", "--preemptible", "low").exit_code == 1
    server.fail_at = None
    assert "create queue low" in magrathea(server, "check").output, "it is said what has failed"
    assert magrathea(server, "install").exit_code == 0
    assert magrathea(server, "check").exit_code == 0 and "low" not in server.objects["queue"]


def _steps(server: FakeQmgr, *options: str) -> list[str]:
    magrathea(server, "install", *options)
    found = list(server.steps)
    magrathea(server, "uninstall")
    server.steps.clear()
    return found


def test_one_queue_is_taken_out_again_and_the_rest_stays(server: FakeQmgr) -> None:
    server.objects["queue"]["old"] = {"queue_type": "Execution"}
    select = {"Resource_List.select": "1:ncpus=1", "schedselect": "1:ncpus=1"}
    server.jobs["7.srv"] = {"job_state": "Q", "queue": "old", **select}
    names = ("--preemptible", "low", "--preemptible", "old", "--priority", "high")
    assert magrathea(server, "install", *names).exit_code == 0
    assert server.jobs["7.srv"]["schedselect"].endswith("=preemptible")
    dry = magrathea(server, "uninstall", "--queue", "low", "--queue", "old", "--dry-run")
    assert "would: delete queue low" in dry.output and "low" in server.objects["queue"]
    assert magrathea(server, "uninstall", "--queue", "low", "--queue", "old").exit_code == 0
    assert "low" not in server.objects["queue"] and CLASS not in server.objects["queue"]["old"]
    assert server.jobs["7.srv"]["schedselect"].endswith("=protected")
    assert server.objects["queue"]["high"][CLASS] == "priority"
    assert magrathea(server, "check").exit_code == 0
    assert "nothing to change" in magrathea(server, "install").output
    refused = magrathea(server, "uninstall", "--queue", "low")
    assert refused.exit_code == 1 and "knows these: high" in refused.output


def test_a_queue_that_somebody_has_deleted_is_made_anew_or_taken_out(server: FakeQmgr) -> None:
    assert magrathea(server, "install", "--preemptible", "low").exit_code == 0
    del server.objects["queue"]["low"]
    missing = magrathea(server, "check")
    assert missing.exit_code == 2 and "uninstall --queue low" in missing.output
    assert magrathea(server, "uninstall", "--queue", "low").exit_code == 0
    assert magrathea(server, "check").exit_code == 0
    assert magrathea(server, "install").exit_code == 0 and "low" not in server.objects["queue"]


def test_a_queue_with_jobs_stays_ours_to_delete_later(server: FakeQmgr) -> None:
    assert magrathea(server, "install", "--preemptible", "low").exit_code == 0
    server.jobs["7.srv"] = {"job_state": "R", "queue": "low", "Resource_List.select": "1", "schedselect": "1"}
    real = server._change

    def busy(verb: str, kind: str, rest: list[str]) -> None:
        if (verb, kind, rest) == ("delete", "queue", ["low"]) and server.jobs:
            raise InstallError("delete queue low: Cannot delete busy object")
        real(verb, kind, rest)

    server._change = busy  # type: ignore[method-assign]
    left = magrathea(server, "uninstall", "--queue", "low")
    assert left.exit_code == 3 and "it has 1 jobs (7.srv)" in left.output
    assert magrathea(server, "check").exit_code == 0, "the queue is an ordinary one now"
    server.jobs.clear()
    assert magrathea(server, "uninstall", "--queue", "low").exit_code == 0
    assert "low" not in server.objects["queue"]


@pytest.mark.parametrize("file", ["beat", "/b\udcff", "/a\nb"])
def test_a_heartbeat_that_cannot_be_kept_is_refused(server: FakeQmgr, file: str) -> None:
    refused = magrathea(server, "install", "--heartbeat", file)
    assert refused.exit_code == 1 and "--heartbeat" in refused.output
    assert not server.steps
