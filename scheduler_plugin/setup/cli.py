"""`magrathea pbs install | check | uninstall`: sets PBS up for Magrathea, checks the result, and removes it again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from magrathea import places
from magrathea.cli import sources
from magrathea.text import printable

from . import checks, install, kept_resources, pbs_commands, records, uninstall
from . import heartbeat as heartbeats
from .pbs_commands import Place
from .sched_config import InstallError
from .setup_model import InstallOptions, Present, SetupChange

FAILED = 1
LEFT = 3
CHECK_CODES = {checks.OK: 0, checks.WARNING: 1, checks.MISSING: 2, checks.DIFFERENT: 2}
UNKNOWN = 3
RESUME_S = 30.0

_conf = click.option(
    "--conf",
    type=click.Path(path_type=Path),
    default="/etc/pbs.conf",
    show_default=True,
    envvar="PBS_CONF_FILE",
    help="PBS's configuration file on this machine; also from $PBS_CONF_FILE.",
)
_hub_config = click.option(
    "--hub-config",
    type=click.Path(path_type=Path),
    default=places.HUB_CONFIGURATION,
    show_default=True,
    metavar="FILE",
    help="The hub's configuration, which names the heartbeat file.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Print every change, and make none.")


@click.group(short_help="set up PBS for Magrathea, check it, undo it")
def pbs() -> None:
    """Set up PBS for Magrathea, check the result, or undo it.

    \b
    Examples:
      magrathea pbs install --priority high --preemptible low --vnode n1 --dry-run
      magrathea pbs check --format plain
      magrathea pbs uninstall
    """


def _ending(name: str, code: int) -> Callable[[InstallError], NoReturn]:
    def end(error: InstallError) -> NoReturn:
        click.echo(f"magrathea pbs {name}: {error}", err=True)
        raise click.exceptions.Exit(code) from error

    return end


def _carry_out(place: Place, todo: Iterable[SetupChange], *, dry_run: bool, go_on: bool) -> tuple[int, list[str]]:
    """Print each change, then make it. Returns the number of changes, and what PBS refused.

    `go_on`: continue after a refusal. Raises InstallError.
    """
    count = 0
    refused: list[str] = []
    for step in pbs_commands.steps(todo):
        for change in step:
            click.echo(("would: " if dry_run else "") + change.text)
        count += len(step)
        if dry_run:
            continue
        try:
            pbs_commands.apply(place, step)
        except InstallError as error:
            if not (go_on or step[0].about_job):
                raise
            count -= 1
            refused.append(str(error))
            click.echo(f"  refused: {error}", err=True)
    return count, refused


@pbs.command("install", short_help="create what is missing, print each change")
@click.option("--priority", multiple=True, metavar="QUEUE", help="A queue of jobs that preempt; created if missing.")
@click.option("--preemptible", multiple=True, metavar="QUEUE", help="A queue of stoppable jobs; created if missing.")
@click.option(
    "--vnode", "vnodes", multiple=True, metavar="VNODE", help="A vnode that Magrathea will manage: no reservations."
)
@click.option(
    "--heartbeat",
    metavar="FILE",
    help="The file that the hub touches.  [default: as in the hub's configuration; without one, that of the last"
    f" install, else {places.HEARTBEAT}]",
)
@_hub_config
@click.option(
    "--heartbeat-max-age",
    type=sources.Number(float, 1, 86400),
    metavar="S",
    help="Treat the hub as down if the heartbeat file is older than S seconds.  [default: 30]",
)
@click.option(
    "--memory-moves/--no-memory-moves",
    default=None,
    help="Let jobs wait in execjob_prologue until their memory has arrived.  [default: no]",
)
@click.option(
    "--keep-consumables/--no-keep-consumables",
    default=None,
    help="Let stopped jobs keep their licences and other consumables of server and queues: sets the server's"
    " restrict_res_to_release_on_suspend to what a stop gives back, ncpus and mem.  [default: leave it alone]",
)
@click.option(
    "--release",
    "released",
    multiple=True,
    metavar="RESOURCE",
    help="With --keep-consumables: a resource that a stopped job gives back, too, because the site sees to it.",
)
@click.option(
    "--protect", "protecting", multiple=True, metavar="RESOURCE", help="A job that has this resource is never stopped."
)
@_dry_run
@_conf
def install_command(
    priority: tuple[str, ...],
    preemptible: tuple[str, ...],
    vnodes: tuple[str, ...],
    heartbeat: str | None,
    hub_config: Path,
    heartbeat_max_age: float | None,
    memory_moves: bool | None,
    keep_consumables: bool | None,
    released: tuple[str, ...],
    protecting: tuple[str, ...],
    dry_run: bool,
    conf: Path,
) -> None:
    """Create the missing resources, hooks, queues and defaults; print each change before it is made.

    Run it as root on the PBS server's machine. It is safe to repeat; repeat it after each upgrade of Magrathea. It
    remembers the options of earlier runs. Waiting jobs get their queue's class and keep their place in the queue. If
    something of the site is in the way, it refuses and changes nothing. If a step fails, it remembers only what it has
    reached; `check` reports that, and it can be run again. It saves the old state for `uninstall` in
    PBS_HOME/server_priv/magrathea-install.json and sched_priv/sched_config.before-magrathea.

    \b
    Examples:
      magrathea pbs install --priority high --preemptible low --vnode n1 --vnode p1 --dry-run
      magrathea pbs install --priority high --preemptible low --vnode n1 --vnode p1
      magrathea pbs install --keep-consumables --protect lic_a

    Exit codes: 0 done, or nothing to do; 1 refused or failed; 2 wrong usage.
    """
    fail = _ending("install", FAILED)
    try:
        place = pbs_commands.find_pbs(conf)
        now = pbs_commands.present(place)
        record = records.load(place.home)
        old = record.options() if record else InstallOptions()
        new = InstallOptions(
            priority=priority,
            preemptible=preemptible,
            vnodes=vnodes,
            heartbeat=heartbeats.chosen(heartbeat, hub_config, old.heartbeat),
            heartbeat_max_age_s=heartbeat_max_age if heartbeat_max_age is not None else old.heartbeat_max_age_s,
            memory_moves=memory_moves if memory_moves is not None else old.memory_moves,
            keep_consumables=keep_consumables if keep_consumables is not None else old.keep_consumables,
            released=released,
            protecting=protecting,
        )
        _check_words(new)
        if both := set(priority) & set(preemptible):
            raise InstallError(f"queue {', '.join(sorted(both))}: either --priority or --preemptible, not both")
        options = records.merged(old, new, set(now.vnodes), set(now.resources))
        todo = install.changes(now, options)
        if record is not None and not options.keep_consumables:
            todo += kept_resources.restored(now, record.release_before, record.release_ours)
        if dry_run:
            count, refused = _carry_out(place, todo, dry_run=True, go_on=False)
        else:
            count, refused = _installed(place, record, now, options, todo)
        for item in checks.warnings(now, options):
            click.echo(f"warning: {item.name}: {item.text}; fix: {item.fix}", err=True)
    except InstallError as error:
        fail(error)
    click.echo(_summary(count, dry_run))
    if refused:
        click.echo(f"magrathea pbs install: {len(refused)} jobs got no class; run it again", err=True)
        raise click.exceptions.Exit(FAILED)


def _check_words(options: InstallOptions) -> None:
    """Raises InstallError if the options cannot be kept in the record, or mean nothing."""
    if not Path(options.heartbeat).is_absolute():
        raise InstallError(
            f"--heartbeat {printable(options.heartbeat)}: give the whole path, as in hub.toml (heartbeat_file)"
        )
    for option, word in (("--heartbeat", options.heartbeat), *(("--vnode", vnode) for vnode in options.vnodes)):
        if not word.isprintable():
            raise InstallError(f"{option} {printable(word)}: has a character that cannot be printed; use another name")
    if options.released and not options.keep_consumables:
        raise InstallError("--release has an effect only together with --keep-consumables; add that")


def _installed(
    place: Place, record: records.Record | None, now: Present, options: InstallOptions, todo: list[SetupChange]
) -> tuple[int, list[str]]:
    """Carry out an install, with its record before and after. Returns as `_carry_out`. Raises InstallError."""
    begun = records.begun(record, now, options)
    records.save(place.home, begun)
    try:
        done = _carry_out(place, todo, dry_run=False, go_on=False)
    except InstallError as error:
        try:
            records.save(place.home, records.failed(begun, pbs_commands.present(place), options, str(error)))
        except InstallError as second:  # then the record says that it was interrupted
            click.echo(f"note: what was reached cannot be read ({second})", err=True)
        raise
    records.save(place.home, records.updated(begun, now, options))
    return done


def _summary(count: int, dry_run: bool) -> str:
    if count == 0:
        return "nothing to change"
    return f"{count} changes would be made; nothing was changed" if dry_run else f"{count} changes"


@pbs.command("check", short_help="check every item; exit code for monitoring")
@sources.form_option
@_hub_config
@_conf
def check_command(form: str, hub_config: Path, conf: Path) -> None:
    """Compare PBS with what `install` has set up, and print each item as ok, missing or different, with its fix.

    Afterwards print warnings about settings of the site that conflict with Magrathea.

    \b
    Examples:
      magrathea pbs check
      magrathea pbs check --format plain | grep -v ^ok

    \b
    Columns of `plain`, tab-separated: status, item, what was found, fix (`-` for none).

    Exit codes: 0 all ok; 1 warnings only; 2 something is missing or different; 3 PBS could not be asked.
    """
    fail = _ending("check", UNKNOWN)
    try:
        place = pbs_commands.find_pbs(conf)
        record = records.load(place.home)
        options = record.options() if record else InstallOptions()
        items = [
            *checks.check(pbs_commands.present(place), options, record.unfinished if record else ""),
            *heartbeats.check(hub_config, options.heartbeat),
        ]
    except InstallError as error:
        fail(error)
    if form == "json":
        rows: list[dict[str, Any]] = [
            {"name": item.name, "status": item.status, "text": item.text, "fix": item.fix} for item in items
        ]
        click.echo(json.dumps({"installed": record is not None, "items": rows}, indent=1))
    elif form == "plain":
        for item in items:
            click.echo("\t".join((item.status, item.name, item.text or "-", item.fix or "-")))
    else:
        width = max(len(item.name) for item in items)
        for item in items:
            fix = f"; fix: {item.fix}" if item.fix else ""
            click.echo(f"{item.status:<9}  {item.name:<{width}}  {item.text}{fix}".rstrip())
    raise click.exceptions.Exit(max(CHECK_CODES[item.status] for item in items))


@pbs.command("uninstall", short_help="restore PBS as it was before install")
@click.option(
    "--resume-jobs", is_flag=True, help="First resume the jobs that Magrathea has suspended, instead of refusing."
)
@click.option(
    "--delete-history",
    is_flag=True,
    help="Delete finished jobs with a class from PBS's history; until then one resource cannot be deleted.",
)
@click.option(
    "--queue", "queues", multiple=True, metavar="QUEUE", help="Only take this queue out; delete it if install made it."
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="RESOURCE",
    help="Only take back what --release and --protect of install said about this resource.",
)
@_dry_run
@_conf
def uninstall_command(
    resume_jobs: bool,
    delete_history: bool,
    queues: tuple[str, ...],
    resources: tuple[str, ...],
    dry_run: bool,
    conf: Path,
) -> None:
    """Remove hooks, resources, defaults and vnode attributes, and restore the values from before.

    Stop magrathea-hub first. While jobs are suspended by Magrathea, the command refuses. Either let the priority jobs
    end while Magrathea still runs. Or stop magrathea-noded on the hosts and magrathea-agent in the domains, and use
    --resume-jobs: then PBS resumes the jobs. If PBS cannot remove something yet, that is reported; run it again later.

    With --queue or --resource the installation stays, and the hub may run. Waiting jobs of the queue get the server's
    class, `protected`.

    \b
    Examples:
      magrathea pbs uninstall --dry-run
      magrathea pbs uninstall --resume-jobs
      magrathea pbs uninstall --queue low

    Exit codes: 0 everything is removed; 1 refused or failed; 2 wrong usage; 3 something is left, see the last lines.
    """
    fail = _ending("uninstall", FAILED)
    try:
        place = pbs_commands.find_pbs(conf)
        record = records.load(place.home)
        now = pbs_commands.present(place)
        if queues or resources:
            _take_out(place, record, now, queues, resources, dry_run=dry_run)
            return
        _refuse_with_hub(place, record)
        if jobs := uninstall.preempted(now):
            if not resume_jobs:
                told = ", ".join(job.id for job in jobs)
                raise InstallError(
                    f"{len(jobs)} jobs are suspended by Magrathea ({told}) and nobody would resume them; let the"
                    " priority jobs end first with the hub running, or stop magrathea-noded and magrathea-agent and"
                    " use --resume-jobs"
                )
            for job in jobs:
                click.echo(f"{'would: ' if dry_run else ''}resume job {job.id}")
            if not dry_run:
                resume(place, [job.id for job in jobs])
                now = pbs_commands.present(place)
        kept = uninstall.unknown_values(now, record)
        todo = uninstall.changes(now, record, delete_history=delete_history)
        count, _ = _carry_out(place, todo, dry_run=dry_run, go_on=True)
        for sentence in kept:
            click.echo(f"note: {sentence}", err=True)
        if dry_run:
            click.echo(_summary(count, dry_run))
            return
        now = pbs_commands.present(place)
        left = uninstall.leftovers(now, record)
        if not left:
            _forget(place, now.sched_config)
    except InstallError as error:
        fail(error)
    for sentence in left:
        click.echo(f"left: {sentence}", err=True)
    click.echo(_summary(count, dry_run))
    raise click.exceptions.Exit(LEFT if left else 0)


def _take_out(
    place: Place,
    record: records.Record | None,
    now: Present,
    queues: tuple[str, ...],
    resources: tuple[str, ...],
    *,
    dry_run: bool,
) -> None:
    """Take single queues and resources out of the installation. Raises InstallError; Exit if something is left."""
    if record is None:
        raise InstallError("there is no record of an installation, so there is nothing to take out")
    if unknown := [name for name in resources if name not in (*record.released, *record.protecting)]:
        raise InstallError(f"resource {unknown[0]}: neither --release nor --protect of install has named it")
    todo = [change for name in queues for change in uninstall.queue_changes(now, record, name)]
    for name in resources:
        record = records.without_resource(record, name)
    if resources:
        todo += install.changes(now, record.options())
    count, _ = _carry_out(place, todo, dry_run=dry_run, go_on=True)
    left: list[str] = []
    if not dry_run:
        now = pbs_commands.present(place)
        for name in queues:
            left += uninstall.queue_leftovers(now, record, name)
            record = records.without_queue(record, name, now)
        ours = kept_resources.value(record.options()) if record.keep_consumables else record.release_ours
        records.save(place.home, msgspec.structs.replace(record, release_ours=ours))
    for sentence in left:
        click.echo(f"left: {sentence}", err=True)
    click.echo(_summary(count, dry_run))
    if left:
        raise click.exceptions.Exit(LEFT)


def _refuse_with_hub(place: Place, record: records.Record | None) -> None:
    """Raises InstallError if the hub runs: it would publish again what is removed here."""
    if record is None or not record.heartbeat:
        return
    age_s = pbs_commands.age_s(Path(record.heartbeat))
    if age_s is not None and age_s < record.heartbeat_max_age_s:
        raise InstallError(
            f"magrathea-hub runs ({record.heartbeat} was touched {age_s:.0f} s ago); stop it first (systemctl stop"
            f" magrathea-hub), then wait until that is {record.heartbeat_max_age_s:.0f} s ago, or remove the file"
        )


def resume(place: Place, ids: list[str]) -> None:
    """Resume admin-suspended jobs, and wait until PBS reports them as running. Raises InstallError."""
    for id in ids:
        try:
            pbs_commands.run(place, ["qsig", "-s", "admin-resume", id])
        except InstallError:  # after a failed resume the job has lost its flag, and only this works
            pbs_commands.run(place, ["qsig", "-s", "resume", id])
    until = time.monotonic() + RESUME_S
    while waiting := [job.id for job in pbs_commands.jobs(place) if job.id in ids and job.state == "S"]:
        if time.monotonic() > until:
            raise InstallError(
                f"still suspended after {RESUME_S:.0f} s: {', '.join(waiting)}; nothing was removed; see tracejob"
            )
        time.sleep(0.2)


def _forget(place: Place, sched_config: str) -> None:
    """Remove the record, and the backup if it equals the present file."""
    records.remove(place.home)
    backup = pbs_commands.backup_of(place)
    try:
        if backup.read_bytes() == sched_config.encode("latin-1"):
            backup.unlink()
        else:
            click.echo(f"note: {backup} is kept, because others have changed sched_config too", err=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InstallError(f"{backup}: {error.strerror}; remove it yourself: nothing else is left") from error


if __name__ == "__main__":
    sys.exit(pbs())
