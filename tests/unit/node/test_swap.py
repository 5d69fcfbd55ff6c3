"""Guests whose swap takes less than `swap_mib` says: zram above all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node_daemon.agent.swaps import Swap
from node_daemon.guest_channel.messages import GuestMemory, Report
from node_daemon.setup.doctor import guest_swap
from tests.fakes.guest import SESSION, FakeGuest
from tests.fakes.hypervisor import balloons

from .switch_world import CAPACITY_MIB, World, busy_guest, played


def world() -> World:
    n1 = busy_guest(actual=2048)
    n1.stopped = False
    w = World(balloons(CAPACITY_MIB, n1, FakeGuest("p1", 384, used=60)), swap_mib=2048, low_mib=1700)
    sizes = {"n1": 2048, "p1": CAPACITY_MIB}
    w.host = replace(w.host, domains=tuple(replace(d, memory_mib=sizes[d.name]) for d in w.host.domains))
    return w


def report(takes_mib: int | None, zram_mib: int = 0) -> Report:
    memory = GuestMemory(2048, 200, 0, 2048, 2048, 100, zram_mib=zram_mib, swap_takes_mib=takes_mib)
    return Report(7, SESSION, memory)


def test_a_job_that_does_not_fit_into_zram_is_not_stopped_for_its_memory() -> None:
    w = world()

    async def work() -> None:
        await w.claims.request("n1", report(0, zram_mib=2048))
        [note] = w.claims.notes()
        assert "`swap_mib` is 2048, but its swap (2048 MiB of it are zram" in note
        assert (await w.claim(1000))["code"] == "memory"
        assert w.low_runs()

    played(w, work)


@pytest.mark.parametrize("takes_mib", [None, 2040, 4096])
def test_swap_that_takes_what_is_configured_changes_nothing(takes_mib: int | None) -> None:
    w = world()

    async def work() -> None:
        await w.claims.request("n1", report(takes_mib))
        assert w.claims.notes() == []
        assert (await w.claim(1000))["ok"]

    played(w, work)


def test_figures_that_fluctuate_change_nothing() -> None:
    w = world()

    async def work() -> None:
        await w.claims.request("n1", report(900, zram_mib=2048))
        before = w.host, w.claims.notes()
        await w.claims.request("n1", report(910, zram_mib=2048))
        assert (w.host, w.claims.notes()) == before

    played(w, work)


@pytest.mark.parametrize("takes_mib", [-(2**40), 2**40])
def test_a_guest_that_lies_keeps_no_more_than_it_has(takes_mib: int) -> None:
    w = world()

    async def work() -> None:
        await w.claims.request("n1", report(takes_mib))
        assert 0 <= w.domain("n1").unreclaimable_mib <= 2048 - w.domain("n1").floor_mib

    played(w, work)


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        (Swap(0, 0, 0, 0), "note", "no swap"),
        (Swap(0, 2048, 400, 400), "warn", "100 % of it stays in memory (by what it holds now)"),
        (Swap(0, 2048, 0, 0), "warn", "50 % of it stays in memory (assumed"),
        (Swap(1024, 2048, 400, 100), "ok", ""),
        (Swap(1024, 0, 0, 0), "ok", ""),
    ],
)
def test_doctor_tells_zram_from_real_swap(found: Swap, status: str, says: str) -> None:
    check = guest_swap(4096, found)
    assert check.status == status and says in check.cause
    if found.zram and not found.real:
        assert f"at most {found.takes()}" in check.fix
