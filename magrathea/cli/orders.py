"""What an admin tells a node daemon: `magrathea drain`, `undrain`, `clear`, `reload`; and asks it: `history`."""

from __future__ import annotations

import time

import click
import msgspec

from magrathea import client

REFUSED, NOT_REACHABLE = 1, 3

_socket = click.option(
    "--socket",
    "socket_option",
    metavar="PATH",
    help=f"The daemon's control socket  [default: ${client.SOCKET_VARIABLE}, else {client.DEFAULT_SOCKET}]",
)


class _Entry(msgspec.Struct):
    at: float
    kind: str
    name: str
    domain: str | None = None
    job: str | None = None
    data: str = ""


class _Answer(msgspec.Struct):
    said: list[str] = []
    entries: list[_Entry] = []


def _ask(socket_option: str | None, op: str, **fields: object) -> _Answer:
    """The daemon's answer; without one the command ends, saying why."""
    try:
        answer = client.ask(client.socket_path(socket_option), {"op": op, **fields})
        return msgspec.json.decode(answer, type=_Answer)
    except client.Refused as error:
        click.echo(f"magrathea {op}: refused ({error.code}): {error}", err=True)
        raise click.exceptions.Exit(REFUSED) from error
    except (client.Unreachable, msgspec.DecodeError) as error:
        click.echo(f"magrathea {op}: {error}", err=True)
        raise click.exceptions.Exit(NOT_REACHABLE) from error


def _of_domain(op: str, short: str, help: str) -> click.Command:
    @click.command(op, short_help=short, help=f"{help}\n\nExit codes: 0 done; 1 refused; 2 usage; 3 no daemon.")
    @click.argument("domain")
    @_socket
    def command(domain: str, socket_option: str | None) -> None:
        _ask(socket_option, op, domain=domain)

    return command


clear = _of_domain(
    "clear",
    "end a domain's fault: what had failed is tried again",
    "End the fault of DOMAIN, after what caused it is mended: the daemon tries again at once what had failed.",
)
undrain = _of_domain("undrain", "let a drained domain take jobs again", "Let DOMAIN take jobs again.")


@click.command(short_help="let a domain finish its jobs and take no more")
@click.argument("domain")
@click.option("--reason", default="by the admin", show_default=True, help="Shown by status, and to users by PBS.")
@_socket
def drain(domain: str, reason: str, socket_option: str | None) -> None:
    """Let DOMAIN finish the jobs that it has, and take no more, until `magrathea undrain DOMAIN`.

    Exit codes: 0 done; 1 refused; 2 usage; 3 no daemon.
    """
    _ask(socket_option, "drain", domain=domain, reason=reason)


@click.command(short_help="let the daemon read its configuration again")
@_socket
def reload(socket_option: str | None) -> None:
    """Let the daemon read its configuration again; what cannot change while it runs is said.

    Exit codes: 0 done; 1 refused, the old configuration stays; 2 usage; 3 no daemon.
    """
    for sentence in _ask(socket_option, "reload").said:
        click.echo(sentence)


@click.command(short_help="what happened on this host, and what was decided")
@click.argument("domain", required=False, default="")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="The newest so many."
)
@_socket
def history(domain: str, limit: int, socket_option: str | None) -> None:
    """The events and decisions of this host, or of one DOMAIN, oldest first: tab-separated lines of time, event or
    decision, its name, domain, job, and all of it as JSON.

    Exit codes: 0 done; 1 refused; 2 usage; 3 no daemon.
    """
    for entry in _ask(socket_option, "history", domain=domain, limit=limit).entries:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.at)) + f".{int(entry.at % 1 * 1000):03}"
        columns = (at, entry.kind, entry.name, entry.domain or "-", entry.job or "-", entry.data)
        click.echo("\t".join(columns))
