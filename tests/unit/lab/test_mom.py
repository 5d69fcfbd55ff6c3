"""The stand-in's MoM on a character device, like a virtio-serial port in a guest."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tty
from pathlib import Path

import pytest

from magrathea_lab.guests.programs import MODULES, copy_programs
from magrathea_lab.pbs_standin import mom
from magrathea_lab.pbs_standin.mom import connect
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.setup.install import wanted_hooks
from scheduler_plugin.setup.setup_model import InstallOptions


def test_a_character_device_is_spoken_over_both_ways() -> None:
    async def talk() -> tuple[bytes, bytes]:
        here, there = os.openpty()
        tty.setraw(there)
        reader, writer = await connect(Path(os.ttyname(there)))
        try:
            os.write(here, b"to the MoM\n")
            heard = await asyncio.wait_for(reader.readline(), BOUND_S)
            writer.write(b"to the server\n")
            await writer.drain()
            said = await asyncio.wait_for(asyncio.to_thread(os.read, here, 100), BOUND_S)
        finally:
            writer.close()
            os.close(there)
            os.close(here)
        return heard, said

    assert asyncio.run(talk()) == (b"to the MoM\n", b"to the server\n")


def test_programs_for_guests_need_the_standard_library_only(tmp_path: Path) -> None:
    copy_programs(tmp_path)
    program = f"import {', '.join(module.__name__ for module in MODULES)}"
    done = subprocess.run([sys.executable, "-S", "-E", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_periodic_hook_waits_for_the_one_before_as_in_openpbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they pile up on a busy machine, each making it busier."""
    made = mom.Mom("n1", None, None, set(), 0.0, 0.0)
    running, most, begun = 0, 0, asyncio.Semaphore(0)

    async def hook_beside(event: str) -> None:
        nonlocal running, most
        if event != "exechost_periodic":
            return
        running += 1
        most = max(most, running)
        begun.release()
        for _ in range(50):  # longer than many ticks
            await asyncio.sleep(0)
        running -= 1

    async def run() -> None:
        monkeypatch.setattr(made, "hook_beside", hook_beside)
        monkeypatch.setattr(mom, "TICK_S", 0)
        work = asyncio.ensure_future(made._periodically())
        for _ in range(3):
            await asyncio.wait_for(begun.acquire(), BOUND_S)
        work.cancel()

    asyncio.run(run())
    assert most == 1


def test_a_hook_is_given_the_time_that_an_installed_one_has() -> None:
    for attributes, _, _ in wanted_hooks(InstallOptions(memory_moves=True)).values():
        for event in attributes["event"].split(","):
            if event.startswith("exec"):
                assert mom.alarm_s(event) == float(attributes["alarm"]), event
