"""Which host may report which vnode: the lists given to `magrathea keys enrol --vnode`, and the moves since.

A host with a list may report only the vnodes on it. A listed vnode belongs to the hosts that list it. A host without a
list may report only unlisted vnodes, so give every untrusted host a list. A vnode whose domain has moved belongs to the
host that owns the domain, and to no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class Bindings:
    """`lists`: the listed vnodes of each host that has a list. `moved`: the owners of domains that have moved."""

    def __init__(
        self,
        lists: Mapping[str, frozenset[str]] = MappingProxyType({}),
        moved: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._lists = dict(lists)
        self._listed = frozenset().union(*self._lists.values())
        self._moved = dict(moved)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bindings) and (self._lists, self._moved) == (other._lists, other._moved)

    def __hash__(self) -> int:
        return hash(self._listed)

    def after(self, moved: Mapping[str, str]) -> Bindings:
        """These lists, with the owners of the domains that have moved."""
        return Bindings(self._lists, moved)

    def bound(self, vnode: str) -> str:
        """The owner of a moved domain, else the first host (by name) that lists the vnode; empty if none does."""
        if vnode in self._moved:
            return self._moved[vnode]
        if vnode not in self._listed:
            return ""
        return next(host for host, vnodes in sorted(self._lists.items()) if vnode in vnodes)

    def permit(self, host: str, vnode: str) -> bool:
        if vnode in self._moved:
            return self._moved[vnode] == host
        return self.enrolled(host, vnode)

    def enrolled(self, host: str, vnode: str) -> bool:
        """True if the host may report the vnode unless its domain has moved."""
        own = self._lists.get(host)
        return vnode in own if own is not None else vnode not in self._listed
