"""The socket for MoM's hooks."""

import _socket  # as in `transports`
import errno
import fcntl
import os
import selectors
import stat
import struct

from .lines import BadValue, LineReader, encode, parse
from .log import log
from .loop import Loop
from .private_files import open_regular
from .refusals import AGENT_BUSY, BAD_REQUEST, NOT_PERMITTED, TOO_SLOW, refusal
from .values import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional, Set

    from .lines import Doc

MAX_CLIENTS = 32  # hooks at the same time
MAX_REQUEST_BYTES = 8 << 20  # 2 KiB for each of MAX_JOBS jobs: a row has the owner, too, and names may be escaped
READ_BYTES = 1 << 16  # at once; others get their turn after it
CLIENT_S = 10.0  # a hook must send its line within this time


class Client:
    """A connection of a MoM hook: one line in, one line out."""

    def __init__(self, loop: Loop, sock: _socket.socket, on_end: "Callable[[Client], None]") -> None:
        self.loop = loop
        self.sock = sock
        self.on_end = on_end
        self.reader = LineReader(False, MAX_REQUEST_BYTES)
        self.asked = False
        self.timer = loop.after(CLIENT_S, self._too_slow)

    def _too_slow(self) -> None:
        if not self.asked:
            self.answer(refusal(TOO_SLOW, "no request within %d s" % CLIENT_S))

    def answer(self, doc: "Doc") -> bool:
        """Send the answer and close. False if nobody is there to read it."""
        if self.sock.fileno() < 0:
            return False
        try:
            data = encode(doc)
            delivered = self.sock.send(data) == len(data)
        except OSError:
            delivered = False
        self.close()
        return delivered

    def close(self) -> None:
        self.timer.cancel()
        if self.sock.fileno() >= 0:
            self.loop.unwatch(self.sock.fileno())
            self.sock.close()
            self.on_end(self)


class MomServer:
    """The unix socket for MoM's hooks. Only root and the agent's own user get an answer."""

    def __init__(
        self, loop: Loop, path: str, serve: "Callable[[Doc, Client], None]", met: "Callable[[int], None]"
    ) -> None:
        self.loop = loop
        self.path = path
        self.serve = serve
        self.met = met
        self.clients: "Set[Client]" = set()
        self.lock = -1
        self.sock: "Optional[_socket.socket]" = None

    def open(self) -> None:
        """Raises Unusable."""
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            self.lock = open_regular(self.path + ".lock", os.O_RDWR | os.O_CREAT)
            os.fchmod(self.lock, 0o600)  # whoever can open it could also hold the lock
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unusable("%s: another agent serves this socket" % self.path) from error
            if os.path.lexists(self.path):
                if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                    raise Unusable(
                        "%s: something that is no socket is in the way; remove it, or configure another path"
                        % self.path
                    )
                os.unlink(self.path)
            self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
            before = os.umask(0o177)
            try:
                self.sock.bind(self.path)
            finally:
                os.umask(before)
            self.sock.listen(MAX_CLIENTS)
        except OSError as error:
            where = error.filename or self.path
            raise Unusable("%s: cannot be created: %s" % (where, error.strerror or error)) from error
        self._listen()

    def _listen(self) -> None:
        if self.sock is not None and self.sock.fileno() >= 0:
            self.loop.watch(self.sock.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for client in list(self.clients):
            client.close()
        if self.sock is not None:
            self.loop.unwatch(self.sock.fileno())
            self.sock.close()
            try:
                os.unlink(self.path)
            except OSError as error:
                log.info("%s: %s" % (self.path, error.strerror))
        if self.lock >= 0:
            os.close(self.lock)

    def _accept(self, events: int) -> None:
        for _ in range(MAX_CLIENTS):
            if self.sock is None:
                return
            try:
                fd, _ = self.sock._accept()  # type: ignore[attr-defined]  # it is there since Python 3.4
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    log.error("%s: %s" % (self.path, error.strerror))
                    self.loop.unwatch(self.sock.fileno())
                    self.loop.after(1.0, self._listen)
                return
            self._welcome(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd))

    def _welcome(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        client = Client(self.loop, sock, self.clients.discard)
        self.clients.add(client)
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            log.warning("%s: refused uid %d (pid %d)" % (self.path, uid, pid))
            client.answer(refusal(NOT_PERMITTED, "only root and uid %d may ask this agent" % os.geteuid()))
            return
        if len(self.clients) > MAX_CLIENTS:
            client.answer(refusal(AGENT_BUSY, "more than %d hooks at once" % MAX_CLIENTS))
            return
        self.met(pid)
        self.loop.watch(sock.fileno(), selectors.EVENT_READ, lambda _: self._readable(client))

    def _readable(self, client: Client) -> None:
        try:
            data = client.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            if client.asked:  # it may have closed only its writing side
                self.loop.unwatch(client.sock.fileno())
            else:
                client.close()
            return
        if client.asked:
            return
        client.reader.add(data)
        if client.reader.has_line() or client.reader.oversize:
            client.asked = True
            self._line(None if client.reader.oversize else client.reader.next_line(), client)

    def _line(self, line: "Optional[bytes]", client: Client) -> None:
        try:
            if line is None:
                raise BadValue("the request is longer than %d bytes" % MAX_REQUEST_BYTES)
            self.serve(parse(line), client)
        except BadValue as error:
            log.warning("%s: bad request: %s" % (self.path, error))
            client.answer(refusal(BAD_REQUEST, str(error)))
