"""Two physical machines for tests: two private libvirtds on this one, between which guests move.

Each has its own directories, mount and process namespace, and counts as a host of its own. A guest is defined at the
first host; `home` tells where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import libvirt

from magrathea.core.passes import Help
from magrathea.core.refusals import RefusalCode
from node_daemon.hypervisor.base import DriverError
from node_daemon.hypervisor.libvirt.moving.mover import LibvirtMover
from node_daemon.hypervisor.moving import (
    Arrival,
    Departure,
    Destination,
    Moved,
    MoveOutcome,
    MoveProgress,
    Premises,
    Presence,
    Terms,
    Watcher,
)

from .. import leftovers
from ..guests.image import NOTHING_MORE, Extra
from ..opened import Opened
from ..waiting import BOUND_S, until
from .guest import Guest, GuestError
from .guest_host import Hypervisor, Size

TERMS = Terms(copy_disks=True)
DISK_MIB = 64
"""Size of the disk of guests that have one: an overlay of an empty base, which both hosts have."""
ANSWER_S = 20.0
"""A guest that has not answered by then does not live any more."""
PID = "/tmp/rewrite.pid"
"""The writer's pid in a guest."""


class Bridge(Opened):
    """A network namespace with a bridge for both hosts' guests. `enter`: a command that runs another one there."""

    name = "br0"
    address = "10.99.0.1"

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._taken: list[leftovers.Taken] = []

    @property
    def enter(self) -> tuple[str, ...]:
        assert self._keeper is not None
        return ("nsenter", f"--net=/proc/{self._keeper.pid}/ns/net")

    def start(self) -> None:
        make = f"ip link add {self.name} type bridge && ip addr add {self.address}/24 dev {self.name}"
        make += f" && ip link set {self.name} up && ip link set lo up && echo ready && exec cat"
        pipe = subprocess.PIPE
        self._keeper = subprocess.Popen(["unshare", "--net", "sh", "-c", make], stdin=pipe, stdout=pipe)
        self._taken = [leftovers.take_process(self._keeper.pid)]
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            raise OSError("the namespace has no bridge")

    def close(self) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.wait(BOUND_S)
        leftovers.undo_all(self._taken)

    def interface(self, mac: str) -> str:
        """XML of a guest's interface on the bridge."""
        return f"""<interface type='bridge'><mac address='{mac}'/><source bridge='{self.name}'/>
          <model type='virtio'/><rom enabled='no'/></interface>"""


