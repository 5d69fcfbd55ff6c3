"""What a guest's swap can really take, against the configured `swap_mib`.

The configuration promises how much memory of a domain's stopped jobs can leave it. A guest may have less swap, or only
zram, which compresses memory and keeps it. The agent reports what its swap can take.
"""

from __future__ import annotations

from collections.abc import Mapping

from magrathea.core.model import Domain

from ..guest_channel.messages import GuestMemory

SLACK_MIB = 16
"""A swap device is a little smaller than its disk."""


STEP_MIB = 16
"""Figures of zram fluctuate. A change within such a step is none, and is not published."""


def keeps_mib(domain: Domain, memory: GuestMemory) -> int:
    """How much of its jobs' memory would stay in the domain because its swap takes less than configured; 0 if it takes
    that."""
    takes = _too_little(domain, memory)
    return 0 if takes is None else max(0, sum(job.memory_mib for job in domain.jobs) - takes)


def _too_little(domain: Domain, memory: GuestMemory | None) -> int | None:
    """What its swap takes, in steps, if that is less than configured."""
    takes = memory.swap_takes_mib if memory is not None else None
    if takes is None or takes + SLACK_MIB >= domain.swap_mib:
        return None
    return max(0, takes) // STEP_MIB * STEP_MIB


def swap_notes(domains: tuple[Domain, ...], reported: Mapping[str, GuestMemory]) -> list[str]:
    """A sentence for each domain whose swap takes less than configured."""
    notes = []
    for domain in domains:
        memory = reported.get(domain.name)
        if memory is None or (takes := _too_little(domain, memory)) is None:
            continue
        zram = f" ({memory.zram_mib} MiB of it are zram, which keeps memory compressed)" if memory.zram_mib > 0 else ""
        text = f"domain {domain.name}: `swap_mib` is {domain.swap_mib}, but its swap{zram}"
        text = f"{text} takes {takes} MiB out of its memory"
        notes.append(f"{text}. The smaller figure counts; add a swap disk, or lower `swap_mib`")
    return notes
