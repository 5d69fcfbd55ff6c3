"""What an evacuation keeps on disk, beside the facts in the journal: `evacuation.json` in the daemon's state directory.

A daemon that starts with it goes on where it was. Without it the host is not evacuated: what was drained or put to
sleep then stays so until an admin ends it, domain by domain.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import msgspec

from magrathea import files
from magrathea.core.evacuation import DecidedFate, Fate
from magrathea.decoding import UNDECODABLE
from magrathea.messages import MOST_DOMAINS, Sentence, Time, Word

log = logging.getLogger(__name__)

FILE = "evacuation.json"
MOST_BYTES = 8 << 20

Names = Annotated[list[Word], msgspec.Meta(max_length=MOST_DOMAINS)]


class Leaver(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A domain and its fate. `to`, `why`: see core/evacuation.py. `asked`: its move or sleep was begun. `tried`: hosts
    that have not taken it. `no_sleep`: why it could not be put to sleep. `woken`: it was asked to come back."""

    domain: Word
    fate: Fate
    to: str = ""
    why: Sentence = ""
    asked: bool = False
    tried: Names = []
    no_sleep: Sentence = ""
    woken: bool = False

    def decided(self, anew: DecidedFate, why: str) -> Leaver:
        """With another fate, which was not begun yet."""
        return msgspec.structs.replace(self, fate=anew.fate, to=anew.to, why=why[:4096], asked=False)


class EvacuationRecord(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`since`: the host's clock. `wish`: what was asked for. `leavers`: in their order. `drained`: the domains that
    take no jobs because of the evacuation. `returning`: the host is being taken back."""

    since: Time
    wish: Fate
    reason: Sentence
    leavers: Annotated[list[Leaver], msgspec.Meta(max_length=MOST_DOMAINS)]
    drained: Names = []
    returning: bool = False

    def of(self, domain: str) -> Leaver | None:
        return next((one for one in self.leavers if one.domain == domain), None)

    def having(self, changed: Leaver) -> EvacuationRecord:
        """With this leaver in the place of the one of its name, or as the last one."""
        if self.of(changed.domain) is None:
            return msgspec.structs.replace(self, leavers=[*self.leavers, changed])
        leavers = [changed if one.domain == changed.domain else one for one in self.leavers]
        return msgspec.structs.replace(self, leavers=leavers)


class EvacuationFile:
    """The file. If it cannot be read, it counts as absent; the log says so."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def read(self) -> EvacuationRecord | None:
        try:
            return msgspec.json.decode(files.read(self._path, MOST_BYTES), type=EvacuationRecord)
        except FileNotFoundError:
            return None
        except (OSError, *UNDECODABLE) as error:
            log.error("%s cannot be used and counts as absent: %s", self._path, error)
            return None

    def keep(self, record: EvacuationRecord) -> None:
        """Write it to disk. Raises OSError."""
        files.replace(self._path, msgspec.json.encode(record), sync=True)

    def forget(self) -> None:
        """The host is taken back. If the file stays, the next daemon takes it back once more: an error is only
        logged."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.error("%s cannot be removed, although the host is taken back: %s", self._path, error)
