"""The `magrathea` command: finds its sub-commands and imports only the one that runs.

`status` must be quick, because people watch it and scripts poll it. So this file imports nothing heavy, and looks up
entry points only for commands that are not built in.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

import click

from magrathea import __version__, output

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

HOST_ACTIONS = ("clear", "drain", "pause", "reload", "undrain", "unpause")
BUILT_IN = {
    "status": "magrathea.cli.status:status",
    **{name: f"magrathea.cli.farm:{name}" for name in ("explain", "hosts", "preview")},
    **{name: f"magrathea.cli.host_actions:{name}" for name in HOST_ACTIONS},
    "domain": "magrathea.cli.domain:domain",
    "completion": "magrathea.cli.completion:completion",
    "history": "magrathea.cli.history:history",
}
SECTIONS = {
    "Look": ("status", "hosts", "explain", "preview", "history", "doctor"),
    "Act on a host": ("drain", "undrain", "pause", "unpause", "domain", "clear", "reload", "give-back"),
}
"""Sections of the list of commands. All other commands come last."""
ENTRY_POINTS = "magrathea.commands"
BROKEN = 70
"""Exit code of a sub-command that cannot be loaded (EX_SOFTWARE of sysexits.h)."""


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # takes 30 ms

    return entry_points(group=ENTRY_POINTS)


def _broken(name: str, cause: str) -> click.Command:
    """A command that prints why it cannot run."""

    @click.command(name, short_help=f"cannot be loaded: {cause}", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def broken(arguments: tuple[str, ...]) -> None:
        click.echo(f"magrathea {name}: cannot be loaded: {cause}; install the package again (`make setup`)", err=True)
        raise click.exceptions.Exit(BROKEN)

    return broken


class Commands(click.Group):
    """Sub-commands of this package and of others (entry-point group `magrathea.commands`), loaded when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*BUILT_IN, *(point.name for point in _entry_points())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module, _, attribute = BUILT_IN[cmd_name].partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        for point in _entry_points():
            if point.name == cmd_name:
                return self._load(point)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections. Each lists its commands in the order in which a user needs them."""
        names = self.list_commands(ctx)
        sectioned = {name for section in SECTIONS.values() for name in section}
        rest = tuple(name for name in names if name not in sectioned)
        width = formatter.width - 6 - max(len(name) for name in names)
        for title, section in {**SECTIONS, "Set up": rest}.items():
            found = [(name, self.get_command(ctx, name)) for name in section if name in names]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(width)) for name, command in found if command])

    def _load(self, point: EntryPoint) -> click.Command:
        try:
            if find_spec(point.module) is None:
                return _broken(point.name, f"there is no module {point.module}")
            command = point.load()
        except Exception as error:  # noqa: BLE001 - a fault in another package must not break the other commands
            return _broken(point.name, f"{type(error).__name__}: {error}")
        if not isinstance(command, click.Command):
            return _broken(point.name, f"{point.value} is not a click command")
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Virtual machines, preemption and PBS working as one.

    \b
    Examples:
      magrathea status                 this host's domains, jobs, CPU and memory
      magrathea status --watch         the same, every 2 seconds
      magrathea status --format json   for programs
      magrathea history 12             what happened to job 12 on this host, and why
      magrathea drain n1               let a domain finish its jobs and take no more
      magrathea pause                  watch this host, but stop acting
      magrathea hosts                  all hosts, from the hub: names folded, counts by state
      magrathea explain 12             why job 12 waits, or who preempted it
      magrathea preview -q high        what a job of that queue would preempt now
      magrathea demo                   see it work: no root, no PBS needed

    Exit codes: each command's help lists its own. Of all commands: 70 the installation is damaged; 74 done, but the
    output or another file cannot be written. A full or closed output stops no command.
    """


def main() -> NoReturn:
    output.run("magrathea", lambda: cli(prog_name="magrathea"))
