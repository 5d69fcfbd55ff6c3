"""What an event about a domain's sleep changes: it falls asleep, wakes, or does neither. Called by machine.py and by
domain_events.py.

Rule 1: the jobs of a domain that sleeps stay facts, whatever comes. They are released if PBS no longer has them, or if
the domain's image is lost.
Rule 2: waking is a consequence, not a decision of somebody: `woken` follows from the facts after each event.
"""

from __future__ import annotations

from dataclasses import replace

from . import events as ev
from .changes import BOOTS, Result, refuse, stop, with_facts
from .model import Domain, Host, Lifecycle, Sleep, SleepCause
from .refusals import RefusalCode
from .sleeping import jobs_can_be_saved
from .stopping import to_wake


def sleep_requested(host: Host, domain: Domain, event: ev.SleepRequested) -> Result:
    """The caller has checked that an admin's request about the domain is possible now."""
    name, sleep = domain.name, domain.sleep
    if domain.asleep and sleep is not None:
        if sleep.wakes:
            left = replace(sleep, wakes=False, reason=event.reason, cause=event.cause)
            host, _ = with_facts(host, name, sleep=left)
        return host, (ev.Accepted(name),)
    gates = (
        (
            domain.frozen or domain.saving,
            RefusalCode.DOMAIN_FROZEN,
            f"{name} is frozen, is just being frozen or restored; defrost it, or wait",
        ),
        (domain.lifecycle is Lifecycle.DOWN, RefusalCode.DOMAIN_DOWN, f"{name} is down; there is nothing to save"),
        (domain.lifecycle is Lifecycle.BOOTING, RefusalCode.DOMAIN_BOOTING, f"{name} is booting; wait"),
        (
            domain.paused_externally,
            RefusalCode.DOMAIN_UNKNOWN,
            f"{name} is paused by somebody else, so nothing in it can be stopped; `virsh resume` or the like ends it",
        ),
        (
            not domain.configured,
            RefusalCode.NOT_FREEZABLE,
            f"{name} is no longer configured, so nothing could bring it back; configure it again first",
        ),
        (
            host.hub_lost and event.book_within_s is None,
            RefusalCode.HUB_LOST,
            f"the jobs of {name} would be stopped, but no hub answers to suspend them in PBS: start the hub first",
        ),
    )
    if no := next(((code, text) for holds, code, text in gates if holds), None):
        return refuse(host, event, *no)
    until = None if event.book_within_s is None else host.now + event.book_within_s
    since = sleep.since if sleep is not None else host.now
    asleep = Sleep(since, event.reason or "no reason given", event.cause, books_until=until)
    host, _ = with_facts(host, name, sleep=asleep, linger_until=None, woken_at=None)
    return host, (ev.Accepted(name),)


def given_up(host: Host, domain: Domain) -> Domain:
    """`domain`, which must no longer fall asleep. If it may be being saved at this moment, the hypervisor tells which
    it was (life.learned): until then its jobs stay stopped, and then it goes on, or comes back from its sleep."""
    if domain.sleep is None or not domain.falls_asleep or domain.sleep.wakes:
        return domain
    if jobs_can_be_saved(host, domain):
        return replace(domain, sleep=replace(domain.sleep, wakes=True))
    return replace(domain, sleep=None, woken_at=host.now)


def wake_requested(host: Host, domain: Domain) -> Result:
    """A sleeping domain waits for its turn from now on. One that falls asleep does not."""
    if domain.asleep and domain.sleep is not None:
        domain = replace(domain, sleep=replace(domain.sleep, wakes=True), down_why="")
    return host.having(given_up(host, domain)), (ev.Accepted(domain.name),)


def woken(host: Host) -> Result:
    """The domains whose turn has come are restored from now on."""
    names = to_wake(host)
    woken = [d for d in host.domains if d.name in names]
    if not woken:
        return host, ()
    boots = (replace(d, boot_until=host.now + d.boot_limit_s, overtaken_since=None, **BOOTS) for d in woken)
    return host.having(*boots), tuple(ev.Noted(d.name, ev.Note.WAKES, None, "its turn has come") for d in woken)


def awake_after_all(host: Host, domain: Domain, event: ev.SleepEnded) -> Result:
    if not domain.falls_asleep or domain.sleep is None or not domain.sleep.wakes:
        return refuse(host, event, RefusalCode.NOT_SAVING, f"{domain.name} does not give up its sleep")
    return with_facts(host, domain.name, sleep=None, woken_at=host.now)


def saved(host: Host, domain: Domain, event: ev.FreezeEnded) -> Result:
    """The domain is saved with its jobs, or could not be. Also if somebody else has saved it when its jobs were
    stopped and suspended in PBS anyway: nothing of them is lost, so it sleeps."""
    if event.failed:
        host, _ = with_facts(host, domain.name, sleep=None, woken_at=host.now)
        return host, (ev.Noted(domain.name, ev.Note.FREEZE_FAILED, None, event.failed),)
    by_others = Sleep(host.now, "somebody else saved it to disk", SleepCause.ADMIN)
    jobs = tuple(replace(j if j.stopper else stop(host, j), confirmed=True) for j in domain.jobs)
    said = tuple(
        ev.Noted(domain.name, ev.Note.PREEMPTED, j.key, "its domain's sleep") for j in domain.jobs if not j.stopper
    )
    return host.having(
        replace(
            domain,
            jobs=jobs,
            sleep=domain.sleep or by_others,
            lifecycle=Lifecycle.DOWN,
            saving=False,
            agent_lost_at=host.now,
            linger_until=None,
            paused_externally=False,
            down_why="",
            woken_at=None,
        )
    ), said


def sleeps_on(domain: Domain, why: str) -> Domain:
    """`domain` after it could not be restored: it sleeps until somebody asks for it again. `why`: for people."""
    assert domain.sleep is not None
    asleep = replace(domain.sleep, wakes=False)
    return replace(domain, lifecycle=Lifecycle.DOWN, boot_until=None, down_why=why, sleep=asleep)
