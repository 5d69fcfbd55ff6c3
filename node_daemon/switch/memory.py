"""Moves memory between domains: it is taken from a guest that can give it, and given to another once it is free.

Rule 1: a balloon never takes more than the guest can give at that moment, by its agent's figures of that moment. If it
did, the guest's kernel would kill jobs. What stopped jobs hold is pushed out to the guest's swap first.
Rule 2: no domain is given memory before another one is known to have given it back (bounds.py). It counts as given
back when guest and hypervisor both say so.
Rule 3: a target may change during the move (`aim`). If a move ends early, the balloon's target is set to what the
domain has at that moment. Nothing is remembered that a restart would need.
Rule 4: every wait is bounded: a call by its deadline, a balloon that does not move by STALL_S, a move by its limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from magrathea.core.model import JobKey
from magrathea.core.refusals import RefusalCode
from magrathea.core.stopping import wanted_stopped

from ..guest_channel.channel import AgentError
from ..guest_channel.messages import GuestMemory
from ..hypervisor.base import MEMORY, DomainReading, Driver, DriverError, GuestFails
from .bounds import SLACK_MIB, Bounds
from .interference import Interference
from .paging import ASK_S, BUSY_S, SLICE_MARGIN_S, SLICE_S, AgentChannel, Paging, Progress, SwitchForPaging

log = logging.getLogger(__name__)

LEAST_MIB = 4
"""A smaller step is not worth its cost, unless it is the last one."""
STALL_S = 5.0
"""After that long without progress a balloon counts as stuck."""
PUSH_STALL_S = 3 * (SLICE_S + SLICE_MARGIN_S)
"""If an agent pushes out for so long and the guest can give no more than before, nothing more is pushed out."""
POLL_S = (0.01, 0.1)
"""Pause between two looks at a moving balloon: the first one, and the longest one."""
FREE_MIB = 128
"""The balloon leaves that much free while memory is pushed out. With less, the guest's kernel reclaims by itself."""
AT_ONCE = 4
"""The balloon takes memory that was pushed out in batches of so many steps: others then wait for a batch at most."""
PART_S = 0.4
"""A moving balloon is verified that often, so that the other domain can grow in the meantime."""
SETTLE_S = 0.3
"""Wait that long before believing that a guest can give no more: pages that it has just written out count later."""


@dataclass(frozen=True, slots=True)
class Short:
    """A domain has given less than it should: a sentence with the figures, what it kept, and its jobs at that time."""

    text: str
    kept_mib: int
    keys: frozenset[JobKey]


class SwitchForMemory(SwitchForPaging, Protocol):
    """What the mover needs of the switch."""

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        """The driver has just said this; memory may have moved."""
        ...

    def begins_to_give(self, domain: str) -> None:
        """The domain's agent has answered, and memory begins to leave."""
        ...


@dataclass
class _Move:
    domain: str
    target: int | None
    began: float
    start_mib: int
    has_mib: int
    verified_mib: int | None = None
    """What guest and hypervisor agree that the domain has at most, while it gives; else None."""
    push: asyncio.Task[None] | None = None
    exhausted: str = ""
    """Why nothing more is pushed out; empty if something may be."""
    pushed_mib: int = 0
    best_push: tuple[int, float] | None = None
    """After the last slice that was of use: what could go, less what the domain had; and when that was."""
    asked_again: bool = False
    """The guest has said that it can give no more, and is asked a second time."""
    gives: bool = False
    """Its memory is being pushed out, or has begun to leave."""
    has_given: bool = False
    furthest: int | None = None
    """The target that the time limit counts for. A nearer one on the way there does not extend the limit."""

    def is_on_the_way(self, mib: int) -> bool:
        """Whether `mib` lies on the way to `furthest`. A guest's figures fluctuate; a wobbling target must not extend
        the time limit."""
        return self.furthest is not None and min(self.has_mib, self.furthest) <= mib <= max(self.has_mib, self.furthest)

    def check_push(self, could_go_mib: int) -> None:
        """A slice has ended. Push nothing more if slices have long been of no use, whatever the agent says of them."""
        best, since = self.best_push or (could_go_mib - 1, _now())
        if could_go_mib > best:
            self.best_push = could_go_mib, _now()
        elif _now() - since > PUSH_STALL_S:
            self.exhausted = self.exhausted or f"for {PUSH_STALL_S:g} s its agent has pushed out nothing that can go"


