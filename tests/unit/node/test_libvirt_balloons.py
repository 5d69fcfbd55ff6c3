"""The size of a moving balloon, read from a model of QEMU that may hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.libvirt.balloons import KIB, MOVING_S, READ_S, Balloons


class Qemu:
    """`memoryStats` of one domain; if it hangs, it does not answer."""

    def __init__(self, mib: int) -> None:
        self.mib = mib
        self.hung = False
        self.asked = 0

    def memoryStats(self) -> dict[str, int]:
        return {"actual": self.mib * KIB}

    async def ask(self, domain: str, what: str, work: Callable[[Any], Any], seconds: float) -> Any:
        self.asked += 1
        await asyncio.sleep(seconds if self.hung else 0.001)
        if self.hung:
            raise DriverError(RefusalCode.TIMEOUT, what)
        return work(self)


def test_a_balloon_is_asked_as_long_as_it_moves_and_a_while_after() -> None:
    qemu = Qemu(500)
    balloons = Balloons(qemu.ask)

    async def work() -> None:
        assert await balloons.mib() == {}, "nobody has set it"
        balloons.target_set("n1")
        for qemu.mib in (500, 600, 700):
            assert await balloons.mib() == {"n1": qemu.mib}
            await asyncio.sleep(MOVING_S / 2)
        await asyncio.sleep(MOVING_S)
        assert await balloons.mib() == {}

    run(work())


def test_a_qemu_that_hangs_is_asked_once_and_has_no_less_than_it_had_grown_to() -> None:
    qemu = Qemu(1500)
    balloons = Balloons(qemu.ask)

    async def work() -> None:
        balloons.target_set("n1")
        await balloons.mib()
        qemu.mib = 1800
        await balloons.mib()
        qemu.mib, qemu.hung = 2048, True
        began = asyncio.get_running_loop().time()
        assert await balloons.mib() == {}
        assert asyncio.get_running_loop().time() - began < READ_S + 0.1
        asked = qemu.asked
        for _ in range(10):
            assert await balloons.mib() == {}
            assert balloons.last_known("n1", 1000) == 1800, "libvirt has heard of less, and others would be given it"
        assert qemu.asked == asked
        assert balloons.last_known("n1", 2048) == 2048
        qemu.hung = False
        balloons.target_set("n1")
        assert await balloons.mib() == {"n1": 2048}
        assert balloons.last_known("n1", 1000) == 1000, "it answers"

    run(work())


def test_a_domain_that_went_down_forgets_its_old_size() -> None:
    qemu = Qemu(1500)
    balloons = Balloons(qemu.ask)

    async def work() -> None:
        balloons.target_set("n1")
        await balloons.mib()
        qemu.mib = 1800
        await balloons.mib()
        qemu.hung = True
        await balloons.mib()
        assert balloons.last_known("n1", None) is None
        assert balloons.last_known("n1", 512) == 512

    run(work())


def test_a_balloon_that_gave_and_hangs_has_libvirts_figure() -> None:
    """The balloon may have given more since. If its last known size counted, it would be told to take that back."""
    qemu = Qemu(1800)
    balloons = Balloons(qemu.ask)

    async def work() -> None:
        balloons.target_set("n1")
        for qemu.mib in (1800, 1500):
            await balloons.mib()
        qemu.hung = True
        await balloons.mib()
        assert balloons.last_known("n1", 1000) == 1000

    run(work())
