"""What an event about a domain's sleep changes: it falls asleep, wakes, or does neither. Called by machine.py and by
domain_events.py.

Rule 1: the jobs of a domain that sleeps stay facts, whatever comes. They are released if PBS no longer has them, or if
the domain's image is lost.
Rule 2: waking is a consequence, not a decision of somebody: `woken` follows from the facts after each event. So is a
sleep by which a preempted domain gives way: `given_way`.
"""

from __future__ import annotations

from dataclasses import replace

from . import events as ev
from .changes import BOOTS, Result, refuse, stop, with_facts
from .giving_way import failed, givers, reason
from .model import Domain, GiveWay, Host, Lifecycle, Sleep, SleepCause
from .refusals import RefusalCode
from .shares import may_sleep
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
            event.cause is SleepCause.GIVE_WAY,
            RefusalCode.BAD_REQUEST,
            f"nobody asks {name} to give way: that follows from the memory that others need",
        ),
        (
            event.cause is SleepCause.MOVE or domain.rests_for_move,
            RefusalCode.DOMAIN_MOVING,
            f"the jobs of {name} stand still because of its move; wait until they go on",
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
    if domain.sleep is None or not domain.falls_asleep or domain.sleep.wakes or domain.rests_for_move:
        return domain
    if jobs_can_be_saved(host, domain):
        return replace(domain, sleep=replace(domain.sleep, wakes=True))
    return awake(host, domain)


def awake(host: Host, domain: Domain) -> Domain:
    """`domain` awake, without having been saved. Its jobs are about to go on in their place. If it was to give way,
    it has none: it is preempted, as before."""
    return replace(domain, sleep=None, woken_at=None if domain.must_give_way else host.now)


def kept_awake(host: Host, domain: Domain) -> Domain:
    """`domain` after somebody has asked for it before it was saved. If others need its memory, it is not asked again to
    give way."""
    kept = replace(domain, stays_awake="somebody has kept it awake") if domain.gives_way else domain
    return given_up(host, kept)


def given_way(host: Host) -> Result:
    """Preempted domains fall asleep from now on because others need their memory, or do so no longer. The same host if
    nothing changes."""
    said: tuple[ev.Decision, ...] = ()
    while True:
        counted = _as_counted(host)
        host, more = _given_way(counted)
        said += more
        if host is counted:
            return host, said


def _as_counted(host: Host) -> Host:
    """`host` with each domain knowing whether its swap counts: if it can give way to disk, and shall do only that, it
    does not. What kept it awake is forgotten with its jobs."""
    only_disk, changed = host.limits.give_way is GiveWay.DISK, []
    for domain in host.workers:
        left = domain if domain.jobs or not domain.stays_awake else replace(domain, stays_awake="")
        ignores = only_disk and may_sleep(host, left)
        if left is not domain or ignores is not left.ignores_swap:
            changed.append(replace(left, ignores_swap=ignores))
    return host.having(*changed) if changed else host


def _given_way(host: Host) -> Result:
    names = givers(host)
    changed: list[Domain] = []
    said: list[ev.Decision] = []
    for domain in host.workers:
        if domain.gives_way and domain.name not in names:
            why = failed(host, domain)
            changed.append(given_up(host, replace(domain, stays_awake=why)))
            said.append(ev.Noted(domain.name, ev.Note.STAYS_AWAKE, None, why or "its memory is not needed any more"))
        elif not domain.gives_way and domain.name in names:
            sleep = Sleep(host.now, reason(host), SleepCause.GIVE_WAY)
            changed.append(replace(domain, sleep=sleep, woken_at=None))
            said.append(ev.Noted(domain.name, ev.Note.GIVES_WAY, None, sleep.reason))
    return (host.having(*changed) if changed else host), tuple(said)


def wake_requested(host: Host, domain: Domain) -> Result:
    """A sleeping domain waits for its turn from now on. One that falls asleep does not."""
    if domain.asleep and domain.sleep is not None:
        domain = replace(domain, sleep=replace(domain.sleep, wakes=True), down_why="")
    return host.having(kept_awake(host, domain)), (ev.Accepted(domain.name),)


def woken(host: Host) -> Result:
    """The domains whose turn has come are restored from now on."""
    names = to_wake(host)
    woken = [d for d in host.domains if d.name in names]
    if not woken:
        return host, ()
    boots = (replace(d, boot_until=host.now + d.boot_limit_s, overtaken_since=None, **BOOTS) for d in woken)
    return host.having(*boots), tuple(ev.Noted(d.name, ev.Note.WAKES, None, "its turn has come") for d in woken)


def awake_after_all(host: Host, domain: Domain, event: ev.SleepEnded) -> Result:
    """A domain is awake that was not saved: somebody has given that up, or it stood still in a move only."""
    if domain.still_since is not None or domain.rests_for_move:
        caught_up = replace(domain, still_since=None)
        return host.having(awake(host, caught_up) if domain.rests_for_move else caught_up), ()
    if not domain.falls_asleep or domain.sleep is None or not domain.sleep.wakes:
        return refuse(host, event, RefusalCode.NOT_SAVING, f"{domain.name} does not give up its sleep")
    return host.having(awake(host, domain)), ()


def saved(host: Host, domain: Domain, event: ev.FreezeEnded) -> Result:
    """The domain is saved with its jobs, or could not be. Also if somebody else has saved it when its jobs were
    stopped and suspended in PBS anyway: nothing of them is lost, so it sleeps."""
    if event.failed:
        why = f"its save has failed: {event.failed}" if domain.gives_way else domain.stays_awake
        host = host.having(replace(awake(host, domain), stays_awake=why))
        return host, (ev.Noted(domain.name, ev.Note.FREEZE_FAILED, None, event.failed),)
    by_others = Sleep(host.now, "somebody else saved it to disk", SleepCause.ADMIN)
    jobs = tuple(replace(j if j.stopper else stop(host, j), confirmed=True) for j in domain.jobs)
    said = tuple(
        ev.Noted(domain.name, ev.Note.PREEMPTED, j.key, "its domain's sleep") for j in domain.jobs if not j.stopper
    )
    sleep = domain.sleep or by_others
    return host.having(
        replace(
            domain,
            jobs=jobs,
            sleep=replace(sleep, wakes=sleep.wakes or sleep.cause is SleepCause.GIVE_WAY),
            stays_awake="",
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
