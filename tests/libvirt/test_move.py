"""Guests move between two hosts: two private libvirtds on this machine (magrathea_lab/rigs/two_hosts.py).

Tests of the copy's passes use the `live` movers: an old QEMU loses writes of emulated guests that run while they are
copied, so these tests look at the hypervisors only. All others check the guest's memory byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from magrathea.core.passes import Help
from magrathea.core.refusals import RefusalCode
from magrathea_lab.guests.image import NETWORK_MODULES, Extra
from magrathea_lab.guests.private_libvirtd import QEMU_USER
from magrathea_lab.rigs.guest_host import Hypervisor, Size
from magrathea_lab.rigs.two_hosts import TERMS, Bridge, Noted, TwoHosts, goes_on, writer, written
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.guest_channel.channel import GuestChannel, qemu_user
from node_daemon.guest_channel.messages import AnyRequest, Hello
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.libvirt.moving import arriving
from node_daemon.hypervisor.libvirt.moving.mover import LibvirtMover
from node_daemon.hypervisor.moving import Moved, MoveOutcome, MoveProgress, Presence, Terms

N1 = "n1"
WRITER_MIB, BIG_WRITER_MIB = 8, 40
SLOW_MIB_S = 20
"""The guest uses about 60 MiB, so a move takes some seconds."""
DISK = "/dev/vdb"
RUNNING = 1
"""libvirt's state."""
ECHO = """
import socket
listener = socket.socket()
listener.bind(("10.99.0.2", 4000))
listener.listen()
link = listener.accept()[0]
while True:
    link.sendall(link.recv(100))
"""
CLIENT = """
import socket, sys, time
end = time.monotonic() + 60
while True:
    try:
        link = socket.create_connection((sys.argv[1], 4000), 60)
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
for line in sys.stdin:
    link.sendall(line.encode())
    print(link.recv(100).decode(), end="", flush=True)
"""


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    with Bridge() as made:
        yield made


