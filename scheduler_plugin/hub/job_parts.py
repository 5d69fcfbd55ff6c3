"""What the hub tells a job's first host about a part of the job on another host."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from magrathea.core.model import JobKey, Stage
from magrathea.core.readiness import unready
from magrathea.messages import UnreadyPart

from .job_reports import JobReports, SeenJob
from .job_wishes import Heard
from .managed_vnodes import ManagedVnodes
from .shares import Shares

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


class JobParts:
    """Answers hosts that ask about parts of their jobs. `seen`: what PBS has said about jobs."""

    def __init__(
        self,
        vnodes: ManagedVnodes,
        reports: JobReports,
        hosts: Mapping[str, Heard],
        seen: Mapping[JobKey, SeenJob],
    ) -> None:
        self._vnodes, self._reports, self._hosts, self._seen = vnodes, reports, hosts, seen
        self._questions = Shares(*QUESTIONS)

    def must_look(self, asking: str, key: JobKey, now: float) -> bool:
        """True if PBS must be asked first whether the job is on a vnode of the host that asks about its parts."""
        if self._has_part(asking, key):
            return False
        vnode = next(iter(self._reports.vnodes(key, asking)), "")
        return self._questions.take([self._vnodes.cause(asking, vnode)], now)

    def _has_part(self, host: str, key: JobKey) -> bool:
        seen = self._seen.get(key)
        here = seen is not None and seen.job is not None and seen.job.id == key.id and seen.job.is_run(key.run)
        return here and any(self._vnodes.speaks(host, vnode) for vnode in self._vnodes_of(key))

    def _vnodes_of(self, key: JobKey) -> frozenset[str]:
        seen = self._seen.get(key)
        return seen.vnodes if seen is not None else frozenset()

    def unready(self, asking: str, key: JobKey, vnodes: Iterable[str]) -> list[UnreadyPart]:
        """The job's parts in these vnodes of other hosts that are not ready, or about which nothing is known."""
        if not self._has_part(asking, key):
            return [unheard(f"PBS does not have run {key.run} of {key.id} on a vnode of {asking} (yet)")]
        of_job = self._vnodes_of(key)
        parts = (self._unready(asking, key, vnode, of_job) for vnode in dict.fromkeys(vnodes))
        return [part for part in parts if part is not None]

    def _unready(self, asking: str, key: JobKey, vnode: str, of_job: Container[str]) -> UnreadyPart | None:
        host = self._vnodes.owner.get(vnode)
        if vnode not in of_job:
            return unheard(f"PBS does not have {key.id} on {vnode}")
        if host == asking or (host is None and vnode in self._vnodes.pbs):
            return None  # the asking host knows that itself, or nobody manages the vnode
        if host is None:
            return unheard(f"the hub does not know the vnode {vnode} (yet)")
        return unready_part(vnode, host, self._hosts.get(host), reported=vnode in self._reports.vnodes(key, host))
