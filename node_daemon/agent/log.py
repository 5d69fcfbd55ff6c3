"""The agent's log: lines on stderr."""

import os
import time


class Log:
    """Lines on stderr, with a priority in front if journald reads them. Their rate is limited."""

    BURST = 40
    PER_S = 5.0

    def __init__(self) -> None:
        self.prefix = "JOURNAL_STREAM" in os.environ
        self.tokens = float(self.BURST)
        self.at = time.monotonic()
        self.suppressed = 0

    def _write(self, level: int, word: str, text: str) -> None:
        now = time.monotonic()
        self.tokens = min(float(self.BURST), self.tokens + (now - self.at) * self.PER_S)
        self.at = now
        if self.tokens < 1.0:
            self.suppressed += 1
            return
        self.tokens -= 1.0
        if self.suppressed:
            text += " (and %d more lines, suppressed)" % self.suppressed
            self.suppressed = 0
        printable = "".join(c if c.isprintable() else "?" for c in text[:2000])
        head = "<%d>" % level if self.prefix else "magrathea-agent: %s: " % word
        try:
            os.write(2, (head + printable + "\n").encode("utf-8", "replace"))
        except OSError:
            self.suppressed += 1  # stderr is full or gone: there is nobody to report it to

    def error(self, text: str) -> None:
        self._write(3, "error", text)

    def warning(self, text: str) -> None:
        self._write(4, "warning", text)

    def info(self, text: str) -> None:
        self._write(6, "info", text)


log = Log()
