"""What a cluster does with Magrathea's parts, whatever runs them: processes by name, with their files in one folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..opened import Opened

LAST_LINES = 15


class Part(Protocol):
    """A process. `log`: what it prints."""

    log: Path

    def running(self) -> bool: ...

    def kill(self) -> object:
        """Kill it and wait for its end."""


P = TypeVar("P", bound=Part)


class PartsCluster(Opened, Generic[P]):
    """Starts at the beginning of a `with`, and ends with it. `parts`: by name ("hub", "noded-h1", "agent-n1")."""

    directory: Path
    parts: dict[str, P]

    @abstractmethod
    def start(self, progress: Callable[[str], None] = lambda text: None) -> None: ...

    @abstractmethod
    def start_part(self, name: str) -> P: ...

    def crash(self, part: str) -> None:
        self.parts[part].kill()
        self.start_part(part)

    def control_socket(self, host: str) -> Path:
        """The control socket of a host's node daemon, for `magrathea status`."""
        return self.directory / host / "run" / "control.sock"

    def journal(self, host: str) -> Path:
        return self.directory / host / "state" / "journal.sqlite"

    def log(self, part: str) -> str:
        """All that a part has printed."""
        return self.parts[part].log.read_text(encoding="utf-8", errors="replace")

    def last_lines(self) -> list[str]:
        """The last lines of every part's log, under its name."""
        lines = []
        for name, part in self.parts.items():
            lines.append(f"--- {name}{'' if part.running() else ' (has ended)'}:")
            if part.log.exists():
                lines += self.log(name).splitlines()[-LAST_LINES:]
        return lines
