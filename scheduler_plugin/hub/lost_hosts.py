"""What follows for a domain on its way if an admin says that one of its two hosts is switched off. No clock, no I/O.

A host that is silent may still run the domain, so the hub decides nothing by itself. The admin's word ends the waiting
of the other end, and the number of the ownership grows: if the lost host comes back, what it has is old, and nothing
there lets it run.

Rule 1: a copy runs only if nothing can have run since it was made. If the target is lost, the domain goes on at its
source only as long as the target has not become its owner. If the source is lost, it may have run on after the copy was
complete, and have written to its disks; then that copy would destroy them. Only the admin can know that it has not.
Rule 2: what the other end decides by itself is left to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from magrathea.core.moves import Letting, Ownership


class Ending(NamedTuple):
    """What follows for a domain. `record`: the hub's new one; None if nothing is booked. `text`: for people."""

    before: Ownership
    record: Ownership | None
    text: str


def ending(record: Ownership, lost: str, *, run_copies: bool) -> Ending | None:
    """What follows if the host `lost` is switched off; None if the domain is not on its way to or from it.

    `run_copies`: it went off in one moment, so its guests have not run on after their copies were complete.
    """
    transfer = record.transfer
    if transfer is None or lost not in (transfer.source, transfer.target):
        return None
    source, target = transfer.source, transfer.target
    if lost == source and transfer.owed:
        return Ending(record, None, f"it is on {target}, which takes the facts that it has got within two minutes")
    if lost == source and transfer.letting is not None:
        return Ending(record, None, f"{source} had let go of it, so {target} decides by itself what it has")
    if lost == source:
        changed = replace(transfer, letting=Letting.GONE if run_copies else Letting.ENDED)
        text = f"it has ended on {source}; a copy on {target} is removed, because {source} may have run on after it"
        if run_copies:
            text = f"if {target} has a complete copy, that runs; otherwise the domain has ended on {source}"
        return Ending(record, replace(record, transfer=changed), text)
    if transfer.owed:
        given_up = replace(record, owner="", number=record.number + 1, transfer=None)
        return Ending(record, given_up, f"it has ended on {target}, and is given up; its home host takes it back")
    if transfer.letting is not None:
        back = replace(record, number=transfer.number + 1, transfer=None)
        return Ending(record, back, f"it is {source}'s again; it goes on if it is paused there, otherwise it has ended")
    return Ending(record, None, f"{source} decides by itself; ask again if it still waits later")
