"""What agents are ordered to do with jobs, and what they have confirmed.

Rule 1: a confirmation is valid as long as the agent's connection lasts. A new connection gets the full set of orders,
even an empty one: the agent may still enforce old orders.
Rule 2: every message carries all orders for the domain, so that an agent never has to combine two of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from magrathea.core.model import Host, JobKey
from magrathea.core.plan import Order, Orders, warned_s, warned_until
from magrathea.core.refusals import RefusalCode
from magrathea.core.stopping import wanted_stopped
from magrathea.deadlines import ORDER_MARGIN_S, ORDER_S

from ..guest_channel.channel import AgentError, GuestChannel
from ..guest_channel.messages import Answer, Hello

NOTHING: Mapping[JobKey, Order] = {}

LONG_WARNINGS, OLD_AGENT_WARN_S = "long-warnings", 60.0
"""An agent without this ability refuses orders with a longer time between a job's warning and its stop."""

HUB_S = 3.0
"""A hub that may continue a job in PBS, and does so at this moment, has said so after this time."""


class HasHost(Protocol):
    @property
    def host(self) -> Host: ...

    def now(self) -> float: ...


class AgentOrders:
    """The orders of one host's agents. `observe` is called with an order's name as soon as the agent has answered."""

    def __init__(self, daemon: HasHost, channels: Mapping[str, GuestChannel], observe: Callable[[str], None]) -> None:
        self._daemon = daemon
        self._channels = channels
        self._observe = observe
        self._confirmed: dict[str, dict[JobKey, Order]] = {}
        """By domain, what its agent has confirmed on its present connection."""
        self._has_full_orders: set[str] = set()
        """Domains whose agents have had the full set on their present connection."""
        self._confirmed_stops: dict[tuple[str, JobKey], float] = {}
        """When it was confirmed, on this connection or an earlier one; see `unconfirmed_stops`."""
        self._let_go: set[tuple[str, JobKey]] = set()
        """Stopped jobs that PBS was allowed to continue."""

    # Agents come and go

    def connected(self, domain: str) -> None:
        self._confirmed[domain] = {}
        self._has_full_orders.discard(domain)

    def lost(self, domain: str) -> None:
        self._confirmed.pop(domain, None)
        self._has_full_orders.discard(domain)

    def forget(self, domain: str, key: JobKey) -> None:
        """There is no order about this job any more: it is gone, or it runs again."""
        self._confirmed.get(domain, {}).pop(key, None)
        self._confirmed_stops.pop((domain, key), None)
        self._let_go.discard((domain, key))

    # What is known

    def has_agent(self, domain: str) -> bool:
        """Whether the domain has a channel, connected or not."""
        return domain in self._channels

    def confirmed(self, domain: str) -> Mapping[JobKey, Order]:
        """What the domain's agent has confirmed on its present connection."""
        return self._confirmed.get(domain, NOTHING)

    def needs_full_orders(self) -> list[str]:
        """Domains whose agents are connected and have not had the full set of orders yet."""
        return [
            name for name, channel in self._channels.items() if channel.connected and name not in self._has_full_orders
        ]

    def held_stopped(self, domain: str) -> tuple[JobKey, ...]:
        """Jobs that the agent has confirmed to be stopped, and that must stay so."""
        wanted = wanted_stopped(self._daemon.host)
        confirmed = self.confirmed(domain)
        return tuple(key for key, order in confirmed.items() if order is Order.STOP and (domain, key) in wanted)

    def to_continue(self, domain: str) -> tuple[JobKey, ...]:
        """Jobs that the agent has confirmed to be stopped, and that need not be stopped any longer."""
        wanted, found = wanted_stopped(self._daemon.host), self._daemon.host.domain(domain)
        confirmed = self.confirmed(domain)
        jobs = found.jobs if found is not None else ()
        return tuple(j.key for j in jobs if confirmed.get(j.key) is Order.STOP and (domain, j.key) not in wanted)

    def unconfirmed_stops(self) -> frozenset[tuple[str, JobKey]]:
        """Jobs that must not run, while no agent has confirmed that they do not.

        If the agent is away, its earlier confirmation counts: it has left the job stopped. If it is away and never
        confirmed (it was killed during the preemption, or the daemon was), the job may run. If it is connected, it
        must have confirmed on this connection. What sleeps on disk runs nowhere.
        """
        host = self._daemon.host
        away = {domain.name for domain in host.workers if domain.away}
        waiting = set()
        for domain, key in wanted_stopped(host):
            if domain in away:
                continue
            present = (channel := self._channels.get(domain)) is not None and channel.connected
            confirmed = self.confirmed(domain).get(key) is Order.STOP
            if not (confirmed if present else (domain, key) in self._confirmed_stops):
                waiting.add((domain, key))
        return frozenset(waiting)

    def books_count_from(self, domain: str) -> float:
        """From when on the books say what PBS has of the domain's stopped jobs; infinite if that is not known yet.

        If PBS was allowed to continue some, and they must not run after all, a hub may be continuing them at this
        moment, and the books are from before.
        """
        jobs = [key for name, key in self._let_go if name == domain]
        stopped = [self._confirmed_stops.get((domain, key), math.inf) for key in jobs]
        return max((at + HUB_S for at in stopped), default=0.0)

    # Giving orders

    def connection(self, domain: str) -> Hello:
        """Identifies the agent's present connection. Raises AgentError if there is none."""
        channel = self._channels.get(domain)
        if channel is None or not channel.connected or channel.hello is None:
            raise AgentError(RefusalCode.NO_AGENT, f"no agent of {domain} is connected")
        return channel.hello

    def check_same(self, domain: str, connection: Hello, meanwhile: str) -> None:
        """Raise AgentError if the agent has connected anew since."""
        channel = self._channels.get(domain)
        if channel is None or channel.hello is not connection:
            raise AgentError(RefusalCode.NO_AGENT, f"the agent of {domain} {meanwhile}")

    async def send(self, step: Orders, connection: Hello) -> None:
        """Send the full set of orders for the step's domain. Returns when the agent has confirmed the step's own.

        Raises AgentError.
        """
        if step.order is not Order.STOP:  # from here on somebody may continue these jobs
            for key in step.keys:
                self._confirmed_stops.pop((step.domain, key), None)
                self._let_go.add((step.domain, key))
        wanted = self._full_set(step)
        warnings = {key: self._warning(step.domain, key) for key, order in wanted.items() if order is Order.STOP}
        deadline_s = ORDER_S + max((float(warning.get("warn_s", 0.0)) for warning in warnings.values()), default=0.0)
        orders = [{"id": k.id, "run": k.run, "order": o.value, **warnings.get(k, {})} for k, o in wanted.items()]
        channel = self._channels[step.domain]
        answer = await channel.request("orders", deadline_s + ORDER_MARGIN_S, orders=orders, deadline_s=deadline_s)
        self._observe(f"{step.order.value} {step.domain}")
        self.check_same(step.domain, connection, "has connected anew")
        self._has_full_orders.add(step.domain)
        self._note_confirmed(step, answer)

    def _warning(self, domain: str, key: JobKey) -> dict[str, Any]:
        """The part of a stop's order that says how the job is warned. The time counts from the decision to stop it."""
        host = self._daemon.host
        found = host.domain(domain)
        job = found.job(key) if found is not None else None
        if job is None or job.warning is None or (until := warned_until(host, job)) is None:
            return {}
        left_s = min(until - self._daemon.now(), warned_s(host, job.warning))
        hello = self._channels[domain].hello
        if hello is None or LONG_WARNINGS not in hello.can:
            left_s = min(left_s, OLD_AGENT_WARN_S)
        if left_s <= 0 or (domain, key) in self._confirmed_stops:
            return {}
        return {"warn_signal": job.warning.signal, "warn_s": left_s, "warn_first_only": job.warning.first_only}

    def stopped_at(self) -> Mapping[tuple[str, JobKey], float]:
        """When agents confirmed that jobs are stopped."""
        return self._confirmed_stops

    def _full_set(self, step: Orders) -> dict[JobKey, Order]:
        """The step's orders, those that stand, and a stop for every job that must not run."""
        host = self._daemon.host
        domain = host.domain(step.domain)
        wanted = wanted_stopped(host)
        confirmed = self.confirmed(step.domain)
        orders: dict[JobKey, Order] = {}
        for job in domain.jobs if domain else ():
            if (step.domain, job.key) in wanted and job.stopped_by_us:
                orders[job.key] = Order.STOP
            elif job.key in step.keys:
                orders[job.key] = step.order
            elif job.key in confirmed and confirmed[job.key] is not Order.STOP:
                orders[job.key] = confirmed[job.key]
        return orders

    def _note_confirmed(self, step: Orders, answer: Answer) -> None:
        confirmed = self._confirmed.setdefault(step.domain, {})
        done = {job.key: job for job in answer.jobs}
        for key in step.keys:
            if step.order is Order.STOP:
                seen = done.get(key)
                if seen is None or seen.order != Order.STOP.value or not seen.done:
                    how = (
                        f"{seen.stopped} of {seen.processes} processes stopped"
                        if seen
                        else "the agent does not know it"
                    )
                    raise AgentError(RefusalCode.NOT_STOPPED, f"{key} in {step.domain}: {how}")
                self._confirmed_stops.setdefault((step.domain, key), self._daemon.now())
            confirmed[key] = step.order
