"""What a planned sleep keeps on disk, beside the facts in the journal.

`host-sleep.json`: the sleep of this host that was last begun, in which boot of the machine, and which services were put
to sleep. The daemon that starts in another boot brings everything back; one that starts in the same boot goes on with
the sleep. If something could not be brought back, the record stays. It is lost with the state directory: then services
stay saved until an admin boots them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.messages import MOST_DOMAINS, Time, Word

log = logging.getLogger(__name__)

T = TypeVar("T")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The kernel makes a new one at each boot (random(4))."""
SLEEP = "host-sleep.json"
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


def boot_id() -> str:
    """The id of this boot of the machine. Raises OSError."""
    return BOOT_ID.read_text().strip()


class Records:
    """The file in the daemon's state directory. If it cannot be read, it counts as absent; the log says so."""

    def __init__(self, folder: Path) -> None:
        self._sleep = folder / SLEEP

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


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(files.read(path, MOST_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as error:
        log.error("%s cannot be used and counts as absent: %s", path, error)
        return None
