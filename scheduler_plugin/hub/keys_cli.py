"""`magrathea keys`: manages which hosts may connect to the hub by TCP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from magrathea.files import exists

from . import keys as files

T = TypeVar("T")

DEFAULT_DIRECTORY = "/etc/magrathea/keys"


@click.group(short_help="manage which hosts may connect to the hub by TCP")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=DEFAULT_DIRECTORY, show_default=True)
@click.pass_context
def keys(context: click.Context, directory: Path) -> None:
    """Manage the keys of the hub and of the hosts. Run it on the hub's machine, as the hub's user.

    \b
    Examples:
      magrathea keys init
      magrathea keys enrol h1 --vnode n1 --vnode p1
      magrathea keys list
    """
    context.obj = directory


@keys.command(short_help="make the hub's key pair")
@click.pass_obj
def init(directory: Path) -> None:
    """Make the hub's key pair. Refused if it exists already.

    \b
    Examples:
      magrathea keys init

    Exit codes: 0 made; 1 refused, or it cannot be written; 2 wrong usage.
    """
    public = _told(files.init, directory)
    click.echo(f"{public}: the hub's public key; every host gets a copy (hub_key_file in [hub] of noded.toml)")


@keys.command(short_help="make a host's key pair")
@click.argument("host")
@click.option(
    "--vnode",
    "vnodes",
    multiple=True,
    help="A vnode that HOST may report (others come with their domains). Default: any of no other host.",
)
@click.pass_obj
def enrol(directory: Path, host: str, vnodes: tuple[str, ...]) -> None:
    """Make HOST's key pair and let the host connect under that name. A running hub accepts it within two seconds.

    \b
    Examples:
      magrathea keys enrol h1
      magrathea keys enrol h1 --vnode n1 --vnode p1

    Exit codes: 0 made; 1 refused, or it cannot be written; 2 wrong usage.
    """
    pair = _told(files.enrol, directory, host, vnodes)
    click.echo(f"carry to {host}, readable by its node daemon only, then remove here:")
    click.echo(f"  {pair}  (key_file in [hub] of noded.toml)")
    click.echo(f"  {directory / files.HUB_PUBLIC}  (hub_key_file; stays here, too)")


@keys.command("list", short_help="list the hosts that may connect")
@click.pass_obj
def list_(directory: Path) -> None:
    """List the hosts that may connect: name, public key, vnodes; `key still here` if the secret was not removed.

    \b
    Examples:
      magrathea keys list

    Exit codes: 0 listed; 1 the keys cannot be read; 2 wrong usage.
    """
    for one in _told(_enrolled, directory):
        vnodes = "any vnode" if one.vnodes is None else ",".join(sorted(one.vnodes))
        here = exists(directory / files.TO_HOSTS / f"{one.host}.key_secret")
        click.echo(f"{one.host}  {one.public}  {vnodes}{'  key still here' if here else ''}")


@keys.command(short_help="forbid a host to connect")
@click.argument("host")
@click.pass_obj
def revoke(directory: Path, host: str) -> None:
    """Forbid HOST to connect. A running hub drops its messages within two seconds.

    \b
    Examples:
      magrathea keys revoke h1

    Exit codes: 0 done; 1 it is not enrolled, or it cannot be written; 2 wrong usage.
    """
    kept = _told(files.revoke, directory, host)
    click.echo(f"{host} is revoked; its public key is kept as {kept}")


def _enrolled(directory: Path) -> list[files.Enrolled]:
    if not (directory / files.HOSTS).is_dir():
        raise files.KeysError(f"{directory}: no keys there; first: magrathea keys init, or name their folder: --dir")
    return files.enrolled(directory)


def _told(function: Callable[..., T], *arguments: object) -> T:
    """The function's result. Its KeysError or OSError becomes the command's message and exit code 1."""
    try:
        return function(*arguments)
    except (files.KeysError, OSError) as error:
        raise click.ClickException(str(error)) from error
