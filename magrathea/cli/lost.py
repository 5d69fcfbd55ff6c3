"""`magrathea host lost`: tells the hub that a host is switched off, so that domains on their way do not wait for it."""

from __future__ import annotations

import click
import msgspec

from magrathea import client
from magrathea.cli import sources, view
from magrathea.move_reports import RUN_COPIES, LostAnswer, LostMove

HEADER = ("domain", "from", "to", "stage", "what follows")


@click.command("lost", short_help="end the waiting of domains that move, if a host is switched off for good")
@click.argument("host", shell_complete=sources.names)
@click.option(
    "--run-copies",
    is_flag=True,
    help="HOST went off in one moment (power, crash): let complete copies of its domains run at their targets.",
)
@click.option("--dry-run", is_flag=True, help="Show what would follow; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@sources.hub
@sources.form_option
def lost(host: str, run_copies: bool, dry_run: bool, yes: bool, hub_option: str | None, form: str) -> None:
    """Tell the hub that HOST is switched off. Run this where the hub is, as root or the hub's user.

    Domains on their way to or from HOST would wait until it is back; this ends their waiting, and nothing else. First
    make sure that the machine is off: a guest that runs on there would run twice, and destroy its disks. The hub
    refuses as long as it hears HOST. If HOST comes back, it learns that its copies are old, and does not run them.

    What follows depends on how far each move is; a dry run shows it. Without --run-copies no copy runs whose source may
    have run on after it was complete; such a domain has ended, and PBS treats its jobs like those of a host that died.
    Give --run-copies only if HOST went off in one moment, with its network up until then.

    \b
    Examples:
      magrathea host lost h1 --dry-run
      magrathea host lost h1 --run-copies

    Columns of `plain`, one line a domain, tab-separated: domain, source, target, stage, what follows; `yes` if the hub
    changes its books.

    Exit codes: 0 booked, or nothing moves there, or a dry run; 1 refused, or not permitted; 2 wrong usage; 3 no hub
    answers.
    """
    path = client.hub_path(hub_option)

    def ask(op: str) -> list[LostMove]:
        request = {"op": op, "about": host, **({"do": RUN_COPIES} if run_copies else {})}
        return msgspec.json.decode(client.ask(path, request, owner=client.HUB), type=LostAnswer).moves

    with sources.answers("host lost"):
        moves = ask("lost-plan")
        sure = yes or dry_run or not any(move.booked for move in moves)
        if not sure:
            _show(host, moves, "table", err=True)
            click.confirm(f"Is {host} switched off, and does it stay off until you start it?", abort=True, err=True)
        if not dry_run:
            moves = ask("lost")
    if sure or form != "table":
        _show(host, moves, form)


def _show(host: str, moves: list[LostMove], form: str, *, err: bool = False) -> None:
    rows: list[tuple[str, ...]] = [(move.domain, move.source, move.target, move.stage, move.text) for move in moves]
    if form == "plain":
        rows = [(*row, "yes" if move.booked else "no") for row, move in zip(rows, moves, strict=True)]
    if form == "table" and not moves:
        view.say(f"no domain is on its way to or from {host}", err=err)
    elif err:
        for line in view.grid(HEADER, rows):
            click.echo(line.rstrip(), err=True)
    else:
        view.show(form, HEADER, rows, [msgspec.to_builtins(move) for move in moves])
