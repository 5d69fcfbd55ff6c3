"""Cut messages that are too long for one line into parts, and join them again. Without input or output.

`wire` sends one part and waits until it is acknowledged. So other messages wait for one part at most, however long the
message is.
"""

import sys
from collections import OrderedDict

from .lines import BadValue, field, natural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

    from .lines import Doc

MAX_JOBS = 4096  # of one list or order, and in an agent's table; both ends use this number
MAX_MESSAGE_BYTES = 2 << 20  # in parts: 512 bytes for each of MAX_JOBS jobs, with names of 255 characters
MAX_KEPT_BYTES = 2 * MAX_MESSAGE_BYTES  # of incomplete messages of one peer
MAX_VALUES = 16 * MAX_JOBS  # in a message: very many small values take long to read, and much memory
MESSAGE_BYTES = 512  # memory for a message beside its parts: its list, and its place in a dictionary that grows
PART_BYTES = 24  # memory for a part beside its text
PART_CHARS = 16384  # at most half a line: each quote and backslash becomes two characters
MAX_PARTS = 1024  # of a message; this version sends at most 129


class Cut:
    """A message on its way in parts. `of`: its type; `mark`: the session and the id that it carries.

    `number`: identifies the message in its parts. `next`: index of the part to send now.
    """

    def __init__(self, of: str, mark: "Tuple[str, int]", number: int, line: bytes) -> None:
        text = line.decode("ascii")
        self.of = of
        self.mark = mark
        self.number = number
        self.texts = [text[at : at + PART_CHARS] for at in range(0, len(text), PART_CHARS)]
        self.next = 0

    @property
    def at_last(self) -> bool:
        """Whether only the last part is left."""
        return self.next == len(self.texts) - 1


def read_part(doc: "Doc") -> "Tuple[int, int, str]":
    """Number of the message, index of the part, and its text. Raises BadValue."""
    text = field(doc, "text", str)
    if not text:
        raise BadValue("field text is empty; no part is")
    return natural(doc, "message"), natural(doc, "at", MAX_PARTS - 1), text


class Parts:
    """Parts that came from the other end. If they become too many, the oldest message is dropped.

    `size`: the memory that they take. It counts what Python really needs for each: a text of one wide character needs
    four bytes for each of its characters, and a very short text needs 50 bytes.
    """

    def __init__(self) -> None:
        self.kept: "OrderedDict[int, List[str]]" = OrderedDict()
        self.size = 0

    def clear(self) -> None:
        self.kept.clear()
        self.size = 0

    def add(self, number: int, at: int, text: str) -> bool:
        """Keep part `at` of a message. False if a part before it is missing, or the message has become too long."""
        if at == 0 and number not in self.kept:
            self.kept[number] = []
            self.size += MESSAGE_BYTES
        texts = self.kept.get(number)
        if texts is None or at > len(texts):
            return False
        if at < len(texts):
            return True  # repeated
        texts.append(text)
        self.size += _memory(text)
        while self.size > MAX_KEPT_BYTES:
            self._drop(next(iter(self.kept)))
        return number in self.kept

    def take(self, number: int, at: int, text: str) -> "Optional[bytes]":
        """The whole message, no longer kept. `at` is its last part. None if a part is missing. Raises BadValue."""
        texts = self.kept.get(number)
        if texts is None or at != len(texts):
            return None
        self._drop(number)
        line = "".join([*texts, text]).encode("utf-8", "surrogatepass")
        if len(line) > MAX_MESSAGE_BYTES or line.count(b",") + line.count(b"[") + line.count(b"{") > MAX_VALUES:
            raise BadValue("a message of %d bytes: too long, or too many values, for %d jobs" % (len(line), MAX_JOBS))
        return line

    def _drop(self, number: int) -> None:
        self.size -= MESSAGE_BYTES + sum(_memory(text) for text in self.kept.pop(number))


def _memory(text: str) -> int:
    return sys.getsizeof(text) + PART_BYTES
