"""`magrathea hosts`, `explain`, `preview`: what all hosts say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from magrathea import client, foresight, qstat
from magrathea.cli import sources, view
from magrathea.core.model import Amount, JobClass, State
from magrathea.messages import DomainReport, JobReport, Preview, Snapshot
from magrathea.names import fold

NOT_WELL, USAGE = 1, 2


class _Previews(msgspec.Struct):
    previews: list[Preview]


def _show(form: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]], data: object) -> None:
    if form == "json":
        click.echo(json.dumps(data, indent=2))
    elif form == "plain":
        for row in rows:
            click.echo("\t".join(" ".join(cell.split()) or "-" for cell in row))
    else:
        for line in view.grid(header, rows):
            click.echo(line.rstrip())


@click.command(short_help="all hosts: names folded, counts by state")
@sources.hub
@sources.socket
@sources.form_option
def hosts(hub_option: str | None, socket_option: str | None, form: str) -> None:
    """Show all hosts and their domains (by vnode) by state, with names folded. Asks the hub; without one, this host.

    \b
    Examples:
      magrathea hosts
      magrathea hosts --format plain | awk -F'\\t' '$1 == "domain" && $2 == "fault" {print $4}'

    Columns of `plain`: `host` or `domain`, state, how many, names. Exit codes: 0 all well; 1 a host is silent, or a
    domain in fault or unknown; 2 wrong usage; 3 neither hub nor daemon answers.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for host in sources.farm("hosts", socket_option, hub_option).hosts:
        groups["host", "live" if host.live else "silent"].append(host.snapshot.host)
        for domain in host.snapshot.domains:
            groups["domain", domain.state.value if host.live else State.UNKNOWN.value].append(domain.vnode)
    keys = sorted(groups, key=lambda key: (key[0] != "host", key[1]))
    rows = [(what, state, str(len(groups[what, state])), fold(groups[what, state])) for what, state in keys]
    data = [{"what": w, "state": s, "count": len(groups[w, s]), "names": sorted(groups[w, s])} for w, s in keys]
    _show(form, ("WHAT", "STATE", "COUNT", "NAMES"), rows, data)
    bad = {("host", "silent"), ("domain", State.FAULT.value), ("domain", State.UNKNOWN.value)}
    raise click.exceptions.Exit(NOT_WELL if bad & groups.keys() else 0)


ANSWERS = ("HOST", "DOMAIN", "VNODE", "ANSWER", "PREEMPTS", "WHY")


def _row(answer: Preview) -> tuple[str, ...]:
    preempts = f"{','.join(answer.preempts)} ({', '.join(answer.jobs)})" if answer.preempts else "-"
    return answer.host, answer.domain, answer.vnode, answer.code or "accepts", preempts, answer.text or "-"


@click.command(short_help="why a job waits, or who preempted it and for how long")
@click.argument("job")
@sources.hub
@sources.socket
@sources.form_option
def explain(job: str, hub_option: str | None, socket_option: str | None, form: str) -> None:
    """Say of JOB, on each host that has it, what it does there: who preempted it, and for how long. Of a job that
    is on no host: what PBS says of it, and what each domain would answer to it now. Needs no rights: PBS is asked by
    qstat as the user.

    \b
    Examples:
      magrathea explain 12
      magrathea explain 12.srv --format json

    Columns of `plain`: host, domain, vnode, then of a job that is there: class, what it does, seconds preempted so far,
    times preempted; of one that waits: answer, what it would preempt, why. Exit codes: 0 explained; 1 neither a host
    nor PBS knows the job; 2 wrong usage; 3 neither hub nor daemon answers.
    """
    known = sources.farm("explain", socket_option, hub_option)
    parts = [
        (host.snapshot, domain, report)
        for host in known.hosts
        for domain in host.snapshot.domains
        for report in domain.jobs
        if report.id == job or report.id.partition(".")[0] == job
    ]
    if parts:
        rows = [_part(*part, now=known.at) for part in parts]
        data = [{"host": s.host, "domain": d.name, "job": msgspec.to_builtins(j)} for s, d, j in parts]
        _show(form, ("HOST", "DOMAIN", "VNODE", "CLASS", "STATE", "PREEMPTED S", "TIMES"), rows, data)
        return
    try:
        id, attributes = qstat.job(job)
        select = str(attributes.get("schedselect") or attributes.get("Resource_List", {}).get("select", "1"))
        first = qstat.chunks(select)[0]
    except (qstat.NoQstat, ValueError) as error:
        click.echo(f"magrathea explain: no host has {job}, and PBS does not explain it: {error}", err=True)
        raise click.exceptions.Exit(NOT_WELL) from error
    cls = qstat.class_of_select(select)
    answers = foresight.preview_farm(known.hosts, cls, Amount(*first[1:]))
    comment = str(attributes.get("comment", "no comment"))
    if form == "table":
        click.echo(f"{id}: state {attributes.get('job_state')}, class {cls.value}, on no host; PBS: {comment}\n")
    facts: dict[str, Any] = {"job": id, "class": cls.value, "state": attributes.get("job_state"), "comment": comment}
    facts["answers"] = msgspec.to_builtins(answers)
    _show(form, ANSWERS, [_row(answer) for answer in answers], facts)