class TwoHosts(Opened):
    """`sizes`: the guests, all at the first host. `disks`: names of the guests that have a disk of their own.

    The `live` movers let guests run while they are copied, although an old QEMU loses some of what emulated guests
    write. A test that uses them must expect nothing of a guest's memory after the move.
    """

    def __init__(
        self,
        sizes: Mapping[str, Size],
        disks: Sequence[str] = (),
        extra: Extra = NOTHING_MORE,
        enter: Sequence[str] = (),
    ) -> None:
        self.first = Hypervisor({}, extra, enter=enter)
        self.second = Hypervisor({}, extra, enter=enter)
        self.hosts = (self.first, self.second)
        self._disks = tuple(disks)
        self.first.sizes = {
            name: replace(size, devices=size.devices + (self._disk_xml(name) if name in disks else ""))
            for name, size in sizes.items()
        }
        self.names = {name: self.first.libvirtd.prefix + name for name in sizes}
        self.movers: dict[Hypervisor, LibvirtMover] = {}
        self.live: dict[Hypervisor, LibvirtMover] = {}
        self._spoiled: set[str] = set()
        """Guests whose memory may not be what they have written."""

    def _disk_xml(self, name: str) -> str:
        return f"""<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{self.first.libvirtd.folder}/disks/{name}.qcow2'/><target dev='vdb' bus='virtio'/></disk>"""

    def start(self) -> None:
        for host in self.hosts:
            disks, sockets = host.libvirtd.folder / "disks", host.libvirtd.folder / "sockets"
            disks.mkdir(mode=0o711)
            sockets.mkdir()
            sockets.chmod(0o777)  # QEMU's user makes its sockets for a move there
            with (disks / "base.img").open("wb") as file:
                file.truncate(DISK_MIB * 2**20)
        for name in self._disks:
            folder = self.first.libvirtd.folder / "disks"
            overlay = ("-b", str(folder / "base.img"), "-F", "raw", str(folder / f"{name}.qcow2"))
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *overlay], check=True)
        for host in self.hosts:
            host.start()
            name = "h1" if host is self.first else "h2"
            self.movers[host] = LibvirtMover(name, host.uri, self.names)
            self.live[host] = LibvirtMover(name, host.uri, self.names, trusts_emulation=True)

    def close(self) -> None:
        for mover in (*self.movers.values(), *self.live.values()):
            mover.close()
        self.second.close()  # its guests may be in control groups that the first one removes
        self.first.close()

    # Where things are

    def other(self, host: Hypervisor) -> Hypervisor:
        return self.second if host is self.first else self.first

    def at(self, host: Hypervisor, name: str) -> Guest:
        """The guest as it is reached at this host."""
        return host.visitor(name, self.names[name])

    def state(self, host: Hypervisor, name: str) -> tuple[int, int] | None:
        """libvirt's state and reason of the guest at this host; None if it does not run there."""
        return host.state(self.names[name])

    def running(self, name: str) -> list[Hypervisor]:
        """The hosts on which the guest's processors run."""
        return [host for host in self.hosts if host.runs(self.names[name])]

    def home(self, name: str) -> Hypervisor:
        """The only host on which the guest runs."""
        (host,) = self.running(name)
        return host

    def premises(self, host: Hypervisor, name: str) -> Premises:
        """What the host says to a guest that comes from the other one."""
        there = self.other(host).libvirtd.folder
        folder = host.libvirtd.folder
        channel = host.run_dir / "guest" / f"{name}.sock"
        return Premises(str(channel), (str(folder / "disks"),), renamed={str(there): str(folder)})

    def destination(self, host: Hypervisor, bandwidth_mib_s: int | None = None, *, waits: bool = False) -> Destination:
        sockets = host.libvirtd.folder / "sockets"
        uri = f"qemu+unix:///system?socket={host.libvirtd.socket}"
        places = f"unix://{sockets}/memory", f"unix://{sockets}/disks"
        return Destination(uri, *places, bandwidth_mib_s=bandwidth_mib_s, waits=waits)

    # Moving

    async def prepared(self, name: str) -> tuple[Departure, Arrival]:
        """The guest's departure from where it runs, and its arrival at the other host."""
        here = self.home(name)
        there = self.other(here)
        departure = await self.movers[here].departure(name, TERMS)
        return departure, await self.movers[there].prepare(name, departure, self.premises(there, name))

    async def move(
        self, name: str, watcher: Watcher, bandwidth_mib_s: int | None = None, *, live: bool = False
    ) -> Moved:
        """Move the guest to the other host, as the daemons of both hosts would, and remove the files that nobody
        needs any more."""
        here = self.home(name)
        there = self.other(here)
        departure, arrival = await self.prepared(name)
        mover = (self.live if live else self.movers)[here]
        moved = await mover.move(name, departure, arrival, self.destination(there, bandwidth_mib_s), watcher)
        if live and moved.outcome is MoveOutcome.GONE:
            self._spoiled.add(name)
        await self.tidy(name, here, departure, arrival)
        return moved

    async def tidy(self, name: str, here: Hypervisor, departure: Departure, arrival: Arrival) -> Hypervisor:
        """Decide what a core must decide after a move from `here`, however it has ended: exactly one copy goes on.
        Returns its host. Files of the other one are removed."""
        hosts = self.hosts
        for host in hosts:
            await asyncio.to_thread(host.libvirtd.start_libvirtd)
        found: dict[Hypervisor, Presence] = {}

        async def places() -> bool:
            for host in hosts:
                with contextlib.suppress(DriverError):
                    found[host] = (await self.movers[host].where_is(name)).presence
            return not set(found.values()) & {Presence.LEAVING, Presence.SWITCHING, Presence.ARRIVING}

        end = time.monotonic() + BOUND_S
        while not await places() or len(found) < len(hosts):
            assert time.monotonic() < end, f"the move never ends: {found}"
            await asyncio.sleep(0.2)
        run = [host for host in hosts if found[host] in (Presence.RUNNING, Presence.PAUSED)]
        held = [host for host in hosts if found[host] is Presence.HELD]
        assert len(run) <= 1, f"two copies: {found}"
        if not run and not held and name in self._spoiled:
            run = [self.other(here)]  # it came there, and crashed of what QEMU had lost
        assert run or held, f"no copy: {found}"
        if not run:
            run = held[:1]
            try:
                await self.movers[run[0]].go_on_here(name)
            except DriverError:  # a libvirtd that was started anew lets it go on by itself
                if run[0] not in self.running(name):
                    raise
        lost = self.other(run[0])
        await self.movers[lost].give_up(name)
        left = arrival if run[0] is here else Arrival({}, tuple(disk.path for disk in departure.disks))
        await self.movers[lost].clear(name, left)
        return run[0]

    def restore(self) -> None:
        """Clean up after any test: both libvirtds work, and each guest runs at exactly one host."""
        for host in self.hosts:
            with contextlib.suppress(ProcessLookupError):
                host.libvirtd.kill_libvirtd(signal.SIGCONT)
            host.libvirtd.start_libvirtd()
        for name in self.names:
            if len(self.running(name)) != 1 or name in self._spoiled:
                self._boot_anew(name)
            guest = self.at(self.home(name), name)
            guest.wait()
            guest.kill("rewrite.py")
            guest.sh("rm -f /tmp/rewrite.*")
            if name in self._disks:  # a move that a crash ended may have left one where the guest is not
                elsewhere = self.other(self.home(name)).libvirtd.folder / "disks"
                (elsewhere / f"{name}.qcow2").unlink(missing_ok=True)

    def bring(self, name: str, host: Hypervisor) -> None:
        """Let the guest run at this host, whatever earlier tests have done with it."""
        if self.home(name) is not host:
            asyncio.run(self.move(name, Noted()))
            self.at(host, name).wait()

    def revive(self, name: str) -> None:
        """Boot the guest anew if it does not answer, as may happen after a `live` move."""
        if self.running(name):
            with contextlib.suppress(AssertionError):
                self.at(self.home(name), name).wait(ANSWER_S)
                return
        self._boot_anew(name)
        self.at(self.home(name), name).wait()

    def _boot_anew(self, name: str) -> None:
        self._spoiled.discard(name)
        for host in self.hosts:
            with contextlib.suppress(libvirt.libvirtError):
                domain = host.connect().lookupByName(self.names[name])
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroy()
        for host in self.hosts:
            with contextlib.suppress(libvirt.libvirtError):
                self.at(host, name).boot()
                return
        raise AssertionError(f"no host knows {name}")


