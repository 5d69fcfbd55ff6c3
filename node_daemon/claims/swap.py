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


def keeps_mib(domain: Domain, memory: GuestMemory) -> int:
    """How much of its jobs' memory would stay in the domain because its swap takes less than configured; 0 if it takes
    that."""
    takes = memory.swap_takes_mib
    if takes is None or takes + SLACK_MIB >= domain.swap_mib:
        return 0
    return max(0, sum(job.memory_mib for job in domain.jobs) - max(0, takes))


def swap_notes(domains: tuple[Domain, ...], reported: Mapping[str, GuestMemory]) -> list[str]:
    """A sentence for each domain whose swap takes less than configured."""
    notes = []
    for domain in domains:
        memory = reported.get(domain.name)
        if memory is None or memory.swap_takes_mib is None or memory.swap_takes_mib + SLACK_MIB >= domain.swap_mib:
            continue
        zram = f" ({memory.zram_mib} MiB of it are zram, which keeps memory compressed)" if memory.zram_mib > 0 else ""
        text = (
            f"domain {domain.name}: `swap_mib` is {domain.swap_mib}, but its swap{zram} takes {memory.swap_takes_mib}"
        )
        text = f"{text} takes {memory.swap_takes_mib} MiB out of its memory"
        notes.append(f"{text}. The smaller figure counts; add a swap disk, or lower `swap_mib`")
    return notes
