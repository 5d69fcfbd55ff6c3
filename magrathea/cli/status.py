"""`magrathea status`: shows the domains and jobs of one or all hosts, or of a guest, as they are and should be."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from msgspec.structs import replace

from magrathea import client, files, output
from magrathea.cli import sources, view
from magrathea.core.words import State
from magrathea.reports import Snapshot

OK, TROUBLE, NOT_REACHABLE = 0, 1, 3
BAD_STATES = (State.FAULT, State.UNKNOWN)
WATCH_S = 2.0
FRAME = "\x1b[?7l\x1b[H{}\x1b[J\x1b[?7h"
"""One look on a terminal. It overwrites the last one from the top left corner, cuts long lines, and erases the rest. If
the screen was erased first, it would flicker."""


@dataclass(frozen=True, slots=True)
class StatusPage:
    """The text for standard output, the exit code, and sentences for standard error (`beside`)."""

    text: str
    code: int
    beside: tuple[str, ...] = ()


def exit_code(snapshot: Snapshot) -> int:
    return TROUBLE if any(domain.state in BAD_STATES for domain in snapshot.domains) else OK


def _of_daemon(path: Path, form: str, compact: bool) -> StatusPage:
    """This host, as its daemon reports it."""
    snapshot = client.status(path)
    return StatusPage(view.FORMS[form](snapshot, compact=compact), exit_code(snapshot))


def _of_hub(host: str | None, path: Path, form: str, compact: bool) -> StatusPage:
    """All hosts as the hub knows them, or one of them."""
    farm = client.farm(path)
    views = [found for found in farm.hosts if host in (None, found.snapshot.host)]
    if host and not views:
        names = ", ".join(found.snapshot.host for found in farm.hosts)
        raise click.UsageError(f"the hub does not know host {host}; known: {names or 'none'}")
    silent = [found.snapshot for found in views if not found.live]
    ages = [(old.host, view.duration(farm.at - old.at)) for old in silent]
    beside = tuple(f"{name} is silent; this is its last report, {age} old" for name, age in ages)
    if form == "json":
        texts = [view.as_json(found.snapshot, compact=True).strip() for found in views]
        text = (texts[0] if host else f"[{','.join(texts)}]") + "\n"
    elif form == "plain":
        text = "".join(view.plain(found.snapshot) for found in views)
    else:
        moving = (move for move in farm.moves if not move.over and host in (None, move.source, move.target))
        moves = "".join(f"on its way: {line}\n" for line in view.move_lines(moving, farm.at))
        own = (one for one in farm.elsewhere if host in (None, one.host, one.to))
        moves += "".join(f"preempted: {line}\n" for line in view.elsewhere_lines(own))
        tables = _tables([replace(v.snapshot, at=farm.at) if v.live else v.snapshot for v in views])
        text = "\n".join([*tables, *([moves] if moves else [])])
    bad = bool(silent) or any(exit_code(found.snapshot) for found in views)
    return StatusPage(text, TROUBLE if bad else OK, beside)


def _tables(snapshots: list[Snapshot]) -> list[str]:
    """A table for each host. A note that all hosts have is printed once, at the end."""
    shared = [note for note in snapshots[0].notes if all(note in s.notes for s in snapshots)] if snapshots else []
    if len(snapshots) < 2 or not shared:
        return [view.table(snapshot) for snapshot in snapshots]
    own = [replace(s, notes=[note for note in s.notes if note not in shared]) for s in snapshots]
    return [*(view.table(snapshot) for snapshot in own), view.notes(shared, "note, of all hosts")]


def _in_guest(form: str) -> StatusPage:
    """This guest's domain, as its agent reports it."""
    from magrathea.cli import guest_status

    text, well = guest_status.page(form)
    return StatusPage(text, OK if well else TROUBLE)


def _of_pbs(host: str | None) -> Callable[[str, bool], StatusPage]:
    """What PBS shows, for a machine with neither hub nor daemon nor agent."""
    from magrathea.cli import login

    return lambda form, compact: StatusPage(*login.status(form, host))


def _agent_here() -> bool:
    return files.exists(Path(os.environ.get("MAGRATHEA_AGENT_CONF") or "/etc/magrathea/agent.json"))


