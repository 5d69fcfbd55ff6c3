"""Chooses who answers a command: the hub for all hosts, or the daemon of this host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from magrathea import client, files, places
from magrathea.cli import view
from magrathea.decoding import UNDECODABLE
from magrathea.reports import FarmView, HostView

REFUSED, NOT_REACHABLE = 1, 3
NODED_CONFIGURATION = Path(places.NODED_CONFIGURATION)
HUB_CONFIGURATION = Path(places.HUB_CONFIGURATION)
"""They are on the machines that have a daemon or a hub, whether it runs or not."""
COMPLETION_S = 1.0
"""Longest wait for an answer while a user waits for completion."""

socket = click.option(
    "--socket",
    "socket_option",
    metavar="PATH",
    help=f"Ask that daemon  [default: ${client.SOCKET_VARIABLE}, else {client.DEFAULT_SOCKET}]",
)
hub = click.option(
    "--hub",
    "hub_option",
    metavar="PATH",
    help=f"Ask that hub  [default: ${client.HUB_VARIABLE}, else {client.HUB_SOCKET}]",
)


form_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "plain"]),
    default="table",
    show_default=True,
    help="Output for people, programs or scripts.",
)


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """A number within bounds. A mistake is answered with the bounds in words."""

    def __init__(self, kind: type[int] | type[float], least: float, most: float) -> None:
        self.name = "number"
        self._kind, self._least, self._most = kind, least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = self._kind(str(value))
        except ValueError:
            number = self._kind(self._least - 1)
        if not self._least <= number <= self._most:
            what = "a whole number" if self._kind is int else "a number"
            self.fail(f"{str(value)!r}: give {what} from {self._least:g} to {self._most:g}", param, ctx)
        return number


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names for shell completion: hosts, domains and jobs of this host or of all hosts; empty if nobody answers."""
    try:
        snapshots = [client.status(client.socket_path(ctx.params.get("socket_option")), COMPLETION_S)]
    except (client.Unreachable, client.RequestRefused):
        try:
            farm = client.farm(client.hub_path(ctx.params.get("hub_option")), COMPLETION_S)
        except (client.Unreachable, client.RequestRefused):
            return []
        snapshots = [host.snapshot for host in farm.hosts]
    hosts = {snapshot.host for snapshot in snapshots}
    domains = {domain.name for snapshot in snapshots for domain in snapshot.domains}
    jobs = {job.id for snapshot in snapshots for domain in snapshot.domains for job in domain.jobs}
    wanted = {"host": hosts, "domain": domains, "job": jobs, "target": domains | hosts, "about": domains | hosts | jobs}
    return sorted(name for name in wanted[param.name or "about"] if name.startswith(incomplete))


def by_pbs(socket_option: str | None, hub_option: str | None) -> bool:
    """True if only PBS can be asked: nobody names a daemon or hub, and this is no machine of theirs (a login node)."""
    named = socket_option or hub_option or os.environ.get(client.HUB_VARIABLE) or os.environ.get(client.SOCKET_VARIABLE)
    theirs = (client.DEFAULT_SOCKET, client.HUB_SOCKET, NODED_CONFIGURATION, HUB_CONFIGURATION)
    return not named and not any(files.exists(path) for path in theirs)


def by_hub(socket_option: str | None, hub_option: str | None) -> bool:
    """True if the hub should be asked: an option or variable names it, or none names a daemon and a hub is here."""
    if hub_option or socket_option:
        return bool(hub_option)
    if os.environ.get(client.HUB_VARIABLE):
        return True
    return not os.environ.get(client.SOCKET_VARIABLE) and files.exists(client.HUB_SOCKET)


@contextlib.contextmanager
def answers(command: str) -> Iterator[None]:
    """Around questions to a daemon. If it refuses or does not answer, print why and end the command."""
    try:
        yield
    except client.RequestRefused as error:
        view.say(f"magrathea {command}: refused ({error.code}): {error}", err=True)
        raise click.exceptions.Exit(REFUSED) from error
    except (client.Unreachable, *UNDECODABLE) as error:
        view.say(f"magrathea {command}: {error}", err=True)
        raise click.exceptions.Exit(NOT_REACHABLE) from error


def farm(command: str, socket_option: str | None, hub_option: str | None) -> FarmView:
    """All hosts from the hub, or this host from its daemon. If neither answers, print why and end the command."""
    try:
        if by_hub(socket_option, hub_option):
            return client.farm(client.hub_path(hub_option))
        snapshot = client.status(client.socket_path(socket_option))
    except (client.Unreachable, client.RequestRefused) as error:
        view.say(f"magrathea {command}: {error}", err=True)
        raise click.exceptions.Exit(NOT_REACHABLE) from error
    return FarmView(at=snapshot.at, knows_pbs=False, hosts=[HostView(live=True, snapshot=snapshot)], booked=[])
