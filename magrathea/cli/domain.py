"""`magrathea domain`: boot, shut down, reboot, save to disk, bring back and move the domains of this host."""

from __future__ import annotations

import click

from magrathea.cli import sources
from magrathea.cli.host_actions import request
from magrathea.cli.migrate import migrate

_target = click.argument("domain", shell_complete=sources.names)
_when_idle = click.option("--when-idle", is_flag=True, help="Keep taking jobs; go down as soon as there is none.")
_now = click.option("--now", is_flag=True, help="Do not wait: the jobs in the domain end with it.")


@click.group(short_help="boot, shut down, reboot, save to disk, bring back and move a domain")
def domain() -> None:
    """Lead the lives of this host's domains.

    Each command is a wish. It returns as soon as the daemon has noted the wish, and the daemon keeps it until it is
    fulfilled, over restarts too; only `migrate` waits for its end. `magrathea status` shows the progress. `magrathea
    undrain DOMAIN` gives up a shutdown, reboot or freeze that has not begun. The hypervisor must be able to do it; the
    local driver is not.

    \b
    Examples:
      magrathea domain reboot n1 && magrathea status --watch
      magrathea domain freeze p1
      magrathea domain freeze n1 --with-jobs
      magrathea domain defrost p1
      magrathea domain migrate n1 --to h2
    """


domain.add_command(migrate)


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


@domain.command(short_help="save a domain to disk; with --with-jobs together with its jobs")
@_target
@click.option(
    "--with-jobs", is_flag=True, help="Put the domain to sleep: do not wait for its jobs, but save them with it."
)
@click.option(
    "--reason", default="", help="Why it sleeps; shown by status and in its jobs' comments. At most 1000 letters."
)
@sources.socket
@sources.form_option
def freeze(domain: str, with_jobs: bool, reason: str, socket_option: str | None, form: str) -> None:
    """Let DOMAIN, a priority domain, finish its jobs and take no more, then save it to disk.

    Then it is `frozen`. Its CPUs stay reserved, preemptible jobs may borrow them, and its vnode is offline in PBS with
    a comment with the reason. A frozen domain takes no jobs. Only `magrathea domain defrost` brings it back.

    With --with-jobs, DOMAIN may be of any kind but a service, and is put to sleep with its jobs. All of them are
    stopped and suspended in PBS first, protected and priority jobs, too: their walltime stands still, and none is
    requeued. Then it is `asleep`. Its jobs hold neither CPUs nor memory and keep nobody out. It may sleep through a
    reboot of its host. Refused if no hub answers, if the folder for images has no room, and if the domain has a
    passed-through device.
    `magrathea undrain DOMAIN` gives that up before the save has begun.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain freeze p1
      magrathea domain freeze n1 --with-jobs --reason "new memory" && magrathea status --watch

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    if reason and not with_jobs:
        raise click.UsageError("--reason is for --with-jobs: a domain that is saved without jobs keeps nobody's job")
    more = {"with_jobs": True, "reason": reason} if with_jobs else {}  # an older daemon does not know them
    request("domain", socket_option, form, do="freeze", domain=domain, **more)


@domain.command(short_help="bring a domain back from disk")
@_target
@sources.socket
@sources.form_option
def defrost(domain: str, socket_option: str | None, form: str) -> None:
    """Bring DOMAIN back from disk as it was. Jobs that borrowed a frozen domain's CPUs are preempted first.

    It is `booting` until its agent has registered. Its clock is set, and PBS gets its vnode back. If the restore
    fails, the image is kept, the domain stays `frozen` or `asleep`, and status shows why. Refused if not enough room
    can be made for a frozen domain.

    A domain that is `asleep` with its jobs preempts nobody. It waits in the line of the preempted until there is room
    for its jobs; status shows what it waits for. Then its jobs go on, in the same run.
    Allowed for root, the daemon's own user, and the group in [control] of noded.toml.

    \b
    Examples:
      magrathea domain defrost p1
      magrathea domain defrost n1 && magrathea status --watch

    Exit codes: 0 noted; 1 refused, or not permitted; 2 wrong usage; 3 no daemon answers.
    """
    request("domain", socket_option, form, do="defrost", domain=domain)
