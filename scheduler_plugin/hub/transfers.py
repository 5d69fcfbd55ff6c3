"""Domains on their way between hosts, as far as the hub's other books must know: whose vnode it is, and what it shows.

Rule 1: no clock and no I/O. The records are those that are on disk (owners.py); a domain has the name of its vnode.
Rule 2: from the grant until the target has the domain's facts, its vnode accepts nothing.
Rule 3: once the source has let go, it publishes nothing for the vnode. Until the target has the facts, no host reports
the domain's jobs, so what the hub has booked of them stays as it is (books.py).
Rule 4: the runjob hook must never miss a domain that runs on a host, or may run there again. So a domain on its way is
a sibling at both ends: at the source until another host owns it, at the target as soon as that is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from magrathea.core.moves import Ownership

from .ownership import Ledger, parties


class Transfers:
    """`ledger`: the records on disk. Whenever some have changed, `changed` must be called.

    `owners`: the owners of domains that have moved, or have been asked to. Their vnodes are theirs. `kept`: the last
    ones that are known, if the ledger is lost: only they may say that they own those domains. `free`: domains that were
    given up, and that no host has taken back yet.
    """

    def __init__(self, ledger: Ledger, kept: Mapping[str, str]) -> None:
        self._ledger = ledger
        self._moving: dict[str, Ownership] = {}
        self.owners = dict(kept)
        self.free: set[str] = set()
        self.changed(ledger.records)

    def changed(self, domains: Collection[str]) -> set[str]:
        """Follow these records. Returns the hosts that their moves concern, or concerned."""
        concerned: set[str] = set()
        for name in domains:
            record = self._ledger.records.get(name)
            for one in (self._moving.pop(name, None), record):
                concerned.update(parties(one) if one else ())
            self.owners.pop(name, None)
            self.free.discard(name)
            if record is not None and not record.owner:
                self.free.add(name)
            elif record is not None and record.number > 1:
                self.owners[name] = record.owner
            if record is not None and record.transfer is not None:
                self._moving[name] = record
        return concerned

    def __contains__(self, vnode: str) -> bool:
        """True if its domain is on its way."""
        return vnode in self._moving

    def __iter__(self) -> Iterator[Ownership]:
        """The records of domains on their way."""
        return iter(self._moving.values())

    def of(self, host: str) -> set[str]:
        """The domains on their way to or from the host."""
        return {name for name, record in self._moving.items() if host in parties(record)}

    @property
    def hosts(self) -> set[str]:
        """The hosts that domains are on their way to or from."""
        return {host for record in self._moving.values() for host in parties(record)}

    def expects(self, host: str, vnode: str) -> bool:
        """True if the vnode's domain is on its way to the host."""
        record = self._moving.get(vnode)
        return record is not None and record.transfer is not None and record.transfer.target == host

    def has_left(self, host: str, vnode: str) -> bool:
        """True if the host owns the vnode's domain still, but has said that it let go of it."""
        record = self._moving.get(vnode)
        return record is not None and record.owner == host and self.let_go(vnode) and not self.expects(host, vnode)

    def let_go(self, vnode: str) -> bool:
        """True if the source has let go of the domain, and the target does not have its facts yet."""
        record = self._moving.get(vnode)
        transfer = record.transfer if record else None
        return transfer is not None and (transfer.letting is not None or transfer.owed)

    def siblings(self, host: str) -> set[str]:
        """The domains on their way that run on the host, or may."""
        return {name for name, record in self._moving.items() if _may_run(record, host)}


def given_up(
    records: Mapping[str, Ownership],
    owners: Mapping[str, str],
    on_record: Mapping[str, str],
    reported: Callable[[str, str], bool],
) -> list[str]:
    """The domains that an admin has given up: PBS names no host for their vnodes, and their owners do not report them.

    `owners`: of domains that have moved; there may be no record of one, if the ledger was lost. `on_record`: the host
    that PBS names for each vnode that it has; empty if none. `reported`: whether the host reports the vnode now.
    """
    resting = {name: record.owner for name, record in records.items() if record.owner and record.transfer is None}
    unrecorded = {name: owner for name, owner in owners.items() if name not in records}
    return [
        name
        for name, owner in {**resting, **unrecorded}.items()
        if on_record.get(name) == "" and not reported(owner, name)
    ]


def _may_run(record: Ownership, host: str) -> bool:
    transfer = record.transfer
    expected = transfer is not None and transfer.target == host and transfer.ready and not transfer.declined
    return record.owner == host or expected
