"""`magrathea pbs ...`: sets PBS up."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import install as setup


@click.group()
def pbs() -> None:
    """Set up PBS for Magrathea."""


@pbs.command("install")
@click.option("--priority", multiple=True, metavar="QUEUE", help="A queue whose jobs preempt; created if need be.")
@click.option("--preemptible", multiple=True, metavar="QUEUE", help="A queue whose jobs may be stopped; created, too.")
@click.option(
    "--vnode", "vnodes", multiple=True, metavar="VNODE", help="A vnode that Magrathea will manage: no reservations."
)
@click.option(
    "--heartbeat", metavar="FILE", help="The file that the hub touches.  [default: PBS_HOME/magrathea.heartbeat]"
)
@click.option("--heartbeat-max-age", type=float, default=30.0, show_default=True, metavar="S", help="Older: no hub.")
@click.option("--memory-moves", is_flag=True, help="Jobs wait in execjob_prologue until their memory is there.")
@click.option(
    "--conf", type=click.Path(path_type=Path), default="/etc/pbs.conf", show_default=True, envvar="PBS_CONF_FILE"
)
def install_command(
    priority: tuple[str, ...],
    preemptible: tuple[str, ...],
    vnodes: tuple[str, ...],
    heartbeat: str | None,
    heartbeat_max_age: float,
    memory_moves: bool,
    conf: Path,
) -> None:
    """Create resources, hooks, queues and defaults, as far as they are not there; say each change.

    Run it as root on the PBS server's machine. Safe to repeat, and to be repeated after an upgrade of Magrathea.
    """
    try:
        place = setup.find_pbs(conf)
        wish = setup.Wish(
            priority=priority,
            preemptible=preemptible,
            vnodes=vnodes,
            heartbeat=heartbeat or str(place.home / "magrathea.heartbeat"),
            heartbeat_max_age_s=heartbeat_max_age,
            memory_moves=memory_moves,
        )
        todo = setup.changes(setup.present(place), wish)
        for change in todo:
            setup.apply(place, change)
            click.echo(change.text)
    except setup.InstallError as error:
        click.echo(f"magrathea pbs install: {error}", err=True)
        sys.exit(1)
    click.echo(f"{len(todo)} changes" if todo else "nothing to change")
