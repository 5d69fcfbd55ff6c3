"""A stream of bytes as lines, read and written."""

import os
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, List, Optional

MAX_LINE_BYTES = 65536  # of both sockets, newline included


class LineReader:
    """Cuts a stream into lines. A line that is too long is dropped up to its newline and given as None."""

    def __init__(self, skip_first: bool) -> None:
        self.buffer = bytearray()
        self.searched = 0
        self.skipping = skip_first
        self.oversize = False

    def feed(self, data: bytes) -> "List[Optional[bytes]]":
        lines: "List[Optional[bytes]]" = []
        self.buffer += data
        while True:
            end = self.buffer.find(b"\n", self.searched)
            if end < 0:
                break
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 1]
            self.searched = 0
            if self.oversize or len(line) >= MAX_LINE_BYTES:
                lines.append(None)
            elif not self.skipping:
                lines.append(line)
            self.skipping = self.oversize = False
        self.searched = len(self.buffer)
        if self.searched >= MAX_LINE_BYTES:
            self.buffer.clear()
            self.searched = 0
            self.oversize = not self.skipping
        return lines


class LineWriter:
    """Bytes waiting to be written to a descriptor that may not take them now."""

    def __init__(self) -> None:
        self.pieces: "Deque[bytes]" = deque()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.pieces.append(data)
        self.size += len(data)

    def flush(self, fd: int) -> bool:
        """True when nothing is left. Raises OSError where the peer has gone."""
        while self.pieces:
            piece = self.pieces[0]
            try:
                sent = os.write(fd, piece)
            except (BlockingIOError, InterruptedError):
                return False
            self.size -= sent
            if sent == len(piece):
                self.pieces.popleft()
            else:
                self.pieces[0] = piece[sent:]
        return True
