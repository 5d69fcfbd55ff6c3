"""A node daemon that can save machines of a private OpenPBS cluster: `python -m tests.openpbs.sleeping_noded --config`.

To save a machine means to stop all of its processes and to take it from the network. So MoM, agent and jobs keep all
that they have in memory, PBS loses sight of MoM, and a second daemon finds the machine as the first one left it. All
else is the real daemon. Real images are for the tests with guests.

Rule 1: the machine's marker is its image. It names the processes that were stopped for the save: others were stopped
before.
Rule 2: SIGSTOP, and no freezer: a machine that is killed while it sleeps ends at once.
Rule 3: programs that the test has sent in by nsenter are not stopped: nsenter would stop itself, too, for good. So the
test puts a shell before an agent (sleeping.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from magrathea.core.refusals import RefusalCode
from node_daemon import main as noded
from node_daemon.hypervisor.base import LIFE, SAVE, DomainChange, DomainReading, DriverError, SaveNeeds
from node_daemon.hypervisor.local import driver as local

MARKER = "asleep"


def marker(pid_file: Path) -> Path:
    return pid_file.with_name(MARKER)


def _inside(first: int) -> list[int]:
    """The processes of the machine with this first process, as seen from here."""
    space = Path(f"/proc/{first}/ns/pid").stat().st_ino
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "ns/pid").stat().st_ino == space:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return found


def _runs(pid: int) -> bool:
    """True if the process has not ended, is not stopped, and was not sent in from outside."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "TZX" and parent != "0"


def _link(first: int, word: str) -> None:
    subprocess.run(["ip", "link", "set", f"v{first}", word], check=True)


def save(pid_file: Path) -> None:
    first = int(pid_file.read_text())
    stopped: list[int] = []
    while running := [pid for pid in _inside(first) if _runs(pid)]:
        for pid in running:
            os.kill(pid, signal.SIGSTOP)
        stopped += [pid for pid in running if pid not in stopped]
    _link(first, "down")
    marker(pid_file).write_text(json.dumps(stopped))


def restore(pid_file: Path) -> None:
    first = int(pid_file.read_text())
    _link(first, "up")
    for pid in json.loads(marker(pid_file).read_text()):
        os.kill(pid, signal.SIGCONT)
    marker(pid_file).unlink()


class SleepingDriver(local.LocalDriver):
    """The local driver, which can also save and restore."""

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {LIFE, SAVE}

    def _marker(self, domain: str) -> Path:
        return marker(self._pid_files[domain])

    async def actual(self) -> dict[str, DomainReading]:
        found = await super().actual()
        asleep = {name for name in found if self._marker(name).exists()}
        return {name: DomainReading(False, saved=True) if name in asleep else read for name, read in found.items()}

    async def _do(self, domain: str, up: bool) -> None:
        await asyncio.to_thread(restore if up else save, self._pid_files[domain])
        assert self._on_event is not None
        self._on_event(DomainChange(domain, up))

    async def save(self, domain: str) -> None:
        if not self._marker(domain).exists():
            await self._do(domain, False)

    async def boot(self, domain: str) -> None:
        if self._marker(domain).exists():
            if domain not in self._members:
                raise DriverError(RefusalCode.RESTORE_FAILED, f"{domain}: its processes are gone")
            await self._do(domain, True)

    async def save_needs(self, domain: str) -> SaveNeeds:
        return SaveNeeds(mib=1)

    async def image_fault(self, domain: str) -> str:
        return "" if self._marker(domain).exists() or domain in self._members else f"{domain} has no image"

    def notes(self) -> list[str]:
        return []

    def limits(self) -> list[str]:
        return []


if __name__ == "__main__":
    local.LocalDriver = SleepingDriver  # type: ignore[misc]
    sys.exit(noded.main())
