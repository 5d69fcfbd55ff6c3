"""A small physical machine for tests.

`Hypervisor`: a private libvirtd with real guests, kept over many tests. `Machine`: for each test a node daemon, a
replacement for the hub, and MoM's lists in the guests. All calls block.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from ..guests.image import NOTHING_MORE, Extra, Image, build
from ..guests.private_libvirtd import QEMU_USER, PrivateLibvirtd
from ..guests.xml import guest_xml
from ..opened import Opened
from ..waiting import BOUND_S, until
from .guest import Guest, GuestError, Job
from .hub_rig import HubThread

T = TypeVar("T")

TREE = Path(__file__).parents[1] / "guests" / "rig"
"""Files that the tests' guests have in addition: a stand-in for MoM that does what a test asks."""
LIST_S = 0.5
"""Interval of MoM's lists, instead of 15 s."""


@dataclass(frozen=True, slots=True)
class Size:
    """One guest's size. `swap_mib`: a disk for swap, with at most `swap_iops` operations a second (0: no limit)."""

    memory_mib: int = 256
    vcpus: int = 1
    swap_mib: int = 0
    swap_iops: int = 0
    zram_mib: int = 0
    autodeflate: bool = True
    arguments: str = ""
    """Additions to the kernel's command line; `magrathea.acpi`: the guest obeys power buttons."""
    devices: str = ""
    """Additional XML."""


