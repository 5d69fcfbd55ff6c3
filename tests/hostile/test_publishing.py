"""A host that changes its state all the time uses up the PBS server's time for publishing: other hosts come before
it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from magrathea.budget import Budget
from magrathea_lab.waiting import BOUND_S, until
from scheduler_plugin.hub.publisher import Publisher
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, HOST, NCPUS
from tests.fakes.pbs import FakePbs

CALL_S = 0.002
HOSTILE = [f"a{n:02}" for n in range(40)]


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs(*HOSTILE, "z1")

    def slow(operation: str, subject: str) -> None:
        if operation == "set_vnode":
            time.sleep(CALL_S)

    pbs.breaks = slow
    return pbs


@pytest.fixture
def publisher(pbs: FakePbs) -> Iterator[Publisher]:
    budget = Budget(share=0.05, burst=10 * CALL_S, now=time.monotonic())
    made = Publisher(pbs.connect, lambda read: None, lambda error: None, budget, compare_s=3600)
    made.start()
    yield made
    made.close(BOUND_S)


def test_an_honest_hosts_change_is_published_next_though_another_changes_all_the_time(
    publisher: Publisher, pbs: FakePbs
) -> None:
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.wait(0.001):
            number += 1
            publisher.want({name: {HOST: "hostile", NCPUS: str(number)} for name in HOSTILE})

    attack = threading.Thread(target=change)
    attack.start()
    try:
        until(lambda: pbs.count("set_vnode") > 30, "the budget is used up")
        before = pbs.count("set_vnode")
        publisher.want({"z1": {HOST: "honest", ACCEPTS: "priority"}})
        until(lambda: ("set_vnode", "z1") in pbs.calls, "the honest host's change")
        assert pbs.count("set_vnode") - before <= 12, "one batch that was under way"
    finally:
        over.set()
        attack.join()
