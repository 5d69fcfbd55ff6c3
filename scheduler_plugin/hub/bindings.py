"""Which host may report which vnode: the lists given to `magrathea keys enrol --vnode`.

A host with a list may report only the vnodes on it. A listed vnode belongs to the hosts that list it. A host without a
list may report only unlisted vnodes, so give every untrusted host a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class Bindings:
    """`lists`: the listed vnodes of each host that has a list."""

    def __init__(self, lists: Mapping[str, frozenset[str]] = MappingProxyType({})) -> None:
        self._lists = dict(lists)
        self._listed = frozenset().union(*self._lists.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bindings) and self._lists == other._lists

    def __hash__(self) -> int:
        return hash(self._listed)

    def bound(self, vnode: str) -> str:
        """The first host (by name) that lists the vnode; empty if none does."""
        if vnode not in self._listed:
            return ""
        return next(host for host, vnodes in sorted(self._lists.items()) if vnode in vnodes)

    def permit(self, host: str, vnode: str) -> bool:
        own = self._lists.get(host)
        return vnode in own if own is not None else vnode not in self._listed
