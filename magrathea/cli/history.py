"""`magrathea history`: shows what happened on a host, and what was decided."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from magrathea import client, files
from magrathea import history as host_history
from magrathea.cli import sources, view
from magrathea.decoding import UNDECODABLE
from magrathea.history import Query
from magrathea.history_sentences import sentence
from magrathea.reports import HistoryEntry, HostHistory

T = TypeVar("T")

REFUSED = 1
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


class _OfHost(msgspec.Struct):
    entries: list[HistoryEntry] = []


class _OfHub(msgspec.Struct):
    hosts: list[HostHistory]


EntryOfHost = tuple[str, HistoryEntry]
"""An entry with the host that reported it; the name is empty if this host did."""


def moment(text: str, now: float) -> float:
    """`2h` ago, `08:30` today, `2026-11-21` or `2026-11-21T08:30`, local time, in Unix seconds. Raises ValueError."""
    if span := _SPAN.fullmatch(text):
        return now - float(span[1]) * _SECONDS[span[2]]
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
        text = f"{datetime.fromtimestamp(now):%Y-%m-%d} {text:0>5}"
    return datetime.fromisoformat(text).timestamp()


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    try:
        return max(0.0, moment(value, time.time())) if value else 0.0
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is not a time like 90s, 15min, 2h, 3d, 08:30, 2026-11-21T08:30") from error


def _by_hub(socket_option: str | None, hub_option: str | None) -> bool:
    """True if the hub should be asked: an option names it, or this machine has a hub and no sign of a host."""
    if hub_option or socket_option or os.environ.get(client.SOCKET_VARIABLE):
        return bool(hub_option)
    of_host = files.exists(client.DEFAULT_SOCKET) or files.exists(host_history.DEFAULT_FILE)
    return not of_host and bool(os.environ.get(client.HUB_VARIABLE) or files.exists(client.HUB_SOCKET))


def _of_hub(path: Path, query: Query) -> list[EntryOfHost]:
    """Entries from the hosts, through the hub, by time. Raises client.Unreachable, client.RequestRefused."""
    request = {"op": "history", "about": query.about, "since": query.since, "limit": query.limit}
    answer = client.ask(path, request, most=client.MAX_FARM_BYTES, owner=client.HUB)
    hosts = _decoded(path, answer, _OfHub).hosts
    for host in hosts:
        if host.trouble:
            view.say(f"magrathea history: {host.host}: {host.trouble}", err=True)
    rows = [(host.host, entry) for host in hosts for entry in host.entries]
    return sorted(rows, key=lambda row: row[1].at)[-query.limit :]


def _of_host(socket_option: str | None, query: Query) -> list[EntryOfHost]:
    """Entries from the daemon or, if it is down, from its journal. Raises as above, and Unreadable."""
    path = client.socket_path(socket_option)
    request = {"op": "history", "about": query.about, "since": query.since, "limit": query.limit}
    try:
        return [("", entry) for entry in _decoded(path, client.ask(path, request), _OfHost).entries]
    except client.Unreachable as error:
        if socket_option or os.environ.get(client.SOCKET_VARIABLE) or not files.exists(host_history.DEFAULT_FILE):
            raise
        view.say(f"magrathea history: {error.cause}; read from {host_history.DEFAULT_FILE}", err=True)
        return [("", entry) for entry in host_history.read_file(host_history.DEFAULT_FILE, query)]


def _decoded(path: Path, answer: bytes, schema: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=schema)
    except UNDECODABLE as error:
        raise client.Unreachable(path, str(error), "it and this command have different versions") from error


def _at(seconds: float, pattern: str) -> str:
    return time.strftime(pattern, time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03}"


def _table(rows: list[EntryOfHost]) -> None:
    cells = [(host, _at(e.at, "%Y-%m-%d %H:%M:%S"), e.domain or "-", e.job or "-", _indented(e)) for host, e in rows]
    header = ("HOST", "TIME", "DOMAIN", "JOB", "WHAT")
    first = 0 if any(host for host, _ in rows) else 1
    for line in view.grid(header[first:], [row[first:] for row in cells]):
        click.echo(line.rstrip())


def _indented(entry: HistoryEntry) -> str:
    """The entry's sentence. A decision is indented, because it stands below the event that led to it."""
    return ("  " if entry.kind == "decision" else "") + sentence(entry)


def _plain(rows: list[EntryOfHost]) -> None:
    for host, e in rows:
        at = _at(e.at, "%Y-%m-%dT%H:%M:%S")
        click.echo(view.tabs((at, e.kind, e.name, e.domain, e.job, e.data, host)))


def _json(rows: list[EntryOfHost]) -> None:
    data = [
        {"host": host or None, **msgspec.to_builtins(e), "data": json.loads(e.data), "sentence": sentence(e)}
        for host, e in rows
    ]
    click.echo(json.dumps(data, indent=2))


FORMS = {"table": _table, "json": _json, "plain": _plain}


@click.command(short_help="what happened on this host, and what was decided")
@click.argument("about", metavar="[JOB|DOMAIN|HOST]", required=False, default="", shell_complete=sources.names)
@click.option("--since", callback=_since, metavar="WHEN", help="Only newer entries: 2h, 3d, 08:30, 2026-11-21.")
@click.option(
    "-n",
    "--limit",
    type=sources.Number(int, 1, host_history.MOST),
    default=100,
    show_default=True,
    help="Only the newest.",
)
@sources.socket
@sources.hub
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help=f"Read that file instead of asking  [if no daemon answers: {host_history.DEFAULT_FILE}]",
)
@sources.form_option
def history(
    about: str,
    since: float,
    limit: int,
    socket_option: str | None,
    hub_option: str | None,
    journal: Path | None,
    form: str,
) -> None:
    """Show what happened on this host and what was decided, oldest first. With a JOB or DOMAIN: only what concerns it.

    On a host it asks the node daemon; if that is down, it reads the journal (as root). Elsewhere it asks the hub,
    which asks the hosts that have the job or domain now, or all hosts if none has.

    \b
    Examples:
      magrathea history
      magrathea history 12 --since 2h
      magrathea history n1 --since 2026-11-21 --limit 1000
      magrathea history --format plain | awk -F'\\t' '$3 == "Refused"'
      magrathea history h2 --hub /run/magrathea-hub/control.sock
      magrathea history --journal /backup/journal.sqlite 12.srv

    Columns of `plain`, tab-separated: local time, `event` or `decision`, its name, domain, job, all of it as JSON, host
    (from the hub). `-` is none. `json` also has Unix seconds and the table's sentence.

    Exit codes: 0 done, even if nothing was found; 1 refused, or the file cannot be read; 2 wrong usage; 3 neither
    daemon nor hub answers.
    """
    query = Query(about, since, limit)
    try:
        if journal is not None:
            rows = [("", entry) for entry in host_history.read_file(journal, query)]
        elif _by_hub(socket_option, hub_option):
            rows = _of_hub(client.hub_path(hub_option), query)
        else:
            rows = _of_host(socket_option, query)
    except (client.RequestRefused, host_history.Unreadable) as error:
        view.say(f"magrathea history: {error}", err=True)
        raise click.exceptions.Exit(REFUSED) from error
    except client.Unreachable as error:
        view.say(
            f"magrathea history: {error}; each host keeps its own history: run this there, or beside the hub", err=True
        )
        raise click.exceptions.Exit(sources.NOT_REACHABLE) from error
    FORMS[form](rows)
