"""`magrathea domain migrate`: moves a running domain to another host, with its jobs.

The daemons of both hosts do the work; the command asks for it and prints its progress. If the command is ended, the
move goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import msgspec

from magrathea import client
from magrathea.cli import sources, view
from magrathea.cli.following import answers
from magrathea.move_reports import LOOK_S, MoveEnd, MovePlan, MovesAnswer, decoded

NOT_MOVED = 4
"""Exit code: the domain has stayed where it was."""

Ask = Callable[..., MovesAnswer]


@click.command(short_help="move a running domain to another host, with its jobs")
@click.argument("domain", shell_complete=sources.names)
@click.option("--to", "to", metavar="HOST", default="", help="Where to  [default: the first in [moves] that takes it]")
@click.option("--dry-run", is_flag=True, help="Show what would move, or why it cannot; change nothing.")
@sources.socket
@sources.form_option
def migrate(domain: str, to: str, dry_run: bool, socket_option: str | None, form: str) -> None:
    """Move DOMAIN, which runs on this host, to another one. Its jobs move with it, in the same run.

    The hosts must be named in [moves] here and in [visitors] there (noded.toml), and must have the same hub. While it
    moves, DOMAIN takes no jobs. It goes on computing while its memory is copied; if it writes memory faster than the
    network carries it, it is paused for the rest. The command waits and prints the progress; it can be ended with
    Ctrl-C, and the move goes on. If something fails, DOMAIN stays here. A dry run tells what this host knows; what the
    other one lacks is found before anything is copied. With the name of this host, a move that is not complete yet
    turns back. Without --to the next host in [moves] is tried if one does not take DOMAIN, or if its copy fails; not if
    somebody calls the move off.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain migrate n1 --dry-run
      magrathea domain migrate n1 --to h2

    Exit codes: 0 moved, or a dry run found nothing; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers; 4
    it has stayed here.
    """
    path = client.socket_path(socket_option)

    def ask(op: str, **fields: str) -> MovesAnswer:
        return decoded(client.ask(path, {"op": op, **{key: value for key, value in fields.items() if value}}))

    with sources.answers("domain migrate"):
        if dry_run:
            _show_plan(ask("migrate-plan", domain=domain, to=to).plan, form)
            return
        end = _moved(ask, domain, to, view.say if form == "table" else _nothing)
    if form == "json":
        click.echo(msgspec.json.encode(end).decode())
    elif form == "plain":
        click.echo(view.tabs((end.domain, "moved" if end.moved else "stayed", end.text)))
    if not end.moved:
        raise click.exceptions.Exit(NOT_MOVED)


def _nothing(text: str) -> None:
    """Programs get the end only."""


def _moved(ask: Ask, domain: str, to: str, say: Callable[[str], None]) -> MoveEnd:
    """Move the domain, if need be to one host after the other; say what happens. Returns the last move's end. Raises
    what `client.ask` raises."""
    answer = ask("migrate", domain=domain, to=to)
    others = answer.plan.hosts[1:] if answer.plan is not None else []
    if answer.plan is not None:
        say(_sentence(answer.plan, answer.plan.hosts[0]))
    end = follow(answer, domain, lambda: ask("moves"), say)
    for host in others:
        if end.moved or not end.try_next:
            break
        say(f"{domain}: tries {host} next")
        end = follow(ask("migrate", domain=domain, to=host), domain, lambda: ask("moves"), say)
    return end


def follow(
    answer: MovesAnswer,
    domain: str,
    look: Callable[[], MovesAnswer],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> MoveEnd:
    """Say what changes until the domain's move has ended. Returns its end. Raises what `look` raises, if the daemon
    stays away."""
    began, said = answer.now, ""
    later = answers(look, lambda: pause(LOOK_S))
    while True:
        report, end = answer.move(domain), answer.end(domain, began)
        if end is not None:
            say(f"{domain}: {end.text}")
            return end
        if report is None and (host := answer.elsewhere.get(domain)):  # a daemon that was restarted knows no end
            say(f"{domain}: it is at {host} now")
            return MoveEnd(domain=domain, moved=True, at=answer.now, text=f"it is at {host} now")
        if report is None:
            text = f"nothing is known of its move any more; see `magrathea history {domain}`"
            return MoveEnd(domain=domain, moved=False, at=answer.now, text=text)
        if report.text != said:
            said = report.text
            say(f"{domain}: {said}")
        answer = next(later)


def _show_plan(plan: MovePlan | None, form: str) -> None:
    if plan is None:
        return
    if form == "json":
        click.echo(msgspec.json.encode(plan).decode())
    elif form == "plain":
        click.echo(view.tabs((plan.domain, plan.source, ",".join(plan.hosts), plan.memory_mib, plan.jobs)))
    else:
        view.say(_sentence(plan, ", else to ".join(plan.hosts)))
        for disk in plan.disks:
            view.say(f"  copied with it: {disk.path}, {disk.mib} MiB")


def _sentence(plan: MovePlan, to: str) -> str:
    jobs = f" and {plan.jobs} job{'' if plan.jobs == 1 else 's'}" if plan.jobs else ""
    disks = f", {len(plan.disks)} disk{'' if len(plan.disks) == 1 else 's'} copied" if plan.disks else ""
    return f"{plan.domain}: from {plan.source} to {to}, with {plan.memory_mib} MiB{jobs}{disks}"