def _source(host: str | None, socket_option: str | None, hub_option: str | None) -> Callable[[str, bool], StatusPage]:
    """The source of the page: the one that an option names, otherwise the first of daemon, hub and agent here."""
    path, hub = client.socket_path(socket_option), client.hub_path(hub_option)
    daemon_named = socket_option or os.environ.get(client.SOCKET_VARIABLE)
    if host or hub_option:
        return lambda form, compact: _of_hub(host, hub, form, compact)
    if not daemon_named and not files.exists(path):
        if os.environ.get(client.HUB_VARIABLE) or files.exists(hub):
            return lambda form, compact: _of_hub(None, hub, form, compact)
        if _agent_here():
            return lambda form, compact: _in_guest(form)
    return lambda form, compact: _of_daemon(path, form, compact)


def _look(source: Callable[[str, bool], StatusPage], form: str, compact: bool) -> StatusPage:
    try:
        return source(form, compact)
    except (client.Unreachable, client.RequestRefused) as error:
        return StatusPage("", NOT_REACHABLE, (str(error),))


def _say(beside: tuple[str, ...]) -> None:
    for sentence in beside:
        view.say(f"magrathea status: {sentence}", err=True)


def _watch(source: Callable[[str, bool], StatusPage], form: str, seconds: float) -> int:
    """Repeat the look until interrupted. Returns the exit code of the last look."""
    code, screen = OK, form == "table" and sys.stdout.isatty()
    if screen:
        click.echo("\x1b[2J", nl=False)
    try:
        while not output.is_lost():
            look = _look(source, form, True)
            code = look.code
            if screen:
                beside = (view.clean(f"magrathea status: {sentence}") for sentence in look.beside)
                lines = [*beside, *look.text.splitlines()]
                lines += ["", f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C ends it"]
                click.echo(FRAME.format("".join(f"{line}\x1b[K\n" for line in lines)), nl=False)
            else:
                _say(look.beside)
                click.echo(look.text, nl=False)
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    return code


@click.command(short_help="a host's domains, jobs, CPU and memory")
@click.argument("host", required=False, shell_complete=sources.names)
@sources.socket
@sources.hub
@sources.form_option
@click.option(
    "--watch",
    metavar="[SECONDS]",
    type=sources.Number(float, 0.1, 86400),
    is_flag=False,
    flag_value=WATCH_S,
    help=f"Repeat every SECONDS (default: {WATCH_S:g}) until interrupted.",
)
def status(host: str | None, socket_option: str | None, hub_option: str | None, form: str, watch: float | None) -> None:
    """Show this host, or HOST as the hub knows it.

    It shows each domain with its kind, its state, since when and why, and its jobs. CPU and memory are shown as they
    are and, after an arrow, as they should be. On a machine without a daemon it asks the hub for all its hosts (JSON
    is then a list). In a guest, as root, it asks the agent about the guest's own domain. On a machine with none of them
    (a login node) it shows what PBS shows of all hosts, or of HOST.

    \b
    Examples:
      magrathea status
      magrathea status --watch 5
      magrathea status h2
      magrathea status --format plain | awk -F'\\t' '$4 == "preempted" {print $2}'
      magrathea status --format json --socket /tmp/h2/control.sock

    Columns of `plain`, one line for each domain. They never change; new ones come at the end. `-` is none or unknown:

    \b
       1 host                 8 job ids, comma between       15 agent: yes or no
       2 domain               9 of these stopped by us       16 preempted job-seconds
       3 kind                10 CPU cap, 100 is one CPU      17 vnode in PBS
       4 state               11 as it should be              18 why
       5 since, Unix seconds 12 memory, MiB                  19 host paused: yes or no
       6 accepted classes    13 as it should be
       7 number of jobs      14 rank

    On a login node: host, vnode, state, accepted classes, free CPUs, job ids, PBS's own state.

    In a guest, one line for each job: host, domain, agent connected (yes or no), job, run, owner, order, processes,
    stopped processes, stopped since.

    Exit codes: 0 all well; 1 a domain is in fault or unknown, a host is silent, or an agent has no daemon;
    2 wrong usage, or no such host; 3 no answer.
    """
    source = _source(host, socket_option, hub_option)
    if sources.by_pbs(socket_option, hub_option) and not _agent_here():
        source = _of_pbs(host)
    if watch is not None:
        raise click.exceptions.Exit(_watch(source, form, watch))
    look = _look(source, form, False)
    _say(look.beside)
    click.echo(look.text, nl=False)
    raise click.exceptions.Exit(look.code)
