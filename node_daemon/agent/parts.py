"""Cut messages that are too long for one line into parts, and join them again. Without input or output.

`wire` sends one part and waits until it is acknowledged. So other messages wait for one part at most, however long the
message is.
"""

from collections import OrderedDict

from .lines import BadValue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

MAX_JOBS = 4096  # of one list or order, and in an agent's table; both ends use this number
MAX_MESSAGE_BYTES = 2 << 20  # in parts: 512 bytes for each of MAX_JOBS jobs, with names of 255 characters
MAX_KEPT_BYTES = 2 * MAX_MESSAGE_BYTES  # of incomplete messages of one peer
MAX_VALUES = 16 * MAX_JOBS  # in a message: very many small values take long to read, and much memory
PART_BYTES = 64  # memory for a part beside its text
PART_CHARS = 16384  # at most half a line: each quote and backslash becomes two characters


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


class Parts:
    """Parts that came from the other end. If they become too many, the oldest message is dropped."""

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
        texts = self.kept.get(number)
        if texts is None or at > len(texts):
            return False
        if at < len(texts):
            return True  # repeated
        texts.append(text)
        self.size += len(text) + PART_BYTES
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
        self.size -= sum(len(text) + PART_BYTES for text in self.kept.pop(number))
