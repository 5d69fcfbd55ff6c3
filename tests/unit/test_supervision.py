"""A defect anywhere in a program ends it soon, with everything closed; invalid input from a stranger does not."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from magrathea import supervision
from magrathea_lab.waiting import BOUND_S


async def _fails() -> None:
    raise ZeroDivisionError("a mistake")


def _raises() -> None:
    raise ZeroDivisionError("a mistake")


def in_a_task() -> None:
    supervision.start(_fails())


def in_a_task_that_nobody_keeps() -> None:
    asyncio.get_running_loop().create_task(_fails())


def in_a_callback() -> None:
    asyncio.get_running_loop().call_later(0.01, _raises)


def in_a_thread() -> None:
    threading.Thread(target=_raises).start()


def ends_by(defect: Callable[[], None]) -> list[str]:
    """What a program does that runs until `defect` happens in it."""
    done: list[str] = []

    async def program() -> None:
        defect()
        try:
            await asyncio.sleep(BOUND_S)
            done.append("lived on")
        finally:
            await asyncio.sleep(0.01)
            done.append("closed")

    with pytest.raises(supervision.Defect):
        supervision.run(program())
    return done


@pytest.mark.parametrize("defect", [in_a_task, in_a_task_that_nobody_keeps, in_a_callback, in_a_thread])
def test_a_defect_is_logged_and_ends_the_program_which_closes_what_it_has_open(
    defect: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    hook = threading.excepthook
    assert ends_by(defect) == ["closed"]
    assert "a defect:" in caplog.text and "ZeroDivisionError: a mistake" in caplog.text
    assert threading.excepthook is hook


def test_a_program_with_a_defect_that_cannot_close_is_ended_by_force() -> None:
    program = (
        "import asyncio, time\n"
        "from magrathea import supervision\n"
        "supervision.END_S = 0.2\n"
        "async def fails():\n"
        "    raise ZeroDivisionError\n"
        "async def program():\n"
        "    supervision.start(fails())\n"
        "    try:\n"
        "        await asyncio.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(60)\n"
        "supervision.run(program())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == supervision.DEFECT
    assert "ZeroDivisionError" in done.stderr


def test_no_thread_that_hangs_keeps_a_process_with_a_defect() -> None:
    program = (
        "import threading, time\n"
        "from magrathea import supervision\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "supervision.end()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == supervision.DEFECT


def test_a_programs_own_error_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        supervision.run(_fails())


def test_cancelled_tasks_and_results_that_nobody_fetched_are_no_defects() -> None:
    async def program() -> None:
        supervision.start(asyncio.sleep(BOUND_S)).cancel()
        asyncio.get_running_loop().create_future().set_exception(OSError("nobody waits"))
        for _ in range(3):  # turns of the loop: what nobody fetched is reported in the first
            await asyncio.sleep(0)

    supervision.run(program())


def test_a_connection_that_fails_costs_that_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fragile(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError("a mistake")

    async def program() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(Fragile, tmp_path / "s")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"x")
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()

    supervision.run(program())
    assert "ZeroDivisionError: a mistake" in caplog.text, "though it is told"


def test_systemd_gets_a_sign_of_life_from_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(BOUND_S)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000")

        async def program() -> None:
            for _ in range(3):
                assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"

        supervision.run(program())


def test_without_a_service_manager_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    supervision.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    with caplog.at_level(logging.WARNING):
        supervision.notify("READY=1")
    assert "cannot be reached" in caplog.text
