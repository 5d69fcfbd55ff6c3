"""The daemon's `Handler` of a guest channel, for tests: it agrees to everything, and records what it gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from node_daemon.guest_channel.messages import AnyRequest, Hello


class Listener:
    """`answer`: gives a test's own answers."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.requests: list[AnyRequest] = []
        self.answer: Callable[[AnyRequest], Awaitable[dict[str, Any]]] = self.agree

    async def agree(self, request: AnyRequest) -> dict[str, Any]:
        return {"ok": True}

    def connected(self, domain: str, hello: Hello) -> None:
        self.events.append(f"connected {hello.session[:2]}")

    def lost(self, domain: str) -> None:
        self.events.append("lost")

    async def request(self, domain: str, request: AnyRequest) -> dict[str, Any]:
        self.requests.append(request)
        return await self.answer(request)
