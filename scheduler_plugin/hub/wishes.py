"""Lets preempted domains go on elsewhere: judges them with each heartbeat, and tells their hosts (elsewhere.py).

Rule 1: level-triggered. A wish stands as long as the rule says so, and is said again with each heartbeat; nothing is
withdrawn. The host follows it or tells why not, and both hosts check the move as they check an admin's.
Rule 2: without `after_s` in [elsewhere] nothing is judged and no host is told anything. What moves cost, and when each
domain moved last, is kept all the same: so it is known when somebody turns it on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

from magrathea.core.moves import Ownership
from magrathea.logs import RationedLog
from magrathea.messages import Message, Snapshot
from magrathea.move_messages import MOST_TEXT, MoveWished, WishRefused
from magrathea.reports import ElsewhereView
from scheduler_plugin.pbs.base import PbsJob

from .configuration import ElsewhereTable, HubConfiguration
from .elsewhere import ElsewhereVerdict, HostNow, mib_of, preempted_since, priority_jobs, verdicts
from .farm import Farm
from .rooms import Rooms
from .trips import Trips

log = logging.getLogger(__name__)


class Wishes:
    """`welcome`: the hosts that each host takes domains from. `records`: the owners that are on disk. `send`: to a
    host. `now`: Unix seconds."""

    def __init__(
        self,
        table: ElsewhereTable,
        farm: Farm,
        rooms: Rooms,
        trips: Trips,
        records: Mapping[str, Ownership],
        send: Callable[[str, Message], bool],
        now: Callable[[], float],
    ) -> None:
        self._table, self._farm, self._rooms = table, farm, rooms
        self._trips, self._records, self._send, self._now = trips, records, send, now
        self._following: set[str] = set()
        self._wished: dict[str, str] = {}
        """Where each domain should go, by the last look."""
        self._verdicts: list[ElsewhereVerdict] = []
        self._of_hosts = RationedLog(log, burst=50, period_s=10)

    @classmethod
    def of(
        cls,
        c: HubConfiguration,
        farm: Farm,
        rooms: Rooms,
        records: Mapping[str, Ownership],
        send: Callable[[str, Message], bool],
        now: Callable[[], float] = time.time,
    ) -> Wishes:
        """A hub's own. Raises OSError: its directory cannot be used."""
        return cls(c.elsewhere, farm, rooms, Trips(c.state_dir, records, now), records, send, now)

    def knows(self, host: str, *, wishes: bool) -> None:
        """Note whether the host understands wishes."""
        (self._following.add if wishes else self._following.discard)(host)

    def follow(self, domain: str, record: Ownership | None) -> None:
        """A record is on disk."""
        self._trips.follow(domain, record, self._mib(record) if record else 0)

    def _mib(self, record: Ownership) -> int:
        heard = self._farm.hosts.get(record.owner)
        report = heard.by_vnode.get(record.domain) if heard is not None else None
        return mib_of(report) if report is not None else 0

    def why(self, domain: str, record: Ownership | None) -> str:
        """Why the hub wishes for the move that this record grants; empty if it does not."""
        transfer = record.transfer if record else None
        if transfer is None or self._wished.get(domain) != transfer.target:
            return ""
        return next((one.why for one in self._verdicts if one.domain == domain), "")

    async def save(self) -> None:
        """Write what moves have cost, if that has changed."""
        if (data := self._trips.unwritten()) is not None:
            await asyncio.to_thread(self._trips.write, data)

    def look(self, welcome: Mapping[str, frozenset[str]]) -> None:
        """Judge all preempted domains, and tell the hosts of those that should go elsewhere."""
        if not self._table.after_s:
            return
        hosts = {name: self._host(name, welcome) for name, heard in self._farm.hosts.items() if heard.live}
        self._verdicts = verdicts(self._table, hosts, self._records, self._trips, self._now())
        wished = {one.domain: one.to for one in self._verdicts if one.to}
        for one in self._verdicts:
            if not one.to:
                continue
            if self._wished.get(one.domain) != one.to:
                text = f"{one.domain} should go on at {one.to} instead of {one.host}: {one.why}"
                self._of_hosts.say(one.host, text, level=logging.INFO)
            number = self._records[one.domain].number
            self._send(one.host, MoveWished(domain=one.domain, number=number, to=one.to, why=one.why[:MOST_TEXT]))
        self._wished = wished

    def _host(self, name: str, welcome: Mapping[str, frozenset[str]]) -> HostNow:
        snapshot = self._farm.hosts[name].snapshot
        waits = any(preempted_since(domain) is not None for domain in snapshot.domains)
        ends_in_s = self._ends_in_s(snapshot) if waits else math.inf
        at = self._now() + self._farm.ahead_s(name)
        room = self._rooms.room(name)
        return HostNow(snapshot, at, welcome.get(name, frozenset()), name in self._following, ends_in_s, room)

    def _ends_in_s(self, snapshot: Snapshot) -> float:
        """The time until all the host's priority jobs have ended by their walltimes; infinite if that is not known."""
        jobs = [self._farm.placements.reading.get(job.id) for job in priority_jobs(snapshot)]
        return max((self._left_s(job) for job in jobs), default=math.inf)

    def _left_s(self, job: PbsJob | None) -> float:
        if job is None or job.walltime_s is None or not job.started_at:
            return math.inf
        return max(0.0, job.started_at + job.walltime_s - self._now())

    def refused(self, host: str, message: WishRefused) -> bool:
        """Take a host's answer. True if it is about a wish that stands."""
        record = self._records.get(message.domain)
        stands = record is not None and (record.owner, record.number) == (host, message.number)
        if not stands or self._wished.get(message.domain) != message.to:
            return False
        self._trips.refuse(message.domain, message.to, f"{host}: {message.text}")
        return True

    @property
    def views(self) -> list[ElsewhereView]:
        """What is to become of each preempted domain, for people; nothing if it is not configured."""
        return [
            ElsewhereView(domain=one.domain, host=one.host, to=one.to, since=one.since, text=one.why, fix=one.fix)
            for one in self._verdicts
        ]
