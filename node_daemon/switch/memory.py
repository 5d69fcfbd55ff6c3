"""Memory that really moves: taken from a guest that can give it, given to another once it is there.

Rule 1: a balloon's target is never below what the guest can give at that moment, by its agent's figures of that
moment: a target out of its reach makes a guest kill jobs. What its stopped jobs hold is pushed out to its swap first.
Rule 2: nobody is given what is not known to be given back: the sum of what every domain has, or may yet take up to
its target, stays within the host's. What a shrinking domain has given counts once guest and hypervisor have said so.
Rule 3: a target may change while it is being moved to (`aim`). A move that ends early, for whatever reason, leaves
the balloon's target at what is real. Nothing is remembered that a restart would need.
Rule 4: every wait is bounded: one call by its deadline, a guest that does not move by STALL_S, a move by its limit.
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
from ..hypervisor.base import MEMORY, DomainReading, Driver, DriverError
from .bounds import SLACK_MIB, Bounds
from .paging import ASK_S, BUSY_S, AgentChannel, Paging, Progress, SwitchForPaging

log = logging.getLogger(__name__)

LEAST_MIB = 4
"""Less is not worth a step, unless it is all that is left."""
STALL_S = 5.0
"""A balloon that has not moved for so long does not move."""
POLL_S = (0.01, 0.1)
"""Between two looks at a balloon that moves: at first, and at most."""
FREE_MIB = 128
"""What the balloon leaves free while memory is being pushed out: with less the guest's kernel reclaims on its own."""
AT_ONCE = 4
"""Steps of what was pushed out that the balloon takes together, so that others need not wait for the whole move."""
PART_S = 0.4
"""A balloon on its way is verified that often, so that the other domain grows meanwhile."""
SETTLE_S = 0.3
"""Before a guest that has nothing left to give is believed: what it has just written back counts a moment later."""


@dataclass(frozen=True, slots=True)
class Short:
    """A domain has given less than it should: the numbers for people, what it kept, and its jobs at that time."""

    text: str
    kept_mib: int
    keys: frozenset[JobKey]


class SwitchForMemory(SwitchForPaging, Protocol):
    """What is needed of the switch."""

    def memory_read(self, read: Mapping[str, DomainReading]) -> None:
        """What the driver has just said; progress may have been made."""
        ...

    def begins_to_give(self, domain: str) -> None:
        """Its agent has answered, and its memory begins to leave."""
        ...


@dataclass
class _Move:
    domain: str
    target: int | None
    began: float
    start_mib: int
    has_mib: int
    verified_mib: int | None = None
    """While it gives: what guest and hypervisor agree that it has, at most."""
    push: asyncio.Task[None] | None = None
    exhausted: str = ""
    """Why nothing more is pushed out."""
    pushed_mib: int = 0
    doubted: bool = False
    gives: bool = False
    """Its memory is being pushed out, or has begun to go."""
    gave: bool = False
    furthest: int | None = None
    """The target that its time is for: one on the way there is given no more."""

    def reaches(self, mib: int) -> bool:
        """Whether a move to `furthest` comes by there: what jobs keep, their guest says, to and fro, for ever."""
        return self.furthest is not None and min(self.has_mib, self.furthest) <= mib <= max(self.has_mib, self.furthest)


class _TooLittle(Exception):
    """A guest cannot give what is wanted of it; the text says why."""


def _mib(read: DomainReading) -> int:
    return read.memory_mib or 0


def _now() -> float:
    return asyncio.get_running_loop().time()


