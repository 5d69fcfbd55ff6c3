"""`magrathea status`: one host's domains and jobs, as they are and as they should be."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from magrathea import client
from magrathea.cli import sources, view
from magrathea.core.model import State
from magrathea.messages import FarmView, Snapshot

OK, TROUBLE, NOT_REACHABLE = 0, 1, 3
BAD_STATES = (State.FAULT, State.UNKNOWN)
WATCH_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def exit_code(snapshot: Snapshot) -> int:
    return TROUBLE if any(domain.state in BAD_STATES for domain in snapshot.domains) else OK


def _through_hub(host: str | None, hub_option: str | None, form: str, watch: float | None) -> None:
    """All hosts as the hub knows them, or one. Never returns."""
    if watch is not None:
        raise click.UsageError("--watch is for the daemon of this host; for all: watch magrathea hosts")
    try:
        farm = client.farm(client.hub_path(hub_option))
    except (client.Unreachable, client.Refused) as error:
        click.echo(f"magrathea status: {error}", err=True)
        raise click.exceptions.Exit(NOT_REACHABLE) from error
    views = [found for found in farm.hosts if host in (None, found.snapshot.host)]
    if host and not views:
        raise click.UsageError(f"the hub has never heard of host {host}; known: {', '.join(_names(farm)) or 'none'}")
    for found in views:
        if not found.live:
            name, age = found.snapshot.host, view.duration(farm.at - found.snapshot.at)
            click.echo(f"magrathea status: {name} is silent; this is what it said {age} ago", err=True)
    if form == "json":
        texts = [view.as_json(found.snapshot, compact=True).strip() for found in views]
        click.echo(texts[0] if host else f"[{','.join(texts)}]")
    else:
        between = "\n" if form == "table" else ""
        click.echo(between.join(view.FORMS[form](found.snapshot) for found in views), nl=False)
    bad = any(not found.live or exit_code(found.snapshot) for found in views)
    raise click.exceptions.Exit(TROUBLE if bad else OK)


def _names(farm: FarmView) -> list[str]:
    return [found.snapshot.host for found in farm.hosts]


def _agent_file() -> Path:
    return Path(os.environ.get("MAGRATHEA_AGENT_CONF") or "/etc/magrathea/agent.json")


def _in_guest() -> None:
    """What the agent of this guest can say. Never returns."""
    try:
        path = json.loads(_agent_file().read_text(encoding="utf-8")).get("socket", "/run/magrathea/agent.sock")
        connected = bool(json.loads(client.ask(Path(path), {"op": "ping"})).get("connected"))
    except (OSError, ValueError, AttributeError, client.Unreachable, client.Refused) as error:
        click.echo(f"magrathea status: this is a guest, but its agent cannot be asked (as root?): {error}", err=True)
        raise click.exceptions.Exit(NOT_REACHABLE) from error
    word = "connected to" if connected else "not connected to"
    click.echo(f"this is a guest; its agent is {word} its host's daemon; its domain: `magrathea status` on its host")
    raise click.exceptions.Exit(OK if connected else TROUBLE)


@click.command(short_help="a host's domains, jobs, CPU and memory")
@click.argument("host", required=False)
@click.option(
    "--socket",
    "socket_option",
    metavar="PATH",
    help=f"The daemon's control socket  [default: ${client.SOCKET_VARIABLE}, else {client.DEFAULT_SOCKET}]",
)
@sources.hub
@click.option(
    "--format",
    "form",
    type=click.Choice(list(view.FORMS)),
    default="table",
    show_default=True,
    help="For people, for programs, or tab-separated for scripts.",
)
@click.option(
    "--watch",
    metavar="[SECONDS]",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=WATCH_S,
    help=f"Again every so many seconds ({WATCH_S:g} if not said), until interrupted.",
)
def status(host: str | None, socket_option: str | None, hub_option: str | None, form: str, watch: float | None) -> None:
    """Show this host, or HOST as the hub knows it.

    Its domains with kind and state since when and why, CPU and memory as they are and, after an
    arrow, as they should be; and its jobs.

    \b
    Examples:
      magrathea status
      magrathea status --watch 5
      magrathea status h2
      magrathea status --format plain | awk -F'\\t' '$4 == "preempted" {print $2}'
      magrathea status --format json --socket /tmp/h2/control.sock

    Columns of `plain`, one line a domain, never changed, new ones are added at the end; `-` is none or not known:

    \b
       1 host                 8 job ids, comma between       15 agent: yes or no
       2 domain               9 of these stopped by us       16 preempted job-seconds
       3 kind                10 CPU cap, 100 is one CPU      17 vnode in PBS
       4 state               11 as it should be              18 why
       5 since, Unix seconds 12 memory, MiB
       6 accepted classes    13 as it should be
       7 number of jobs      14 rank

    Where no daemon is, the hub is asked for all its hosts (JSON is then a list); in a guest, the agent whether it is
    connected: what its domain is, its host and the hub know.

    Exit codes: 0 all well; 1 a domain is in fault or unknown; 2 wrong usage, or no such
    host; 3 nobody answers.
    """
    path = client.socket_path(socket_option)
    elsewhere = host or hub_option or not (socket_option or os.environ.get(client.SOCKET_VARIABLE) or path.exists())
    if elsewhere and (host or hub_option or os.environ.get(client.HUB_VARIABLE) or client.HUB_SOCKET.exists()):
        _through_hub(host, hub_option, form, watch)
    if elsewhere and _agent_file().exists():
        _in_guest()
    if watch is None:
        try:
            snapshot = client.status(path)
        except (client.Unreachable, client.Refused) as error:
            click.echo(f"magrathea status: {error}", err=True)
            raise click.exceptions.Exit(NOT_REACHABLE) from error
        click.echo(view.FORMS[form](snapshot), nl=False)
        raise click.exceptions.Exit(exit_code(snapshot))
    code = OK
    try:
        while True:
            try:
                snapshot = client.status(path)
                text, code = view.FORMS[form](snapshot, compact=True), exit_code(snapshot)
            except (client.Unreachable, client.Refused) as error:
                text, code = "", NOT_REACHABLE
                click.echo(f"magrathea status: {error}", err=True)
            if text:
                click.echo((CLEAR if form == "table" and sys.stdout.isatty() else "") + text, nl=False)
            time.sleep(watch)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(code) from None
