"""`magrathea-hub`: arguments, logging, signals, exit codes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from magrathea import __version__, files, logs, output, supervision
from magrathea.configuration import ConfigurationError
from scheduler_plugin.pbs import kinds
from scheduler_plugin.pbs.base import Connect, PbsError

from .channel import ChannelError
from .configuration import DEFAULT_FILE, HubConfiguration, load
from .keys import KeysError
from .startable import LOCK, obstacles

log = logging.getLogger("magrathea-hub")

BAD_CONFIGURATION, CANNOT_START = 2, 3


def lock(state_dir: Path) -> int:
    """Lock the state directory; the descriptor must stay open. Raises OSError (BlockingIOError: another hub has it)."""
    state_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
    return files.lock(state_dir / LOCK)


async def serve(configuration: HubConfiguration, connect: Connect) -> None:
    """Run a hub until SIGTERM or SIGINT."""
    from .hub import Hub

    stop = asyncio.Event()
    hub = Hub(configuration, connect)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hub.compare)
    await hub.run(stop)


class _Program(click.Command):
    """The whole program, if it is called without arguments of its own: see output.py."""

    def main(self, args: Any = None, prog_name: str | None = None, *more: Any, **extra: Any) -> Any:
        if args is None:
            output.run("magrathea-hub", lambda: super(_Program, self).main(sys.argv[1:], "magrathea-hub"))
        return super().main(args, prog_name, *more, **extra)


@click.command(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    metavar="FILE",
    help="The configuration.",
)
@click.option("--check", is_flag=True, help="Check configuration, keys, directories and ports, and end.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def main(config: Path, check: bool) -> None:
    """Run the hub beside the PBS server: publish the states of all hosts, and book in PBS the jobs that they stop.

    SIGHUP lets it compare everything with PBS now and read the keys again. SIGTERM and SIGINT end it.

    \b
    Examples:
      magrathea-hub --check
      magrathea-hub --config /etc/magrathea/hub.toml

    Exit codes: 0 ended by a signal, or --check found nothing; 1 a defect; 2 wrong usage, or the configuration, pbs.conf
    or a key cannot be used; 3 the hub cannot start here (its last lines name the reason; --check, too); 74 the output
    cannot be written.
    """
    try:
        configuration = load(config)
        connect = kinds.connector(configuration.pbs.kind, configuration.pbs)
    except (ConfigurationError, PbsError) as error:
        click.echo(f"magrathea-hub: {error}", err=True)
        sys.exit(BAD_CONFIGURATION)
    if found := obstacles(configuration):
        for sentence in found:
            click.echo(f"magrathea-hub: {config}: {sentence}", err=True)
        sys.exit(CANNOT_START)
    if check:
        click.echo(f"{config}: ok")
        return
    logs.configure(configuration.hub.log_level, "%(levelname)s %(name)s: %(message)s")
    try:
        held = lock(configuration.state_dir)
    except BlockingIOError:
        click.echo(f"magrathea-hub: {configuration.state_dir} is in use by another hub; stop that one first", err=True)
        sys.exit(CANNOT_START)
    except OSError as error:
        click.echo(f"magrathea-hub: {configuration.state_dir}: {error}; fix the paths in [hub]", err=True)
        sys.exit(CANNOT_START)
    try:
        supervision.run(serve(configuration, connect))
    except KeysError as error:
        click.echo(f"magrathea-hub: {error}", err=True)
        sys.exit(BAD_CONFIGURATION)
    except (ChannelError, OSError) as error:
        click.echo(f"magrathea-hub: {error}", err=True)
        sys.exit(CANNOT_START)
    except supervision.Defect:
        supervision.end()
    finally:
        os.close(held)
    log.info("stopped")


if __name__ == "__main__":
    main()
