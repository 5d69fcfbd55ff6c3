"""What the control socket offers: the status, the history, and an admin's commands."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import msgspec

from magrathea.configuration import ConfigurationError
from magrathea.control import Control, Denied, Request, granted
from magrathea.core import events as ev
from magrathea.core.model import Amount, Host
from magrathea.foresight import preview
from magrathea.messages import Snapshot, encode

from .configuration import Configuration
from .hubclient import HubClient
from .journal import Book, Journal
from .switch import Switch

MAX_HISTORY = 10_000


class Owner(Protocol):
    """What is needed of the daemon."""

    configuration: Configuration
    switch: Switch
    hub: HubClient
    journal: Book

    @property
    def host(self) -> Host: ...

    def now(self) -> float: ...

    def apply(self, event: ev.Event) -> tuple[ev.Decision, ...]: ...

    def snapshot(self, revision: int) -> Snapshot: ...

    async def reload(self) -> list[str]: ...


class Admin:
    """The operations, and the socket they are offered on."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._control = Control(
            owner.configuration.control_socket,
            reading={"status": self._status, "ping": self._ping, "history": self._history, "preview": self._preview},
            changing={
                "drain": self._drain,
                "undrain": self._undrain,
                "clear": self._clear,
                "reload": self._reload,
            },
            group=owner.configuration.control.group,
        )

    async def start(self) -> None:
        await self._control.start()

    async def close(self) -> None:
        await self._control.close()

    def regroup(self) -> None:
        """The configured group may have changed."""
        self._control.group = self._owner.configuration.control.group

    async def _status(self, request: Request) -> bytes:
        snapshot = self._owner.snapshot(self._owner.hub.revision)
        return encode(msgspec.structs.replace(snapshot, at=self._owner.now()))

    async def _ping(self, request: Request) -> bytes:
        return granted()

    async def _history(self, request: Request) -> bytes:
        """The newest `limit` entries, of one domain where named."""
        journal = self._owner.journal
        if not isinstance(journal, Journal):
            raise Denied("journal", "the journal cannot be read; the status says why")
        entries = journal.history(max(1, min(request.limit, MAX_HISTORY)), request.domain or None)
        return granted(entries=entries)

    async def _preview(self, request: Request) -> bytes:
        """What each domain would answer to such a claim now; nothing is changed."""
        host = replace(self._owner.host, now=self._owner.now())
        snapshot = self._owner.snapshot(self._owner.hub.revision)
        vnodes = {domain.name: domain.vnode for domain in snapshot.domains}
        previews = preview(host, vnodes, request.cls, Amount(request.cpus, request.memory_mib))
        return granted(previews=previews)

    async def _drain(self, request: Request) -> bytes:
        return self._event(request, ev.DrainRequested(self._owner.now(), request.domain, request.reason))

    async def _undrain(self, request: Request) -> bytes:
        return self._event(request, ev.DrainEnded(self._owner.now(), request.domain))

    async def _clear(self, request: Request) -> bytes:
        answer = self._event(request, ev.FaultCleared(self._owner.now(), request.domain))
        self._owner.switch.clear(request.domain)
        return answer

    async def _reload(self, request: Request) -> bytes:
        try:
            return granted(said=await self._owner.reload())
        except ConfigurationError as error:
            raise Denied("configuration", str(error)) from error

    def _event(self, request: Request, event: ev.Event) -> bytes:
        for decision in self._owner.apply(event):
            if isinstance(decision, ev.Refused) and decision.domain == request.domain:
                raise Denied(decision.code, decision.text)
        return granted()
