"""A cluster of guest_openpbs.py whose guests can move between its two hosts.

Each host has a network namespace of its own, with a bridge that is linked to the cluster's. The two libvirtds reach
each other by TCP, and so do their QEMUs. A guest keeps its address when it moves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..fleet import DomainSpec, HostSpec
from ..guests.image import Extra
from ..rigs.guest import Guest
from ..rigs.guest_host import Hypervisor, Size
from ..waiting import BOUND_S, until
from .guest_openpbs import SIZE_MIB, Fleet, GuestCluster
from .openpbs_machine import BRIDGE
from .private_openpbs import HOST, PrivateOpenPbs

LIMITS = {"agent_silent_s": 30.0, "claim_s": 60.0}
HOSTS = (
    HostSpec(
        *("h1", "counted", 3, (DomainSpec("n1", "normal", 3), DomainSpec("p1", "priority", 3))),
        memory_mib=2 * SIZE_MIB,
        limits=LIMITS,
    ),
    HostSpec("h2", "counted", 3, (DomainSpec("n2", "normal", 3),), memory_mib=2 * SIZE_MIB, limits=LIMITS),
)
"""All guests fit at full size, so no memory moves. n1 fits beside n2."""
ADDRESSES = {"h1": "10.117.0.101", "h2": "10.117.0.102"}
OWN_DEVICES = (
    'mkdir -p "$0" && mount --rbind /sys/fs/cgroup "$0" && mount -t sysfs sysfs /sys'
    ' && mount --rbind "$0" /sys/fs/cgroup && exec "$@"'
)
"""Shows a daemon the network devices of its own namespace: /sys belongs to the one in which it was mounted."""


class HostNetwork:
    """A host's network namespace. It ends with the cluster. `enter`: a command that runs another one there."""

    def __init__(self, pbs: PrivateOpenPbs, cluster: tuple[str, ...], host: str) -> None:
        """`cluster`: a command that runs another one in the namespace with the cluster's bridge."""
        keeper = pbs.spawn(HOST, f"network-{host}", ["unshare", "--net", "sleep", "infinity"])
        comm = Path(f"/proc/{keeper.pid}/comm")
        until(lambda: comm.read_text() == "sleep\n", f"the network namespace of {host}", BOUND_S)
        self.enter = ("nsenter", "--net", "-t", str(keeper.pid), "--")
        status = Path(f"/proc/{keeper.pid}/status").read_text().splitlines()
        self.inner_pid = next(line.split()[-1] for line in status if line.startswith("NSpid:"))
        """The keeper's pid as other processes of the cluster see it."""
        _run(*cluster, *f"ip link add v-{host} type veth peer name uplink netns {keeper.pid}".split())
        _run(*cluster, *f"ip link set v-{host} master {BRIDGE} up".split())
        for command in (
            f"link add {BRIDGE} type bridge",
            f"addr add {ADDRESSES[host]}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
            f"link set uplink master {BRIDGE} up",
            "link set lo up",
        ):
            _run(*self.enter, "ip", *command.split())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class MovingGuests(GuestCluster):
    """Guests that may be at either host."""

    def __init__(self) -> None:
        super().__init__(HOSTS, swap_mib=0)
        self.networks: dict[str, HostNetwork] = {}
        self._names: dict[str, str] = {}
        self._homes: dict[str, str] = {}

    def _hypervisor(self, host: HostSpec, sizes: Mapping[str, Size], extra: Extra) -> Hypervisor:
        network = self.networks[host.name] = HostNetwork(self, self.enter, host.name)
        made = Hypervisor(sizes, extra, enter=network.enter, address=ADDRESSES[host.name])
        for name in sizes:
            self._names[name] = made.libvirtd.prefix + name
            self._homes[name] = host.name
        return made

    def home(self, name: str) -> str:
        """The host on which the guest runs. While it runs nowhere: that on which it ran last."""
        for host, hypervisor in self.hypervisors.items():
            if hypervisor.runs(self._names[name]):
                self._homes[name] = host
        return self._homes[name]

    def guest(self, name: str) -> Guest:
        return self.hypervisors[self.home(name)].visitor(name, self._names[name])


class MovingFleet(Fleet):
    pbs: MovingGuests

    def __init__(self, tables: Mapping[str, dict[str, Any]] | None = None) -> None:
        """`tables`: more tables of each host's noded.toml; they are added to those of moves."""
        super().__init__(tables, MovingGuests())

    def tables(self, host: HostSpec) -> Mapping[str, dict[str, Any]]:
        (other,) = ADDRESSES.keys() - {host.name}
        here, there = (self.pbs.hypervisors[name].libvirtd.folder for name in (host.name, other))
        made: dict[str, dict[str, Any]] = {
            "visitors": {
                "hosts": [other],
                "address": f"qemu+tcp://{ADDRESSES[host.name]}/system",
                "memory_address": f"tcp://{ADDRESSES[host.name]}",
                "renamed": [f"{there}={here}"],
            },
            "moves": {"hosts": [other], "transports": ["tcp"]},
        }
        for name, table in super().tables(host).items():
            made[name] = {**made.get(name, {}), **table}
        return made

    def _fit(self) -> None:
        """All fit."""

    def noded_command(self, host: str) -> list[str]:
        enter = ["nsenter", "--net", "-t", self.pbs.networks[host].inner_pid, "--"]
        own = ["unshare", "--mount", "sh", "-c", OWN_DEVICES, str(self.directory / host / "cgroup")]
        return [*enter, *own, *super().noded_command(host)]

    # Moves

    def migrate(self, name: str, to: str) -> dict[str, Any]:
        """Ask for the guest's move, and return the answer."""
        return self.ask(self.pbs.home(name), op="migrate", domain=name, to=to)

    def report(self, host: str, name: str) -> dict[str, Any] | None:
        """What the host's daemon reports of the domain; None if it does not have it."""
        found = self.ask(host, op="status")["domains"]
        return next((one for one in found if one["name"] == name), None)

    def is_settled(self, name: str, host: str) -> bool:
        """True if the domain's move to the host is over: its agent is connected there, and no other host knows it."""
        there = self.report(host, name)
        if there is None or "travel" in there or not there["agent"]:
            return False
        return all(self.report(other, name) is None for other in ADDRESSES if other != host)

    def wait_settled(self, name: str, host: str) -> None:
        self.pbs.wait(lambda: self.is_settled(name, host), f"{name} is at {host}", BOUND_S, 0.02)

    def bring(self, name: str, host: str) -> None:
        """Let the domain be at the host, wherever it is."""
        until(lambda: self.home_is_known(name), f"it is known where {name} is")
        if self.pbs.home(name) != host:
            self.pbs.wait(lambda: self.migrate(name, host)["ok"], f"{name} may move to {host}")
        self.wait_settled(name, host)

    def home_is_known(self, name: str) -> bool:
        return self.report(self.pbs.home(name), name) is not None

    def at(self, name: str) -> Mapping[str, str]:
        """What the domain's vnode shows of its place: host, siblings and rank."""
        vnode = self.pbs.vnode(name)
        shown = vnode.get("resources_available", {})
        return {
            "host": str(shown.get("magrathea_host", "")),
            "siblings": str(shown.get("magrathea_siblings", "")),
            "rank": str(vnode.get("Priority", shown.get("magrathea_rank", ""))),
        }
