"""What a planned sleep keeps on disk, beside the facts in the journal.

`host-sleep.json`: the sleep of this host that was last begun, in which boot of the machine, and which services were put
to sleep. The daemon that starts in another boot brings everything back; one that starts in the same boot goes on with
the sleep. If something could not be brought back, the record stays. `sleep-times.json`: how long saves have taken here.

Both are lost with the state directory: then services stay saved until an admin boots them, and estimates are guesses.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.messages import MOST_DOMAINS, Time, Word

from .plan import Measured

log = logging.getLogger(__name__)

T = TypeVar("T")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The kernel makes a new one at each boot (random(4))."""
SLEEP, TIMES = "host-sleep.json", "sleep-times.json"
MOST_BYTES = 1 << 20
MOST_BOOT_ID = 64

Names = Annotated[list[Word], msgspec.Meta(max_length=MOST_DOMAINS)]


class SleepRecord(msgspec.Struct, kw_only=True, frozen=True):
    """`boot`: the boot of the machine in which the sleep was begun. `until`: no save begins after this (the host's
    clock). `order`: the domains, in the order of their saves. `services`: those of them that were saved, or were about
    to be. `asked`: all others have been asked to sleep. `woken_in`: the boot in which everything was last brought back;
    empty: it was not since."""

    boot: Word
    until: Time
    order: Names
    services: Names = []
    asked: bool = True
    woken_in: Annotated[str, msgspec.Meta(max_length=MOST_BOOT_ID)] = ""


NOTHING_SLEPT = SleepRecord(boot="none", until=0.0, order=[])
"""In the place of a record that is lost."""


class _Time(msgspec.Struct, kw_only=True, frozen=True):
    mib: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    seconds: Time


def boot_id() -> str:
    """The id of this boot of the machine. Raises OSError."""
    return BOOT_ID.read_text().strip()


class Records:
    """Both files in the daemon's state directory. A file that cannot be read counts as absent; the log says so."""

    def __init__(self, folder: Path) -> None:
        self._sleep = folder / SLEEP
        self._times = folder / TIMES

    def sleep(self) -> SleepRecord | None:
        return _read(self._sleep, SleepRecord)

    def keep(self, record: SleepRecord) -> None:
        """Write it to disk. Raises OSError: without it nobody would bring the services back."""
        files.replace(self._sleep, msgspec.json.encode(record), sync=True)

    def forget(self) -> None:
        """The sleep is over, and everything is back. If the file stays, the next daemon looks once more: an error is
        only logged."""
        try:
            self._sleep.unlink(missing_ok=True)
        except OSError as error:
            log.error("%s cannot be removed, although everything is back: %s", self._sleep, error)

    def measured(self) -> dict[str, Measured]:
        found = _read(self._times, dict[str, _Time]) or {}
        return {name: Measured(one.mib, one.seconds) for name, one in found.items()}

    def measure(self, name: str, measured: Measured) -> None:
        """Keep how long the save took. Only estimates depend on it, so an error is only logged."""
        all_of_them = {**self.measured(), name: measured}
        times = {n: _Time(mib=m.mib, seconds=m.seconds) for n, m in list(all_of_them.items())[-MOST_DOMAINS:]}
        try:
            files.replace(self._times, msgspec.json.encode(times))
        except OSError as error:
            log.warning("%s: how long the save of %s took is not kept: %s", self._times, name, error)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(files.read(path, MOST_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as error:
        log.error("%s cannot be used and counts as absent: %s", path, error)
        return None
