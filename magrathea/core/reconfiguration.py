"""Changes the facts according to a newly read configuration.

Rule 1: the configuration states the intention, the facts state what is. A new domain starts without facts; a known
one keeps all of its facts and gets its new size.
Rule 2: no job is forgotten because a line was removed from a file. A domain that is no longer configured drains, and is
forgotten with its last job. One that sleeps on disk stays until it has been woken.
Rule 3: a domain changes its kind only while it has no jobs and is not saved to disk, because jobs and image belong to
the old kind.
"""

from __future__ import annotations

from dataclasses import replace

from .changes import Result
from .events import ConfiguredDomain, Decision, Note, Noted, Reconfigured
from .model import NOTHING, Domain, Host, Kind, Mode

UNKNOWN_HOST = Host(name="", mode=Mode.EXCLUSIVE, cpus=0, memory_mib=0, hub_lost=True)
"""The facts before the first configuration is read."""


def reconfigured(host: Host, event: Reconfigured) -> Result:
    """The host as `event` describes it, with the facts of the domains that stay."""
    said: list[Decision] = []
    if host.name not in ("", event.host):
        said.append(Noted("", Note.RENAMED, None, f"the facts were those of host {host.name}, it is {event.host} now"))
    domains = {meant.name: _fitted(host.domain(meant.name), meant, said) for meant in event.domains}
    for domain in host.domains:
        if domain.name not in domains:
            domains[domain.name] = _left_out(domain)
            if domain.sleep is not None and domain.configured:
                text = "no longer configured, but it sleeps on disk; configure it again, then defrost it"
                said.append(Noted(domain.name, Note.KEPT, None, text))
            elif domain.jobs and domain.configured:
                jobs = ", ".join(str(job.key) for job in domain.jobs)
                said.append(
                    Noted(domain.name, Note.KEPT, None, f"no longer configured, it drains: it still has {jobs}")
                )
    changed = replace(
        host,
        name=event.host,
        mode=event.mode,
        cpus=event.cpus,
        memory_mib=event.memory_mib,
        limits=event.limits,
        domains=tuple(domains[name] for name in sorted(domains)),
    )
    return changed, tuple(said)


def _left_out(domain: Domain) -> Domain:
    """The domain, which is no longer configured. If it sleeps, it leaves the line of those that wake: nothing could
    restore it, and the host would be closed until the time limit of its boot."""
    if domain.in_line_to_wake and domain.sleep is not None:
        domain = replace(domain, sleep=replace(domain.sleep, wakes=False))
    return replace(domain, configured=False)


def _fitted(known: Domain | None, meant: ConfiguredDomain, said: list[Decision]) -> Domain:
    if known is None:
        known = Domain(meant.name, meant.kind, meant.cpus)
    fitting = replace(
        known,
        cpus=meant.cpus,
        memory_mib=meant.memory_mib,
        floor_mib=meant.floor_mib,
        swap_mib=meant.swap_mib,
        boot_limit_s=meant.boot_limit_s,
        configured=True,
    )
    if known.kind is meant.kind:
        return fitting
    if why := _keeps_kind(known):
        said.append(Noted(known.name, Note.KEPT, None, f"of kind {known.kind}, not {meant.kind}, because it {why}"))
        return fitting
    closing = fitting.closing if meant.kind is not Kind.SERVICE else None
    return replace(fitting, kind=meant.kind, linger_until=None, linger_size=NOTHING, closing=closing)


def _keeps_kind(domain: Domain) -> str:
    """Why the domain's kind cannot change now; empty if it can."""
    if domain.sleep is not None:
        return "sleeps on disk, or is to; defrost it, then reload"
    if domain.jobs:
        return f"has jobs ({', '.join(str(job.key) for job in domain.jobs)}); drain it, then reload"
    return "is saved to disk, or is being saved; defrost it, then reload" if domain.frozen or domain.saving else ""


def without_leftovers(host: Host) -> Result:
    """Forget the domains that are no longer configured, have no jobs and do not sleep."""
    left = [d.name for d in host.domains if not d.configured and not d.jobs and d.sleep is None]
    if not left:
        return host, ()
    said = tuple(Noted(name, Note.FORGOTTEN, None, "no longer configured, and it has no jobs") for name in left)
    return replace(host, domains=tuple(d for d in host.domains if d.name not in left)), said
