"""`magrathea status` inside a guest: shows the guest's own domain as its agent knows it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from magrathea import client
from magrathea.cli import view
from magrathea.configuration import ConfigurationError, read_text
from magrathea.decoding import UNDECODABLE

DEFAULT_FILE = Path("/etc/magrathea/agent.json")
FILE_VARIABLE = "MAGRATHEA_AGENT_CONF"
DEFAULT_SOCKET = "/run/magrathea/agent.sock"


class AgentStatusJob(msgspec.Struct):
    """`order`: the daemon's last order, None without one. `since`: start of a standing stop, Unix seconds.
    `pending`: processes in uninterruptible sleep that stop when they wake; they do nothing, like the stopped ones."""

    id: str
    run: int
    owner: str
    order: str | None
    processes: int
    stopped: int
    since: float | None = None
    pending: int = 0


class AgentStatusMemory(msgspec.Struct):
    total_mib: int
    available_mib: int


class AgentStatus(msgspec.Struct):
    """The agent's answer. `connected`: to its host's daemon; if not, `host` and `domain` are the last known names.
    `unread`: processes whose memory does not answer, so nobody knows by their environment whose job's they are."""

    connected: bool
    host: str
    domain: str
    agent: str
    jobs: list[AgentStatusJob]
    memory: AgentStatusMemory
    load1: float
    unread: int = 0


def agent_file() -> Path:
    return Path(os.environ.get(FILE_VARIABLE) or DEFAULT_FILE)


def ask() -> AgentStatus:
    """The status of this guest's agent. Raises client.Unreachable, client.RequestRefused."""
    file = agent_file()
    try:
        path = Path(json.loads(read_text(file)).get("socket", DEFAULT_SOCKET))
    except (ConfigurationError, ValueError, AttributeError, TypeError, RecursionError) as error:
        fix = "`magrathea-agent --check` shows what to fix in that file, as root"
        raise client.Unreachable(file, str(error), fix, client.AGENT) from error
    answer = client.ask(path, {"op": "status"}, owner=client.AGENT)
    try:
        return msgspec.json.decode(answer, type=AgentStatus)
    except UNDECODABLE as error:
        raise client.Unreachable(path, str(error), "agent and command have different versions", client.AGENT) from error


def _doing(job: AgentStatusJob, now: float) -> str:
    if job.order == "stop":
        since = f" {view.duration(now - job.since)}" if job.since is not None else ""
        return f"stopped{since}" if job.stopped + job.pending >= job.processes else "being stopped"
    if job.order == "lift":
        return "PBS is about to continue it"
    return "running" if job.processes else "no processes"


def table(guest: AgentStatus, now: float) -> str:
    word = "connected to" if guest.connected else "NOT connected to"
    lines = [
        view.clean(
            f"domain {guest.domain or 'not known yet'} of host {guest.host or 'not known yet'}: agent {guest.agent}, "
            f"{word} its host's daemon"
        ),
        f"memory {guest.memory.total_mib} MiB, {guest.memory.available_mib} MiB available; load {guest.load1:.2f}",
    ]
    if guest.unread:
        text = f"{guest.unread} processes cannot be read, because their memory does not answer"
        lines.append(f"{text}; they belong to a job only by session, parent or control group (see the agent's log)")
    rows = [(job.id, job.owner, str(job.processes), str(job.stopped), _doing(job, now)) for job in guest.jobs]
    if rows:
        lines += ["", *view.grid(("JOB", "OWNER", "PROCESSES", "STOPPED", "STATE"), rows)]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def plain(guest: AgentStatus, now: float) -> str:
    own = [guest.host or "-", guest.domain or "-", "yes" if guest.connected else "no"]
    lines = [
        [*own, job.id, job.run, job.owner, job.order or "-", job.processes, job.stopped, _whole(job.since)]
        for job in guest.jobs
    ]
    return "".join(view.tabs(line) + "\n" for line in lines or [[*own, *("-" * 7)]])


def _whole(seconds: float | None) -> str:
    return "-" if seconds is None else str(int(seconds))


def as_json(guest: AgentStatus, now: float) -> str:
    return view.json_text(guest) + "\n"


FORMS: dict[str, Callable[[AgentStatus, float], str]] = {"table": table, "json": as_json, "plain": plain}


def page(form: str) -> tuple[str, bool]:
    """This guest as text, and whether its agent is connected. Raises client.Unreachable, client.RequestRefused."""
    guest = ask()
    return FORMS[form](guest, time.time()), guest.connected
