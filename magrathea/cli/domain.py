"""`magrathea domain`: boot, shut down, reboot, save to disk and bring back the domains of this host."""

from __future__ import annotations

import click

from magrathea.cli import sources
from magrathea.cli.host_actions import request

_target = click.argument("domain", shell_complete=sources.names)
_when_idle = click.option("--when-idle", is_flag=True, help="Keep taking jobs; go down as soon as there is none.")
_now = click.option("--now", is_flag=True, help="Do not wait: the jobs in the domain end with it.")


@click.group(short_help="boot, shut down, reboot, save to disk and bring back a domain")
def domain() -> None:
    """Lead the lives of this host's domains.

    Each command is a wish. It returns as soon as the daemon has noted the wish, and the daemon keeps it until it is
    fulfilled, over restarts too. `magrathea status` shows the progress. `magrathea undrain DOMAIN` gives up a shutdown,
    reboot or freeze that has not begun. The hypervisor must be able to do it; the local driver is not.

    \b
    Examples:
      magrathea domain reboot n1 && magrathea status --watch
      magrathea domain freeze p1
      magrathea domain defrost p1
    """


@domain.command(short_help="start a domain")
@_target
@sources.socket
@sources.form_option
def boot(domain: str, socket_option: str | None, form: str) -> None:
    """Start DOMAIN. It is `booting` until its agent has registered; until then its host takes no jobs.

    After `boot_time_limit_s` (noded.toml) the domain counts as `down`, and status shows why. The guest is left as it
    is, so that you can look at it. If its agent registers later, the domain is up. A domain that is up stays up.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain boot n1
      magrathea domain boot n1 --format json

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="boot", domain=domain)


@domain.command(short_help="let a domain finish its jobs, then turn it off")
@_target
@_when_idle
@_now
@sources.socket
@sources.form_option
def shutdown(domain: str, when_idle: bool, now: bool, socket_option: str | None, form: str) -> None:
    """Let DOMAIN finish its jobs and take no more, then turn it off.

    Its agent turns the guest off; if the agent cannot, the hypervisor asks the guest. A guest that is still on after
    `shutdown_time_limit_s` (noded.toml) is ended. Stopped jobs continue and finish first.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain shutdown n1
      magrathea domain shutdown n1 --when-idle
      magrathea domain shutdown n1 --now

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="shutdown", domain=domain, when_idle=when_idle, now=now)


@domain.command(short_help="let a domain finish its jobs, then turn it off and start it again")
@_target
@_when_idle
@_now
@sources.socket
@sources.form_option
def reboot(domain: str, when_idle: bool, now: bool, socket_option: str | None, form: str) -> None:
    """Let DOMAIN finish its jobs and take no more, turn it off, and start it again.

    This is a shutdown and a boot, so a changed definition in the hypervisor takes effect. A domain that is down is
    started. Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain reboot n1 --when-idle
      magrathea domain reboot n1 --now

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="reboot", domain=domain, when_idle=when_idle, now=now)


@domain.command(short_help="save a priority domain to disk; its CPUs stay reserved")
@_target
@sources.socket
@sources.form_option
def freeze(domain: str, socket_option: str | None, form: str) -> None:
    """Let DOMAIN, a priority domain, finish its jobs and take no more, then save it to disk.

    Then it is `frozen`. Its CPUs stay reserved, preemptible jobs may borrow them, and its vnode is offline in PBS with
    a comment with the reason. A frozen domain takes no jobs. Only `magrathea domain defrost` brings it back.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain freeze p1
      magrathea domain freeze p1 --format json

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="freeze", domain=domain)


@domain.command(short_help="bring a domain back from disk; preempts jobs on its CPUs")
@_target
@sources.socket
@sources.form_option
def defrost(domain: str, socket_option: str | None, form: str) -> None:
    """Bring DOMAIN back from disk as it was. Jobs that borrowed its CPUs are preempted first.

    It is `booting` until its agent has registered. Its clock is set, and PBS gets its vnode back. If the restore
    fails, the image is kept, the domain stays `frozen`, and status shows why. Refused if not enough room can be made.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain defrost p1
      magrathea preview -q high; magrathea domain defrost p1

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="defrost", domain=domain)
