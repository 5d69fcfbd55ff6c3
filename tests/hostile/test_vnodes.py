"""A host that claims another host's vnodes: PBS shows what the rightful host reports."""

from __future__ import annotations

from pathlib import Path

from scheduler_plugin.hub.vnode_attributes import HOST, SIBLINGS, STATE
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain


def test_a_host_that_comes_first_does_not_get_names_bound_to_another(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        hostile, honest = hub.host("h1", "p1"), hub.host("h2", "n1", "n2")
        hub.start()
        await hostile.says(domain("n1"), domain("n2"), domain("p1"), domain("nowhere"))
        await hub.until(lambda: hub.shown("p1", STATE) == "free", "it is heard")
        assert hub.shown("p1", SIBLINGS) == "none", "and names no foreign siblings"
        assert hub.shown("n1", HOST) is None
        await honest.says(domain("n1"), domain("n2"))
        await hub.until(lambda: hub.shown("n2", HOST) == "h2", "the rightful host has its vnodes")
        assert hub.shown("n1", HOST) == "h2"
        assert hub.shown("n1", SIBLINGS) == "n2"

    run(tmp_path, test, "n1", "n2", "p1", tcp=True)


def test_a_host_without_a_list_cannot_take_vnodes_from_one_with_a_list(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        hostile, honest = hub.host("h1"), hub.host("h2", "n1", "n2")
        hub.start()
        await hostile.says(domain("n1"), domain("p1"))
        await hub.until(lambda: hub.shown("p1", HOST) == "h1", "what is on no list is for the first who comes")
        await honest.says(domain("n1"), domain("n2"))
        await hub.until(lambda: hub.shown("n1", HOST) == "h2", "the rightful host has its vnodes")

    run(tmp_path, test, "n1", "n2", "p1", tcp=True)
