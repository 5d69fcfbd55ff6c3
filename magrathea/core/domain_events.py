"""What an event about a domain's life changes: boots, ends, saving and restoring, drains. Called by machine.py only."""

from __future__ import annotations

from dataclasses import replace

from . import events as ev
from . import sleep_events
from .allocation import defrost_verdict
from .changes import BOOTS, Result, ResultOfDomain, bring_down, brought_down, preempt, refuse, with_facts
from .model import Amount, Closing, Domain, Host, Kind, Lifecycle
from .refusals import Refusal, RefusalCode
from .shares import restoring
from .sleeping import jobs_can_be_saved


def booting(host: Host, domain: Domain, event: ev.DomainBooting) -> Result:
    if event.until <= host.now:
        return refuse(
            host, event, RefusalCode.BAD_REQUEST, f"a boot of {domain.name} until {event.until} is over already"
        )
    if domain.falls_asleep:
        domain = sleep_events.awake(host, domain)
    return host.having(replace(domain, boot_until=event.until, saving=False, **BOOTS)), ()


def boot_requested(host: Host, domain: Domain, event: ev.BootRequested) -> Result:
    if no := _not_for_an_admin(host, domain):
        return refuse(host, event, no.code, no.text)
    if domain.asleep:
        text = f"{domain.name} sleeps with its jobs; `magrathea domain defrost {domain.name}` brings it back"
        return refuse(host, event, RefusalCode.DOMAIN_ASLEEP, text)
    if domain.frozen and not restoring(domain):
        text = f"{domain.name} is saved to disk; `magrathea domain defrost {domain.name}` brings it back as it was"
        return refuse(host, event, RefusalCode.DOMAIN_FROZEN, text)
    if domain.lifecycle is Lifecycle.DOWN:
        host, _ = with_facts(host, domain.name, boot_until=host.now + domain.boot_limit_s, **BOOTS)
    return host, (ev.Accepted(domain.name),)


def shutdown_requested(host: Host, domain: Domain, event: ev.ShutdownRequested) -> Result:
    if no := _not_for_an_admin(host, domain, but_closing=True):
        return refuse(host, event, no.code, no.text)
    if domain.sleep is not None:
        return refuse(host, event, RefusalCode.DOMAIN_ASLEEP, _no_shutdown_of_a_sleeper(domain))
    if domain.frozen or domain.saving:
        text = f"{domain.name} is saved to disk, or is just being saved or restored; defrost it first, or wait"
        return refuse(host, event, RefusalCode.DOMAIN_FROZEN, text)
    since = domain.closing.since if domain.closing else host.now
    host, _ = with_facts(host, domain.name, closing=Closing(event.reboot, event.patience, since))
    return host, (ev.Accepted(domain.name),)


def _no_shutdown_of_a_sleeper(domain: Domain) -> str:
    if domain.falls_asleep:
        return f"{domain.name} is to be put to sleep; wait, or give that up by `magrathea undrain {domain.name}`"
    if domain.waking:
        return f"{domain.name} is coming back from its sleep; wait until it is up"
    return (
        f"{domain.name} sleeps with its jobs; `magrathea domain defrost {domain.name}` first. To give up its jobs,"
        " delete its image (`virsh managedsave-remove`)"
    )


def _not_for_an_admin(host: Host, domain: Domain, *, but_closing: bool = False) -> Refusal | None:
    """Why an admin's request about a domain's life is refused now; None if it is not."""
    name = domain.name
    paused = host.paused.reason if host.paused else ""
    gates = (
        (domain.kind is Kind.SERVICE, RefusalCode.WRONG_KIND, f"{name} is a service: it is left alone"),
        (
            host.paused is not None,
            RefusalCode.PAUSED,
            f"{host.name} is paused ({paused}); `magrathea unpause` there first",
        ),
        (
            domain.closing is not None and not but_closing,
            RefusalCode.DOMAIN_CLOSING,
            f"{name} is to go down; wait for it, or give that up by `magrathea undrain {name}`",
        ),
    )
    return next((Refusal(code, text) for holds, code, text in gates if holds), None)


def stopped(host: Host, domain: Domain, event: ev.DomainStopped) -> Result:
    closing = domain.closing
    why = "it went down by itself, or by somebody else"
    if closing:
        why = "it was shut down on request"
    elif domain.lifecycle is Lifecycle.DOWN:
        why = domain.down_why
    left, said = gone(host, domain, event.reason or why)
    host = host.having(left)
    host, _ = with_facts(host, domain.name, closing=None)
    if closing and closing.reboot and not domain.frozen:
        host, _ = with_facts(host, domain.name, boot_until=host.now + domain.boot_limit_s, **BOOTS)
    return host, said


def gone(host: Host, domain: Domain, why: str) -> ResultOfDomain:
    """`domain` after it went down, or could not be restored. If it sleeps, it sleeps on, with its jobs."""
    if domain.asleep:
        return domain, ()
    return (sleep_events.sleeps_on(domain, why), ()) if domain.waking else brought_down(host, domain, why)


def halted(host: Host, domain: Domain, event: ev.DomainHalted) -> Result:
    if domain.lifecycle is not Lifecycle.UP:
        return refuse(host, event, RefusalCode.DOMAIN_DOWN, f"{domain.name} is {domain.lifecycle}")
    return with_facts(host, domain.name, paused_externally=True)


