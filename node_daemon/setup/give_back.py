"""`magrathea give-back HOST`: continues by hand every job that is stopped on this host, if nothing else can do it.

It needs no daemon, hub or agent. It reads from the journal which jobs were stopped, and finds their processes in /proc
by PBS_JOBID and, if PBS still knows it, by the job's owner. It sees this machine's processes only: those of the local
driver, not those inside virtual machines.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import click

from magrathea import client, places, qstat
from magrathea.cli import sources, view
from magrathea.configuration import ConfigurationError
from magrathea.control import entitled
from magrathea.core.model import Host
from magrathea.pbs_text.words import user_of

from ..configuration import NodedConfiguration, read
from ..journal import salvage

DEFAULT_FILE = places.NODED_CONFIGURATION
PARTLY, USAGE = 1, 2
STOPPED = b"T"


@dataclass(slots=True)
class ContinuedProcesses:
    """How many processes of a job were continued, could not be continued, or belong to another user and were not
    touched."""

    continued: int = 0
    failed: int = 0
    strange: int = 0


def stopped_jobs(host: Host) -> list[tuple[str, str]]:
    """(domain, job id) of all jobs that Magrathea stopped, according to the journal."""
    return [(domain.name, job.key.id) for domain in host.domains for job in domain.stopped]


def owners(ids: Iterable[str]) -> tuple[dict[str, int], str]:
    """The uids of the jobs' owners from PBS, and why some are missing ("" if none is)."""
    found: dict[str, int] = {}
    for id in ids:
        try:
            found[id] = pwd.getpwnam(user_of(qstat.job(id)[1].get("Job_Owner", ""))).pw_uid
        except (
            qstat.NoQstat,
            KeyError,
            ValueError,
        ) as error:  # the next ones would fail in the same way, and each may take long
            return found, f"PBS does not report the owner of {id}: {error}"
    return found, ""


def give_back(ids: Iterable[str], uids: Mapping[str, int], proc: Path = Path("/proc")) -> dict[str, ContinuedProcesses]:
    """Send SIGCONT to every stopped process with one of the job ids in its environment; if the owner is known, only to
    his.

    It opens a pid file descriptor before it looks at the process, so a signal never hits a recycled pid.
    """
    given = {id: ContinuedProcesses() for id in ids}
    wanted = {f"PBS_JOBID={id}".encode(): id for id in given}
    for pid in sorted((int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()), reverse=True):
        with contextlib.ExitStack() as opened, contextlib.suppress(ProcessLookupError, FileNotFoundError):
            descriptor = os.pidfd_open(pid)
            opened.callback(os.close, descriptor)
            if (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] != STOPPED:
                continue
            try:
                environment = (proc / str(pid) / "environ").read_bytes().split(b"\0")
            except PermissionError:
                continue  # another user's process, which may not belong to the job
            id = next((wanted[word] for word in environment if word in wanted), None)
            if id is None:
                continue
            if uids.get(id, uid := _uid(proc / str(pid))) != uid:
                given[id].strange += 1
                continue
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
                given[id].continued += 1
            except PermissionError:
                given[id].failed += 1
    return given


def _uid(process: Path) -> int:
    """The process's real uid. Raises FileNotFoundError or ProcessLookupError."""
    line = next(line for line in (process / "status").read_bytes().splitlines() if line.startswith(b"Uid:"))
    return int(line.split()[1])


def _fail(text: str, code: int) -> click.exceptions.Exit:
    view.say(f"magrathea give-back: {text}", err=True)
    return click.exceptions.Exit(code)


def _facts(config: Path, host: str) -> tuple[NodedConfiguration, Host]:
    try:
        configuration = read(config)
    except ConfigurationError as error:
        raise _fail(str(error), USAGE) from error
    if host != configuration.host.name:
        raise _fail(f"this is host {configuration.host.name}, not {host}; run this on {host} itself", USAGE)
    if not entitled(os.getuid(), os.getgid(), configuration.control.group, configuration.journal_path):
        raise _fail("only root, the daemon's user and the configured group may do this; ask one of them", PARTLY)
    facts = salvage(configuration.journal_path)
    if facts is None:
        raise _fail(f"{configuration.journal_path} has no readable facts; check its permissions", PARTLY)
    return configuration, facts


@click.command("give-back", short_help="continue every stopped job of this host by hand")
@click.argument("host")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="The node daemon's configuration, which has the path of the journal.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@sources.form_option
def command(host: str, config: Path, yes: bool, form: str) -> None:
    """Continue every job that Magrathea stopped on HOST, from its journal and /proc. Run it on HOST itself, as root.

    Use it if the daemon cannot be started. While the daemon runs, the command refuses: the daemon would stop the jobs
    again. So would an agent with a standing order: end the agents first. Jobs that are suspended in PBS stay so until
    you run `qsig -s admin-resume JOB` on the server; from then on their walltime counts again. Processes inside virtual
    machines cannot be reached. If `qstat` knows a job's owner, other users' processes with its id are not touched.

    \b
    Examples:
      magrathea give-back h1
      magrathea give-back h1 --yes --config /etc/magrathea/noded.toml

    Columns of `plain`, one line a job, tab-separated: domain, job, processes continued, processes that could not be
    continued, processes of other users; `yes` if PBS has the job suspended.

    Exit codes: 0 done, or nothing was stopped; 1 not permitted, the daemon runs, or not all could be continued; 2 wrong
    usage or configuration.
    """
    configuration, facts = _facts(config, host)
    with contextlib.suppress(client.Unreachable):
        client.ask(configuration.control_socket, {"op": "ping"})
        raise _fail("the daemon runs and would stop the jobs again; `systemctl stop magrathea-noded` first", PARTLY)
    jobs = stopped_jobs(facts)
    if not jobs and form == "table":
        click.echo(f"nothing is stopped on {host}")
        return
    if jobs and not yes:
        click.confirm(f"continue {', '.join(f'{id} in {domain}' for domain, id in jobs)}?", abort=True, err=True)
    uids, unknown = owners(id for _, id in jobs)
    if unknown:
        view.say(f"magrathea give-back: {unknown}; stopped processes of all users with the id are continued", err=True)
    given = give_back([id for _, id in jobs], uids)
    booked = [job.key.id for domain in facts.domains for job in domain.stopped if job.booked]
    if form == "table":
        _tell(jobs, given, booked)
    else:
        rows = [(domain, id, *astuple(given[id]), id in booked) for domain, id in jobs]
        names = ("domain", "job", *(field.name for field in fields(ContinuedProcesses)), "booked")
        plain = [tuple("yes" if c is True else "no" if c is False else str(c) for c in row) for row in rows]
        view.show(form, names, plain, [dict(zip(names, row, strict=True)) for row in rows])
    if any(result.failed for result in given.values()):
        raise click.exceptions.Exit(PARTLY)


def _tell(jobs: list[tuple[str, str]], given: Mapping[str, ContinuedProcesses], booked: list[str]) -> None:
    for domain, id in jobs:
        strange = f", {given[id].strange} of other users not touched" if given[id].strange else ""
        failed = f", {given[id].failed} failed: run this as root" if given[id].failed else ""
        view.say(f"{id} in {domain}: {given[id].continued} processes continued{strange}{failed}")
    if booked:
        view.say(f"still suspended in PBS; on its server: qsig -s admin-resume {' '.join(booked)}")
