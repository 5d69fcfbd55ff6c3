"""Asks a node daemon or the hub through its control socket: one JSON line out, one JSON line back.

Rule 1: every question ends by its deadline, and an answer is read only up to its bound.
Rule 2: an error says what failed, where, and how to fix it. `Unreachable`: no daemon answered. `RequestRefused`: the
daemon's own answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from magrathea import files, places
from magrathea.decoding import UNDECODABLE

from .message_base import MAX_BYTES, BadMessage, decode
from .reports import FarmView, Snapshot

DEFAULT_SOCKET = Path(places.NODED_CONTROL)
SOCKET_VARIABLE = "MAGRATHEA_CONTROL"
HUB_SOCKET = Path(places.HUB_CONTROL)
HUB_VARIABLE = "MAGRATHEA_HUB_CONTROL"
MAX_FARM_BYTES = 64 * MAX_BYTES
"""For a hub's answer, which has all hosts' snapshots."""
DEADLINE_S = 5.0
"""For connecting, asking and reading together; a healthy daemon answers in a millisecond."""


@dataclass(frozen=True, slots=True)
class SocketOwner:
    """The owner of a socket: its name for people, its unit, and the option that names another socket."""

    name: str
    unit: str
    option: str
    root_only: bool = False
    configuration: str = ""
    """The file that is on each machine that should have it; empty if that is not known."""

    @property
    def elsewhere(self) -> str:
        """What to do on a machine that is not meant to have it."""
        return f"this machine has none; run the command where {self.configuration} is, or name a socket: {self.option}"

    @property
    def start(self) -> str:
        return f"start it with `systemctl start {self.unit}`, or name another socket with {self.option}"


DAEMON = SocketOwner(
    "the node daemon", "magrathea-noded", f"--socket or ${SOCKET_VARIABLE}", configuration=places.NODED_CONFIGURATION
)
HUB = SocketOwner("the hub", "magrathea-hub", f"--hub or ${HUB_VARIABLE}", configuration=places.HUB_CONFIGURATION)
AGENT = SocketOwner("this guest's agent", "magrathea-agent", "`socket` in agent.json", root_only=True)


class Unreachable(Exception):
    """No daemon answers there: `cause` is the reason, `fix` is what to do."""

    def __init__(self, socket_path: Path, cause: str, fix: str, owner: SocketOwner = DAEMON) -> None:
        super().__init__(f"{owner.name} does not answer at {socket_path}: {cause}; {fix}")
        self.cause = cause
        self.fix = fix


class RequestRefused(Exception):
    """The daemon refused: `code` is for programs and never changes, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Refusal(msgspec.Struct):
    ok: bool
    code: str = ""
    text: str = ""


def socket_path(given: str | None) -> Path:
    """The daemon's socket: the given one, else the environment's, else the default."""
    return Path(given or os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


def hub_path(given: str | None) -> Path:
    """The hub's socket: the given one, else the environment's, else the default."""
    return Path(given or os.environ.get(HUB_VARIABLE) or HUB_SOCKET)


def farm(path: Path, deadline_s: float = DEADLINE_S) -> FarmView:
    """All hosts, as the hub at `path` knows them. Raises Unreachable, RequestRefused."""
    try:
        return msgspec.json.decode(
            ask(path, {"op": "status"}, deadline_s, most=MAX_FARM_BYTES, owner=HUB), type=FarmView
        )
    except UNDECODABLE as error:
        raise _strange(path, str(error), HUB) from error


def ask(
    path: Path,
    request: Mapping[str, object],
    deadline_s: float = DEADLINE_S,
    *,
    most: int = MAX_BYTES,
    owner: SocketOwner = DAEMON,
) -> bytes:
    """The daemon's one-line answer to a request (`op` and its fields). Raises Unreachable, RequestRefused."""
    until = time.monotonic() + deadline_s
    question = msgspec.json.encode(request) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(deadline_s)
            connection.connect(os.fspath(path))
            # the daemon refused before it read the request; its answer is there
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(question)
            answer = _line(connection, path, until, most, owner)
    except FileNotFoundError as error:
        here = path not in (DEFAULT_SOCKET, HUB_SOCKET) or files.exists(Path(owner.configuration))
        fix = f"is it running there? {owner.start}" if here else owner.elsewhere
        raise Unreachable(path, "there is no such socket", fix, owner) from error
    except ConnectionRefusedError as error:
        if not path.is_socket():
            raise Unreachable(path, "it is no socket", f"name the socket: {owner.option}", owner) from error
        fix = f"it ended and left its socket behind: see `journalctl -u {owner.unit}`, then {owner.start}"
        raise Unreachable(path, "nobody listens there", fix, owner) from error
    except PermissionError as error:
        fix = "only root may ask it" if owner.root_only else f"let others enter {path.parent}, or ask as root"
        raise Unreachable(path, "this user has no permission to open it", fix, owner) from error
    except TimeoutError as error:
        fix = f"it hangs or is starved of CPU: see `journalctl -u {owner.unit}`"
        raise Unreachable(path, f"no answer within {deadline_s:g} s", fix, owner) from error
    except OSError as error:
        raise Unreachable(path, str(error), "check the path of the socket", owner) from error
    if answer.startswith(b'{"ok":false'):
        try:
            refusal = msgspec.json.decode(answer, type=_Refusal)
        except UNDECODABLE as error:
            raise _strange(path, str(error), owner) from error
        raise RequestRefused(refusal.code, refusal.text)
    return answer


def status(path: Path, deadline_s: float = DEADLINE_S) -> Snapshot:
    """The host, as its daemon sees it now. Raises Unreachable, RequestRefused."""
    try:
        found: Snapshot = decode(msgspec.json.Decoder(Snapshot), ask(path, {"op": "status"}, deadline_s))
    except BadMessage as error:
        raise _strange(path, str(error)) from error
    return found


def _line(connection: socket.socket, path: Path, until: float, most: int, owner: SocketOwner) -> bytes:
    """The text before the first newline, or all text if there is none."""
    parts: list[bytes] = []
    size = 0
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(262_144)
        parts.append(part)
        size += len(part)
        if not part or b"\n" in part:
            break
        if size > most:
            raise _strange(path, f"more than {most} bytes", owner)
    line = b"".join(parts).partition(b"\n")[0]
    if not line:
        fix = "it is overloaded or ending; try again"
        raise Unreachable(path, "it closed the connection without an answer", fix, owner)
    return line


def _strange(path: Path, what: str, owner: SocketOwner = DAEMON) -> Unreachable:
    fix = f"it and this command have different versions, or this is not the socket of {owner.name}"
    return Unreachable(path, f"its answer is invalid ({what})", fix, owner)
