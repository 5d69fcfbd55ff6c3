"""Each entry of a host's history as a sentence for people.

An entry holds an event or a decision of the core as JSON (node_daemon/journal.py). It is decoded into its own type, so
that mypy reports an event without a sentence. An entry of another version that cannot be decoded is shown as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, assert_never, get_args

import msgspec

from magrathea.core import events as ev
from magrathea.core.events import Note
from magrathea.core.model import Patience, SleepCause
from magrathea.core.move_events import MoveNote, MoveNoted
from magrathea.decoding import UNDECODABLE
from magrathea.history import JobsListed, Recorded, Shortened
from magrathea.messages import HistoryEntry

KINDS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(ev.Event | Recorded)}
"""Types by the name in an entry."""

SHORTENED = '{"shortened_from_bytes":'

NOTES: Mapping[Note, str] = {
    Note.PREEMPTED: "stopped{by}",
    Note.CONTINUED: "runs again{after}",
    Note.ADOPTED: "adopted{why}",
    Note.RELEASED: "released{why}{in_all}",
    Note.EXPIRED: "expired{why}{in_all}",
    Note.MISSING: "missing{why}{in_all}",
    Note.DOMAIN_DOWN: "domain down{why}{in_all}",
    Note.NEWER_RUN: "newer run{why}{in_all}",
    Note.NOT_GIVEN: "not given by PBS{why}{in_all}",
    Note.OVER: "over in PBS{why}{in_all}",
    Note.BOOT_FAILED: "boot failed{why}",
    Note.FREEZE_FAILED: "freeze failed{why}",
    Note.KEPT: "kept{why}",
    Note.FORGOTTEN: "forgotten{why}",
    Note.RENAMED: "renamed{why}",
    Note.LEFT_OUT: "left out{why}",
    Note.WAKES: "comes back from its sleep{why}",
    Note.GIVES_WAY: "is to be put to sleep with its jobs{why}",
    Note.STAYS_AWAKE: "is not put to sleep{why}",
}
"""`by`, `why`: the note's text, that is who or why. `after`, `in_all`: how long the job was preempted."""

MOVES: Mapping[MoveNote, str] = {
    MoveNote.LEFT: "moved to {host}, which has its facts",
    MoveNote.STAYED: "stays on this host{why}",
    MoveNote.CALLED_OFF: "stays on this host, because somebody asked for that",
    MoveNote.ARRIVED: "moved here from {host}, with its facts",
    MoveNote.OLD_FACTS: "moved here from {host}, which is silent: with the facts that came before",
    MoveNote.SUPERSEDED: "owned by {host}: the facts here are old, and were dropped",
    MoveNote.WISHED: "is to go on elsewhere, as the hub wishes: {host}",
}
"""`host`: the other host. `why`: why the move came to nothing."""

CLOSES_WHEN: Mapping[Patience, str] = {
    Patience.DRAIN: "when its jobs have ended",
    Patience.IDLE: "when it happens to have no jobs",
    Patience.NOW: "at once",
}


SLEEPS_FOR: Mapping[SleepCause, str] = {
    SleepCause.ADMIN: "",
    SleepCause.SHUTDOWN: ", because its host shuts down",
    SleepCause.GIVE_WAY: ", because its memory must give way",
    SleepCause.EVACUATION: ", because its host is evacuated",
    SleepCause.MOVE: ", because it moves",
}


def sentence(entry: HistoryEntry) -> str:
    """What happened or was decided; for an unknown kind, its name and its data."""
    try:
        if entry.data.startswith(SHORTENED):
            left = msgspec.json.decode(entry.data, type=Shortened)
            return f"{entry.name}, shortened from {left.shortened_from_bytes} bytes: {left.begin}"
        if entry.name == JobsListed.__name__:
            return _list(msgspec.json.decode(entry.data, type=JobsListed))
        if entry.name not in KINDS:
            return _unknown(entry.name, msgspec.json.decode(entry.data, type=dict[str, Any]))
        what = _decoder(entry.name).decode(entry.data)
    except UNDECODABLE:
        return f"{entry.name} {entry.data}"
    return _decision(what) if isinstance(what, Recorded) else _event(what)


def _list(said: JobsListed) -> str:
    more = f" and {said.jobs - len(said.ids)} more" if said.jobs > len(said.ids) else ""
    counts = [f"{n} {word}" for word in ("suspended", "ending", "added", "gone") if (n := getattr(said, word))]
    return f"MoM lists {', '.join(said.ids) or 'no jobs'}{more}" + (f" ({', '.join(counts)})" if counts else "")


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


@cache
def _decoder(name: str) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(KINDS[name])


def _unknown(name: str, data: Mapping[str, Any]) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    rest = ", ".join(f"{key} {value}" for key, value in data.items() if key not in ("at", "domain", "key"))
    return f"{words}: {rest}" if rest else words


