"""`magrathea status`: one host's domains and jobs, as they are and as they should be."""

from __future__ import annotations

import sys
import time

import click

from magrathea import client
from magrathea.cli import view
from magrathea.core.model import State
from magrathea.messages import Snapshot

OK, TROUBLE, NOT_REACHABLE = 0, 1, 3
BAD_STATES = (State.FAULT, State.UNKNOWN)
WATCH_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def exit_code(snapshot: Snapshot) -> int:
    return TROUBLE if any(domain.state in BAD_STATES for domain in snapshot.domains) else OK


@click.command(short_help="this host's domains, jobs, CPU and memory")
@click.option(
    "--socket",
    "socket_option",
    metavar="PATH",
    help=f"The daemon's control socket  [default: ${client.SOCKET_VARIABLE}, else {client.DEFAULT_SOCKET}]",
)
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
def status(socket_option: str | None, form: str, watch: float | None) -> None:
    """Show this host: its domains with kind and state since when and why, CPU and memory as they are and, after an
    arrow, as they should be; and its jobs.

    \b
    Examples:
      magrathea status
      magrathea status --watch 5
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

    Exit codes: 0 all well; 1 a domain is in fault or unknown; 2 wrong usage; 3 the daemon does not answer.
    """
    path = client.socket_path(socket_option)
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
