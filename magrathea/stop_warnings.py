"""What a job writes to be warned before a stop: `[B:]SIGNAL[@SECONDS]`, as for Slurm's `--signal`.

Nobody is warned who has not asked for it. The text comes from a user, through a guest.
"""

from __future__ import annotations

import re

from .core.model import StopWarning

SIGNALS = ("HUP", "INT", "TERM", "TSTP", "URG", "USR1", "USR2", "WINCH", "XCPU")
"""The agent takes the same (daemon_requests.py)."""

DEFAULT_S = 1.0
LONGEST_S = 300.0
"""The hook of a waiting job's prologue gives up after ten minutes; no site can grant more than this."""

WITHOUT_PROLOGUE_S = 1.0
"""Without the prologue hook a claim must wait for the stop, and a claim has two seconds (magrathea/deadlines.py)."""

LONGEST_TEXT = 64
_FORM = re.compile(r"(B:)?(?:SIG)?([A-Z0-9]{3,6})(?:@([0-9]{1,6}))?\Z")


def parse(text: str) -> StopWarning:
    """The warning that a job asks for. Raises ValueError with a sentence for people."""
    found = _FORM.match(text)
    if found is None:
        raise ValueError(f"{text[:LONGEST_TEXT]!r} is not [B:]SIGNAL[@SECONDS], for example B:USR1@30")
    if found[2] not in SIGNALS:
        raise ValueError(f"signal {found[2]} is none of {', '.join(SIGNALS)}")
    seconds = float(found[3]) if found[3] else DEFAULT_S
    return StopWarning(f"SIG{found[2]}", min(seconds, LONGEST_S), bool(found[1]))


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
