"""What the hub tells a job's first host about a part of the job on another host."""

from __future__ import annotations

from magrathea.core.model import JobKey, Stage
from magrathea.core.readiness import unready
from magrathea.messages import UnreadyPart

from .job_wishes import Heard


def unready_part(key: JobKey, vnode: str, host: str, heard: Heard | None) -> UnreadyPart | None:
    """Why the job's part in this vnode of that host is not ready; None if it is. `heard`: the host's last snapshot."""
    if heard is None or not heard.live:
        return UnreadyPart(stage=Stage.UNHEARD, text=f"{vnode}: its host {host} says nothing to the hub")
    domain = next((d for d in heard.snapshot.domains if d.vnode == vnode), None)
    if domain is None or all(key != (job.id, job.run) for job in domain.jobs):
        return UnreadyPart(stage=Stage.UNHEARD, text=f"{vnode}: its host {host} has no such run of the job (yet)")
    moves = ((d.name, d.move) for d in heard.snapshot.domains if d.move)
    how_far = ", ".join(f"{name} {move.what} {move.done_mib} of {move.of_mib} MiB" for name, move in moves)
    part = unready(domain.lack, how_far or domain.name)
    return None if part is None else UnreadyPart(stage=part.stage, text=f"{host}: {part.text}"[:4096])
