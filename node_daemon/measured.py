"""How long saves of domains and moves to guests' swap have taken on this host: kept in the state directory, for
estimates.

`sleep-times.json`, `swap-times.json`: by domain, the last one. If they are lost, estimates are guesses.

A save is expected to take as long per MiB as the last one of the same domain here; for a domain never saved, as the
slowest of the others; on a host without any, `UNMEASURED_S_PER_GIB`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.messages import MOST_DOMAINS, Time

log = logging.getLogger(__name__)

SAVES, SWAPS = "sleep-times.json", "swap-times.json"
MOST_BYTES = 1 << 20

UNMEASURED_S_PER_GIB = 10.0
"""A disk that writes 100 MB/s, which nearly every disk does."""
LEAST_S = 1.0
"""Stopping and booking the jobs takes about as long, also in a domain without memory to speak of."""
GIB = 1024.0


@dataclass(frozen=True, slots=True)
class Measured:
    """How long the last sleep of a domain took, from the wish until it was on disk; or its last move to swap."""

    mib: int
    seconds: float


class _Time(msgspec.Struct, kw_only=True, frozen=True):
    mib: Annotated[int, msgspec.Meta(ge=0, le=2**40)]
    seconds: Time


class Times:
    """What was measured, on disk. `file`: SAVES or SWAPS. A file that cannot be read counts as absent."""

    def __init__(self, folder: Path, file: str = SAVES) -> None:
        self._path = folder / file

    def measured(self) -> dict[str, Measured]:
        """By domain, what was measured last."""
        try:
            found = msgspec.json.decode(files.read(self._path, MOST_BYTES), type=dict[str, _Time])
        except FileNotFoundError:
            return {}
        except (OSError, *UNDECODABLE) as error:
            log.error("%s cannot be used and counts as absent: %s", self._path, error)
            return {}
        return {name: Measured(one.mib, one.seconds) for name, one in found.items()}

    def measure(self, name: str, measured: Measured) -> None:
        """Keep how long it took. Only estimates depend on it, so an error is only logged."""
        all_of_them = {**self.measured(), name: measured}
        times = {n: _Time(mib=m.mib, seconds=m.seconds) for n, m in list(all_of_them.items())[-MOST_DOMAINS:]}
        try:
            files.replace(self._path, msgspec.json.encode(times))
        except OSError as error:
            log.warning("%s: what was measured of %s is not kept: %s", self._path, name, error)


def measured_s(name: str, mib: int, measured: Mapping[str, Measured]) -> float | None:
    """How long so much takes, by what was measured of this domain, else of the slowest; None if nothing was."""
    own = measured.get(name)
    if own is not None:
        return own.seconds * mib / max(1, own.mib)
    per_gib = [m.seconds * GIB / m.mib for m in measured.values() if m.mib > 0]
    return max(per_gib) * mib / GIB if per_gib else None


def expected_s(name: str, mib: int, measured: Mapping[str, Measured]) -> float:
    """How long the domain's save takes, by what was measured on this host."""
    found = measured_s(name, mib, measured)
    return max(LEAST_S, UNMEASURED_S_PER_GIB * mib / GIB if found is None else found)
