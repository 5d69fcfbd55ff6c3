"""Which host may speak of which vnode: what `magrathea keys enrol --vnode` has bound.

A host that is bound to a list may name these vnodes and no others. A vnode on any list is for the hosts that have it
on theirs. A host without a list may name what is on none: so hosts that are not trusted get lists, all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class Bindings:
    """`lists`: vnodes by host, of the hosts that have a list."""

    def __init__(self, lists: Mapping[str, frozenset[str]] = MappingProxyType({})) -> None:
        self._lists = dict(lists)
        self._listed = frozenset().union(*self._lists.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bindings) and self._lists == other._lists

    def __hash__(self) -> int:
        return hash(self._listed)

    def bound(self, vnode: str) -> str:
        """The host that a vnode is bound to, the first by name; empty if it is bound to none."""
        if vnode not in self._listed:
            return ""
        return next(host for host, vnodes in sorted(self._lists.items()) if vnode in vnodes)

    def permit(self, host: str, vnode: str) -> bool:
        own = self._lists.get(host)
        return vnode in own if own is not None else vnode not in self._listed
