"""What a job writes to be warned before a stop: `[B:]SIGNAL[@SECONDS]`, as for Slurm's `--signal`.

Nobody is warned who has not asked for it. The text comes from a user, through a guest.
"""

from __future__ import annotations

from .core.model import StopWarning
from .pbs_text.stop_signals import read_signal

DEFAULT_S = 1.0
LONGEST_S = 300.0
"""The hook of a waiting job's prologue gives up after ten minutes; no site can grant more than this."""

WITHOUT_PROLOGUE_S = 1.0
"""Without the prologue hook a claim must wait for the stop, and a claim has two seconds (magrathea/deadlines.py)."""


def parse(text: str) -> StopWarning:
    """The warning that a job asks for. Raises ValueError with a sentence for people."""
    first_only, signal, seconds = read_signal(text)
    return StopWarning(f"SIG{signal}", min(DEFAULT_S if seconds is None else float(seconds), LONGEST_S), first_only)


def asked(text: str, *, prologue: bool) -> StopWarning | None:
    """The same; None if there is none, or if the text is wrong: then nobody is warned. `prologue`: MoM has the hook
    that waits for longer warnings."""
    try:
        found = parse(text) if text else None
    except ValueError:
        return None
    if found is None or prologue:
        return found
    return StopWarning(found.signal, min(found.seconds, WITHOUT_PROLOGUE_S), found.first_only)
