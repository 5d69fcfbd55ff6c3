"""The whole hub with real sockets, threads and files and a PBS in memory; also its process, as a system starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from magrathea import client
from magrathea.core.model import JobClass, Kind, State
from magrathea.messages import Books, Heartbeat, Resend
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.hub import farm
from scheduler_plugin.hub import hub as shell
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, STATE
from scheduler_plugin.pbs.base import Code, PbsError
from tests.embedded import real_hub
from tests.embedded.real_hub import RealHub
from tests.fakes.host import FakeHost
from tests.fakes.pbs import nothing_breaks
from tests.fakes.reports import domain, given_back, job, stopped

BEAT_S = 0.1
SHORT_LEASE_S = 1.0
"""For the test that waits for a lease to end. Elsewhere a starved hub would take a host for unknown that has just
reported."""


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HEARTBEAT_S", BEAT_S)
    monkeypatch.setattr(farm, "LEASE_S", BOUND_S)


def run(directory: Path, test: Callable[[RealHub], Awaitable[None]]) -> None:
    """Run `test` with a hub that is up."""

    async def started(world: RealHub) -> None:
        world.start()
        await test(world)

    real_hub.run(directory, started)


def test_a_preemption_from_its_first_word_to_its_last(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job())
        host = world.host()
        await host.says(domain("n1", [stopped(since=time.time())], accepts=[]), domain("p1"))
        await host.hears_books("1.srv")
        assert world.pbs.jobs["1.srv"].state == "S"
        await world.until(lambda: world.shown("n1", ACCEPTS) == "none", "publication")
        await host.says(domain("n1", [given_back()]), domain("p1"))
        await host.hears_books()
        assert world.pbs.jobs["1.srv"].state == "R"
        await world.until(lambda: world.shown("n1", ACCEPTS) != "none", "opening")
        await world.until(lambda: world.pbs.count("wake_scheduler") > 0, "wake")

    run(tmp_path, test)


def test_a_host_gets_a_hello_at_once_and_is_asked_for_missing_revisions(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        host = world.host()
        host.revision = 5
        await host.beats()
        await host.hears(lambda message: isinstance(message, Heartbeat))
        await host.hears(lambda message: isinstance(message, Resend))

    run(tmp_path, test)


def test_a_host_that_falls_silent_is_unknown_until_it_speaks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "LEASE_S", SHORT_LEASE_S)

    async def speaks_until_free(world: RealHub, host: FakeHost) -> None:
        while world.shown("n1", STATE) != "free":
            await host.beats()
            await asyncio.sleep(BEAT_S)

    async def test(world: RealHub) -> None:
        host = world.host()
        await host.says(domain("n1"))
        await speaks_until_free(world, host)
        await world.until(lambda: world.shown("n1", STATE) == "unknown", "the lease's end")
        assert world.shown("n1", ACCEPTS) == "none"
        await speaks_until_free(world, host)

    run(tmp_path, test)


def test_vnodes_of_nobody_take_all_classes(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        await world.until(lambda: world.shown("p1", ACCEPTS) == "priority,preemptible,protected", "publication")

    run(tmp_path, test)


def test_a_hub_killed_in_mid_preemption_is_followed_by_one_that_resumes(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job())
        host = world.host()
        await host.says(domain("n1", [stopped(since=time.time())]))
        await host.hears_books("1.srv")
        assert world.task is not None
        world.task.cancel()  # its last save is one from before the suspend
        with pytest.raises(asyncio.CancelledError):
            await world.task
        world.start()
        await host.says(domain("n1", [given_back()]))
        await host.hears_books()
        assert world.pbs.jobs["1.srv"].state == "R"

    run(tmp_path, test)


def test_a_frozen_domains_vnode_is_offline_until_it_is_back_over_a_restart_of_the_hub_too(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        host = world.host()
        frozen = domain("p1", kind=Kind.PRIORITY, state=State.FROZEN, accepts=[])
        await host.says(domain("n1"), frozen)
        await world.until(lambda: "offline" in world.pbs.vnodes["p1"].state, "offline")
        assert "magrathea domain defrost p1" in (world.shown("p1", "comment") or "")
        assert "offline" not in world.pbs.vnodes["n1"].state
        await world.end()
        world.start()
        await host.says(domain("n1"), frozen)
        await host.says(domain("n1"), domain("p1", kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY]))
        await world.until(lambda: "offline" not in world.pbs.vnodes["p1"].state, "back")
        assert world.shown("p1", "comment") is None
        await world.until(lambda: world.shown("p1", ACCEPTS) == "priority", "it accepts jobs again")

    run(tmp_path, test)


def test_the_books_of_a_hub_that_ends_name_the_vnodes_that_it_has_set_offline_and_no_others(tmp_path: Path) -> None:
    """While no hub is there PBS's server forgets the comment on one, and an admin sets the other offline."""

    async def test(world: RealHub) -> None:
        host = world.host()
        frozen = [domain(name, kind=Kind.PRIORITY, state=State.FROZEN, accepts=[]) for name in ("n1", "p1")]
        back = [domain(name, kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY]) for name in ("n1", "p1")]
        await host.says(frozen[0], back[1])
        await world.until(lambda: "offline" in world.pbs.vnodes["n1"].state, "offline")
        assert world.hub is not None
        world.hub.compare()
        await world.until(lambda: '"offline":["n1"]' in books(tmp_path), "it is in the books")
        await host.says(back[0], frozen[1])
        await world.until(lambda: world.pbs.vnodes["n1"].state != world.pbs.vnodes["p1"].state == {"offline"}, "other")
        await world.end()
        world.pbs.connect().set_offline("n1", "an admin's, without a comment")
        for name in ("n1", "p1"):
            world.pbs.lose_comment(name)
        world.start()
        await host.says(*back)
        await world.until(lambda: "offline" not in world.pbs.vnodes["p1"].state, "back")
        await host.says(domain("n1", state=State.DRAINING, accepts=[]), back[1])
        await world.until(lambda: world.shown("n1", STATE) == "draining", "publication")
        assert "offline" in world.pbs.vnodes["n1"].state

    run(tmp_path, test)