class Hypervisor(Opened):
    """A private libvirtd and its guests. `run_dir`: the node daemon's; the guests' channels lead to it. `enter`,
    `may_lock`, `address`: see PrivateLibvirtd."""

    def __init__(
        self,
        sizes: Mapping[str, Size],
        extra: Extra = NOTHING_MORE,
        kind: str = "qemu",
        enter: Sequence[str] = (),
        may_lock: bool = False,
        address: str = "",
    ) -> None:
        self.libvirtd = PrivateLibvirtd(enter, may_lock, address)
        self.folder = self.libvirtd.folder / "host"
        self.run_dir = self.folder / "run"
        self.sizes = dict(sizes)
        self.kind = kind
        self.guests: dict[str, Guest] = {}
        self._extra = extra
        self._connection: Any = None

    @property
    def uri(self) -> str:
        return self.libvirtd.uri("lxc" if self.kind == "lxc" else "qemu")

    def connect(self) -> Any:
        """A working connection to the private libvirtd."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.getLibVersion()  # a connection that has just broken may still report that it is alive
                return self._connection
        self._connection = libvirt.open(self.uri)
        return self._connection

    def start(self) -> None:
        self.libvirtd.start()
        (self.run_dir / "guest").mkdir(parents=True)
        for folder in (self.folder, self.run_dir, self.run_dir / "guest"):
            folder.chmod(0o711)
        self.define_all()
        for guest in self.guests.values():
            guest.boot()
        for guest in self.guests.values():
            guest.wait(BOUND_S)

    def define_all(self) -> None:
        image = build(self.folder, (TREE,), extra=self._extra)
        for name in self.sizes:
            self.define(name, image)

    def define(self, name: str, image: Image) -> None:
        size = self.sizes[name]
        swap = self.folder / f"{name}.swap" if size.swap_mib else None
        if swap is not None:
            with swap.open("wb") as file:
                file.truncate(size.swap_mib * 2**20)
            subprocess.run(["mkswap", str(swap)], check=True, capture_output=True, env={"PATH": "/usr/sbin:/sbin:/bin"})
        channel = self.run_dir / "guest" / f"{name}.sock"
        channel.touch()  # libvirt requires the file when the domain starts
        xml = guest_xml(
            self.libvirtd.prefix + name,
            image,
            channel=channel,
            test_port=self.folder / f"{name}.test",
            console=self.folder / f"{name}.console",
            hostname=name,
            memory_mib=size.memory_mib,
            vcpus=size.vcpus,
            swap=swap,
            swap_iops=size.swap_iops,
            zram_mib=size.zram_mib,
            kind=self.kind,
            autodeflate=size.autodeflate,
            arguments=size.arguments,
            devices=size.devices,
        )
        self.connect().defineXML(xml)
        self.guests[name] = Guest(name, self.libvirtd.prefix + name, self.connect, self.folder)

    def visitor(self, name: str, libvirt_name: str) -> Guest:
        """A guest of another host, as it is reached here."""
        if name not in self.guests:
            self.guests[name] = Guest(name, libvirt_name, self.connect, self.folder)
        return self.guests[name]

    def state(self, libvirt_name: str) -> tuple[int, int] | None:
        """libvirt's state and reason of a guest; None if it does not run here."""
        try:
            domain = self.connect().lookupByName(libvirt_name)
            state, reason = domain.state()
            return (state, reason) if domain.isActive() else None
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                return None
            raise

    def runs(self, libvirt_name: str) -> bool:
        """True if the guest's processors run here."""
        found = self.state(libvirt_name)
        return found is not None and found[0] == libvirt.VIR_DOMAIN_RUNNING

    def restore(self) -> None:
        """Clean up after any test: libvirtd works, all guests are up with all their memory and CPU, and have no job."""
        with contextlib.suppress(ProcessLookupError):
            self.libvirtd.kill_libvirtd(signal.SIGCONT)
        try:
            self.connect()
        except libvirt.libvirtError:
            self.libvirtd.start_libvirtd()
        self.start_all()
        for name, guest in self.guests.items():
            self.restore_size(name, guest)
            try:
                guest.wait(10.0)
                self._tidy(guest)
            except (AssertionError, GuestError):  # the guest is broken inside: boot it anew
                guest.end()
                guest.boot()
                guest.wait(BOUND_S)

    def start_all(self) -> None:
        """Start or resume all guests."""
        for guest in self.guests.values():
            with contextlib.suppress(Exception):
                os.kill(self.libvirtd.qemu(guest.libvirt_name), signal.SIGCONT)
            if not guest.up and guest.domain.hasManagedSaveImage():
                guest.domain.managedSaveRemove()
            guest.boot()

    def restore_size(self, name: str, guest: Guest) -> None:
        """Give the guest all its memory, and remove its cap."""
        guest.domain.setSchedulerParametersFlags({"global_quota": -1}, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        guest.domain.setMemoryFlags(self.sizes[name].memory_mib * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _tidy(self, guest: Guest) -> None:
        for name, job in guest.jobs().items():
            guest.port.ask("kill", job={"id": name, "run": job["run"]})
            guest.port.ask("forget", job={"id": name, "run": job["run"]})
        guest.kill("/tmp/stray")
        guest.sh(
            "rm -f /run/agent.off /var/spool/*.out /var/lib/magrathea/*; rmdir /sys/fs/cgroup/pbs/*/ 2>/dev/null; true"
        )
        guest.kill("magrathea-agent")  # init starts a new agent, which knows nothing of earlier tests

    def close(self) -> None:
        for guest in self.guests.values():
            guest.port.close()
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
        self.libvirtd.close()


@dataclass
class Machine(Opened):
    """A host: the hypervisor's guests under a real node daemon. `kinds`: each guest's kind (p*: priority, others:
    normal).

    `extra`: more lines for noded.toml's [host]. `tables`: more tables for it. hub_rig replaces the hub: it books what
    the daemon wants stopped, and withdraws that when the host is ready.
    """

    hypervisor: Hypervisor
    mode: str = "exclusive"
    cpus: int = 4
    memory_mib: int | None = None
    extra: str = ""
    limits: str = ""
    tables: str = ""
    domain: Mapping[str, str] = field(default_factory=dict)
    """Additional lines for a domain's table, by the domain's name."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    enter: Sequence[str] = ()
    """A command that runs the daemon, for example in a namespace of its own."""

    def __post_init__(self) -> None:
        self.guests = self.hypervisor.guests
        self.folder = self.hypervisor.folder
        self.daemon: subprocess.Popen[bytes] | None = None
        self.hub = HubThread(f"ipc://{self.folder}/hub.ipc")
        self._lists: dict[str, threading.Thread] = {}
        self._over = threading.Event()

    def __getitem__(self, name: str) -> Guest:
        return self.guests[name]

    # Starting and ending

    @property
    def config(self) -> Path:
        return self.folder / "noded.toml"

    @property
    def log(self) -> Path:
        return self.folder / "noded.log"

    def write_config(self) -> None:
        memory = self.memory_mib or sum(size.memory_mib for size in self.hypervisor.sizes.values())
        text = f"""
[host]
name = "h1"
mode = "{self.mode}"
cpus = {self.cpus}
memory_mib = {memory}
reserve_mib = 0
driver = "libvirt"
uri = "{self.hypervisor.uri}"
qemu_user = "{QEMU_USER}"
{self.extra}
[limits]
min_run_s = 0.0
allow_short_min_run = true
{self.limits}
[hub]
endpoints = ["ipc://{self.folder}/hub.ipc"]
[paths]
run_dir = "{self.hypervisor.run_dir}"
state_dir = "{self.folder}/state"
scripts = "{self.folder}/scripts"
{self.tables}
"""
        for name, guest in self.guests.items():
            kind = self.kinds.get(name, "priority" if name.startswith("p") else "normal")
            text += f'[domain.{name}]\nkind = "{kind}"\nlibvirt.name = "{guest.libvirt_name}"\n'
            text += self.domain.get(name, "") + "\n"
        self.config.write_text(text)

    def start(self) -> None:
        for old in (self.folder / "state").glob("*"):
            old.unlink()
        self.write_config()
        self.hub.start()
        self.start_daemon()
        for guest in self.guests.values():
            thread = threading.Thread(target=self._tell_jobs, args=(guest,), name=f"mom-{guest.name}", daemon=True)
            self._lists[guest.name] = thread
            thread.start()
        self.until(self.settled, "the daemon up, agents and hub connected")

    def start_daemon(self, **environment: str) -> None:
        options = ("--config", str(self.config), "--log-level", "debug")
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*self.enter, sys.executable, "-m", "node_daemon.main", *options],
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, **environment},
            )

    def stop_daemon(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        return self.daemon.wait(BOUND_S)

    def _tell_jobs(self, guest: Guest) -> None:
        while not self._over.wait(LIST_S):
            with contextlib.suppress(GuestError):  # the domain or its agent is down: it gets the list when it is back
                guest.tell_jobs(list(self.hub.booked))

    def close(self) -> None:
        self._over.set()
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(BOUND_S)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait(BOUND_S)
        for thread in self._lists.values():
            thread.join(BOUND_S)
        self.hub.close()

    # What the daemon reports

    def status(self) -> dict[str, Any]:
        """The content of `magrathea status`. Raises OSError."""
        return ask(self.hypervisor.run_dir / "control.sock", {"op": "status"})

    def ask(self, **message: Any) -> dict[str, Any]:
        """An administrator's request over the control socket: op="domain", do="freeze", domain="p1"."""
        return ask(self.hypervisor.run_dir / "control.sock", message)

    def report(self, name: str) -> Any:
        """The domain in the last snapshot that the hub received."""
        last = self.hub.last
        assert last is not None
        return next(d for d in last.domains if d.name == name)

    def state(self, name: str) -> str:
        return str(self.report(name).state.value)

    def settled(self) -> bool:
        last = self.hub.last
        if last is None or not last.hub_connected or not all(d.agent for d in last.domains):
            return False
        return all(d.state.value not in ("down", "booting", "unknown") for d in last.domains)

    def until(self, condition: Callable[[], T | None], what: str | Callable[[], str], bound_s: float = BOUND_S) -> T:
        """As `waiting.until`; a failure also shows the daemon's log and the hub's data."""

        def trouble() -> str:
            last = self.hub.last
            known = [(d.name, d.state.value, d.agent, d.why) for d in last.domains] if last else None
            log = self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
            told = what if isinstance(what, str) else what()
            return f"{told}; the hub knows {known}, notes {last.notes if last else None}; noded's log:\n{log}"

        return until(condition, trouble, bound_s)

    def qsub_and_end(self, name: str, job: Job) -> None:
        """Run a whole job: it starts, runs, ends, and is released."""
        self.guests[name].qsub(job)
        self.until_states(name, job, "RSD")
        self.guests[name].qdel(job)

    def until_state(self, name: str, state: str) -> None:
        self.until(lambda: self.state(name) == state, f"{name} is {state}")

    def until_states(self, name: str, job: Job, letters: str) -> None:
        """Wait until all processes of the job are in one of these states: `T` stopped, `RSD` running."""
        guest = self.guests[name]

        def so() -> bool:
            states = set(guest.states(job))
            return guest.all_stopped(job) if letters == "T" else bool(states) and states <= set(letters)

        self.until(so, lambda: f"processes of {job.id} in {name} are {letters}, not {guest.states(job)}")


def ask(path: Path, message: dict[str, Any], bound_s: float = BOUND_S) -> dict[str, Any]:
    """Send one line to a unix socket, return the line that comes back. Raises OSError."""
    import socket

    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(bound_s)
        link.connect(str(path))
        link.sendall(json.dumps(message).encode() + b"\n")
        data = bytearray()
        while not data.endswith(b"\n"):
            piece = link.recv(65536)
            if not piece:
                raise OSError(f"{path}: closed without an answer")
            data += piece
    answer: dict[str, Any] = json.loads(data)
    return answer


@contextlib.contextmanager
def machine(hypervisor: Hypervisor, **settings: Any) -> Iterator[Machine]:
    """A machine for the `with` block. Afterwards it is removed, and its guests are ready for the next test."""
    made = Machine(hypervisor, **settings)
    try:
        with made:
            yield made
    finally:
        hypervisor.restore()
