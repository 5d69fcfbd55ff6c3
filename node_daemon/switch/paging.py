"""What agents do with the memory of their stopped jobs: push it out to swap for the guest's own relief, bring it back.

Rule 1: nobody waits for relief; the next move of the domain, or its jobs' return, ends it.
Rule 2: what was pushed out is brought back while the domain still grows, as far as there is room for it already, and
its jobs go on when all of it is back. Bounded, and never a reason not to go on.
Rule 3: what was brought back counts as such until something of the domain is pushed out again, or its jobs run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from magrathea import supervision
from magrathea.core.caps import RELIEF_S
from magrathea.core.model import Host, JobKey
from magrathea.core.refusals import RefusalCode

from ..guest_channel.channel import AgentError
from ..guest_channel.messages import Answer, Hello

log = logging.getLogger(__name__)

LIVING_SHARE = 0.5
"""Of a domain's floor: what stays available to guest, MoM and agent where its stopped jobs' memory can go instead.
With all of it out a guest of 512 MiB had 277 to 292 left (QEMU 7.2), with a plain balloon none, and its MoM starved."""
ASK_S = 3.0
"""An agent's time to say its figures: a domain capped and under pressure takes up to 2 s."""
SLICE_S = 5.0
"""Time of one slice of a job's memory, out or back; a slow disk ends it early, with what it has done until then."""
SLICE_MARGIN_S = 3.0
"""More for its answer to arrive."""
BUSY_S = 0.2
"""Until an agent is asked again that still ends an earlier slice, or whose guest has no room yet."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The admin's choice. `step_mib`: of one step of a balloon, and of one slice of a job's memory. `margin_mib`: what
    stays available in every guest that gives. `time_limit_s`: for a whole move, and for fetching before a job goes on.
    """

    step_mib: int = 256
    margin_mib: int = 32
    time_limit_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a move is. `what`: gives, takes or fetches."""

    what: str
    done_mib: int
    of_mib: int


class AgentChannel(Protocol):
    """What is needed of a guest's channel."""

    @property
    def hello(self) -> Hello | None: ...

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer: ...


class SwitchForPaging(Protocol):
    """What is needed of the switch."""

    @property
    def host(self) -> Host: ...

    @property
    def memory_settings(self) -> MemorySettings: ...

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        """The domain's jobs that its agent has confirmed to be stopped, on its present connection."""
        ...

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        """Those of them that need not be stopped any longer."""
        ...

    def look_soon(self) -> None: ...

    def observe(self, name: str) -> None: ...


@dataclass
class _Fetch:
    keys: frozenset[JobKey]
    task: asyncio.Task[bool]
    """Whether all is back."""
    waited: bool = False
    """It was waited for to its end, which is as much as is done for jobs that are to go on."""


@dataclass
class _Relief:
    task: asyncio.Task[None]
    began: float


def _now() -> float:
    return asyncio.get_running_loop().time()