def started(host: Host, domain: Domain, event: ev.DomainStarted) -> Result:
    if domain.lifecycle is Lifecycle.UP:
        return host, ()
    up = replace(domain, lifecycle=Lifecycle.UP, boot_until=None, frozen=False, paused_externally=False, down_why="")
    up = replace(up, stays_awake="")
    if up.agent_lost_at is not None:
        up = replace(up, agent_lost_at=host.now)
    if domain.sleep is not None:
        up = replace(up, sleep=None, woken_at=host.now if domain.stopped else None)
    if domain.frozen and host.limits.linger_s > 0:
        until = host.now + host.limits.linger_s
        up = replace(up, linger_until=until, linger_size=Amount(domain.cpus, domain.memory_mib))
    return host.having(up), ()


def sleep_requested(host: Host, domain: Domain, event: ev.SleepRequested) -> Result:
    if no := _not_for_an_admin(host, domain):
        return refuse(host, event, no.code, no.text)
    return sleep_events.sleep_requested(host, domain, event)


def freeze_requested(host: Host, domain: Domain, event: ev.FreezeRequested) -> Result:
    if no := _not_for_an_admin(host, domain):
        return refuse(host, event, no.code, no.text)
    if domain.kind is not Kind.PRIORITY or domain.lifecycle is not Lifecycle.UP:
        return refuse(
            host, event, RefusalCode.NOT_FREEZABLE, f"only a priority domain that is up is frozen, not {domain.name}"
        )
    if domain.sleep is not None:
        text = f"{domain.name} is to be put to sleep with its jobs; `magrathea undrain {domain.name}` gives that up"
        return refuse(host, event, RefusalCode.DOMAIN_ASLEEP, text)
    return with_facts(host, domain.name, saving=True)


def freeze_ended(host: Host, domain: Domain, event: ev.FreezeEnded) -> Result:
    stands_still = domain.lifecycle is Lifecycle.UP and domain.jobs and jobs_can_be_saved(host, domain)
    if domain.falls_asleep or (stands_still and not event.failed):
        return sleep_events.saved(host, domain, event)
    if not domain.saving or domain.jobs:
        return refuse(host, event, RefusalCode.NOT_SAVING, f"{domain.name} is not being saved")
    host, _ = with_facts(host, domain.name, saving=False, frozen=not event.failed)
    if event.failed:
        return host, (ev.Noted(domain.name, ev.Note.FREEZE_FAILED, None, event.failed),)
    over = {"lifecycle": Lifecycle.DOWN, "agent_lost_at": host.now, "linger_until": None, "paused_externally": False}
    return with_facts(host, domain.name, down_why="", **over)


def defrost_requested(host: Host, domain: Domain, event: ev.DefrostRequested) -> Result:
    if restoring(domain) or domain.waking:
        return host, (ev.Accepted(domain.name),)
    if domain.asleep and not domain.configured:
        text = f"{domain.name} is no longer configured, so nothing could bring it back; configure it again first"
        return refuse(host, event, RefusalCode.NOT_FREEZABLE, text)
    if domain.sleep is not None:
        return sleep_events.wake_requested(host, domain)
    answer = defrost_verdict(host, domain, event.until)
    if isinstance(answer, Refusal):
        return refuse(host, event, answer.code, answer.text)
    host, said = preempt(host, answer, f"the restore of {domain.name}")
    host, _ = with_facts(host, domain.name, boot_until=event.until, **BOOTS)
    return host, (*said, ev.Accepted(domain.name, None, answer))


def image_lost(host: Host, domain: Domain, event: ev.ImageLost) -> Result:
    if not domain.frozen and not domain.away:
        return host, ()
    host, said = bring_down(host, domain, "its image on disk is gone")
    return host.having(replace(host.domain(domain.name) or domain, frozen=False)), said


def image_or_console(domain: Domain) -> str:
    if domain.frozen or domain.sleep is not None:
        return f"its image is kept: look at its console, then `magrathea domain defrost {domain.name}`"
    return f"look at its console and at its agent, then `magrathea domain boot {domain.name}`"


def drain_requested(host: Host, domain: Domain, event: ev.DrainRequested) -> Result:
    if domain.kind is Kind.SERVICE:
        return refuse(host, event, RefusalCode.WRONG_KIND, f"{domain.name} is a service; it takes no jobs anyway")
    return with_facts(host, domain.name, draining=event.reason or "no reason given")


def disk_judged(host: Host, domain: Domain, event: ev.DiskJudged) -> Result:
    if domain.kind is Kind.SERVICE:
        return refuse(host, event, RefusalCode.WRONG_KIND, f"{domain.name} is a service; it gives way to nobody")
    return with_facts(host, domain.name, disk_obstacle=event.obstacle)


def memory_reported(host: Host, domain: Domain, event: ev.MemoryReported) -> Result:
    if event.unreclaimable_mib < 0:
        return refuse(host, event, RefusalCode.BAD_REQUEST, f"{event.unreclaimable_mib} MiB is no amount of memory")
    most = max(0, (domain.memory_mib or host.memory_mib) - domain.floor_mib)
    return with_facts(host, domain.name, unreclaimable_mib=min(event.unreclaimable_mib, most))
