"""`magrathea host sleep` and `magrathea host wake`: before and after a planned reboot of this host.

Rule 1: the daemon does the work; the command asks for it and prints its progress. If the command is ended, the daemon
goes on.
Rule 2: with `--at-shutdown` nothing happens unless systemd shuts the machine down. So a restart of the unit, an update
of the package or a removal puts nobody to sleep.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import click
import msgspec

from magrathea import client, supervision
from magrathea.cli import sources, view
from magrathea.cli.following import AWAY, answers
from magrathea.cli.host_actions import request
from magrathea.host_sleep import LONGEST_S, HostSleepReport, SleeperReport, SleepStage, decoded

NOT_ALL = 4
"""Exit code: some domains could not be put to sleep."""
LOOK_S = 1.0
"""How often the command asks for the progress."""
EXTENSION_S = 60.0
"""systemd waits at least this much longer after each look (EXTEND_TIMEOUT_USEC, sd_notify(3))."""
SYSTEMCTL_S = 10.0


def machine_stops() -> bool:
    """True if systemd shuts this machine down or reboots it."""
    try:
        said = subprocess.run(
            ["systemctl", "is-system-running"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        view.say(f"magrathea host sleep: systemctl does not say whether the machine shuts down: {error}", err=True)
        return False
    return said.strip() == "stopping"


@click.command(short_help="put this host's domains to sleep before a reboot")
@click.option("--dry-run", is_flag=True, help="Show the order and how long it takes; change nothing.")
@click.option(
    "--deadline",
    "deadline_s",
    type=sources.Number(float, 1, LONGEST_S),
    metavar="S",
    help="Begin no save later than this, in seconds  [default: `time_s` in [shutdown] of noded.toml]",
)
@click.option("--at-shutdown", is_flag=True, help="Do nothing unless systemd shuts the machine down; for the unit.")
@sources.socket
@sources.form_option
def sleep(dry_run: bool, deadline_s: float | None, at_shutdown: bool, socket_option: str | None, form: str) -> None:
    """Save the domains of this host to disk with their jobs, as [shutdown] of noded.toml says.

    Their jobs are stopped and booked in PBS first: walltime stands still, nothing is requeued. Domains that would lose
    most come first if the time does not suffice for all; the others are left to the ordinary shutdown. When the daemon
    starts after the next boot of the machine, it brings the domains back by itself; without a boot `magrathea host
    wake` does. The unit magrathea-sleep calls this command when the machine shuts down.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea host sleep --dry-run
      magrathea host sleep --deadline 120 && systemctl reboot

    Exit codes: 0 all asleep, or nothing to do; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers; 4 some
    domains are not asleep.
    """
    if at_shutdown and not machine_stops():
        view.say("the machine does not shut down; the domains stay awake")
        return
    path = client.socket_path(socket_option)
    wanted = {"deadline_s": deadline_s} if deadline_s is not None else {}

    def ask(op: str) -> HostSleepReport:
        return decoded(client.ask(path, {"op": op, **wanted}))

    with sources.answers("host sleep"):
        report = ask("host-sleep-plan" if dry_run else "host-sleep")
    if form == "table":
        _show(report)
    if not dry_run:
        report = follow(report, lambda: ask("host-sleep-report"), view.say if form == "table" else _nothing)
    if form == "json":
        click.echo(msgspec.json.encode(report).decode())
    elif form == "plain":
        for one in report.sleepers:
            cells = (one.name, one.stage, one.mib, one.jobs, f"{one.expected_s:.1f}", f"{one.took_s:.1f}", one.text)
            click.echo(view.tabs(cells))
    if not dry_run and any(one.stage is not SleepStage.ASLEEP for one in report.sleepers):
        raise click.exceptions.Exit(NOT_ALL)


def follow(
    report: HostSleepReport,
    look: Callable[[], HostSleepReport],
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> HostSleepReport:
    """Say what changes until the sleep is over. Returns the last report; ends the command if the daemon is gone."""

    def rest() -> None:
        supervision.notify(f"EXTEND_TIMEOUT_USEC={round(EXTENSION_S * 1e6)}")
        pause(LOOK_S)

    said: dict[str, SleepStage] = {}
    away = (client.RequestRefused, *AWAY)
    later = answers(look, rest, away)
    while True:
        for one in report.sleepers:
            if said.get(one.name) is not one.stage:
                said[one.name] = one.stage
                say(_sentence(one))
        if not report.going_on:
            return report
        try:
            report = next(later)
        except away as error:
            view.say(f"magrathea host sleep: {error}", err=True)
            raise click.exceptions.Exit(sources.NOT_REACHABLE) from error


def _nothing(text: str) -> None:
    """Programs get the last report only."""


def _show(report: HostSleepReport) -> None:
    if not report.sleepers:
        view.say(f"{report.host}: nobody is to sleep; [shutdown] of noded.toml names no domain that is up")
        return
    sleepers = [one for one in report.sleepers if one.stage is not SleepStage.LEFT]
    left = [one for one in report.sleepers if one.stage is SleepStage.LEFT]
    number = f"{len(sleepers)} domain{'' if len(sleepers) == 1 else 's'}"
    view.say(
        f"{report.host}: {number} to put to sleep, about {report.expected_s:.0f} s; {report.left_s:.0f} s are left"
    )
    for place, one in enumerate(sleepers, 1):
        view.say(f"  {place}. {one.name}: {_size(one)}, about {one.expected_s:.0f} s")
    for one in left:
        view.say(f"  left to the ordinary shutdown: {one.name}: {_size(one)}; {one.text}")


def _size(one: SleeperReport) -> str:
    jobs = f", {one.jobs} job{'' if one.jobs == 1 else 's'}" if one.jobs else ""
    return f"{one.mib} MiB{jobs}"


def _sentence(one: SleeperReport) -> str:
    match one.stage:
        case SleepStage.SAVING:
            return f"{one.name}: is saved now, {_size(one)}, about {one.expected_s:.0f} s"
        case SleepStage.ASLEEP:
            return f"{one.name}: asleep after {one.took_s:.1f} s"
        case SleepStage.STOPPING:
            return f"{one.name}: {one.text}"
        case SleepStage.READY | SleepStage.AWAKE:
            return f"{one.name}: waits for its turn"
        case _:
            return f"{one.name}: not asleep: {one.text}"


@click.command(short_help="bring back what `host sleep` has put to sleep")
@sources.socket
@sources.form_option
def wake(socket_option: str | None, form: str) -> None:
    """Bring back the domains that `magrathea host sleep` or a shutdown has put to sleep.

    Needed only if the machine was not booted since, or after a restore that failed: at the first start of the daemon
    after a boot they come back by themselves. Services first, then the domains that had the host, then the preempted
    ones; `at_once` in [shutdown] of noded.toml at the same time. Each waits until there is room for its jobs. A sleep
    that has not ended is given up: domains that are not saved yet stay awake. Domains that an admin has put to sleep
    one by one stay asleep.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea host wake && magrathea status --watch
      magrathea host wake --format json

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("host-wake", socket_option, form)
