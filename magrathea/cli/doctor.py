"""`magrathea doctor`: finds out what this machine is, and checks it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from magrathea import __version__, doctor, places
from magrathea.cli import sources, view
from magrathea.doctor import Check, Part, Paths, Status

CODES = {Status.OK: 0, Status.NOTE: 0, Status.SKIP: 0, Status.WARN: 1, Status.FAIL: 2}
COLOURS = {Status.OK: "green", Status.NOTE: "", Status.SKIP: "cyan", Status.WARN: "yellow", Status.FAIL: "bright_red"}


def parts() -> list[Part]:
    """The parts that a machine may have, from the entry points of the installed packages."""
    from importlib.metadata import entry_points

    found = [point.load() for point in entry_points(group=doctor.ENTRY_POINTS)]
    return sorted((part for part in found if isinstance(part, Part)), key=lambda part: part.name)


def checks_of(known: Iterable[Part], paths: Paths, only: tuple[str, ...] = ()) -> list[Check]:
    """The results of all checks of the parts that this machine has. `only`: of these parts, even if missing."""
    found: list[Check] = []
    for part in known:
        why = part.here(paths)
        if part.name not in only and (only or not why):
            continue
        found.append(Check(part.name, "part", Status.OK, f"checked as {part.name}: {why or 'requested'}"))
        python = platform.python_version()
        found.append(Check(part.name, "versions", Status.OK, f"magrathea {__version__}, Python {python}"))
        found.extend(part.checks(paths))
        found.append(doctor.clock(part.name))
    if not found:
        cause = f"none of {paths.hub}, {paths.noded}, {paths.agent} exists, and {paths.pbs} starts no server"
        fix = "deploy/README.md says what belongs where; options name files in other places"
        found.append(Check("-", "part", Status.FAIL, "nothing of Magrathea is set up on this machine", cause, fix))
    return found


def exit_code(found: Iterable[Check]) -> int:
    return max(CODES[check.status] for check in found)


def table(found: list[Check]) -> str:
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        told = view.styled(f"{check.status.value:<4}", COLOURS[check.status])
        lines.append(f"{told}  {check.part:<6}  {check.name:<{width}}  {view.clean(check.text)}")
        indent = " " * (4 + 2 + 6 + 2 + width + 2)
        lines += [
            f"{indent}{title}: {view.clean(text)}"
            for title, text in (("cause", check.cause), ("fix", check.fix))
            if text
        ]
    count = {status: sum(check.status is status for check in found) for status in Status}
    return "\n".join([*lines, "", ", ".join(f"{number} {status.value}" for status, number in count.items())])


def plain(found: list[Check]) -> str:
    rows = ((c.status.value, c.part, c.name, c.text, c.cause or "-", c.fix or "-") for c in found)
    return "\n".join(view.tabs(row) for row in rows)


def as_json(found: list[Check]) -> str:
    return json.dumps([asdict(check) for check in found], indent=1)


def _file(name: str, default: str, help: str, variable: str | None = None) -> Callable[[Any], Any]:
    return click.option(
        name, type=click.Path(path_type=Path), default=default, show_default=True, envvar=variable, help=help
    )


FORMS = {"table": table, "json": as_json, "plain": plain}


@click.command("doctor", short_help="check this machine: each check with its cause and fix")
@click.option(
    "--part",
    "only",
    multiple=True,
    type=click.Choice(["server", "host", "guest"]),
    help="Check this part, whatever is found here.",
)
@sources.form_option
@_file("--pbs", "/etc/pbs.conf", "PBS's own configuration.", "PBS_CONF_FILE")
@_file("--hub", places.HUB_CONFIGURATION, "The hub's configuration.")
@_file("--noded", places.NODED_CONFIGURATION, "The node daemon's configuration.")
@_file("--agent", "/etc/magrathea/agent.json", "The agent's configuration.", "MAGRATHEA_AGENT_CONF")
def command(only: tuple[str, ...], form: str, pbs: Path, hub: Path, noded: Path, agent: Path) -> None:
    """Check this machine. It may be the PBS server's (with hub.toml or a PBS server), a host (noded.toml), a guest
    (agent.json), or several of these. It changes nothing. Run it as root: what only root may look at is `skip` for
    others. A `note` is so for good, and nobody has to fix it.

    \b
    Examples:
      magrathea doctor
      magrathea doctor --format plain | grep -v ^ok
      magrathea doctor --part server --format json

    Columns of `plain`, tab-separated: status, part, check, result, cause, fix; `-` is none.

    Exit codes: 0 no warning and no failure (notes and what was skipped do not count); 1 a warning; 2 a failure, or
    wrong usage.
    """
    found = checks_of(parts(), Paths(pbs=pbs, hub=hub, noded=noded, agent=agent), only)
    click.echo(FORMS[form](found))
    raise click.exceptions.Exit(exit_code(found))
