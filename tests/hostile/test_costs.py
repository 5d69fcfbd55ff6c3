"""What a host causes at the hub is charged to it, also what is done after its message. Its hanging MoMs harm no other
host."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from magrathea.messages import PartsAsked, PartsTold, encode
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub.configuration import PbsTable
from scheduler_plugin.hub.hub import Hub
from scheduler_plugin.hub.lanes import Lane
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain, job, report, stopped


def test_work_after_a_message_is_charged_to_the_host_that_caused_it(tmp_path: Path) -> None:
    charged: list[tuple[dict[str, int], Lane]] = []

    async def test(hub: RealHub) -> None:
        hostile, honest = hub.host("h1"), hub.host("h2")
        hub.start()
        assert hub.hub is not None
        original = hub.hub._charged

        @contextmanager
        def noted(causes: Mapping[str, int], lane: Lane = Lane.REST) -> Iterator[None]:
            charged.append((dict(causes), lane))
            with original(causes, lane):
                yield

        hub.hub._charged = noted  # type: ignore[method-assign]
        await honest.says(domain("n2", [report("200.srv")]))
        await hub.until(lambda: ({"h2": 2}, Lane.REST) in charged, "the honest host's own work")
        await hostile.says(domain("n1", [report(f"{n}.srv") for n in range(100)]))
        await hub.until(lambda: ({"h1": 101}, Lane.REST) in charged, "the decisions about its jobs")
        charged.clear()
        await hostile.sends(encode(PartsAsked(sender="h1", id=1, job="7.srv", run=1, vnodes=["n2"])))
        await hostile.hears(lambda message: isinstance(message, PartsTold))
        assert ({"h1": 1}, Lane.PARTS) in charged
        assert all(lane is Lane.PARTS for causes, lane in charged if "h1" in causes)

    run(tmp_path, test, "n1", "n2")


def test_each_charge_is_split_in_proportion(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        hub.start()
        host = hub.host("h1")
        await host.says(domain("n1"))
        await hub.until(lambda: hub.shown("n1", "resources_available.magrathea_host") == "h1", "the host is heard")
        assert isinstance(hub.hub, Hub)
        spent: dict[str, float] = {}
        hub.hub._channel.charge = lambda host, s, lane: spent.update({host: s})  # type: ignore[assignment,misc]
        with hub.hub._charged({"h1": 99, "h2": 1}):
            sum(range(10_000))
        assert spent["h1"] > 50 * spent["h2"] > 0
        with hub.hub._charged({}):
            sum(range(10))
        assert set(spent) == {"h1", "h2"}

    run(tmp_path, test, "n1")


def test_a_host_whose_moms_hang_does_not_keep_another_hosts_job_from_being_suspended(tmp_path: Path) -> None:
    go = threading.Event()
    hanging: list[str] = []

    def hang(operation: str, subject: str) -> None:
        if operation == "admin_suspend" and subject.endswith(".hang"):
            hanging.append(subject)
            go.wait(BOUND_S)

    async def test(hub: RealHub) -> None:
        hostile, honest = hub.host("h1"), hub.host("h2")
        for n in range(30):
            hub.pbs.put(job(f"{n}.hang", vnodes=("n1",)))
        hub.pbs.put(job("7.srv", vnodes=("n2",)))
        hub.pbs.breaks = hang
        hub.start()
        await hostile.says(domain("n1", [stopped(f"{n}.hang") for n in range(30)]))
        await hub.until(lambda: len(hanging) >= PbsTable().workers - 1, "as many hang as may")
        assert not go.is_set()
        await honest.says(domain("n2", [stopped("7.srv")]))
        try:
            await honest.hears_books("7.srv")
        finally:
            go.set()
        assert hub.pbs.jobs["29.hang"].state == "R"

    run(tmp_path, test, "n1", "n2")
