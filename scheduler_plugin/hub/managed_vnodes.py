"""Which host each vnode of PBS belongs to, and which host may speak of it. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from magrathea.messages import Snapshot
from scheduler_plugin.pbs.base import Vnode

from . import vnode_attributes
from .bindings import Bindings
from .ownership import Ledger
from .shares import Cause
from .transfers import Transfers


class ManagedVnodes:
    """`pbs`: the vnodes that PBS has. `owner`: each managed vnode's host. `enrolled`: which host is enrolled for which
    vnodes; `bindings`: which may report them, after all moves. `transfers`: domains on their way."""

    def __init__(self, transfers: Transfers | None = None) -> None:
        self.pbs: dict[str, Vnode] = {}
        self.owner: dict[str, str] = {}
        self.transfers = transfers or Transfers(Ledger(), {})
        self.enrolled = Bindings()
        self.bindings = self.enrolled.after(self.transfers.owners)

    def heard(self, before: Snapshot | None, after: Snapshot) -> None:
        """Take a host's new snapshot; `before`: its last one."""
        name = after.host
        for domain in before.domains if before else ():
            free = domain.vnode in self.transfers.free  # a host that comes back reports it until it hears of that
            if (free or domain.vnode not in self.pbs) and self.owner.get(domain.vnode) == name:
                del self.owner[domain.vnode]  # else a host that makes up names would fill the memory
        for vnode in vnode_attributes.reported(after, self.bindings):
            self.owner.setdefault(vnode, name)

    def bind(self) -> bool:
        """Follow `enrolled` and `transfers`. True if other hosts may report some vnodes now."""
        before, self.bindings = self.bindings, self.enrolled.after(self.transfers.owners)
        return self.bindings != before

    def settle(self, hosts: Mapping[str, Snapshot], silent: Collection[str] = ()) -> None:
        """Decide again who owns which vnode: PBS's vnodes or the bindings have changed. `hosts`: all snapshots;
        `silent`: the hosts whose lease is out. What was given up is never theirs."""
        self.owner = vnode_attributes.owners(self.pbs, hosts, self.bindings)
        for vnode in [name for name in self.transfers.free if self.owner.get(name) in silent]:
            del self.owner[vnode]
            for host in sorted(hosts.keys() - set(silent)):
                if vnode in vnode_attributes.reported(hosts[host], self.bindings):
                    self.owner.setdefault(vnode, host)

    def by(self, host: str) -> Callable[[str], bool]:
        return lambda vnode: self.owner.get(vnode) == host

    def of(self, vnodes: Iterable[str]) -> set[str]:
        """The hosts of these vnodes."""
        return {self.owner[vnode] for vnode in vnodes if vnode in self.owner}

    def cause(self, host: str, vnode: str) -> Cause:
        return host, vnode if self.speaks_in_pbs(host, vnode) else ""

    def speaks_in_pbs(self, host: str, vnode: str) -> bool:
        return vnode in self.pbs and self.speaks(host, vnode)

    def speaks(self, host: str, vnode: str) -> bool:
        return self.owner.get(vnode) == host and self.bindings.permit(host, vnode)