@pytest.fixture(scope="module")
def hypervisors(bridge: Bridge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Two hosts with one guest, which has a disk of its own and an interface on the bridge of both."""
    devices = tmp_path_factory.mktemp("devices")
    (devices / bridge.name).touch()
    size = Size(memory_mib=192, devices=bridge.interface("52:54:00:4d:61:67"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arriving, "NETWORK_DEVICES", devices)  # this process is outside of the hosts' network
        with TwoHosts({N1: size}, disks=[N1], extra=Extra(modules=NETWORK_MODULES), enter=bridge.enter) as made:
            yield made


@pytest.fixture
def hosts(hypervisors: TwoHosts) -> TwoHosts:
    """The guest runs at one of them."""
    hypervisors.restore()
    return hypervisors


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 2 * BOUND_S))


class Acting(Noted):
    """Does something once, when the memory is being copied."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self._act: Callable[[], Any] | None = act
        self.acted: asyncio.Future[Any] | None = None

    def progressed(self, progress: MoveProgress) -> None:
        super().progressed(progress)
        if progress.passes and progress.sent_bytes and self._act is not None:
            act, self._act = self._act, None
            self.acted = asyncio.ensure_future(asyncio.to_thread(act))


def test_a_guest_moves_there_and_back_with_its_memory_and_its_disk(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    guest = hosts.at(here, N1)
    writer(guest, WRITER_MIB)
    make = f"dd if=/dev/urandom of={DISK} bs=1M count=4 conv=fsync 2>/dev/null"
    read = f"echo 3 > /proc/sys/vm/drop_caches; head -c 4M {DISK} | md5sum"
    content = guest.sh(f"{make}; {read}")
    for _ in range(2):
        there = hosts.other(here)
        moved: Moved = run(hosts.move(N1, Noted()))
        assert (moved.outcome, moved.why) == (MoveOutcome.GONE, "")
        assert hosts.running(N1) == [there]
        assert run(hosts.movers[there].where_is(N1)).defined
        assert run(hosts.movers[here].where_is(N1)).uuid == "", "the old host has forgotten it"
        assert not (here.libvirtd.folder / "disks" / f"{N1}.qcow2").exists()
        goes_on(hosts.at(there, N1))
        assert hosts.at(there, N1).sh(read) == content
        assert run(hosts.movers[there].standstill_s(N1)) > 0
        here = there


def test_a_guest_whose_jobs_are_stopped_moves_with_them_stopped(hosts: TwoHosts) -> None:
    guest = hosts.at(hosts.home(N1), N1)
    writer(guest, WRITER_MIB)
    guest.sh("kill -STOP $(cat /tmp/rewrite.pid)")
    before = written(guest)
    assert run(hosts.move(N1, Noted())).outcome is MoveOutcome.GONE
    moved = hosts.at(hosts.home(N1), N1)
    assert "State:\tT" in moved.sh("cat /proc/$(cat /tmp/rewrite.pid)/status")
    assert written(moved) == before
    goes_on(moved)


def test_its_agent_speaks_to_the_new_host(hosts: TwoHosts) -> None:
    there = hosts.other(hosts.home(N1))

    class Daemon:
        def __init__(self) -> None:
            self.greeted = asyncio.Event()

        def connected(self, domain: str, hello: Hello) -> None:
            self.greeted.set()

        def lost(self, domain: str) -> None: ...

        async def request(self, domain: str, request: AnyRequest) -> dict[str, Any]:
            return {"ok": True}

    async def work() -> None:
        daemon = Daemon()
        path = there.run_dir / "guest" / f"{N1}.sock"
        channel = GuestChannel("h2", N1, path, daemon, qemu_user(QEMU_USER))
        await channel.start()
        try:
            assert (await hosts.move(N1, Noted())).outcome is MoveOutcome.GONE
            await eventually(daemon.greeted.is_set, "the agent greets the new host")
            assert await channel.request("ping", BOUND_S)
        finally:
            await channel.close()

    run(work())


def test_its_address_and_its_connections_move_with_it(hosts: TwoHosts, bridge: Bridge) -> None:
    guest = hosts.at(hosts.home(N1), N1)
    guest.sh("ip addr add 10.99.0.2/24 dev eth0 2>/dev/null; ip link set eth0 up")
    guest.write("/tmp/echo.py", ECHO.encode())
    guest.sh("setsid python3 -S -E /tmp/echo.py < /dev/null > /dev/null 2>&1 &")
    command = [*bridge.enter, sys.executable, "-c", CLIENT, "10.99.0.2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        try:
            for word in ("before\n", "after\n"):
                client.stdin.write(word)
                client.stdin.flush()
                assert client.stdout.readline() == word
                if word == "before\n":
                    assert run(hosts.move(N1, Noted())).outcome is MoveOutcome.GONE
        finally:
            client.kill()


def test_a_quiet_guest_moves_live_without_help(hosts: TwoHosts) -> None:
    noted = Noted()
    assert run(hosts.move(N1, noted, live=True)).outcome is MoveOutcome.GONE
    assert (noted.help, noted.stops) == (Help.NONE, 0)
    assert noted.progress[-1].passes > 1


def test_a_job_that_writes_faster_than_the_network_is_stopped_for_the_rest(hosts: TwoHosts) -> None:
    guest = hosts.at(hosts.home(N1), N1)
    writer(guest, BIG_WRITER_MIB)
    noted = Noted(guest)
    assert run(hosts.move(N1, noted, SLOW_MIB_S, live=True)).outcome is MoveOutcome.GONE
    assert (noted.help, noted.stops) == (Help.STOP_JOBS, 1)


def test_a_guest_whose_jobs_cannot_be_stopped_is_paused_for_the_rest_and_runs_afterwards(hosts: TwoHosts) -> None:
    class Silent(Noted):
        async def stop_jobs(self, progress: MoveProgress) -> None:
            await super().stop_jobs(progress)
            raise DriverError(RefusalCode.TIMEOUT, "its agent does not answer")

    here = hosts.home(N1)
    writer(hosts.at(here, N1), BIG_WRITER_MIB)
    noted = Silent()
    moved = run(hosts.move(N1, noted, SLOW_MIB_S, live=True))
    assert (moved.outcome, noted.stops, noted.help) == (MoveOutcome.GONE, 1, Help.PAUSE_DOMAIN)
    there = hosts.other(here)
    assert run(hosts.movers[there].where_is(N1)).defined and not run(hosts.movers[here].where_is(N1)).uuid
    found = hosts.state(there, N1)
    assert found is None or found[0] == RUNNING, "it may have crashed of what QEMU has lost, but it is not paused"


def test_a_move_that_is_cancelled_leaves_the_guest_as_it_was(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    guest = hosts.at(here, N1)
    writer(guest, WRITER_MIB)

    async def work() -> Moved:
        asked: list[bool] = []

        def cancel() -> None:
            asked.append(asyncio.run_coroutine_threadsafe(hosts.movers[here].cancel(N1), loop).result(BOUND_S))

        loop = asyncio.get_running_loop()
        moved = await hosts.move(N1, Acting(cancel), SLOW_MIB_S)
        assert asked == [True]
        assert not await hosts.movers[here].cancel(N1), "nothing is left to cancel"
        return moved

    moved = run(work())
    assert moved.outcome is MoveOutcome.STAYED and moved.why
    there = hosts.other(here)
    assert hosts.running(N1) == [here]
    assert run(hosts.movers[there].where_is(N1)).uuid == ""
    assert not (there.libvirtd.folder / "disks" / f"{N1}.qcow2").exists()
    goes_on(guest)


def libvirtd_of(host: Hypervisor, name: str) -> None:
    host.libvirtd.kill_libvirtd()


def qemu_of(host: Hypervisor, name: str) -> None:
    os.kill(host.libvirtd.qemu(name), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "killed", "live"),
    [
        ("source", libvirtd_of, True),
        ("source", libvirtd_of, False),
        ("destination", libvirtd_of, True),
        ("destination", qemu_of, True),
    ],
    ids=["libvirtd", "libvirtd of a paused guest", "libvirtd of the destination", "QEMU of the destination"],
)
def test_whatever_dies_in_the_middle_the_guest_goes_on_once(
    hosts: TwoHosts, end: str, killed: Callable[[Hypervisor, str], None], live: bool
) -> None:
    here = hosts.home(N1)
    writer(hosts.at(here, N1), WRITER_MIB)
    victim = here if end == "source" else hosts.other(here)
    acting = Acting(lambda: killed(victim, hosts.names[N1]))
    moved: Moved = run(hosts.move(N1, acting, SLOW_MIB_S, live=live))
    assert acting.acted is not None and moved.outcome is not MoveOutcome.GONE
    assert hosts.running(N1) == [here]
    goes_on(hosts.at(here, N1))


def test_a_source_that_dies_in_the_middle_leaves_no_copy(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    there = hosts.other(here)

    async def work() -> Moved:
        departure, arrival = await hosts.prepared(N1)
        acting = Acting(lambda: qemu_of(here, hosts.names[N1]))
        moved = await hosts.movers[here].move(N1, departure, arrival, hosts.destination(there, SLOW_MIB_S), acting)
        await hosts.movers[there].clear(N1, arrival)
        return moved

    moved = run(work())
    assert moved.outcome is MoveOutcome.UNKNOWN
    assert run(hosts.movers[here].where_is(N1)).presence is Presence.ABSENT
    assert run(hosts.movers[here].where_is(N1)).defined, "it can be booted where it was"
    assert run(hosts.movers[there].where_is(N1)).uuid == ""


def test_a_daemon_that_is_restarted_finds_the_move_under_way_and_its_end(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    writer(hosts.at(here, N1), WRITER_MIB)

    async def work() -> None:
        departure, arrival = await hosts.prepared(N1)
        there = hosts.other(here)
        began = asyncio.Event()
        acting = Acting(lambda: loop.call_soon_threadsafe(began.set))
        loop = asyncio.get_running_loop()
        destination = hosts.destination(there, SLOW_MIB_S)
        moving = asyncio.create_task(hosts.movers[here].move(N1, departure, arrival, destination, acting))
        await began.wait()
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
        restarted = LibvirtMover("h1", here.uri, hosts.names)
        try:
            assert (await restarted.where_is(N1)).presence in (Presence.LEAVING, Presence.SWITCHING)
            assert (await hosts.movers[there].where_is(N1)).presence is Presence.ARRIVING
            with pytest.raises(DriverError) as caught:
                await hosts.movers[there].give_up(N1)
            assert caught.value.code == RefusalCode.BUSY, "a copy that libvirt still fills is not touched"
            noted = Noted()
            moved = await restarted.follow(N1, noted)
            assert noted.progress and moved.outcome is MoveOutcome.UNKNOWN
        finally:
            restarted.close()
        assert await hosts.tidy(N1, here, departure, arrival) is there

    run(work())
    goes_on(hosts.at(hosts.other(here), N1))


def test_a_guest_that_waits_runs_only_when_it_is_told_to(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    there = hosts.other(here)
    writer(hosts.at(here, N1), WRITER_MIB)

    async def work() -> None:
        departure, arrival = await hosts.prepared(N1)
        destination = hosts.destination(there, waits=True)
        moved = await hosts.movers[here].move(N1, departure, arrival, destination, Noted())
        assert moved.outcome is MoveOutcome.GONE and hosts.running(N1) == []
        await asyncio.to_thread(there.libvirtd.kill_libvirtd)
        await asyncio.to_thread(there.libvirtd.start_libvirtd)
        mover = hosts.movers[there]
        assert (await mover.where_is(N1, awaited=True)).presence is Presence.ARRIVED
        with pytest.raises(DriverError) as caught:
            await mover.go_on_here(N1)
        assert caught.value.code == RefusalCode.BUSY, "what somebody has paused is not resumed"
        await mover.go_on_here(N1, awaited=True)
        assert await hosts.tidy(N1, here, departure, arrival) is there

    run(work())
    goes_on(hosts.at(there, N1))


def test_a_domain_that_cannot_move_says_why(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    there = hosts.other(here)
    (reason,) = run(hosts.movers[here].why_not_movable(N1, Terms()))
    assert f"{N1}.qcow2" in reason
    with pytest.raises(DriverError) as caught:
        run(hosts.movers[here].departure(N1, Terms()))
    assert caught.value.code == RefusalCode.NOT_SUPPORTED
    assert run(hosts.movers[here].why_not_movable(N1, TERMS)) == []
    departure = run(hosts.movers[here].departure(N1, TERMS))
    assert run(hosts.movers[there].why_not_welcome(N1, departure, hosts.premises(there, N1))) == []
    (reason,) = run(hosts.movers[here].why_not_welcome(N1, departure, hosts.premises(there, N1)))
    assert "here already" in reason


def test_another_domain_of_the_name_keeps_it_out(hosts: TwoHosts) -> None:
    here = hosts.home(N1)
    there = hosts.other(here)
    departure = run(hosts.movers[here].departure(N1, TERMS))
    name = hosts.names[N1]
    xml = f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>"
    other = there.connect().defineXML(xml)
    try:
        with pytest.raises(DriverError) as caught:
            run(hosts.movers[there].prepare(N1, departure, hosts.premises(there, N1)))
        assert other.UUIDString() in caught.value.text
    finally:
        other.undefine()
