"""Which two events of the same moment may be swapped: neither depends on what the other changes."""

from __future__ import annotations

from magrathea.core import events as ev
from magrathea.core.machine import handle
from magrathea.core.model import GiveWay, Host, Kind

from . import core_oracle as oracle

OWN_DOMAIN_ONLY = (
    ev.Released,
    ev.JobLaunched,
    ev.JobsReported,
    ev.JobsGiven,
    ev.JobsDenied,
    ev.AgentConnected,
    ev.AgentLost,
    ev.MemoryReported,
    ev.DomainStarted,
    ev.DomainStopped,
    ev.DrainRequested,
    ev.DrainEnded,
    ev.Faulted,
    ev.FaultCleared,
    ev.FreezeRequested,
    ev.DomainHalted,
    ev.DomainWentOn,
    ev.BootRequested,
    ev.ShutdownRequested,
)
"""Events that change only their own domain, whatever the facts of the others: two of them may be swapped."""

NOT_ASKED_BY_A_CLAIM = (ev.JobLaunched, ev.AgentConnected, ev.AgentLost, ev.DrainRequested, ev.DrainEnded)
"""These events in a sibling do not change the answer to a claim for a normal domain."""


def independent(h: Host, one: ev.Event, two: ev.Event) -> bool:
    """True for two events of the same moment in different domains, if neither kind reads the other's facts."""
    if not isinstance(one, ev.DomainEvent) or not isinstance(two, ev.DomainEvent):
        return False
    if one.domain == two.domain or one.at != two.at:
        return False
    if any(oracle.wants_back(d) for d in h.domains):  # whatever frees something may wake it
        return False
    falls = [d.name for d in h.domains if oracle.falling(d)]
    if any(isinstance(e, ev.DrainEnded) and e.domain in falls for e in (one, two)):  # it gives up the sleep
        return False
    if h.limits.give_way is not GiveWay.SWAP:  # whatever frees or takes memory may put somebody to sleep, or end that
        return False
    if isinstance(one, OWN_DOMAIN_ONLY) and isinstance(two, OWN_DOMAIN_ONLY):
        return True
    claims = [e for e in (one, two) if isinstance(e, ev.Claimed)]
    if any(gives_back(h, c) for c in claims):
        return False
    others = [e for e in (one, two) if not isinstance(e, ev.Claimed)]
    domains = [h.domain(c.domain) for c in claims]
    if len(claims) == 1:
        return isinstance(others[0], NOT_ASKED_BY_A_CLAIM) and domains[0] is not None and domains[0].kind is Kind.NORMAL
    return len(claims) == 2 and claims[0].cls is claims[1].cls and _both_fit(h, claims)


def gives_back(h: Host, event: ev.Claimed | ev.DefrostRequested) -> bool:
    """True if the claim also frees something: an older run of its job ends, or its domain stops lingering."""
    domain = h.domain(event.domain)
    ends_lingering = domain is not None and oracle.lingering(h, domain)
    return isinstance(event, ev.Claimed) and (ends_lingering or _has_other_run(h, event))


def _has_other_run(h: Host, claim: ev.Claimed) -> bool:
    domain = h.domain(claim.domain)
    known = domain.job_of(claim.key.id) if domain else None
    return known is not None and known.key != claim.key


def _both_fit(h: Host, claims: list[ev.Claimed]) -> bool:
    """True if two claims that stop nobody are both accepted: then they are accepted in the other order too."""
    for claim in claims:
        h, said = handle(h, claim)
        answer = said[-1]
        if not isinstance(answer, ev.Accepted) or answer.victims:
            return False
    return True
