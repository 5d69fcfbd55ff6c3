"""What agents do with the memory of stopped jobs: push it out to swap to relieve the guest, and bring it back.

Rule 1: nothing waits for relief. The domain's next move, or the return of its jobs, ends it.
Rule 2: what was pushed out is brought back while the domain still grows, as far as there is room. The jobs are
continued when all of it is back, or when the time limit is over: they are never kept stopped for it.
Rule 3: what was brought back counts as such until something in the domain is pushed out again, or its jobs run.
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
"""This share of a domain's floor is kept available for guest, MoM and agent, as long as stopped jobs' memory can be
pushed out instead. A guest of 512 MiB then had 277 to 292 MiB left (QEMU 7.2). With a plain balloon it had none, and
its MoM starved."""
ASK_S = 3.0
"""An agent has that long to report its figures. In a capped domain under memory pressure it needs up to 2 s."""
SLICE_S = 5.0
"""One slice, out or back, takes that long at most. On a slow disk it ends then, with what it has moved so far."""
SLICE_MARGIN_S = 3.0
"""The answer may arrive that much later."""
BUSY_S = 0.2
"""Pause before an agent is asked again that is still ending an earlier slice, or whose guest has no room yet."""


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The admin's choice. `step_mib`: one step of a balloon, and one slice of a job's memory. `margin_mib`: what stays
    available in every guest that gives. `time_limit_s`: for a whole move, and for fetching before a job is continued.
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
    """What the mover needs of a guest's channel."""

    @property
    def hello(self) -> Hello | None: ...

    async def request(self, op: str, within_s: float, **fields: Any) -> Answer: ...


class SwitchForPaging(Protocol):
    """What paging needs of the switch."""

    @property
    def host(self) -> Host: ...

    @property
    def memory_settings(self) -> MemorySettings: ...

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        """The domain's jobs that must stay stopped, and that its agent has confirmed on its present connection."""
        ...

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        """The domain's jobs that its agent has confirmed to be stopped, and that need not be stopped any longer."""
        ...

    def look_soon(self) -> None: ...

    def observe(self, name: str) -> None: ...


@dataclass
class _Fetch:
    keys: frozenset[JobKey]
    task: asyncio.Task[bool]
    """Its result: whether all of it is back."""
    waited: bool = False
    """A continuation has waited for its end. Nothing more is fetched for these jobs then."""


@dataclass
class _Relief:
    task: asyncio.Task[None]
    began: float


def _now() -> float:
    return asyncio.get_running_loop().time()


class Paging:
    """The paging of one host's domains. `grows`: whether a domain is just being given memory."""

    def __init__(
        self, switch: SwitchForPaging, guests: Mapping[str, AgentChannel], grows: Callable[[str], bool]
    ) -> None:
        self._switch = switch
        self._guests = guests
        self._grows = grows
        self._fetches: dict[str, _Fetch] = {}
        self._reliefs: dict[str, _Relief] = {}
        self._pushed: dict[str, tuple[int, float]] = {}
        """By domain, how much was pushed out since somebody last asked, and for how many seconds."""
        self.progress: dict[str, Progress] = {}
        """By domain, how much of its jobs' memory has been brought back."""

    async def close(self) -> None:
        for domain in {*self._reliefs, *self._fetches}:
            await self.end(domain)

    def agent_able_to(self, domain: str, what: str) -> AgentChannel | None:
        """The domain's channel, if its agent is connected and can do that."""
        guest = self._guests.get(domain)
        return guest if guest is not None and guest.hello is not None and what in guest.hello.can else None

    async def slice(self, domain: str, guest: AgentChannel, op: str, keys: tuple[JobKey, ...], mib: int) -> Answer:
        """Move one slice of these jobs' memory; `op` is `push-out` or `fetch`. Raises AgentError."""
        if op == "push-out":
            self._fetches.pop(domain, None)
        jobs = [{"id": key.id, "run": key.run} for key in keys]
        began = _now()
        answer = await guest.request(op, SLICE_S + SLICE_MARGIN_S, jobs=jobs, mib=mib, deadline_s=SLICE_S)
        moved = answer.pushed_mib if op == "push-out" else answer.fetched_mib
        if op == "push-out" and moved > 0:
            before_mib, before_s = self._pushed.get(domain, (0, 0.0))
            self._pushed[domain] = before_mib + moved, before_s + _now() - began
        log.debug("%s: %s of %d MiB, %d are left; %s", domain, op, moved, answer.left_mib, answer.memory)
        return answer

    def take_pushed(self, domain: str) -> tuple[int, float] | None:
        """How much was pushed out of the domain's jobs, and for how many seconds that took, since the last question;
        None if nothing was."""
        return self._pushed.pop(domain, None)

    # Relief

    def relieve(self, domain: str) -> None:
        """Push out more, until a guest that has given all that was wanted has room in what it has left."""
        if (fetch := self._fetches.get(domain)) is not None and not fetch.task.done():
            return  # its jobs are about to be continued
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
        found, guest = self._switch.host.domain(domain), self.agent_able_to(domain, "push-out")
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
                # Busy: the agent is still ending a slice of the move. Timeout: it is slow because it lacks memory.
                if error.code not in (RefusalCode.BUSY, RefusalCode.TIMEOUT):
                    log.info("%s: no more memory of stopped jobs is pushed out: %s", domain, error)
                    return
                await asyncio.sleep(BUSY_S)

    async def end(self, domain: str) -> None:
        """End the domain's relief, and what is being brought back ahead."""
        relief, fetch = self._reliefs.pop(domain, None), self._fetches.pop(domain, None)
        tasks = [one.task for one in (relief, fetch) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Bringing back

    def fetch_ahead(self, domain: str) -> None:
        """While the domain is given memory, begin to bring back what its jobs need when they are continued."""
        keys, fetch = self._switch.to_continue(domain), self._fetches.get(domain)
        if fetch is not None and not fetch.task.done():
            return  # an agent works on one slice at a time; `fetch` brings back the rest
        if keys and self.agent_able_to(domain, "fetch") is not None and not self._is_fetched(domain, keys):
            self._begin(domain, keys)

    async def fetch(self, domain: str, keys: tuple[JobKey, ...]) -> None:
        """Bring back what was pushed out of these jobs, before they are continued."""
        guest = self.agent_able_to(domain, "fetch")
        if not keys or guest is None:
            return
        if not self._is_fetched(domain, keys):
            self._begin(domain, keys)
        fetch, hello = self._fetches[domain], guest.hello
        await fetch.task
        fetch.waited = guest.hello is hello

    def jobs_run_again(self, domain: str) -> None:
        """The domain's jobs run. What is in swap from now on is their own affair."""
        self._fetches.pop(domain, None)

    def _is_fetched(self, domain: str, keys: tuple[JobKey, ...]) -> bool:
        """Whether what was pushed out of these jobs is back, or is being brought back."""
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
            while (guest := self.agent_able_to(domain, "fetch")) is not None:
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
            log.warning("%s: its jobs go on before all of their memory is back from swap: %s", domain, error)
        finally:
            self.progress.pop(domain, None)
        return False

    async def _swapped(self, domain: str, keys: tuple[JobKey, ...]) -> int:
        guest = self.agent_able_to(domain, "fetch")
        if guest is None:
            raise AgentError(RefusalCode.NO_AGENT, f"no agent of {domain} is connected that can do it")
        answer = await guest.request("memory", ASK_S)
        return sum(max(0, row.swapped_mib) for row in answer.jobs if row.key in keys)
