"""`magrathea host evacuate` and `magrathea host return`: empties this host, and takes it back.

The daemon does the work; the command asks for it and prints its progress. If the command is ended, the daemon goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import msgspec

from magrathea import client
from magrathea.cli import sources, view
from magrathea.cli.following import answers
from magrathea.cli.host_actions import request
from magrathea.core.evacuation import Fate
from magrathea.evacuation_reports import EvacuationReport, LeaverReport, decoded

STILL_HERE = 4
"""Exit code: a domain was left as it is, and still runs here."""
LOOK_S = 1.0
"""How often the command asks for the progress."""


@click.command(short_help="move all domains away, or put them to sleep, or drain them")
@click.argument("host", shell_complete=sources.names)
@click.option("--to-disk", is_flag=True, help="Move nothing; put the domains to sleep.")
@click.option("--drain", "drain", is_flag=True, help="Move nothing, save nothing; let all jobs end.")
@click.option("--dry-run", is_flag=True, help="Show what would become of each domain, in which order; change nothing.")
@click.option("--reason", default="by the admin", show_default=True, help="Shown by status; at most 1000 letters.")
@sources.socket
@sources.form_option
def evacuate(
    host: str, to_disk: bool, drain: bool, dry_run: bool, reason: str, socket_option: str | None, form: str
) -> None:
    """Empty this host, HOST: each domain moves to another host with its jobs if one has room and takes it. Otherwise it
    is put to sleep on disk with its jobs; where that is not possible, it finishes them.

    First the command prints what becomes of each domain, in the order in which they leave. From then on no job starts
    here, and no domain comes. If something fails, the domain goes the next of these ways. Services do not move; those
    that [shutdown] of noded.toml puts to sleep are saved last, and the others are left as they are. The command waits
    until all is done and prints the progress. It can be ended with Ctrl-C: the daemon goes on, over restarts, too.
    Given once more, it shows how far that is. `magrathea host return HOST` takes the host back. HOST is for safety: any
    name but this host's is refused.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea host evacuate h1 --dry-run
      magrathea host evacuate h1 --reason "new memory"
      magrathea host evacuate h1 --to-disk

    Columns of `plain`, one line for each domain: name, what becomes of it (move, sleep, drain, leave), to which host
    (`-` if to none), stage (waiting, going, over), MiB, number of jobs, why it is nothing better.

    Exit codes: 0 evacuated, or a dry run; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers; 4 all is
    done, but something was left as it is and still runs here.
    """
    if to_disk and drain:
        raise click.UsageError("--to-disk and --drain exclude each other; give one of them")
    wish = Fate.DRAIN if drain else Fate.SLEEP if to_disk else Fate.MOVE
    path = client.socket_path(socket_option)

    def ask(op: str) -> EvacuationReport | None:
        return decoded(client.ask(path, {"op": op, "domain": host, "do": wish.value, "reason": reason}))

    with sources.answers("host evacuate"):
        report = ask("evacuate-plan" if dry_run else "evacuate")
        if report is None:
            return
        if form == "table":
            _show(report)
        if not dry_run:
            report = follow(report, lambda: ask("evacuation"), view.say if form == "table" else _nothing)
    if form == "json":
        click.echo(msgspec.json.encode(report).decode())
    elif form == "plain":
        for one in report.leavers:
            cells = (one.name, one.fate, one.to or "-", one.stage, one.mib, one.jobs, one.why or "-")
            click.echo(view.tabs(cells))
    if not dry_run and any(one.fate == Fate.LEAVE and one.up for one in report.leavers):
        raise click.exceptions.Exit(STILL_HERE)


def follow(
    report: EvacuationReport,
    look: Callable[[], EvacuationReport | None],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> EvacuationReport:
    """Say what changes until all is done, or the host is taken back. Returns the last report. Raises what `look`
    raises, if the daemon stays away."""
    said: dict[str, str] = {}
    reasons = {one.name: one.why for one in report.leavers}  # the plan has named them
    later = answers(look, lambda: pause(LOOK_S))
    while True:
        for one in report.leavers:
            text = one.text if one.why == reasons.get(one.name, "") else f"{one.text}{_instead(one)}"
            if text and said.get(one.name) != text:
                said[one.name] = text
                say(f"{one.name}: {text}")
        if not report.going_on:
            return report
        found = next(later)
        if found is None:
            say("the host has been taken back meanwhile")
            return report
        report = found


def _nothing(text: str) -> None:
    """Programs get the last report only."""


def _instead(one: LeaverReport) -> str:
    return f" ({one.why})" if one.why else ""


FATES = {
    Fate.MOVE: "moves to {to}",
    Fate.SLEEP: "is put to sleep on disk",
    Fate.DRAIN: "finishes its jobs",
    Fate.LEAVE: "is left as it is",
}


def _show(report: EvacuationReport) -> None:
    number = f"{len(report.leavers)} domain{'' if len(report.leavers) == 1 else 's'}"
    state = (
        "evacuated" if report.since and not report.going_on else "being evacuated" if report.since else "to evacuate"
    )
    view.say(f"{report.host}: {number}; {state}")
    for place, one in enumerate(report.leavers, 1):
        jobs = f", {one.jobs} job{'' if one.jobs == 1 else 's'}" if one.jobs else ""
        what = FATES[Fate(one.fate)].format(to=one.to)
        view.say(f"  {place}. {one.name}: {what}; {one.mib} MiB{jobs}{_instead(one)}")


@click.command(name="return", short_help="take this host back after `host evacuate`")
@click.argument("host", shell_complete=sources.names)
@sources.socket
@sources.form_option
def give_back(host: str, socket_option: str | None, form: str) -> None:
    """Take this host, HOST, back: its domains take jobs again, what the evacuation has put to sleep comes back, and
    domains of other hosts are taken again.

    Domains that sleep come back when there is room for their jobs, like preempted ones. What has moved away stays where
    it is; the command says where, and how to bring it back if its home is here. A move that is not complete yet turns
    back. Domains that were drained or put to sleep before the evacuation stay so. If the host is not evacuated, nothing
    is changed. HOST is for safety: any name but this host's is refused.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea host return h1 && magrathea status --watch
      magrathea host return h1 --format json

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("host-return", socket_option, form, domain=host)