class Mover:
    """Moves the memory of one host's domains; at most one move per domain at a time."""

    def __init__(self, switch: SwitchForMemory, driver: Driver, guests: Mapping[str, AgentChannel]) -> None:
        self._switch = switch
        self._driver = driver
        self._guests = guests
        self._moves: dict[str, _Move] = {}
        self._shorts: dict[str, Short] = {}
        self.bounds = Bounds(lambda: switch.host)
        self.paging = Paging(switch, guests, grows=lambda domain: domain in self._moves)

    async def close(self) -> None:
        await self.paging.close()

    def use(self, driver: Driver) -> None:
        self._driver = driver

    # What is so

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
        """Whether the domain's agent has answered and its memory is on its way out."""
        move = self._moves.get(domain)
        return move is not None and move.gives

    def needs(self, domain: str) -> int:
        """What the domain must have before its jobs may run: its floor, and what they asked for."""
        host = self._switch.host
        found = host.domain(domain)
        if found is None:
            return 0
        wanted = wanted_stopped(host)
        return found.floor_mib + sum(j.memory_mib for j in found.jobs if (domain, j.key) not in wanted)

    def short(self, domain: str) -> Short | None:
        """What the domain has lately shown that it cannot give, as long as its jobs are the same."""
        found = self._switch.host.domain(domain)
        short = self._shorts.get(domain)
        if short is not None and (found is None or frozenset(j.key for j in found.jobs) != short.keys):
            del self._shorts[domain]
            return None
        return short

    def kept_mib(self, domain: str) -> int:
        """Beyond its floor, what the domain's jobs have shown to keep in memory although they were stopped."""
        found, short = self._switch.host.domain(domain), self.short(domain)
        return max(0, short.kept_mib - found.floor_mib) if found is not None and short is not None and found.jobs else 0

    def note(self, read: Mapping[str, DomainReading]) -> None:
        """Take over what the driver says."""
        self.bounds.note(read, {name: move.verified_mib for name, move in self._moves.items()})
        for name, move in self._moves.items():
            domain = read.get(name)
            if domain is not None and domain.up and domain.known and domain.memory_mib is not None:
                move.has_mib = domain.memory_mib

    # Moving

    def aim(self, domain: str, mib: int | None) -> None:
        """A new target for the move under way; None: leave it at what is real."""
        move = self._moves.get(domain)
        if move is not None and move.target != mib:
            log.info("%s: memory is to be %s MiB instead of %s", domain, mib, move.target)
            if mib is None or not move.reaches(mib):
                move.began, move.furthest = _now(), mib
            move.target = mib
            move.start_mib = move.has_mib
            self.bounds.changed.set()

    async def move(self, domain: str, mib: int) -> None:
        """Bring the domain's memory to `mib`, or to what `aim` says meanwhile.

        Returns when it is there, when it has all that can be had and its jobs' needs are met, or when the wish is
        withdrawn. Raises DriverError, code `memory-short` with the numbers; AgentError where its agent is away.
        """
        has = self.bounds.of(domain)
        # From here on it hears of another wish.
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
            if move.gave and not move.exhausted:
                self.paging.relieve(domain)

    async def _read(self, domain: str) -> DomainReading:
        read = await self._driver.actual()
        self.note(read)
        self._switch.memory_read(read)
        found = read.get(domain)
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
        """The balloon no longer presses for what has not come."""
        try:
            has = _mib(await self._read(move.domain))
            target = self.bounds.target(move.domain)
            if target is not None and abs(target - has) > SLACK_MIB:
                await self._set(move.domain, has)
        except DriverError as error:
            log.warning("%s: its balloon's target cannot be set to what it has: %s", move.domain, error)

    def _over(self, move: _Move) -> bool:
        return _now() - move.began > self._switch.memory_settings.time_limit_s

    # Taking

    async def _figures(self, move: _Move) -> tuple[int, GuestMemory]:
        """(what the domain has at most, what its agent says of it), at one moment: the balloon may be moving."""
        guest = self._guests.get(move.domain)
        if guest is None or guest.hello is None:
            text = f"no agent of {move.domain} is connected; it alone knows what can be given"
            raise AgentError(RefusalCode.NO_AGENT, text)
        has = _mib(await self._read(move.domain))
        memory = (await guest.request("memory", ASK_S)).memory
        has = max(has, _mib(await self._read(move.domain)))
        if memory.can_go_mib > has or memory.total_mib <= 0:
            text = f"the agent of {move.domain} says {memory.can_go_mib} MiB are available of {memory.total_mib}"
            raise DriverError(
                RefusalCode.BAD_FIGURES, f"{text}, but it has {has} in all; nothing is taken by such figures"
            )
        move.verified_mib = has
        self.bounds.given(move.domain, has)
        return has, memory

    async def _shrink(self, move: _Move) -> None:
        """One step down, while a slice is pushed out. Raises _TooLittle."""
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
        if move.push is None and want > room and not move.exhausted:
            free = min(room, max(0, memory.free_mib - FREE_MIB))
            if free >= min(settings.step_mib, want // 2):
                room = free  # first, so that who waits for it has it early
            else:
                self._push_next(move, min(settings.step_mib, max(want - room, 4 * LEAST_MIB)))
        if move.push is not None and room < AT_ONCE * settings.step_mib:
            room = 0  # an emulated guest does two things slower together than one after the other
        take = min(room, want, settings.step_mib if self._runs(move.domain) else room)
        if (take >= min(want, LEAST_MIB) or move.push is not None) and not move.gives:
            move.gives = True
            self._switch.begins_to_give(move.domain)
        if take >= min(want, LEAST_MIB):
            move.doubted = False
            await self._take(move, has, has - take)
        elif move.push is not None:
            while not move.push.done() and move.target == target:
                await asyncio.wait({move.push}, timeout=POLL_S[1])
        elif not move.doubted:
            move.doubted = True
            await asyncio.sleep(SETTLE_S)
        else:
            left = f"{memory.can_go_mib} MiB are available, {settings.margin_mib} of them stay"
            raise _TooLittle(f"{left}; {move.exhausted or 'nothing of it can be pushed out'}")

    def _runs(self, domain: str) -> bool:
        """Whether a job runs there, whose use of memory may grow while the balloon takes."""
        found = self._switch.host.domain(domain)
        return found is not None and bool(found.running)

    async def _take(self, move: _Move, has: int, goal: int) -> None:
        """Let the balloon take it; returns when it has, or when something else is wanted."""
        aimed = move.target
        move.gave = True
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
            if _now() - asked > PART_S:  # who waits for it gets what has been given so far
                await self._figures(move)
                asked = _now()
            if has < last:
                last, since = has, _now()
            elif _now() - since > STALL_S:
                raise _TooLittle(f"its balloon has not moved for {STALL_S:g} s although the guest says it could")

    async def _verify(self, move: _Move, most: int) -> None:
        """It is there when the guest lives with it and the hypervisor, asked again, says the same."""
        has, _ = await self._figures(move)
        if has <= most + SLACK_MIB:
            move.verified_mib = None

    def _push_next(self, move: _Move, mib: int) -> None:
        guest = self._guests.get(move.domain)
        keys = self._switch.held_stopped(move.domain)
        if guest is None or guest.hello is None or not keys:
            return
        if self.paging.able(move.domain, "push-out") is None:
            move.exhausted = "its agent cannot push memory out to swap"
            return
        move.push = asyncio.get_running_loop().create_task(self._push(move, guest, keys, mib))

    async def _push(self, move: _Move, guest: AgentChannel, keys: tuple[JobKey, ...], mib: int) -> None:
        """One slice out to the guest's swap. Raises AgentError where it may be another time."""
        try:
            answer = await self.paging.slice(move.domain, guest, "push-out", keys, mib)
        except AgentError as error:
            if error.code in (RefusalCode.NOT_SUPPORTED, RefusalCode.NOT_PERMITTED):
                move.exhausted = str(error)
            elif error.code == RefusalCode.BUSY:
                await asyncio.sleep(BUSY_S)
            elif error.code != RefusalCode.TIMEOUT:  # a slice given up may have moved something: the next one tells
                raise
            return
        move.pushed_mib += answer.pushed_mib
        if answer.pushed_mib <= 0 and not answer.more:
            swap = answer.memory
            move.exhausted = (
                f"nothing more goes to its swap, which has {swap.swap_free_mib} of {swap.swap_total_mib} MiB free; "
                f"its stopped jobs keep {answer.left_mib}"
            )
        self._switch.observe(f"push {move.domain}")

    def _refused(self, move: _Move, why: str) -> DriverError:
        host = self._switch.host
        found = host.domain(move.domain)
        wanted = 0 if move.target is None else move.start_mib - move.target
        text = (
            f"{move.domain} has given {move.start_mib - move.has_mib} of {wanted} MiB and keeps {move.has_mib}: {why} "
            f"({move.pushed_mib} MiB were pushed out)"
        )
        keys = frozenset(j.key for j in found.jobs) if found else frozenset()
        self._shorts[move.domain] = Short(text, move.has_mib, keys)
        return DriverError(RefusalCode.MEMORY_SHORT, text)

    # Giving

    async def _grow(self, move: _Move, has: int, most: int) -> bool:
        """One step up, as far as there is memory. False: no more is to be had, and it is enough. Raises DriverError."""
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
                raise DriverError(RefusalCode.FAILED, f"{text}: does its balloon driver run?")
            await asyncio.sleep(pause)
            pause = min(2 * pause, POLL_S[1])

    # Its stopped jobs' memory, beside the moves

    def relieve(self, domain: str) -> None:
        """Its jobs are stopped, and it has given what it should: let its guest live well on what it has left."""
        if MEMORY in self._driver.capabilities and domain not in self._moves:
            self.paging.relieve(domain)

    async def fetch(self, domain: str, keys: tuple[JobKey, ...]) -> None:
        """Bring back what was pushed out of these jobs, before they go on. Bounded, and never a reason not to."""
        if MEMORY in self._driver.capabilities:
            await self.paging.fetch(domain, keys)