class Noted:
    """A watcher that stops the guest's writer, and notes what it was told. `stops`: what stops it."""

    def __init__(self, guest: Guest | None = None) -> None:
        self.progress: list[MoveProgress] = []
        self.stops = 0
        self._guest = guest

    def progressed(self, progress: MoveProgress) -> None:
        self.progress.append(progress)

    async def stop_jobs(self, progress: MoveProgress) -> None:
        self.stops += 1
        guest = self._guest
        if guest is not None:
            try:
                await asyncio.to_thread(guest.sh, f"kill -STOP $(cat {PID})")
            except GuestError as error:  # the guest has moved meanwhile
                raise DriverError(RefusalCode.FAILED, str(error)) from error

    @property
    def help(self) -> Help:
        return max((one.help for one in self.progress), default=Help.NONE)


def writer(guest: Guest, mib: int, rate_mib_s: float | None = None) -> None:
    """Start a process in the guest that checks and rewrites so much memory; it has filled it when this returns."""
    rate = "" if rate_mib_s is None else str(rate_mib_s)
    program = f"echo $$ > {PID}; exec python3 -S -E /usr/lib/magrathea-test/rewrite.py {mib} {rate}"
    guest.sh(f"setsid sh -c '{program}' < /dev/null > /tmp/rewrite.out 2>&1 &")
    until(lambda: "filled" in written(guest), lambda: f"the writer has filled its memory: {written(guest)}")


def written(guest: Guest) -> str:
    """The writer's last lines."""
    return guest.sh("tail -n 3 /tmp/rewrite.out 2>/dev/null; true")


def goes_on(guest: Guest) -> None:
    """Wait until the writer has checked all its memory once more; it has found nothing wrong. A stopped one is
    continued."""
    guest.sh(f"kill -CONT $(cat {PID})")
    before = written(guest)
    until(lambda: written(guest) not in ("", before), lambda: f"the writer goes on: {written(guest)}", BOUND_S)
    assert "BAD" not in written(guest)