class _TooLittle(Exception):
    """A guest cannot give what it should; the text says why."""


def _mib(read: DomainReading) -> int:
    return read.memory_mib or 0


def _now() -> float:
    return asyncio.get_running_loop().time()


class Mover:
    """Moves the memory of one host's domains, with at most one move per domain at a time."""

    def __init__(self, switch: SwitchForMemory, driver: Driver, guests: Mapping[str, AgentChannel]) -> None:
        self._switch = switch
        self.interference = Interference(_now)
        self._driver = driver
        self._guests = guests
        self._moves: dict[str, _Move] = {}
        self._shorts: dict[str, Short] = {}
        self.bounds = Bounds(lambda: switch.host)
        self.paging = Paging(switch, guests, grows=lambda domain: domain in self._moves)

    async def close(self) -> None:
        await self.paging.close()

    def use_driver(self, driver: Driver) -> None:
        self._driver = driver

    # What is known

    @property
    def time_limit_s(self) -> float:
        return self._switch.memory_settings.time_limit_s

    @property
    def progress(self) -> dict[str, Progress]:
        found = dict(self.paging.progress)
        for name, move in self._moves.items():
            if move.target is not None and (of := abs(move.start_mib - move.target)) > SLACK_MIB:
                gives = move.target < move.start_mib
                done = (move.start_mib - move.has_mib) * (1 if gives else -1)
                found[name] = Progress("gives" if gives else "takes", min(of, max(0, done)), of)
        return found

    def leaves(self, domain: str) -> bool:
        """Whether the domain's agent has answered and memory is leaving."""
        move = self._moves.get(domain)
        return move is not None and move.gives

    def needs(self, domain: str) -> int:
        """What the domain must have before its jobs may run: its floor and what the jobs asked for."""
        host = self._switch.host
        found = host.domain(domain)
        if found is None:
            return 0
        wanted = wanted_stopped(host)
        return found.floor_mib + sum(j.memory_mib for j in found.jobs if (domain, j.key) not in wanted)

    def short(self, domain: str) -> Short | None:
        """How the domain's last move fell short. Forgotten as soon as its jobs change."""
        found = self._switch.host.domain(domain)
        short = self._shorts.get(domain)
        if short is not None and (found is None or frozenset(j.key for j in found.jobs) != short.keys):
            del self._shorts[domain]
            return None
        return short

    def kept_mib(self, domain: str) -> int:
        """What the domain's stopped jobs have kept in memory beyond its floor, by the last move that fell short."""
        found, short = self._switch.host.domain(domain), self.short(domain)
        return max(0, short.kept_mib - found.floor_mib) if found is not None and short is not None and found.jobs else 0

    def note(self, read: Mapping[str, DomainReading]) -> None:
        """Take over what the driver says."""
        moves = {name: move.verified_mib for name, move in self._moves.items()}
        self.bounds.note(read, moves, self.interference.contested_mib)
        for name, move in self._moves.items():
            domain = read.get(name)
            if domain is not None and domain.up and domain.known and domain.memory_mib is not None:
                target, had, has = self.bounds.target(name), move.has_mib, domain.memory_mib
                if target is not None and abs(has - target) > abs(had - target):
                    self.interference.moved_back(name, had, has)
                move.has_mib = has

    # Moving

    def aim(self, domain: str, mib: int | None) -> None:
        """Set a new target for the move under way. None ends the move where it is."""
        move = self._moves.get(domain)
        if move is not None and move.target != mib:
            log.info("%s: memory is to be %s MiB instead of %s", domain, mib, move.target)
            if mib is None or not move.is_on_the_way(mib):
                move.began, move.furthest = _now(), mib
            move.target = mib
            move.start_mib = move.has_mib
            self.bounds.changed.set()

    async def move(self, domain: str, mib: int) -> None:
        """Bring the domain's memory to `mib`, or to the target that `aim` sets in the meantime.

        Returns when the domain has that much, when it has all that can be had and its jobs' needs are met, or when
        the wish is withdrawn. Raises DriverError: `memory-short` with the figures; AgentError: its agent is away.
        """
        has = self.bounds.of(domain)
        # From here on `aim` finds it.
        move = self._moves[domain] = _Move(domain, mib, _now(), has, has, furthest=mib)
        try:
            move.start_mib = move.has_mib = _mib(await self._read(domain))
            while (target := move.target) is not None:
                read = await self._read(domain)
                has, most = _mib(read), min(target, target if read.max_memory_mib is None else read.max_memory_mib)
                if has > most + SLACK_MIB:
                    await self._shrink(move)
                elif move.verified_mib is not None:
                    await self._verify(move, most)
                elif has >= most - SLACK_MIB or not await self._grow(move, has, most):
                    return
            await self._to_what_is_real(move)
        except _TooLittle as error:
            await self._to_what_is_real(move)
            raise self._refused(move, str(error)) from error
        except (DriverError, AgentError):
            await self._to_what_is_real(move)
            raise
        finally:
            if move.push is not None:
                move.push.cancel()
                await asyncio.gather(move.push, return_exceptions=True)
            del self._moves[domain]
            self.bounds.changed.set()
            if move.has_given and not move.exhausted:
                self.paging.relieve(domain)

    async def _read(self, domain: str) -> DomainReading:
        read = await self._driver.actual()
        self.note(read)
        self._switch.memory_read(read)
        found = read.get(domain)
        if found is not None and found.up and found.known and found.memory_mib is None:
            raise DriverError(RefusalCode.MEMORY_SHORT, f"the memory of {domain} cannot be moved; it keeps all it has")
        if found is None or not found.up or found.memory_mib is None:
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"{domain} is down, or its memory is not known")
        if found.paused_externally:
            raise DriverError(RefusalCode.DOMAIN_DOWN, f"{domain} is paused by somebody else; its memory does not move")
        return found

    async def _set(self, domain: str, mib: int) -> None:
        self.bounds.will_set(domain, mib)
        await self._driver.set_memory(domain, mib)
        self.bounds.was_set(domain, mib)
        self._switch.observe(f"memory {domain}")

    async def _to_what_is_real(self, move: _Move) -> None:
        """Set the balloon's target to what the domain has, so that the balloon no longer presses for more."""
        try:
            has = _mib(await self._read(move.domain))
            target = self.bounds.target(move.domain)
            if target is not None and abs(target - has) > SLACK_MIB:
                await self._set(move.domain, has)
        except DriverError as error:
            log.warning("%s: the balloon's target cannot be set to what the domain has: %s", move.domain, error)

    def _over(self, move: _Move) -> bool:
        return _now() - move.began > self.time_limit_s

    # Taking

    async def _figures(self, move: _Move) -> tuple[int, GuestMemory]:
        """What the domain has at most, and its agent's figures, of the same moment: the balloon may be moving."""
        guest = self._guests.get(move.domain)
        if guest is None or guest.hello is None:
            text = f"no agent of {move.domain} is connected; it alone knows what can be given"
            raise AgentError(RefusalCode.NO_AGENT, text)
        has = _mib(await self._read(move.domain))
        memory = (await guest.request("memory", ASK_S)).memory
        has = max(has, _mib(await self._read(move.domain)))
        if memory.can_go_mib > has or memory.total_mib <= 0:
            text = f"the agent of {move.domain} says {memory.can_go_mib} MiB are available of {memory.total_mib}"
            text = f"{text}, but it has {has} in all; nothing is taken by such figures"
            raise GuestFails(RefusalCode.BAD_FIGURES, self._noted_short(move, text))
        move.verified_mib = has
        self.bounds.given(move.domain, max(has, self.interference.contested_mib(move.domain)))
        return has, memory

    async def _shrink(self, move: _Move) -> None:
        """Take one step down, and push one slice out beside it. Raises _TooLittle."""
        settings = self._switch.memory_settings
        await self.paging.end(move.domain)
        has, memory = await self._figures(move)
        target = move.target
        if target is None or has <= target:
            return
        if self._over(move):
            raise _TooLittle(f"within {settings.time_limit_s:g} s")
        room = max(0, memory.can_go_mib - settings.margin_mib)
        want = has - target
        if move.push is not None and move.push.done():
            move.push.result()
            move.push = None
            move.check_push(room - has)
        if move.push is None and want > room and not move.exhausted:
            free = min(room, max(0, memory.free_mib - FREE_MIB))
            if free >= min(settings.step_mib, want // 2):
                room = free  # what is free goes first, so that the other domain has it early
            else:
                self._push_next(move, min(settings.step_mib, max(want - room, 4 * LEAST_MIB)))
        if move.push is not None and room < AT_ONCE * settings.step_mib:
            room = 0  # an emulated guest does two things at once more slowly than one after the other
        take = min(room, want, settings.step_mib if self._runs(move.domain) else room)
        if (take >= min(want, LEAST_MIB) or move.push is not None) and not move.gives:
            move.gives = True
            self._switch.begins_to_give(move.domain)
        if take >= min(want, LEAST_MIB):
            move.asked_again = False
            await self._take(move, has, has - take)
        elif move.push is not None:
            while not move.push.done() and move.target == target:
                await asyncio.wait({move.push}, timeout=POLL_S[1])
        elif not move.asked_again:
            move.asked_again = True
            await asyncio.sleep(SETTLE_S)
        else:
            left = f"{memory.can_go_mib} MiB are available, {settings.margin_mib} of them stay"
            raise _TooLittle(f"{left}; {move.exhausted or 'nothing of it can be pushed out'}")

    def _runs(self, domain: str) -> bool:
        """Whether a job runs in the domain. Its use of memory may grow while the balloon takes memory away."""
        found = self._switch.host.domain(domain)
        return found is not None and bool(found.running)

    async def _take(self, move: _Move, has: int, goal: int) -> None:
        """Let the balloon take memory down to `goal`. Returns when it has, or when the target changes."""
        aimed = move.target
        move.has_given = True
        log.debug("%s: the balloon takes %d MiB", move.domain, has - goal)
        await self._set(move.domain, goal)
        last, since, pause = has, _now(), POLL_S[0]
        asked = since
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, POLL_S[1])
            has = _mib(await self._read(move.domain))
            if has <= goal + SLACK_MIB or move.target != aimed or self._over(move):
                return
            if _now() - asked > PART_S:  # from now on the other domain may have what was given so far
                await self._figures(move)
                asked = _now()
            if has < last:
                last, since = has, _now()
            elif _now() - since > STALL_S:
                raise _TooLittle(f"its balloon has not moved for {STALL_S:g} s although the guest says it could")

    async def _verify(self, move: _Move, most: int) -> None:
        """The target is reached when guest and hypervisor, asked once more, agree on it."""
        has, _ = await self._figures(move)
        if has <= most + SLACK_MIB:
            move.verified_mib = None

    def _push_next(self, move: _Move, mib: int) -> None:
        guest = self._guests.get(move.domain)
        keys = self._switch.held_stopped(move.domain)
        if guest is None or guest.hello is None or not keys:
            return
        if self.paging.agent_able_to(move.domain, "push-out") is None:
            move.exhausted = "its agent cannot push memory out to swap"
            return
        move.push = asyncio.get_running_loop().create_task(self._push(move, guest, keys, mib))

    async def _push(self, move: _Move, guest: AgentChannel, keys: tuple[JobKey, ...], mib: int) -> None:
        """Push one slice out to the guest's swap. Raises AgentError if a later try may succeed."""
        try:
            answer = await self.paging.slice(move.domain, guest, "push-out", keys, mib)
        except AgentError as error:
            if error.code in (RefusalCode.NOT_SUPPORTED, RefusalCode.NOT_PERMITTED):
                move.exhausted = str(error)
            elif error.code == RefusalCode.BUSY:
                await asyncio.sleep(BUSY_S)
            elif error.code != RefusalCode.TIMEOUT:  # an interrupted slice may have moved something; the next one shows
                raise
            return
        move.pushed_mib += min(max(0, answer.pushed_mib), mib)
        if answer.pushed_mib <= 0 and not answer.more:
            swap = answer.memory
            move.exhausted = (
                f"nothing more goes to its swap, which has {swap.swap_free_mib} of {swap.swap_total_mib} MiB free; "
                f"its stopped jobs keep {answer.left_mib}"
            )
        self._switch.observe(f"push {move.domain}")

    def _refused(self, move: _Move, why: str) -> DriverError:
        return DriverError(RefusalCode.MEMORY_SHORT, self._noted_short(move, why))

    def _noted_short(self, move: _Move, why: str) -> str:
        """Note that the domain gives too little, and return that as a sentence with the figures."""
        found = self._switch.host.domain(move.domain)
        wanted = 0 if move.target is None else move.start_mib - move.target
        text = (
            f"{move.domain} has given {move.start_mib - move.has_mib} of {wanted} MiB and keeps {move.has_mib}: {why} "
            f"({move.pushed_mib} MiB were pushed out)"
        )
        keys = frozenset(j.key for j in found.jobs) if found else frozenset()
        self._shorts[move.domain] = Short(text, move.has_mib, keys)
        return text

    # Giving

    async def _grow(self, move: _Move, has: int, most: int) -> bool:
        """Take one step up, if there is memory. False if there is no more and it is enough. Raises DriverError."""
        goal = min(most, self.bounds.room(move.domain))
        if goal - has >= min(LEAST_MIB, most - has):
            await self._give(move, has, goal)
            return True
        if any(self._gives(m) for m in self._moves.values()) and not self._over(move):
            self.bounds.changed.clear()
            try:
                async with asyncio.timeout(POLL_S[1] * 5):
                    await self.bounds.changed.wait()
            except TimeoutError:
                log.debug("%s: still waits for memory: %d of %d MiB", move.domain, has, most)
            return True
        needs = self.needs(move.domain)
        if has >= needs - SLACK_MIB:
            if move.target is not None:
                self.bounds.be_content(move.domain, move.target)
            return False
        host = self._switch.host
        others = self.bounds.others(move.domain)
        text = (
            f"{move.domain} has {has} of {needs} MiB that it needs; of the host's {host.without_services.mib}: {others}"
        )
        whys = [s.text for d in host.workers if d.name != move.domain and (s := self.short(d.name)) is not None]
        raise DriverError(RefusalCode.MEMORY_SHORT, "; ".join([text, *whys]))

    @staticmethod
    def _gives(move: _Move) -> bool:
        return move.verified_mib is not None or (move.target is not None and move.has_mib > move.target + SLACK_MIB)

    async def _give(self, move: _Move, has: int, goal: int) -> None:
        aimed = move.target
        await self._set(move.domain, goal)
        self.paging.fetch_ahead(move.domain)
        last, since, pause = has, _now(), POLL_S[0]
        while True:
            has = _mib(await self._read(move.domain))
            if has >= goal - SLACK_MIB or move.target != aimed:
                return
            if has > last:
                last, since = has, _now()
            elif _now() - since > STALL_S:
                text = f"{move.domain} takes nothing of the {goal} MiB that it may have for {STALL_S:g} s; it has {has}"
                raise GuestFails(RefusalCode.FAILED, f"{text}: does its balloon driver run?")
            await asyncio.sleep(pause)
            pause = min(2 * pause, POLL_S[1])

    # The memory of stopped jobs, beside the moves

    def relieve(self, domain: str) -> None:
        """The domain's jobs are stopped and it has given what it should: make room in what its guest has left."""
        if MEMORY in self._driver.capabilities and domain not in self._moves:
            self.paging.relieve(domain)

    async def fetch(self, domain: str, keys: tuple[JobKey, ...]) -> None:
        """Bring back what was pushed out of these jobs, within a time limit. Then they are continued in any case."""
        if MEMORY in self._driver.capabilities:
            await self.paging.fetch(domain, keys)
