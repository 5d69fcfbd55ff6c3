"""A host's history, for people: what may be asked of it, where it lies, and each entry as a sentence.

It is written by the node daemon (node_daemon/journal.py), event by event and decision by decision, and read through
the daemon; where that is down, from its file, which is never written to from here.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from magrathea.decoding import UNDECODABLE
from magrathea.messages import HistoryEntry, Snapshot

DEFAULT_FILE = Path("/var/lib/magrathea/journal.sqlite")
MOST = 10_000
"""Entries that are told at most at a time."""


Row = tuple[float, str, str, str, str, bytes]


@dataclass(frozen=True, slots=True)
class Query:
    """The newest `limit` entries since then (Unix seconds) about a domain or a job, by its id or what is before the
    first dot of it; about everything where `about` is empty."""

    about: str = ""
    since: float = 0.0
    limit: int = 100


_SELECT = """
    SELECT at, kind, name, domain, job, data FROM history
    WHERE at >= ?1 AND (?2 = '' OR domain = ?2 OR job = ?2 OR substr(job, 1, length(?2) + 1) = ?2 || '.')
    ORDER BY id DESC LIMIT ?3
"""


class Unreadable(Exception):
    """The file cannot be read: which, why, and what to do."""


def select(connection: sqlite3.Connection, query: Query) -> list[HistoryEntry]:
    """What is asked for, oldest first. Raises sqlite3.Error."""
    values = (query.since, query.about, max(1, min(query.limit, MOST)))
    rows = connection.execute(_SELECT, values).fetchall()
    return [entry(row) for row in reversed(rows)]


def entry(row: Row) -> HistoryEntry:
    data = bytes(row[5]).decode(errors="replace")
    return HistoryEntry(at=row[0], kind=row[1], name=row[2], domain=row[3], job=row[4], data=data)


def matches(entry: HistoryEntry, query: Query) -> bool:
    """What `select` does, for entries that are not in the file yet."""
    about = ("", entry.domain, entry.job, entry.job.partition(".")[0])
    return entry.at >= query.since and query.about in about


def read_file(path: Path, query: Query) -> list[HistoryEntry]:
    """The same from a journal that no daemon has open. Raises Unreadable."""
    try:
        path.stat()  # sqlite does not say why it cannot open a file
        with path.open("rb"), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return select(connection, query)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise Unreadable(f"{path}: {why}; run it as root, or name the file by --journal") from error


def is_about(snapshot: Snapshot, about: str) -> bool:
    """Whether the host is, or now has, what somebody asks about: a domain, a vnode, a job by all of its id or less."""
    domains = {name for domain in snapshot.domains for name in (domain.name, domain.vnode)}
    jobs = {job.id for domain in snapshot.domains for job in domain.jobs}
    return about in {snapshot.host, *domains, *jobs, *(id.partition(".")[0] for id in jobs)}


# Each entry as a sentence.


def sentence(entry: HistoryEntry) -> str:
    """What happened or was decided; of a kind that is not known here, its name and its data."""
    try:
        data = msgspec.json.decode(entry.data, type=dict[str, Any])
        tell = SENTENCES.get(entry.name)
        return tell(data) if tell else _unknown(entry.name, data)
    except (*UNDECODABLE, KeyError, TypeError, ValueError, AttributeError):
        return f"{entry.name} {entry.data}"  # written by another version: told as it stands


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _unknown(name: str, data: Mapping[str, Any]) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    rest = ", ".join(f"{key} {value}" for key, value in data.items() if key not in ("at", "domain", "key"))
    return f"{words}: {rest}" if rest else words


def _job(data: Mapping[str, Any]) -> str:
    memory = f", {data['memory_mib']} MiB" if data.get("memory_mib") else ""
    return f"a job of class {data['cls']}, CPUs: {data['cpus']}{memory}"


def _listed(data: Mapping[str, Any]) -> str:
    return f"MoM lists {', '.join(job['key'][0] for job in data['jobs']) or 'no jobs'}"


def _booked(data: Mapping[str, Any]) -> str:
    booked = ", ".join(job["key"][0] for job in data["jobs"] if job["booked"])
    held = ", ".join(job["key"][0] for job in data["jobs"] if job.get("held"))
    return f"suspended in PBS's books: {booked or 'none'}" + (f"; another host wants stopped: {held}" if held else "")


def _reconfigured(data: Mapping[str, Any]) -> str:
    domains = ", ".join(f"{domain['name']} ({domain['kind']})" for domain in data["domains"]) or "none"
    size = f"{data['cpus']} CPUs, {data['memory_mib']} MiB"
    return f"a new configuration: {data['host']}, {data['mode']}, {size}; domains: {domains}"


def _shutdown(data: Mapping[str, Any]) -> str:
    when = {"drain": "when its jobs have ended", "when-idle": "when it happens to have no jobs", "now": "at once"}
    return f"is to be {'rebooted' if data.get('reboot') else 'shut down'} {when[data.get('patience', 'drain')]}"


def _accepted(data: Mapping[str, Any]) -> str:
    victims = ", ".join(data.get("victims") or ())
    return f"accepted, preempting {victims}" if victims else "accepted"


def _noted(data: Mapping[str, Any]) -> str:
    text, past = data.get("text", ""), data.get("preempted_s", 0.0)
    match data["what"]:
        case "preempted":
            return f"stopped for {text.removesuffix(' (run 1)')}" if text else "stopped"
        case "continued":
            return f"runs again, after {seconds(past)}"
        case what:
            told = f"{what.replace('-', ' ')}: {text}" if text else what.replace("-", " ")
            return f"{told}; preempted for {seconds(past)} in all" if past else told


SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Claimed": lambda d: f"asked for: {_job(d)}",
    "Released": lambda d: "ended or was given up",
    "JobLaunched": lambda d: "its first process is there",
    "JobContinued": lambda d: "its agent has let it go on",
    "JobsReported": _listed,
    "BooksReported": _booked,
    "HubLost": lambda d: "no hub answers: nothing new is preempted",
    "HubFound": lambda d: "a hub answers",
    "DriverLost": lambda d: "the hypervisor does not answer: its domains are unknown after a while",
    "DriverFound": lambda d: "the hypervisor answers again",
    "OthersSeen": lambda d: f"other domains of the hypervisor have {d['cpus']} CPUs and {d['memory_mib']} MiB",
    "PauseRequested": lambda d: f"paused: {d['reason']}",
    "PauseEnded": lambda d: "unpaused",
    "Reconfigured": _reconfigured,
    "DaemonStarted": lambda d: "the daemon started",
    "AgentConnected": lambda d: "its agent is there",
    "AgentLost": lambda d: "its agent is gone",
    "MemoryReported": lambda d: f"{d['unreclaimable_mib']} MiB are locked or in huge pages",
    "DomainBooting": lambda d: "boots",
    "DomainStarted": lambda d: "is up",
    "DomainStopped": lambda d: f"is down: {d['reason']}" if d.get("reason") else "is down",
    "DomainHalted": lambda d: "somebody else has paused it: nothing in it runs",
    "DomainWentOn": lambda d: "is no longer paused by somebody else",
    "BootRequested": lambda d: "is to boot",
    "ShutdownRequested": _shutdown,
    "FreezeRequested": lambda d: "is to be saved to disk",
    "FreezeEnded": lambda d: f"could not be saved: {d['failed']}" if d.get("failed") else "is saved to disk",
    "DefrostRequested": lambda d: "is to be restored",
    "ImageLost": lambda d: "its saved image is gone",
    "DrainRequested": lambda d: f"drains: {d['reason']}",
    "DrainEnded": lambda d: "takes jobs again",
    "Faulted": lambda d: f"fault: {d['reason']}",
    "FaultCleared": lambda d: "its fault is cleared",
    "TimerFired": lambda d: "a deadline passed",
    "Accepted": _accepted,
    "Refused": lambda d: f"refused ({d['code']}): {d['text']}",
    "Noted": _noted,
}
"""By the names of the core's events and decisions (magrathea/core/events.py)."""
