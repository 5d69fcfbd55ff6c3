"""What a domain is in one word, what it accepts, and what PBS is told of it: all derived, never stored.

The first row of the table that holds gives the state; docs/states.md is written from it. What is accepted
comes from the very function that answers claims (allocation.verdict), asked for the smallest job.
"""

from __future__ import annotations

from .allocation import blocked, free, lingers, obstacle, restoring, share, silent, verdict
from .model import CLASSES_OF, Amount, Domain, Host, JobClass, Kind, Lifecycle, Mode, State
from .refusals import Refusal, RefusalCode

SMALLEST = Amount(1, 0)
"""The smallest job there is: one CPU."""

RANK_RUNNING, RANK_FREE, RANK_WOULD_PREEMPT, RANK_NONE = 1000, 500, 400, -1024
"""Ordinals within the -1024 to 1023 of a vnode's `Priority`; each minute preempted so far takes 1 off the third."""


def state_of(host: Host, domain: Domain) -> State:
    normal, busy = domain.kind is Kind.NORMAL, bool(domain.jobs)
    all_stoppable = not any(obstacle(host, domain, j) for j in domain.jobs)
    table = (
        (State.FROZEN, domain.frozen and not restoring(domain)),
        (State.DOWN, domain.lifecycle is Lifecycle.DOWN),
        (State.BOOTING, domain.lifecycle is Lifecycle.BOOTING),
        (State.UNKNOWN, silent(host, domain)),
        (State.FAULT, bool(domain.fault)),
        (State.PREEMPTED, bool(domain.stopped)),
        (State.DRAINING, bool(domain.drain_reason)),
        (State.RUNNING_PRIORITY, busy and domain.kind is Kind.PRIORITY),
        (State.RUNNING_PREEMPTIBLE, busy and normal and all_stoppable),
        (State.RUNNING, busy),
    )
    if state := next((state for state, holds in table if holds), None):
        return state
    if _could_start(host, domain, stopping=False):  # asked last: it looks at the whole host
        return State.FREE
    could_preempt = domain.kind is Kind.PRIORITY and _could_start(host, domain, stopping=True)
    return State.WOULD_PREEMPT if could_preempt else State.OCCUPIED


def _could_start(host: Host, domain: Domain, *, stopping: bool) -> bool:
    """Is there room for the smallest job, as far as siblings' jobs decide it; with or without stopping any?"""
    if domain.kind is not Kind.PRIORITY or stopping:
        classes = CLASSES_OF[domain.kind]
        return any(not blocked(host, domain, c) and share(host, domain, c).cpus >= SMALLEST.cpus for c in classes)
    if host.mode is Mode.EXCLUSIVE:
        return not any(s.running for s in host.siblings(domain))
    return min(free(host, domain).cpus, share(host, domain, JobClass.PRIORITY).cpus) >= SMALLEST.cpus


def accepts(host: Host, domain: Domain) -> tuple[JobClass, ...]:
    """The classes of which one more job, if small enough, may start here now."""
    answers = {c: verdict(host, domain, c, SMALLEST) for c in CLASSES_OF[domain.kind]}
    return tuple(c for c, answer in answers.items() if not isinstance(answer, Refusal))


def published(host: Host, domain: Domain) -> Amount:
    """`ncpus` and `mem` for PBS: what its jobs have and what one more of any accepted class may have.

    While nothing is accepted it is the domain's size, so that PBS does not call a waiting job impossible.
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
    """Where PBS should look first: running domains (packing), free ones, then the least preempted victims."""
    if not accepts(host, domain):
        return RANK_NONE
    state = state_of(host, domain)
    if state is not State.WOULD_PREEMPT:
        return RANK_FREE if state is State.FREE else RANK_RUNNING
    answer = verdict(host, domain, JobClass.PRIORITY, SMALLEST)
    names = () if isinstance(answer, Refusal) else answer
    return RANK_WOULD_PREEMPT - min(1000, int(sum(d.preempted_s for d in host.workers if d.name in names) / 60))


def why(host: Host, domain: Domain) -> str:
    """One sentence for people: what makes the state what it is, or what keeps jobs out."""
    if domain.kind is Kind.SERVICE:
        return "a service: its CPUs and memory are set aside"
    answer = verdict(host, domain, CLASSES_OF[domain.kind][0], SMALLEST)
    if isinstance(answer, Refusal) and answer.code in (RefusalCode.DOMAIN_FROZEN, RefusalCode.DOMAIN_DOWN):
        return answer.text
    if domain.fault or domain.drain_reason:
        return domain.fault or domain.drain_reason
    if domain.paused_externally and isinstance(answer, Refusal):
        return answer.text
    if lingers(host, domain):
        return "keeps what its last job had for its next one"
    if domain.jobs and not domain.stopped:
        whys = [f"{j.key} {text}" for j in domain.jobs if (text := obstacle(host, domain, j))]
        return "; ".join(whys) if domain.kind is Kind.NORMAL and whys else f"{len(domain.jobs)} running"
    if isinstance(answer, Refusal):
        return answer.text
    return f"a priority job would preempt {', '.join(answer)}" if answer else "nothing in the way"