def books(directory: Path) -> str:
    path = directory / "state" / "books.json"
    return path.read_text() if path.exists() else ""


def test_no_books_are_sent_before_pbs_was_read(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        def away(operation: str, subject: str) -> None:
            raise PbsError(Code.NO_SERVER, "away", transient=True)

        await world.end()
        world.pbs.breaks = away
        world.pbs.put(job())
        world.start()
        host = world.host()
        await host.says(domain("n1", [stopped(since=time.time())]))
        for _ in range(5):
            message = await host.hears(lambda message: True)
            assert not isinstance(message, Books)
        world.pbs.breaks = nothing_breaks
        await host.hears_books("1.srv")

    run(tmp_path, test)


def test_after_a_restart_of_pbs_all_continues(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        world.pbs.put(job())
        host = world.host()
        await host.says(domain("n1"))
        await world.until(lambda: world.shown("n1", STATE) == "free", "publication")

        tried: list[str] = []

        def away(operation: str, subject: str) -> None:
            tried.append(operation)
            raise PbsError(Code.NO_SERVER, "away", transient=True)

        world.pbs.breaks = away
        await host.says(domain("n1", [stopped(since=time.time())], accepts=[]))
        await world.until(lambda: len(tried) >= 3, "some attempts")
        assert world.pbs.jobs["1.srv"].state == "R"
        world.pbs.breaks = nothing_breaks
        await host.hears_books("1.srv")
        await world.until(lambda: world.shown("n1", ACCEPTS) == "none", "publication")

    run(tmp_path, test)


def test_the_heartbeat_file_is_touched_only_while_pbs_answers(tmp_path: Path) -> None:
    async def test(world: RealHub) -> None:
        await world.until(world.heartbeat.exists, "the file")
        assert world.heartbeat.stat().st_mode & 0o777 == 0o644
        before = world.heartbeat.stat().st_mtime_ns
        await world.until(lambda: world.heartbeat.stat().st_mtime_ns > before, "the next touch")

        def away(operation: str, subject: str) -> None:
            raise PbsError(Code.NO_SERVER, "away", transient=True)

        world.pbs.breaks = away
        host = world.host()
        await host.says(domain("n1"))  # makes the hub notice
        async with asyncio.timeout(BOUND_S):
            last = 0
            while last != (last := world.heartbeat.stat().st_mtime_ns):
                for _ in range(5):  # rounds of the task that touches the file
                    await host.hears(lambda message: isinstance(message, Heartbeat))

    run(tmp_path, test)


# As a process


def hub_toml(directory: Path, listen: str = "") -> Path:
    path = directory / "hub.toml"
    path.write_text(
        f'[hub]\nlisten = ["{listen or f"ipc://{directory}/hub.ipc"}"]\nstate_dir = "{directory}/state"\n'
        f'keys_dir = "{directory}/keys"\nheartbeat_file = "{directory}/heartbeat"\n'
        f'control_socket = "{directory}/control.sock"\n'
        f'[pbs]\nkind = "standin"\nsocket = "{directory}/pbs.sock"\n'
    )
    return path


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "scheduler_plugin.hub.main", "--config", str(config), *more]


def started(config: Path) -> subprocess.Popen[str]:
    """The hub's process, as soon as it listens."""
    process = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "listening at" in line:
            return process
    raise AssertionError(f"ended with {process.wait()}")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=BOUND_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_though_pbs_is_away(tmp_path: Path, number: signal.Signals) -> None:
    process = started(hub_toml(tmp_path))
    process.send_signal(number)
    code, said = ended(process)
    assert code == 0
    assert "stopped" in said
    assert "Traceback" not in said


def test_a_hangup_does_not_end_it(tmp_path: Path) -> None:
    process = started(hub_toml(tmp_path))
    process.send_signal(signal.SIGHUP)
    assert client.ask(tmp_path / "control.sock", {"op": "status"}), "it answers afterwards"
    assert process.poll() is None
    process.terminate()
    assert ended(process)[0] == 0


def test_a_second_hub_with_the_same_state_is_refused(tmp_path: Path) -> None:
    first = started(hub_toml(tmp_path))
    try:
        second = subprocess.run(command(hub_toml(tmp_path)), capture_output=True, text=True, timeout=BOUND_S)
        assert second.returncode == 3
        assert "another hub" in second.stderr
    finally:
        first.terminate()
        assert ended(first)[0] == 0


@pytest.mark.parametrize(
    ("listen", "code", "told"),
    [("tcp://127.0.0.1:17017", 2, "keys"), ("ipc:///nonexistent/dir/hub.ipc", 3, "listen"), ("udp://x", 2, "listen")],
)
def test_an_endpoint_that_cannot_be_opened_is_reported(tmp_path: Path, listen: str, code: int, told: str) -> None:
    done = subprocess.run(
        command(hub_toml(tmp_path, listen)), capture_output=True, text=True, timeout=BOUND_S, env=dict(os.environ)
    )
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_check(tmp_path: Path) -> None:
    good = subprocess.run(command(hub_toml(tmp_path), "--check"), capture_output=True, text=True, timeout=BOUND_S)
    assert (good.returncode, good.stdout.strip()[-4:]) == (0, ": ok")
    assert not (tmp_path / "state").exists(), "a check changes nothing"
    bad = subprocess.run(command(tmp_path / "none.toml", "--check"), capture_output=True, text=True, timeout=BOUND_S)
    assert bad.returncode == 2