def _decision(decision: Recorded) -> str:
    match decision:
        case ev.Accepted(victims=victims):
            return f"accepted, preempting {', '.join(victims)}" if victims else "accepted"
        case ev.Refused(code=code, text=text):
            return f"refused ({code}): {text}"
        case ev.Noted(what=what, text=text, preempted_s=past_s):
            return NOTES[what].format(
                by=f" for {text.removesuffix(' (run 1)')}" if text else "",
                why=f": {text}" if text else "",
                after=f", after {seconds(past_s)}",
                in_all=f"; preempted for {seconds(past_s)} in all" if past_s else "",
            )
        case MoveNoted(what=move, text=text):
            return MOVES[move].format(host=text, why=f": {text}" if text else "")
        case _:
            assert_never(decision)


def _event(event: ev.Event) -> str:
    return _of_domain(event) if isinstance(event, ev.EventOfDomain) else _of_host(event)


def _of_host(event: ev.HostEvent) -> str:
    match event:
        case ev.BooksReported(jobs=jobs):
            booked = ", ".join(job.key.id for job in jobs if job.booked) or "none"
            held = ", ".join(job.key.id for job in jobs if job.held)
            return f"suspended in PBS's books: {booked}" + (f"; another host wants stopped: {held}" if held else "")
        case ev.HubLost():
            return "no hub answers: nothing new is preempted"
        case ev.HubFound():
            return "a hub answers"
        case ev.DriverLost():
            return "the hypervisor does not answer: its domains are unknown after a while"
        case ev.DriverFound():
            return "the hypervisor answers again"
        case ev.OthersSeen():
            return f"other domains of the hypervisor have {event.cpus} CPUs and {event.memory_mib} MiB"
        case ev.PauseRequested():
            return f"paused: {event.reason}"
        case ev.PauseEnded():
            return "unpaused"
        case ev.Reconfigured():
            domains = ", ".join(f"{domain.name} ({domain.kind})" for domain in event.domains) or "none"
            size = f"{event.cpus} CPUs, {event.memory_mib} MiB"
            return f"a new configuration: {event.host}, {event.mode}, {size}; domains: {domains}"
        case ev.DaemonStarted():
            return "the daemon started"
        case ev.TimerFired():
            return "a deadline passed"
        case _:
            assert_never(event)


def _as_pbs_says(job: ev.GivenJob) -> str:
    size = [f"CPUs: {job.cpus}"] if job.cpus is not None else []
    size += [f"{job.memory_mib} MiB"] if job.memory_mib else []
    return f"{job.key}" + (f" with {', '.join(size)}" if size else "")


def _of_domain(event: ev.DomainEvent) -> str:
    match event:
        case ev.Claimed():
            memory = f", {event.memory_mib} MiB" if event.memory_mib else ""
            return f"asked for: a job of class {event.cls}, CPUs: {event.cpus}{memory}"
        case ev.Released():
            return "ended or was given up"
        case ev.JobLaunched():
            return "its first process is there"
        case ev.JobsContinued(keys=keys):
            return f"its agent has continued {', '.join(map(str, keys))}"
        case ev.JobsReported(jobs=jobs):
            return f"MoM lists {', '.join(job.key.id for job in jobs) or 'no jobs'}"
        case ev.JobsGiven(jobs=jobs):
            return f"PBS has given it {', '.join(map(_as_pbs_says, jobs))}"
        case ev.JobsDenied(keys=keys):
            return f"PBS has there none of {', '.join(map(str, keys))}"
        case ev.AgentConnected():
            return "its agent is there"
        case ev.AgentLost():
            return "its agent is gone"
        case ev.MemoryReported():
            return f"{event.unreclaimable_mib} MiB are locked or in huge pages"
        case ev.DiskJudged(obstacle=obstacle):
            return f"cannot be put to sleep if it must give way: {obstacle}" if obstacle else "can be put to sleep"
        case ev.DomainBooting():
            return "boots"
        case ev.DomainStarted():
            return "is up"
        case ev.DomainStopped(reason=reason):
            return f"is down: {reason}" if reason else "is down"
        case ev.DomainHalted():
            return "somebody else has paused it: nothing in it runs"
        case ev.DomainWentOn():
            return "is no longer paused by somebody else"
        case ev.BootRequested():
            return "is to boot"
        case ev.ShutdownRequested():
            return f"is to be {'rebooted' if event.reboot else 'shut down'} {CLOSES_WHEN[event.patience]}"
        case ev.FreezeRequested():
            return "is to be saved to disk"
        case ev.SleepRequested(reason=reason, cause=cause):
            return f"is to be put to sleep with its jobs{SLEEPS_FOR[cause]}: {reason}"
        case ev.SleepEnded():
            return "is awake: it was to come back before it was saved, or has caught up after a move"
        case ev.FreezeEnded(failed=failed):
            return f"could not be saved: {failed}" if failed else "is saved to disk"
        case ev.DefrostRequested():
            return "is to be restored, or to stay awake"
        case ev.ImageLost():
            return "its saved image is gone"
        case ev.DrainRequested():
            return f"drains: {event.reason}"
        case ev.DrainEnded():
            return "takes jobs again"
        case ev.Faulted():
            return f"fault: {event.reason}"
        case ev.FaultCleared():
            return "its fault is cleared"
        case _:
            assert_never(event)
