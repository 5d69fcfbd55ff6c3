"""What hosts say about moves, and what they are told: the shell around owners.py. Parcels go through it unread.

    words -> OwnersFile -> disk -> farm (vnodes, jobs) -> records to the hosts concerned

Rule 1: only hosts that know such messages are sent any: their heartbeats say so, or they have sent one.
Rule 2: a host is told again whatever it does not seem to know, and with each heartbeat as long as one of its domains is
on its way. So a lost message only costs time.
Rule 3: the hub keeps no parcel. It passes one on only from the source of a move to its target, and charges the source
for its size: a host that was taken over cannot flood another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable

from magrathea.core.moves import Ownership, Says, Word
from magrathea.core.refusals import Refusal, RefusalCode
from magrathea.logs import RationedLog
from magrathea.messages import MOST_DOMAINS, WISHES, ElsewhereView, MoveView, knows, knows_moves
from magrathea.move_messages import MOST_TEXT, MoveRefused, MoveWords, ParcelSent, WishRefused, ownerships_of

from .channel import HubChannel
from .configuration import HubConfiguration
from .farm import Farm
from .host_questions import Charged
from .lanes import Lane
from .losses import Losses
from .move_log import MoveLog
from .owners import OwnersFile, Unwritten
from .ownership import Visits
from .rooms import Rooms
from .wishes import Wishes

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Pause before the records are written again if the disk failed."""
MOST_TOLD = 2 * MOST_DOMAINS
"""Records in one message; those of domains on their way come first."""
PARCEL_S_PER_MIB = 0.05
"""What a host is charged for its parcels, so that it sends a MiB/s on average, and never more than some. The facts of a
domain with a thousand jobs take 0.4 MiB."""


