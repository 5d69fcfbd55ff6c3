"""What an admin asks of the daemon of a host: `magrathea drain`, `undrain`, `pause`, `unpause`, `clear`, `reload`."""

from __future__ import annotations

import json

import click
import msgspec

from magrathea import client
from magrathea.cli import sources, view


class _Answer(msgspec.Struct):
    said: list[str] = []


def request(op: str, socket_option: str | None, form: str, **fields: object) -> None:
    """Ask the daemon and print its answer. If it refuses or does not answer, print why and end the command."""
    with sources.answers(op):
        answer = client.ask(client.socket_path(socket_option), {"op": op, **fields})
        said = msgspec.json.decode(answer, type=_Answer).said
    if form == "json":
        click.echo(json.dumps({"said": said}))
    else:
        for sentence in said:
            view.say(sentence)


_reason = click.option(
    "--reason", default="by the admin", show_default=True, help="Shown by status; at most 1000 letters."
)


@click.command(short_help="let a domain or the host finish its jobs and take no more")
@click.argument("target", metavar="DOMAIN|HOST", shell_complete=sources.names)
@_reason
@sources.socket
@sources.form_option
def drain(target: str, reason: str, socket_option: str | None, form: str) -> None:
    """Let DOMAIN finish its jobs and take no more. With the name of this HOST: all its domains.

    A drain lasts until `magrathea undrain`, over restarts too. Nothing is stopped; a preempted domain finishes its
    jobs when it has its host again. Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea drain n1 --reason "new disk"
      magrathea drain h1 --reason "new switch" && magrathea status --watch

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("drain", socket_option, form, domain=target, reason=reason)


@click.command(short_help="let a drained domain or host take jobs again")
@click.argument("target", metavar="DOMAIN|HOST", shell_complete=sources.names)
@sources.socket
@sources.form_option
def undrain(target: str, socket_option: str | None, form: str) -> None:
    """Let DOMAIN take jobs again. With the name of this HOST: all its domains.

    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea undrain n1
      magrathea undrain h1

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("undrain", socket_option, form, domain=target)


@click.command(short_help="watch this host, but stop acting")
@click.argument("host", required=False, default="", shell_complete=sources.names)
@_reason
@sources.socket
@sources.form_option
def pause(host: str, reason: str, socket_option: str | None, form: str) -> None:
    """Let the daemon of this host watch and record as usual, but not act, until `magrathea unpause`.

    While a host is paused, over restarts too, what is stopped stays stopped, even if the reason for the stop is gone.
    A step under way may finish, and a stop that was decided is carried out. Nothing else is stopped, continued, saved
    or restored, and no CPUs or memory are moved. A job that needs none of that starts as usual. Any other job is
    refused with the code `paused`, and PBS tries it again later. `magrathea status` shows the pause, and domains that
    would preempt publish `occupied`. HOST is for safety: any name but this host's is refused.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea pause --reason "looking at n1's disk"
      magrathea pause h1 --format json

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("pause", socket_option, form, domain=host, reason=reason)


@click.command(short_help="let a paused host act again")
@click.argument("host", required=False, default="", shell_complete=sources.names)
@sources.socket
@sources.form_option
def unpause(host: str, socket_option: str | None, form: str) -> None:
    """Let the daemon of this host act again. It does at once what the facts of this moment require.

    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea unpause
      magrathea unpause h1

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("unpause", socket_option, form, domain=host)


@click.command(short_help="end a domain's fault; the daemon tries again what failed")
@click.argument("domain", shell_complete=sources.names)
@sources.socket
@sources.form_option
def clear(domain: str, socket_option: str | None, form: str) -> None:
    """End the fault of DOMAIN after you have fixed its cause. The daemon tries again at once what failed.

    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea clear n1
      magrathea status --format plain | awk -F'\\t' '$4 == "fault" {print $2}' | xargs -n1 magrathea clear

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("clear", socket_option, form, domain=domain)


@click.command(short_help="let the daemon read its configuration again")
@sources.socket
@sources.form_option
def reload(socket_option: str | None, form: str) -> None:
    """Let the daemon read its configuration again. It reports what needs a restart. If the file has a mistake, the
    reload is refused and the former configuration stays.

    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea reload
      magrathea-noded --config /etc/magrathea/noded.toml --check && magrathea reload

    Exit codes: 0 done; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("reload", socket_option, form)