def _part(snapshot: Snapshot, domain: DomainReport, job: JobReport, now: float) -> tuple[str, ...]:
    seconds = job.preempted_s
    if job.stopped_since is not None and job.stopper != "pbs":
        seconds += max(0.0, now - job.stopped_since)
    state = view.job_state(job, now)
    return snapshot.host, domain.name, domain.vnode, job.cls.value, state, f"{seconds:.0f}", str(job.preemptions)


@click.command(short_help="what a submission would preempt now; nothing is changed")
@click.option("-q", "queue", help="The queue that it would be submitted to: PBS is asked for its class.")
@click.option("--class", "cls", type=click.Choice([c.value for c in JobClass]), help="Its class, without asking PBS.")
@click.option("-l", "resources", default="select=1", show_default=True, help="As for qsub: select=2:ncpus=4:mem=1gb")
@sources.hub
@sources.socket
@sources.form_option
def preview(
    queue: str | None, cls: str | None, resources: str, hub_option: str | None, socket_option: str | None, form: str
) -> None:
    """Say what each domain would answer now to a job like that, and whom it would preempt. Nothing is changed.

    Each chunk is asked for by itself: PBS's scheduler chooses among the domains that accept, Magrathea does not. From
    the hub, who accepts is exact, whom it preempts is by CPUs (snapshots do not say all about memory); from the host's
    own daemon (--socket) it is what a claim at this moment would get.

    \b
    Examples:
      magrathea preview -q high -l select=2:ncpus=4
      magrathea preview --class priority -l select=1:ncpus=1 --socket /run/magrathea/control.sock

    Columns of `plain`: chunk's CPUs, host, domain, vnode, `accepts` or a refusal's code, what is preempted, why. Exit
    codes: 0 enough domains accept; 1 too few do; 2 wrong usage, or PBS does not say the class; 3 no answer.
    """
    name, _, select = resources.partition("=")
    try:
        if name != "select" or not (queue or cls):
            raise ValueError("it takes -q QUEUE or --class, and -l select=...")
        asked = qstat.chunks(select)
        job_class = JobClass(cls) if cls else qstat.class_of_queue(str(queue))
    except (ValueError, qstat.NoQstat) as error:
        click.echo(f"magrathea preview: {error}; see `magrathea preview --help`", err=True)
        raise click.exceptions.Exit(USAGE) from error
    rows: list[tuple[str, ...]] = []
    data = []
    short = False
    for count, cpus, mib in asked:
        answers = _answers(job_class, cpus, mib, socket_option, hub_option)
        answers.sort(key=lambda answer: (bool(answer.code), len(answer.preempts)))
        short = short or sum(not answer.code for answer in answers) < count
        rows += [(str(cpus), *_row(answer)) for answer in answers]
        chunk = {"count": count, "cpus": cpus, "memory_mib": mib, "class": job_class.value}
        data.append({**chunk, "answers": msgspec.to_builtins(answers)})
    _show(form, ("CPUS", *ANSWERS), rows, data)
    raise click.exceptions.Exit(NOT_WELL if short else 0)


def _answers(cls: JobClass, cpus: int, mib: int, socket_option: str | None, hub_option: str | None) -> list[Preview]:
    if sources.by_hub(socket_option, hub_option):
        return foresight.preview_farm(sources.farm("preview", None, hub_option).hosts, cls, Amount(cpus, mib))
    request = {"op": "preview", "cls": cls.value, "cpus": cpus, "memory_mib": mib}
    try:
        return msgspec.json.decode(client.ask(client.socket_path(socket_option), request), type=_Previews).previews
    except (client.Unreachable, client.Refused, msgspec.DecodeError) as error:
        click.echo(f"magrathea preview: {error}", err=True)
        raise click.exceptions.Exit(sources.NOT_REACHABLE) from error
