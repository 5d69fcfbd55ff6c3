"""`magrathea history`: what happened on this host, and what was decided."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import datetime
from pathlib import Path

import click
import msgspec

from magrathea import client
from magrathea import history as told
from magrathea.cli import sources, view
from magrathea.history import Entry, Query
from magrathea.messages import Snapshot

REFUSED = 1
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


class _Answer(msgspec.Struct):
    entries: list[Entry] = []


def moment(text: str, now: float) -> float:
    """`2h` ago, `08:30` today, `2026-11-21` or `2026-11-21T08:30`, local time, in Unix seconds. Raises ValueError."""
    if span := _SPAN.fullmatch(text):
        return now - float(span[1]) * _SECONDS[span[2]]
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
        text = f"{datetime.fromtimestamp(now):%Y-%m-%d} {text:0>5}"
    return datetime.fromisoformat(text).timestamp()


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> float:
    try:
        return moment(value, time.time()) if value else 0.0
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is none of 90s, 15min, 2h, 3d, 08:30, 2026-11-21T08:30") from error


def _entries(socket_option: str | None, journal: Path | None, query: Query) -> list[Entry]:
    """From the daemon, or from the file that was named; where the daemon is down, from the file that is there."""
    if journal is not None:
        return told.read_file(journal, query)
    request = {"op": "history", "about": query.about, "since": query.since, "limit": query.limit}
    path = client.socket_path(socket_option)
    try:
        return msgspec.json.decode(client.ask(path, request), type=_Answer).entries
    except msgspec.DecodeError as error:
        raise client.Unreachable(path, str(error), "it and this command are of different versions") from error
    except client.Unreachable as error:
        if socket_option or os.environ.get(client.SOCKET_VARIABLE) or not told.DEFAULT_FILE.exists():
            raise
        click.echo(f"magrathea history: {error.cause}: read from {told.DEFAULT_FILE}", err=True)
        return told.read_file(told.DEFAULT_FILE, query)


def _elsewhere(about: str, hub_option: str | None) -> str:
    """Where to ask, as far as a hub tells: a history lies on its host."""
    try:
        known = [view.snapshot for view in client.farm(client.hub_path(hub_option)).hosts]
    except (client.Unreachable, client.Refused):
        return "; a history lies on its host: run this there"
    hosts = [snapshot.host for snapshot in known if about in _names(snapshot)] or [s.host for s in known]
    return f"; a history lies on its host, run this on {' or '.join(hosts)}" if hosts else ""


def _names(snapshot: Snapshot) -> set[str]:
    domains = {name for domain in snapshot.domains for name in (domain.name, domain.vnode)}
    jobs = {job.id for domain in snapshot.domains for job in domain.jobs}
    return {snapshot.host, *domains, *jobs, *(id.partition(".")[0] for id in jobs)}


def _at(seconds: float, pattern: str) -> str:
    return time.strftime(pattern, time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03}"


def _table(entries: list[Entry]) -> None:
    rows = [
        (
            _at(e.at, "%Y-%m-%d %H:%M:%S"),
            e.domain or "-",
            e.job or "-",
            ("  " * (e.kind == "decision")) + told.sentence(e),
        )
        for e in entries
    ]
    for line in view.grid(("TIME", "DOMAIN", "JOB", "WHAT"), rows):
        click.echo(line.rstrip())


def _plain(entries: list[Entry]) -> None:
    for e in entries:
        columns = (_at(e.at, "%Y-%m-%dT%H:%M:%S"), e.kind, e.name, e.domain or "-", e.job or "-", e.data)
        click.echo("\t".join(columns))


def _json(entries: list[Entry]) -> None:
    rows = [{**msgspec.to_builtins(e), "data": json.loads(e.data), "sentence": told.sentence(e)} for e in entries]
    click.echo(json.dumps(rows, indent=2))


FORMS = {"table": _table, "json": _json, "plain": _plain}


@click.command(short_help="what happened on this host, and what was decided")
@click.argument("about", metavar="[JOB|DOMAIN|HOST]", required=False, default="", shell_complete=sources.names)
@click.option("--since", callback=_since, metavar="WHEN", help="No older ones: 2h, 3d, 08:30, 2026-11-21.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, told.MOST), default=100, show_default=True, help="The newest so many."
)
@sources.socket
@sources.hub
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    help=f"Read that file instead of asking  [where no daemon answers: {told.DEFAULT_FILE}]",
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
    """Show what happened on this host and what was decided, oldest first: all, or what is about a JOB or a DOMAIN.

    The node daemon is asked; where it is down its journal is read (as root). A history lies on its host: elsewhere the
    hub is asked which host that is, and the error says where to run this.

    \b
    Examples:
      magrathea history
      magrathea history 12 --since 2h
      magrathea history n1 --since 2026-11-21 --limit 1000
      magrathea history --format plain | awk -F'\\t' '$3 == "Refused"'
      magrathea history --journal /backup/journal.sqlite 12.srv

    Columns of `plain`, tab-separated: local time, `event` or `decision`, its name, domain, job, all of it as JSON; `-`
    is none. `json` has Unix seconds and the table's sentence, too.

    Exit codes: 0 done, even if there is nothing; 1 refused, or the file cannot be read; 2 wrong usage; 3 no daemon
    answers.
    """
    try:
        entries = _entries(socket_option, journal, Query(about, since, limit))
    except (client.Refused, told.Unreadable) as error:
        click.echo(f"magrathea history: {error}", err=True)
        raise click.exceptions.Exit(REFUSED) from error
    except client.Unreachable as error:
        click.echo(f"magrathea history: {error}{_elsewhere(about, hub_option)}", err=True)
        raise click.exceptions.Exit(sources.NOT_REACHABLE) from error
    FORMS[form](entries)
