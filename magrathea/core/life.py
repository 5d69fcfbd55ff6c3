"""A domain's life: which event the hypervisor's view implies, and which one step the facts demand next.

Rule 1: level-triggered. A wish (`Closing`, `saving`, a boot) is a fact. After each event and restart the step is
computed anew from the facts and the hypervisor's view, so the same step may be requested again.
Rule 2: the facts are brought up to date first. As long as something can be learned, no step is taken.
Rule 3: a domain is up when its agent has registered. While only its machine runs, it boots. If the hypervisor cannot
boot domains (`Seen.leads`), a domain is up as soon as it exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import events as ev
from .model import Domain, Host, Kind, Lifecycle
from .sleeping import jobs_can_be_saved, to_be_saved


@dataclass(frozen=True, slots=True)
class Seen:
    """A domain as it is now. `was_up`: it was up at the previous look; None at the first. `agent`: its agent is
    connected. `leads`: the hypervisor boots, ends and saves domains on request."""

    up: bool
    was_up: bool | None = None
    agent: bool = False
    saved: bool = False
    paused_externally: bool = False
    leads: bool = True


@dataclass(frozen=True, slots=True)
class StepOfLife:
    domain: str


class Boot(StepOfLife):
    """Start the domain, from its image if there is one."""


class Register(StepOfLife):
    """Greet its agent, which is connected. Then the domain is up."""


class GoOn(StepOfLife):
    """Let it run: it was saved while paused, so it was restored paused."""


class PowerOff(StepOfLife):
    """Ask it to shut down. Power it off if it does not."""


class Save(StepOfLife):
    """Save it to disk, with its jobs if it has any."""


class CatchUp(StepOfLife):
    """It stood still in a move: set its clock, renew MoM's connections, ask PBS about its jobs before they go on."""


LifeStep = Boot | Register | GoOn | PowerOff | Save | CatchUp


def learned(host: Host, domain: Domain, seen: Seen) -> ev.DomainEvent | None:
    """The event that brings the facts up to date; None if they are up to date."""
    if domain.lifecycle is Lifecycle.UP:
        return _learned_up(host, domain, seen)
    if not seen.leads:
        return ev.DomainStarted(host.now, domain.name) if seen.up else None
    if domain.lifecycle is Lifecycle.BOOTING:
        return _learned_booting(host, domain, seen)
    return _learned_down(host, domain, seen)


def _learned_up(host: Host, domain: Domain, seen: Seen) -> ev.DomainEvent | None:
    now, name = host.now, domain.name
    if not seen.up:
        if seen.saved and _nothing_is_lost(host, domain):
            return ev.FreezeEnded(now, name)
        saved = f"somebody else saved it to disk; `magrathea domain boot {name}` brings it back as it was"
        return ev.DomainStopped(now, name, saved if seen.saved else "")
    if domain.sleep is not None and domain.sleep.wakes and not seen.paused_externally:
        return ev.SleepEnded(now, name)
    # The hypervisor itself pauses what it saves.
    if seen.paused_externally != domain.paused_externally and not _may_be_being_saved(host, domain):
        return ev.DomainHalted(now, name) if seen.paused_externally else ev.DomainWentOn(now, name)
    return None


def _may_be_being_saved(host: Host, domain: Domain) -> bool:
    given_up = domain.sleep is not None and domain.sleep.wakes
    return domain.saving or given_up or to_be_saved(host, domain)


def _nothing_is_lost(host: Host, domain: Domain) -> bool:
    """True if the domain, which is saved, was to be saved, or has jobs that stood still in PBS's eyes, too."""
    if domain.jobs and domain.sleep is None:
        return jobs_can_be_saved(host, domain)
    return domain.saving or domain.sleep is not None


def _learned_booting(host: Host, domain: Domain, seen: Seen) -> ev.DomainEvent | None:
    if seen.up:
        return None
    if (domain.frozen or domain.sleep is not None) and not seen.saved:
        return ev.ImageLost(host.now, domain.name)
    if seen.was_up:
        return ev.DomainStopped(host.now, domain.name, "it went down while it booted; look at its console")
    return None


def _learned_down(host: Host, domain: Domain, seen: Seen) -> ev.DomainEvent | None:
    now, name = host.now, domain.name
    if seen.up and seen.was_up is None and not (domain.asleep or domain.frozen):
        # The daemon found it up at its own start; nobody knows since when. One that comes from an image registers
        # first: its clock is to be set.
        return ev.DomainStarted(now, name)
    if seen.up and not seen.was_up and not seen.agent:
        return ev.DomainBooting(now, name, now + domain.boot_limit_s)
    # A frozen domain that has just been found up comes from its image: it registers. A sleeping one that runs has been
    # restored, and has not registered in time: its jobs are in there.
    just_found_up = seen.up and not seen.was_up
    if not seen.saved and ((domain.frozen and not just_found_up) or (domain.asleep and not seen.up)):
        return ev.ImageLost(now, name)
    if domain.closing and not seen.up:
        return ev.DomainStopped(now, name)
    return None


def step(host: Host, domain: Domain, seen: Seen) -> LifeStep | None:
    """The next step in this domain's life; None if none is needed or allowed."""
    if not seen.leads or domain.kind is Kind.SERVICE:
        return None
    acts = host.paused is None
    up, booting = domain.lifecycle is Lifecycle.UP, domain.lifecycle is Lifecycle.BOOTING
    table: tuple[tuple[bool, type[LifeStep]], ...] = (
        (acts and seen.up and domain.must_go_down, PowerOff),
        (seen.up and seen.agent and not up, Register),
        (acts and seen.up and booting and seen.paused_externally, GoOn),
        (seen.up and seen.agent and up and (domain.still_since is not None or domain.rests_for_move), CatchUp),
        (acts and seen.up and up and to_be_saved(host, domain), Save),
        (acts and not seen.up and booting, Boot),
    )
    return next((kind(domain.name) for holds, kind in table if holds), None)
