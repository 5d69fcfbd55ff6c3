"""Facts and configuration brought together: at the start, and when the configuration is read again.

The journal says what is, the configuration what was meant. A domain that is new has no facts yet; one that is no longer
configured is kept, draining, while it has jobs, for a job is never forgotten because a line was taken out of a file.
"""

from __future__ import annotations

from dataclasses import replace

from magrathea.core.model import Domain, Host

from .configuration import NodedConfiguration

NOT_CONFIGURED = "no longer configured"
"""Why such a domain drains."""


def fitted(facts: Host | None, configuration: NodedConfiguration, now: float) -> tuple[Host, list[str]]:
    """The host as `facts` have it and the configuration wants it, and a sentence for each thing to know."""
    fresh = configuration.core_host(now)
    if facts is None:
        return fresh, []
    said = []
    if facts.name != fresh.name:
        said.append(f"the journal is of host {facts.name}; it is {fresh.name} from now on")
    domains = {d.name: _fitted(facts.domain(d.name), d, said) for d in fresh.domains}
    for gone in facts.domains:
        if gone.name in domains:
            continue
        if gone.jobs:
            jobs = ", ".join(str(j.key) for j in gone.jobs)
            said.append(f"domain {gone.name} is no longer configured but has jobs ({jobs}); kept until they have ended")
            domains[gone.name] = replace(gone, draining=NOT_CONFIGURED)
        else:
            said.append(f"domain {gone.name} is no longer configured and has no jobs: forgotten")
    ordered = tuple(domains[name] for name in sorted(domains))
    now = max(now, facts.now)
    fitting = replace(fresh, domains=ordered, hub_lost=facts.hub_lost, paused=facts.paused, now=now)
    fitting = replace(fitting, driver_lost_at=facts.driver_lost_at, others=facts.others)
    return fitting, said


def _fitted(known: Domain | None, meant: Domain, said: list[str]) -> Domain:
    if known is None:
        return meant
    kind = meant.kind
    if known.kind is not meant.kind and known.jobs:
        said.append(f"domain {known.name} has jobs: it stays of kind {known.kind} until restarted without")
        kind = known.kind
    return replace(
        known,
        kind=kind,
        cpus=meant.cpus,
        memory_mib=meant.memory_mib,
        floor_mib=meant.floor_mib,
        swap_mib=meant.swap_mib,
        boot_limit_s=meant.boot_limit_s,
        draining="" if known.draining == NOT_CONFIGURED else known.draining,
    )


def without_leftovers(host: Host, configured: frozenset[str]) -> Host:
    """Take out domains that are no longer configured and have no jobs any more (or never will tell of them)."""
    return replace(host, domains=tuple(d for d in host.domains if d.name in configured or d.jobs))


def differs(one: Host, other: Host) -> bool:
    """Whether a fact differs; the time of the last event is none."""
    return one is not other and replace(one, now=0.0) != replace(other, now=0.0)
