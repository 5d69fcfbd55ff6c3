"""What the runjob hook may take for the load of a counted host, instead of asking PBS about each of its vnodes.

The hook needs the CPUs of all jobs on the host. PBS's own sums cost the server's only thread 0.1 ms for each vnode. So
the hub writes a file for each counted host, with the jobs that the host reports. The hook adds the jobs that it has
let through and that the file does not show yet (magrathea_server.py).

Law: file and hook together never have fewer CPUs than PBS's own sum, except for jobs that the host knows to have ended.

Rule 1: no clock and no I/O.
Rule 2: a vnode is in the file only if host and PBS agreed about it at the last comparison: the host reported all jobs
that PBS ran there, with at least as many CPUs. About other vnodes the hook asks PBS.
Rule 3: that ends when the host's daemon starts anew, because it may have lost its facts, and when the domain comes into
a state in which its jobs are forgotten or in which no list arrives from its MoM. The next comparison may restore it.
Rule 4: stopped jobs count like others. PBS resumes a job without asking a hook.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from magrathea.core.model import Mode, State
from magrathea.messages import DomainReport, Snapshot
from magrathea.pbs_text.host_loads import MOST_LOAD_BYTES
from magrathea.pbs_text.placement import cpus_by_vnode
from scheduler_plugin.pbs.base import PbsJob, Vnode

from .job_reports import Speaks
from .job_wishes import Heard
from .vnode_attributes import HOST

NO_LISTS = frozenset({State.DOWN, State.BOOTING, State.UNKNOWN, State.FROZEN})
"""States of a domain in which no list of jobs from its MoM arrives."""


class _File(msgspec.Struct):
    """`compared`: when the hub asked PBS for the last comparison, in seconds on the monotonic clock of the machine.
    `vnodes`: for each vnode its jobs, [run, CPUs] by id."""

    compared: float
    vnodes: dict[str, dict[str, tuple[int, int]]]


class HostLoads:
    """Remembers about which vnodes each counted host and PBS agreed."""

    def __init__(self) -> None:
        self._compared = 0.0
        self._agreed: dict[str, dict[str, bool]] = {}
        """By host, the vnodes; True if its domain has been in a state with lists since the comparison."""

    def compared(
        self,
        hosts: Mapping[str, Heard],
        vnodes: Mapping[str, Vnode],
        jobs: Iterable[PbsJob],
        speaks: Speaks,
        asked_at: float,
    ) -> None:
        """Take what PBS had. `jobs`: all that MoMs have, read at `asked_at` (monotonic) or later."""
        in_pbs: dict[str, dict[str, float]] = {}
        for job in jobs:
            if job.state == "R":
                cpus = _cpus(job)
                for vnode in job.vnodes:
                    in_pbs.setdefault(vnode, {})[job.id] = cpus.get(vnode, math.inf)
        self._compared = asked_at
        self._agreed = {
            name: {
                domain.vnode: domain.state not in NO_LISTS
                for domain in heard.snapshot.domains
                if speaks(name, domain.vnode)
                and domain.vnode in vnodes
                and vnodes[domain.vnode].attributes.get(HOST) == name  # else its starts were not the hook's business
                and _agree(domain, in_pbs.get(domain.vnode, {}))
            }
            for name, heard in hosts.items()
            if heard.live and heard.snapshot.mode is Mode.COUNTED
        }

    def heard(self, before: Snapshot | None, after: Snapshot) -> None:
        """Take a host's new snapshot."""
        agreed = self._agreed.get(after.host)
        if agreed is None:
            return
        if before is None or before.boot_id != after.boot_id or after.mode is not Mode.COUNTED:
            del self._agreed[after.host]
            return
        listing = {domain.vnode: domain.state not in NO_LISTS for domain in after.domains}
        for vnode, listed in list(agreed.items()):
            if vnode not in listing or (listed and not listing[vnode]):
                del agreed[vnode]
            else:
                agreed[vnode] = listing[vnode]

    def file(self, heard: Heard | None, speaks: Speaks) -> bytes:
        """The content of the host's file; empty if it should have none."""
        if heard is None or not heard.live or not self._agreed.get(heard.snapshot.host):
            return b""
        host = heard.snapshot.host
        vnodes = {
            domain.vnode: {job.id: (job.run, job.cpus) for job in domain.jobs}
            for domain in heard.snapshot.domains
            if domain.vnode in self._agreed[host] and speaks(host, domain.vnode)
        }
        data = msgspec.json.encode(_File(self._compared, vnodes))
        return data if vnodes and len(data) <= MOST_LOAD_BYTES else b""


def _cpus(job: PbsJob) -> Mapping[str, int]:
    """The job's CPUs by vnode; empty if they cannot be read."""
    try:
        return cpus_by_vnode(job.exec_vnode)
    except ValueError:
        return {}


def _agree(domain: DomainReport, in_pbs: Mapping[str, float]) -> bool:
    """True if the host reports all these jobs in the domain, with at least as many CPUs."""
    reported = {job.id: job.cpus for job in domain.jobs}
    return all(reported.get(id, -1) >= cpus for id, cpus in in_pbs.items())