class Paging:
    """One host's. `grows`: whether a domain is just being given memory."""

    def __init__(
        self, switch: SwitchForPaging, guests: Mapping[str, AgentChannel], grows: Callable[[str], bool]
    ) -> None:
        self._switch = switch
        self._guests = guests
        self._grows = grows
        self._fetches: dict[str, _Fetch] = {}
        self._reliefs: dict[str, _Relief] = {}
        self.progress: dict[str, Progress] = {}
        """Of what is being brought back."""

    async def close(self) -> None:
        for domain in {*self._reliefs, *self._fetches}:
            await self.end(domain)

    def able(self, domain: str, what: str) -> AgentChannel | None:
        """The domain's guest, where its agent is connected and can do that."""
        guest = self._guests.get(domain)
        return guest if guest is not None and guest.hello is not None and what in guest.hello.can else None

    async def slice(self, domain: str, guest: AgentChannel, op: str, keys: tuple[JobKey, ...], mib: int) -> Answer:
        """One slice of these jobs' memory, `push-out` or `fetch`. Raises AgentError."""
        if op == "push-out":
            self._fetches.pop(domain, None)
        jobs = [{"id": key.id, "run": key.run} for key in keys]
        answer = await guest.request(op, SLICE_S + SLICE_MARGIN_S, jobs=jobs, mib=mib, deadline_s=SLICE_S)
        moved = answer.pushed_mib if op == "push-out" else answer.fetched_mib
        log.debug("%s: %s of %d MiB, %d are left; %s", domain, op, moved, answer.left_mib, answer.memory)
        return answer

    # Relief

    def relieve(self, domain: str) -> None:
        """Push out more until the guest, which has given all that was wanted, can live well on what it has left."""
        if (fetch := self._fetches.get(domain)) is not None and not fetch.task.done():
            return  # its jobs are to go on
        if (relief := self._reliefs.get(domain)) is not None and not relief.task.done():
            return
        task = supervision.start(self._relieve(domain))
        self._reliefs[domain] = _Relief(task, _now())
        task.add_done_callback(lambda _: self._switch.look_soon())
        asyncio.get_running_loop().call_later(RELIEF_S, self._switch.look_soon)  # it is capped then

    def relieved_s(self, domain: str) -> float | None:
        """For how long the domain has been relieved; None if it is not being relieved."""
        relief = self._reliefs.get(domain)
        return _now() - relief.began if relief is not None and not relief.task.done() else None

    async def _relieve(self, domain: str) -> None:
        settings = self._switch.memory_settings
        found, guest = self._switch.host.domain(domain), self.able(domain, "push-out")
        until = _now() + settings.time_limit_s
        while found is not None and guest is not None and guest.hello is not None and _now() < until:
            try:
                keys = self._switch.held_stopped(domain)
                memory = (await guest.request("memory", ASK_S)).memory
                lacks = int(found.floor_mib * LIVING_SHARE) - memory.can_go_mib
                if not keys or lacks <= 0:
                    return
                answer = await self.slice(domain, guest, "push-out", keys, min(settings.step_mib, lacks + 1))
                if answer.pushed_mib <= 0 and not answer.more:
                    return
            except AgentError as error:
                # Busy: it ends a slice of the move. Timeout: it is slow because it lacks memory.
                if error.code not in (RefusalCode.BUSY, RefusalCode.TIMEOUT):
                    log.info("%s: no more of its stopped jobs' memory is pushed out: %s", domain, error)
                    return
                await asyncio.sleep(BUSY_S)

    async def end(self, domain: str) -> None:
        """No relief of the domain any more, and nothing brought back ahead."""
        relief, fetch = self._reliefs.pop(domain, None), self._fetches.pop(domain, None)
        tasks = [one.task for one in (relief, fetch) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Bringing back

    def fetch_ahead(self, domain: str) -> None:
        """Begin to bring back what jobs that are to go on will need, while the domain is given its memory."""
        keys, fetch = self._switch.to_continue(domain), self._fetches.get(domain)
        if fetch is not None and not fetch.task.done():
            return  # an agent works on one slice at a time; what is lacking is brought back by `fetch`
        if keys and self.able(domain, "fetch") is not None and not self._is_fetched(domain, keys):
            self._begin(domain, keys)

    async def fetch(self, domain: str, keys: tuple[JobKey, ...]) -> None:
        """Bring back what was pushed out of these jobs, before they go on."""
        guest = self.able(domain, "fetch")
        if not keys or guest is None:
            return
        if not self._is_fetched(domain, keys):
            self._begin(domain, keys)
        fetch, hello = self._fetches[domain], guest.hello
        await fetch.task
        fetch.waited = guest.hello is hello

    def went_on(self, domain: str) -> None:
        """Its jobs run, and what of their memory is where is their own affair again."""
        self._fetches.pop(domain, None)

    def _is_fetched(self, domain: str, keys: tuple[JobKey, ...]) -> bool:
        """Or is being brought back."""
        fetch = self._fetches.get(domain)
        if fetch is None or not fetch.keys >= set(keys):
            return False
        if not fetch.task.done():
            return True
        if fetch.task.cancelled() or fetch.task.exception() is not None:
            return False
        return fetch.waited or fetch.task.result()

    def _begin(self, domain: str, keys: tuple[JobKey, ...]) -> None:
        for before in (self._reliefs.pop(domain, None), self._fetches.get(domain)):
            if before is not None:
                before.task.cancel()
        task = asyncio.get_running_loop().create_task(self._fetch(domain, keys))
        self._fetches[domain] = _Fetch(frozenset(keys), task)

    async def _fetch(self, domain: str, keys: tuple[JobKey, ...]) -> bool:
        settings = self._switch.memory_settings
        until = _now() + settings.time_limit_s
        try:
            done, of = 0, await self._swapped(domain, keys)
            if of <= 0:
                return True
            while (guest := self.able(domain, "fetch")) is not None:
                grows = self._grows(domain)
                if grows:
                    until = _now() + settings.time_limit_s
                elif _now() > until:
                    break
                self.progress[domain] = Progress("fetches", min(done, of), of)
                try:
                    answer = await self.slice(domain, guest, "fetch", keys, settings.step_mib)
                except AgentError as error:
                    if error.code != RefusalCode.BUSY:
                        raise
                    await asyncio.sleep(BUSY_S)
                    continue
                self._switch.observe(f"fetch {domain}")
                done += answer.fetched_mib
                if answer.left_mib <= 0:
                    return True
                if answer.fetched_mib <= 0 and not answer.more:  # there is no room for it
                    if not grows:
                        break
                    await asyncio.sleep(BUSY_S)
        except AgentError as error:
            log.warning("%s: not all that was pushed out is brought back before its jobs go on: %s", domain, error)
        finally:
            self.progress.pop(domain, None)
        return False

    async def _swapped(self, domain: str, keys: tuple[JobKey, ...]) -> int:
        guest = self.able(domain, "fetch")
        if guest is None:
            raise AgentError(RefusalCode.NO_AGENT, f"no agent of {domain} is connected that can do it")
        answer = await guest.request("memory", ASK_S)
        return sum(row.swapped_mib for row in answer.jobs if row.key in keys)
