"""A domain's state in one word, what it accepts, and what PBS shows of it. All is derived, never stored.

The state is that of the first table row whose condition is true; docs/states.md is generated from the table. What a
domain accepts comes from the function that answers claims (allocation.verdict), asked about the smallest job. It is
asked once for each domain and class (`model.once`). What is accepted, published and shown to people is this one answer.
"""

from __future__ import annotations

from .allocation import blocked, verdict
from .model import CLASSES_OF, Amount, Domain, Host, JobClass, Kind, Lifecycle, Mode, State, once
from .refusals import Refusal, RefusalCode
from .shares import (
    all_stoppable,
    free,
    lingers,
    obstacle,
    restoring,
    share,
    sibling_among,
    silent,
    with_running_jobs,
)
from .sleeping import why_awake

SMALLEST = Amount(1, 0)
"""The smallest job there is: one CPU."""

_SAYS_ALL = (RefusalCode.DOMAIN_FROZEN, RefusalCode.DOMAIN_ASLEEP, RefusalCode.DOMAIN_DOWN)
"""Refusals whose text is the reason for the state."""

RANK_RUNNING, RANK_FREE, RANK_WOULD_PREEMPT, RANK_NONE = 1000, 500, 400, -1024
"""Ranks fit into -1024 to 1023, the range of a vnode's `Priority`. Each minute preempted takes 1 off the third."""


def state_of(host: Host, domain: Domain) -> State:
    """The state of one of the host's domains."""
    return once(host, _state_of, domain.name)


def _state_of(host: Host, name: str) -> State:
    domain = _known(host, name)
    normal, busy = domain.kind is Kind.NORMAL, bool(domain.jobs)
    table = (
        (State.FROZEN, domain.frozen and not restoring(domain)),
        (State.ASLEEP, domain.asleep),
        (State.DOWN, domain.lifecycle is Lifecycle.DOWN),
        (State.BOOTING, domain.lifecycle is Lifecycle.BOOTING),
        (State.UNKNOWN, silent(host, domain)),
        (State.FAULT, bool(domain.fault)),
        (State.PREEMPTED, bool(domain.stopped) and domain.sleep is None),
        (State.DRAINING, bool(domain.drain_reason)),
        (State.RUNNING_PRIORITY, busy and domain.kind is Kind.PRIORITY),
        (State.RUNNING_PREEMPTIBLE, busy and normal and all_stoppable(host, domain)),
        (State.RUNNING, busy),
    )
    if state := next((state for state, holds in table if holds), None):
        return state
    if _could_start(host, domain, stopping=False):  # last, because it looks at the whole host
        return State.FREE
    could_preempt = domain.kind is Kind.PRIORITY and _could_start(host, domain, stopping=True)
    return State.WOULD_PREEMPT if could_preempt else State.OCCUPIED


def _could_start(host: Host, domain: Domain, *, stopping: bool) -> bool:
    """True if siblings' jobs leave room for the smallest job, with or without stopping any."""
    if domain.kind is not Kind.PRIORITY or stopping:
        classes = CLASSES_OF[domain.kind]
        return any(not blocked(host, domain, c) and share(host, domain, c).cpus >= SMALLEST.cpus for c in classes)
    if host.mode is Mode.EXCLUSIVE:
        return not sibling_among(once(host, with_running_jobs), domain) and not any(c.busy for c in host.coming)
    return min(free(host, domain).cpus, share(host, domain, JobClass.PRIORITY).cpus) >= SMALLEST.cpus


def _known(host: Host, name: str) -> Domain:
    domain = host.domain(name)
    assert domain, f"{host.name} has no domain {name}"
    return domain


def _answer(host: Host, domain: Domain, cls: JobClass) -> Refusal | tuple[str, ...]:
    """The answer that a claim of the smallest job of that class would get."""
    return once(host, _verdict_of_smallest, domain.name, cls)


def _verdict_of_smallest(host: Host, name: str, cls: JobClass) -> Refusal | tuple[str, ...]:
    return verdict(host, _known(host, name), cls, SMALLEST)


def accepts(host: Host, domain: Domain) -> tuple[JobClass, ...]:
    """The classes of which one more small job may start here now."""
    return tuple(c for c in CLASSES_OF[domain.kind] if not isinstance(_answer(host, domain, c), Refusal))


def published(host: Host, domain: Domain) -> Amount:
    """`ncpus` and `mem` for PBS: what its jobs have and what one more of any accepted class may have.

    If nothing is accepted it is the domain's size, so that PBS does not call a waiting job impossible.
    """
    classes = accepts(host, domain)
    most = host.without_services.least(Amount(domain.cpus, domain.memory_mib or host.memory_mib))
    if not classes:
        return most
    left = share(host, domain, classes[0])
    for cls in classes[1:]:
        left = left.least(share(host, domain, cls))
    return domain.use + left


def rank(host: Host, domain: Domain) -> int:
    """The rank. PBS should try running domains first (packing), then free ones, then least preempted victims."""
    if not accepts(host, domain):
        return RANK_NONE
    state = state_of(host, domain)
    if state is not State.WOULD_PREEMPT:
        return RANK_FREE if state is State.FREE else RANK_RUNNING
    answer = _answer(host, domain, JobClass.PRIORITY)
    names = () if isinstance(answer, Refusal) else answer
    return RANK_WOULD_PREEMPT - min(1000, int(sum(_known(host, name).preempted_s for name in names) / 60))


def why(host: Host, domain: Domain) -> str:
    """One sentence for people: the reason for the state, or what keeps jobs out."""
    if domain.kind is Kind.SERVICE:
        return "a service: its CPUs and memory are set aside"
    answer = _answer(host, domain, CLASSES_OF[domain.kind][0])
    if isinstance(answer, Refusal) and answer.code in _SAYS_ALL:
        return answer.text
    if domain.falls_asleep and not domain.fault:
        waits = why_awake(host, domain)
        return f"{domain.drain_reason}; waits: {waits}" if waits else domain.drain_reason
    if domain.fault or domain.drain_reason:
        return domain.fault or domain.drain_reason
    if domain.paused_externally and isinstance(answer, Refusal):
        return answer.text
    if lingers(host, domain):
        return "keeps what its last job had for its next one"
    if domain.jobs and not domain.stopped:
        if domain.kind is Kind.NORMAL and not all_stoppable(host, domain):
            return "; ".join(f"{j.key} {text}" for j in domain.jobs if (text := obstacle(host, domain, j)))
        return f"{len(domain.jobs)} running"
    if isinstance(answer, Refusal):
        return answer.text
    return f"a priority job would preempt {', '.join(answer)}" if answer else "nothing in the way"
