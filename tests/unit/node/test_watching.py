"""A move is watched and helped to end (node_daemon/hypervisor/libvirt/moving/watching.py), in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from magrathea.core.passes import Help
from magrathea.core.refusals import RefusalCode
from magrathea_lab.rigs.virtual_time import run
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.libvirt.moving.watching import IDLE_S, OUT, watch
from node_daemon.hypervisor.moving import STOP_LIMIT_S, MoveProgress

MIB = 2**20
USED_MIB, WRITTEN_MIB, SPEED_MIB_S = 400, 100, 50


class Guest:
    """A guest that is copied at SPEED_MIB_S, and its jobs: they rewrite WRITTEN_MIB in each pass while they run."""

    def __init__(self, strays_mib: int = 0) -> None:
        self.jobs_run = self.runs = self.is_here = True
        self.strays_mib = strays_mib
        """What the rest of the guest rewrites in each pass."""
        self.calls: list[str] = []
        self.readable = True
        self.stands_still = False
        self.pausable = True
        self._sent_mib, self._pass, self._left_mib = 0.0, 1, float(USED_MIB)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._copy = asyncio.create_task(self._copied())

    async def _copied(self) -> None:
        while True:
            while self._left_mib > 0:
                await asyncio.sleep(0.02)
                if not self.stands_still:
                    self._left_mib -= SPEED_MIB_S * 0.02
                    self._sent_mib += SPEED_MIB_S * 0.02
            again = (WRITTEN_MIB if self.jobs_run else 0) + self.strays_mib
            if not self.runs or not again:
                break
            self._left_mib, self._pass = again, self._pass + 1
        self.is_here = False
        self.over.set_result(None)

    async def job(self, domain: str) -> tuple[Mapping[str, object] | None, bool]:
        if not self.readable:
            return None, False
        if not self.is_here:
            return {}, False
        sizes = {"memory_processed": int(self._sent_mib * MIB), "memory_remaining": int(self._left_mib * MIB)}
        return {"type": 2, "operation": OUT, "memory_iteration": self._pass, **sizes}, self.runs

    async def pause(self, domain: str) -> bool:
        self.calls.append("pause")
        self.runs = not self.pausable
        self.pausable = True
        return not self.runs

    async def cancel(self, domain: str) -> bool:
        self.calls.append("cancel")
        self.over.set_result(None)
        return True


class Watching:
    """`stop`: what happens if the jobs are to be stopped."""

    def __init__(self, stop: Callable[[], object]) -> None:
        self.progress: list[MoveProgress] = []
        self.stops = 0
        self._stop = stop

    def progressed(self, progress: MoveProgress) -> None:
        self.progress.append(progress)

    async def stop_jobs(self, progress: MoveProgress) -> None:
        self.stops += 1
        assert progress.help is Help.STOP_JOBS
        self._stop()


def stops_of(guest: Guest) -> Callable[[], None]:
    def stop() -> None:
        guest.jobs_run = False

    return stop


def test_jobs_are_stopped_once_and_the_move_ends() -> None:
    async def work() -> None:
        guest = Guest()
        watching = Watching(stops_of(guest))
        last = await watch("n1", guest, watching, guest.over)
        assert (watching.stops, guest.calls, last.help) == (1, [], Help.STOP_JOBS)
        # the first pass, one to see that it is not less, and what they had written until their stop
        assert asyncio.get_running_loop().time() < (USED_MIB + 2.2 * WRITTEN_MIB) / SPEED_MIB_S

    run(work())


@pytest.mark.parametrize("how", ["an error", "silence"])
def test_a_domain_whose_jobs_cannot_be_stopped_is_paused(how: str) -> None:
    async def work() -> None:
        guest = Guest()
        guest.pausable = how == "silence"  # else the first attempt fails, too

        class Stubborn(Watching):
            async def stop_jobs(self, progress: MoveProgress) -> None:
                self.stops += 1
                if how == "silence":
                    await asyncio.sleep(10 * STOP_LIMIT_S)
                raise DriverError(RefusalCode.TIMEOUT, "no answer")

        watching = Stubborn(lambda: None)
        last = await watch("n1", guest, watching, guest.over)
        assert (watching.stops, last.help) == (1, Help.PAUSE_DOMAIN)
        assert guest.calls == ["pause"] * (1 if how == "silence" else 2)

    run(work())


def test_a_domain_that_writes_on_although_its_jobs_are_stopped_is_paused() -> None:
    async def work() -> None:
        guest = Guest(strays_mib=50)
        last = await watch("n1", guest, Watching(stops_of(guest)), guest.over)
        assert (guest.calls, last.help) == (["pause"], Help.PAUSE_DOMAIN)

    run(work())


def test_a_quiet_or_paused_domain_is_left_alone() -> None:
    async def work() -> None:
        for is_paused in (False, True):
            guest = Guest()
            guest.jobs_run, guest.runs = is_paused, not is_paused
            watching = Watching(lambda: None)
            last = await watch("n1", guest, watching, guest.over)
            assert (watching.stops, guest.calls, last.help) == (0, [], Help.NONE)

    run(work())


def test_a_move_whose_network_is_gone_is_cancelled_and_a_slow_one_is_not() -> None:
    async def work() -> None:
        guest = Guest()
        guest.stands_still = True
        loop = asyncio.get_running_loop()
        loop.call_later(IDLE_S - 1, setattr, guest, "stands_still", False)
        loop.call_later(IDLE_S, setattr, guest, "stands_still", True)
        await watch("n1", guest, Watching(lambda: None), guest.over)
        assert guest.calls == ["cancel"]
        assert loop.time() > 2 * IDLE_S - 1

    run(work())


def test_figures_that_cannot_be_read_change_nothing() -> None:
    async def work() -> None:
        guest = Guest()
        guest.readable = False
        asyncio.get_running_loop().call_later(5, setattr, guest, "readable", True)
        watching = Watching(stops_of(guest))
        assert (await watch("n1", guest, watching, guest.over)).help is Help.STOP_JOBS

    run(work())


def test_a_move_that_somebody_else_began_is_watched_until_its_job_is_over() -> None:
    async def work() -> None:
        guest = Guest()
        watching = Watching(stops_of(guest))
        await watch("n1", guest, watching, None)
        assert watching.stops == 1 and guest.over.done()

    run(work())


def test_a_fault_of_the_one_who_watches_is_raised() -> None:
    async def work() -> None:
        guest = Guest()

        def fault() -> None:
            guest.jobs_run = False
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await watch("n1", guest, Watching(fault), guest.over)

    run(work())
