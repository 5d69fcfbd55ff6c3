"""Both ends of a guest channel, connected directly."""

from __future__ import annotations

from typing import Any

from node_daemon.agent import wire
from node_daemon.agent.wire import GuestEnd, HostEnd

Doc = dict[str, Any]


class Pair:
    """Both ends, the requests that each got, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.guest, self.host = GuestEnd({"agent": "1", "can": ["pidfd"]}), HostEnd({"host": "h1", "domain": "n1"})
        self.asked: dict[str, list[tuple[tuple[str, int], Doc]]] = {"guest": [], "host": []}
        self.greeted: dict[str, list[Doc]] = {"guest": [], "host": []}
        for name, end in (("guest", self.guest), ("host", self.host)):
            end.on_asked = lambda mark, op, doc, name=name: self.asked[name].append((mark, doc))  # type: ignore[misc]
            end.on_greeted = self.greeted[name].append
            end.opened(self.now)

    def talk(self) -> None:
        """Exchange bytes until neither has more to send."""
        while (up := self.guest.take_output()) + (down := self.host.take_output()):
            self.host.receive(up, self.now)
            self.guest.receive(down, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.guest.tick(self.now)
        self.host.tick(self.now)

    def ask(self, end: wire.End, deadline_s: float = 5.0, **body: Any) -> list[Doc | None]:
        """Send a request; returns the list into which its answer will be put."""
        answers: list[Doc | None] = []
        assert end.ask("do", body, self.now + deadline_s, answers.append, self.now) is not None
        return answers

    def answer(self, name: str, **body: Any) -> None:
        """Answer the oldest request that this end got."""
        mark, _ = self.asked[name].pop(0)
        (self.guest if name == "guest" else self.host).answer(mark, {"ok": True, **body}, self.now)
