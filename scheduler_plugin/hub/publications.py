"""What the vnodes of a host, or of all hosts, should show; and which alerts about that are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scheduler_plugin.pbs.base import Attributes

from . import vnode_attributes
from .job_wishes import Heard
from .managed_vnodes import ManagedVnodes

Publication = tuple[dict[str, Attributes], list[str]]
"""Attributes by vnode, and new alerts."""


class Publications:
    """Remembers only the last alerts about each host: a host can cause any number of different ones."""

    def __init__(self, vnodes: ManagedVnodes, *, set_priority: bool) -> None:
        self._vnodes = vnodes
        self._set_priority = set_priority
        self._alerts: dict[str, frozenset[str]] = {}
        """By host; those about vnodes that nobody reports under an empty name."""

    def of_host(self, heard: Heard) -> Publication:
        v = self._vnodes
        part = vnode_attributes.of_host(
            *(heard.snapshot, heard.live, v.pbs, v.owner, v.bindings, v.transfers), set_priority=self._set_priority
        )
        return dict(part.wanted), self._new(heard.snapshot.host, part.alerts)

    def of_all(self, hosts: Mapping[str, Heard], *, grace: bool) -> Publication:
        """Also for vnodes that nobody reports. `grace`: silent hosts may still report."""
        wanted: dict[str, Attributes] = {}
        alerts: list[str] = []
        for heard in hosts.values():
            of_host, new = self.of_host(heard)
            wanted.update(of_host)
            alerts += new
        snapshots = {name: heard.snapshot for name, heard in hosts.items()}
        v = self._vnodes
        rest = vnode_attributes.of_nobody(v.pbs, v.owner, snapshots, v.bindings, v.transfers, grace=grace)
        wanted.update(rest.wanted)
        return wanted, alerts + self._new("", rest.alerts)

    def _new(self, about: str, alerts: Sequence[str]) -> list[str]:
        before = self._alerts.get(about, frozenset())
        self._alerts[about] = frozenset(alerts)
        return [alert for alert in alerts if alert not in before]