class Movers:
    """`follow`: called with the hosts whose vnodes may have changed, after the records are on disk."""

    def __init__(
        self,
        configuration: HubConfiguration,
        owners: OwnersFile,
        farm: Farm,
        channel: HubChannel,
        charged: Charged,
        follow: Callable[[set[str]], None],
        move_log: MoveLog,
        rooms: Rooms,
    ) -> None:
        self._owners, self._farm = owners, farm
        self._channel, self._charged, self._follow = channel, charged, follow
        self._knowing: set[str] = set()
        self._welcome: dict[str, frozenset[str]] = {}
        self._most: dict[str, int] = {}
        self._about: dict[str, frozenset[str]] = {}
        """Domains of other hosts that a host speaks of, and may know the owners of."""
        self._told: dict[str, tuple[Ownership, ...]] = {}
        """What each host was sent last on its present connection."""
        self._caused: dict[str, int] = {}
        self._kick = asyncio.Event()
        self._of_hosts = RationedLog(log, burst=50, period_s=10)
        self.log = move_log
        self.wishes = Wishes.of(configuration, farm, rooms, owners.written.records, channel.send)
        self.losses = Losses(owners, farm, self._kick.set)

    # What hosts say

    def connected(self, host: str) -> None:
        """The host has just connected (again): nothing is known of what it has been told."""
        self._told.pop(host, None)

    def knows(self, host: str, version: str) -> None:
        """The host is heard. Note by its heartbeat whether it knows the messages about moves."""
        self.losses.heard(host)
        if knows_moves(version):
            self._knowing.add(host)
        else:
            self._knowing.discard(host)
        self.wishes.knows(host, wishes=knows(version, WISHES))

    def said(self, host: str, message: MoveWords | WishRefused) -> None:
        """Take a host's words, or why it does not follow a wish."""
        if isinstance(message, WishRefused):
            if self.wishes.refused(host, message):
                self.log.refused(message.domain, host, message.to, Refusal(message.code, message.text))
            return
        self._knowing.add(host)
        self._welcome[host], self._most[host] = frozenset(message.welcome), message.most
        words = [told.word for told in message.words]
        early = [(word, no) for word in words if (no := self._cannot_ask(host, word))]
        taken = [word for word in words if all(word is not refused for refused, _ in early)]
        visits = Visits(self._welcome, self._most)
        late = self._owners.heard(host, taken, visits, lambda domain: self._farm.may_found(host, domain))
        for word, no in (*early, *late):
            self._refuse(host, word, no)
        self._about[host] = frozenset(word.domain for word in words if self._farm.may_ask_about(host, word.domain))
        if not all(self._agrees(host, word) for word in words):
            self._told.pop(host, None)
        self._caused[host] = self._caused.get(host, 0) + 1
        self._kick.set()

    def _cannot_ask(self, host: str, word: Word) -> Refusal | None:
        """Why the hub cannot look at the request for a move; None if it can, or the word is none."""
        if word.says is not Says.ASKS:
            return None
        if not self._owners.knows(word.domain) and not self._farm.may_found(host, word.domain):
            text = f"PBS has no vnode {word.domain} of host {host}; a domain moves only if its vnode has its name"
            return Refusal(RefusalCode.NOT_MOVABLE, text)
        if word.about not in self._welcome:
            text = f"{word.about} has not told the hub (yet) which domains it takes"
            return Refusal(RefusalCode.BUSY, text)
        return None

    def _refuse(self, host: str, word: Word, no: Refusal) -> None:
        refused = MoveRefused(domain=word.domain, number=word.number, code=no.code, text=no.text[:MOST_TEXT])
        self._channel.send(host, refused)
        self.log.refused(word.domain, host, word.about, no)

    def _agrees(self, host: str, word: Word) -> bool:
        """True if the word shows that the host knows the record."""
        record = self._owners.written.records.get(word.domain)
        mine = record is not None and (record.owner, record.number) == (host, word.number)
        return record is None or (mine and word.says is Says.OWNS and record.transfer is None)

    def parcel(self, host: str, message: ParcelSent) -> None:
        """Pass a parcel on to the target of the move."""
        self._channel.charge(host, PARCEL_S_PER_MIB * len(bytes(message.facts)) / 2**20, Lane.MOVES)
        target = self._owners.target(host, message.domain, message.number)
        if not target or target != message.to:
            text = f"host {host}: no move of {message.domain} under number {message.number} takes facts to {message.to}"
            self._of_hosts.say(host, text, level=logging.INFO)
        elif target in self._knowing:
            self._channel.send(target, message)

    def give_up(self, domains: Collection[str]) -> None:
        """Let nobody own these domains: an admin has given them up. Their hosts at home take them back."""
        for domain in domains:
            log.warning("PBS names no host for vnode %s, and its owner does not report it: it is given up", domain)
        if domains:
            self._owners.give_up(domains)
            self._kick.set()

    # What follows

    async def run(self) -> None:
        """Write and tell whatever is new. Never returns."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            causes, self._caused = self._caused, {}
            with self._charged(causes, Lane.MOVES):
                what = self._owners.unwritten()
            hosts = set(causes)
            if what is not None and not await asyncio.to_thread(self._owners.write, what):
                self._owners.has_failed(what)
                await asyncio.sleep(AGAIN_S)
                self._kick.set()
                continue
            with self._charged(causes, Lane.MOVES):
                if what is not None:
                    hosts |= self._has_written(what)
                self._tell(hosts)
            await self.wishes.save()

    def _has_written(self, what: Unwritten) -> set[str]:
        """Let all follow. Returns the hosts concerned."""
        for name, record in what.records.items():
            self.log.changed(self._owners.written.records.get(name), record, self.wishes.why(name, record))
            self.wishes.follow(name, record)
        self._owners.has_written(what)
        concerned = self._farm.owners_changed(what.records)
        self._follow(concerned)
        if not self._farm.transfers.free.isdisjoint(what.records):
            return set(self._knowing)
        return concerned.union(*what.former.values())

    def remind(self) -> None:
        """Tell the hosts again that domains move to or from, and what should move."""
        hosts = self._farm.transfers.hosts
        for host in hosts:
            self._told.pop(host, None)
        self._tell(hosts)
        self.wishes.look(self._welcome)

    def _tell(self, hosts: Iterable[str]) -> None:
        for host in self._knowing.intersection(hosts):
            records = self._owners.written.told(host, self._farm.free_for(host).union(self._about.get(host, ())))
            records = tuple(sorted(records, key=lambda record: record.transfer is None)[:MOST_TOLD])
            new = records and records != self._told.get(host)
            if new and self._channel.send(host, ownerships_of(records)):
                self._told[host] = records

    @property
    def views(self) -> dict[str, list[MoveView] | list[ElsewhereView]]:
        """Parts of a FarmView: moves under way, those that ended or were refused lately; and what else should move, or
        why not."""
        return {"moves": self.log.views(self._farm.transfers), "elsewhere": self.wishes.views}
