"""What the hub tells a job's first host about a part of the job on another host."""

from __future__ import annotations

from magrathea.core.model import Stage
from magrathea.core.readiness import unready
from magrathea.messages import UnreadyPart

from .job_wishes import Heard

QUESTIONS = QUESTIONS_PER_S, QUESTIONS_BURST, QUESTIONS_OWN_BURST = 20.0, 256.0, 16.0
"""The hub asks PBS for a host that asks about parts of a job: see shares.py. That is seldom needed, and only until PBS
shows the job on that host."""
MOST_TEXT = 500
"""Longest text about one part. An answer has many, and a hostile host chooses what is said about its parts."""


def unheard(text: str) -> UnreadyPart:
    return UnreadyPart(stage=Stage.UNHEARD, text=text[:MOST_TEXT])


def unready_part(vnode: str, host: str, heard: Heard | None, *, reported: bool) -> UnreadyPart | None:
    """Why the job's part in this vnode of that host is not ready; None if it is.

    `heard`: the host's last snapshot. `reported`: that run of the job is in it.
    """
    if heard is None or not heard.live:
        return unheard(f"{vnode}: its host {host} says nothing to the hub")
    domain = heard.by_vnode.get(vnode)
    if domain is None or not reported:
        return unheard(f"{vnode}: its host {host} has no such run of the job (yet)")
    part = unready(domain.lack, heard.moves or domain.name)
    return None if part is None else UnreadyPart(stage=part.stage, text=f"{host}: {part.text}"[:MOST_TEXT])
