"""`magrathea hosts`, `explain`, `preview`: answers about all hosts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import click
import msgspec
from msgspec import to_builtins

from magrathea import client, pbs_view, qstat
from magrathea.cli import login, sources, view
from magrathea.core.words import GiveWay, JobClass, State, StoppedBy
from magrathea.decoding import UNDECODABLE
from magrathea.name_folding import fold
from magrathea.preview import outlook_farm
from magrathea.reports import Chunk, DomainReport, ElsewhereView, JobReport, Outlook, Road, Snapshot
from magrathea.text import printable

NOT_WELL, USAGE = 1, 2


@click.command(short_help="all hosts: names folded, counts by state")
@sources.hub
@sources.socket
@sources.form_option
def hosts(hub_option: str | None, socket_option: str | None, form: str) -> None:
    """Show all hosts and their domains (by vnode) by state, with names folded. It asks the hub; without one, this host.
    On a machine with neither (a login node) it shows what PBS shows. The hub also shows which domains are on their way
    from one host to another, which have moved lately, and why others did not. If preempted domains may go on elsewhere
    ([elsewhere] in hub.toml), it shows where each is to go, or why it stays.

    \b
    Examples:
      magrathea hosts
      magrathea hosts --format plain | awk -F'\\t' '$1 == "domain" && $2 == "fault" {print $4}'

    Columns of `plain`: `host`, `domain` or `move`; the state (of a host: live, evacuating, evacuated, returning, paused
    or silent; of a move under way: both hosts); how many; names.

    Exit codes: 0 all well; 1 a host is silent, or a domain is in fault or unknown; 2 wrong usage; 3 neither hub nor
    daemon answers, nor PBS if there is neither.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    alone = sources.by_pbs(socket_option, hub_option)
    known = None if alone else sources.farm("hosts", socket_option, hub_option)
    if alone:
        groups = login.groups("hosts")
    for host in known.hosts if known else []:
        if host.live and host.snapshot.evacuation is not msgspec.UNSET:
            groups["host", view.evacuation_word(host.snapshot.evacuation)].append(host.snapshot.host)
        elif host.live and host.snapshot.paused_since is not None:
            groups["host", "paused"].append(host.snapshot.host)
        else:
            groups["host", "live" if host.live else "silent"].append(host.snapshot.host)
        for domain in host.snapshot.domains:
            groups["domain", domain.state.value if host.live else State.UNKNOWN.value].append(domain.vnode)
    for move in known.moves if known else []:
        if not move.over:
            groups["move", f"{move.source} -> {move.target}"].append(move.domain)
    keys = sorted(groups, key=lambda key: (("host", "domain", "move").index(key[0]), key[1]))
    rows = [(what, state, str(len(groups[what, state])), fold(groups[what, state])) for what, state in keys]
    data = [{"what": w, "state": s, "count": len(groups[w, s]), "names": sorted(groups[w, s])} for w, s in keys]
    view.show(form, ("WHAT", "STATE", "COUNT", "NAMES"), rows, data)
    if alone:
        login.say_source(form)
    if form == "table" and known and (known.moves or known.elsewhere):
        click.echo()
        for line in (*view.move_lines(known.moves, known.at), *view.elsewhere_lines(known.elsewhere)):
            view.say(line)
    bad = {("host", "silent"), ("domain", State.FAULT.value), ("domain", State.UNKNOWN.value)}
    raise click.exceptions.Exit(NOT_WELL if bad & groups.keys() else 0)


ANSWERS = ("CPUS", "HOST", "DOMAIN", "VNODE", "ANSWER", "PREEMPTS", "PLACED", "WHY")


def _rows(outlook: Outlook) -> list[tuple[str, ...]]:
    """One row for each chunk and domain; those that accept come first."""
    placed = Counter((place.chunk, place.host, place.domain) for place in outlook.placed)
    rows: list[tuple[str, ...]] = []
    for kind, part in enumerate(outlook.chunks):
        for answer in sorted(part.answers, key=lambda answer: (bool(answer.code), len(answer.preempts))):
            preempts = f"{','.join(answer.preempts)} ({', '.join(answer.jobs)})" if answer.preempts else "-"
            where = (answer.host, answer.domain, answer.vnode, answer.code or "accepts", preempts)
            there = str(placed[kind, answer.host, answer.domain])
            rows.append(
                (str(part.chunk.cpus), *where, there, answer.text or ", ".join(map(_road, answer.roads)) or "-")
            )
    return rows


def _road(road: Road) -> str:
    where = "to disk, with its domain" if road.road is GiveWay.DISK else "to its swap"
    about = f"about {road.expected_s:.0f} s" if road.expected_s is not None else "not measured yet"
    return f"{road.mib} MiB of {road.domain} go {where} ({about})"


def _sum(outlook: Outlook) -> str:
    """All chunks together, in a sentence."""
    jobs = [job for place in outlook.placed for job in place.jobs]
    would = f"; it would preempt {', '.join(jobs)}" if jobs else "; it would preempt nothing"
    if outlook.fits:
        return f"it fits now{f', all {outlook.asked} chunks of it' if outlook.asked > 1 else ''}{would}"
    return f"it does not fit now: {len(outlook.placed)} of {outlook.asked} chunks find a place"


@click.command(short_help="why a job waits, or who preempted it and for how long")
@click.argument("job", shell_complete=sources.names)
@sources.hub
@sources.socket
@sources.form_option
def explain(job: str, hub_option: str | None, socket_option: str | None, form: str) -> None:
    """Explain the state of JOB. For each host that has it: what it does there, who preempted it, and for how long; and
    why its domain has moved lately, is to go on at another host, or stays.

    If no host has it: what PBS reports, what each domain would answer to each of its chunks now, and whether all
    chunks find a place. It needs no rights: it asks PBS by qstat as the calling user, so a job's owner may ask. On a
    machine with neither hub nor daemon (a login node) PBS answers alone; `-` stands for what only these know.

    \b
    Examples:
      magrathea explain 12
      magrathea explain 12.srv --format json

    Columns of `plain` if a host has the job: host, domain, vnode, class, what it does, seconds preempted so far, times
    preempted. If its domain is between two hosts: both hosts, the domain, how far it is. If it waits: those of
    `magrathea preview`.

    Exit codes: 0 explained; 1 neither a host nor PBS knows the job; 2 wrong usage; 3 neither hub nor daemon answers, or
    PBS is needed and does not answer.
    """
    if sources.by_pbs(socket_option, hub_option):
        _explain_by_pbs(job, form)
        return
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
        domains = {domain.name for _, domain, _ in parts}
        judged = {one.domain: one for one in known.elsewhere if one.domain in domains}
        data = [{"host": s.host, "domain": d.name, "job": to_builtins(j)} | _judged(judged, d) for s, d, j in parts]
        view.show(form, PARTS, rows, data)
        if form == "table":
            moved = (move for move in known.moves if move.domain in domains)
            for line in (*view.move_lines(moved, known.at), *view.elsewhere_lines(judged.values())):
                view.say(line)
        return
    id, attributes, cls, asked = _in_pbs(job, f"no host has {job}, and PBS cannot explain it")
    here = login.placed_parts(attributes)
    if moves := [move for move in known.moves if move.domain in here and not move.over]:  # no host has its facts now
        rows = [(move.source, move.target, move.domain, move.text) for move in moves]
        view.show(form, MOVES, rows, {"job": id, "moves": to_builtins(moves)})
        return
    _explain_waiting(form, id, attributes, outlook_farm(known.hosts, cls, asked))


def _judged(found: Mapping[str, ElsewhereView], domain: DomainReport) -> dict[str, object]:
    """What the hub says of a preempted domain that may go on elsewhere, for programs."""
    one = found.get(domain.name)
    return {"elsewhere": to_builtins(one)} if one is not None else {}


MOVES = ("FROM", "TO", "DOMAIN", "ON ITS WAY")
PARTS = ("HOST", "DOMAIN", "VNODE", "CLASS", "STATE", "PREEMPTED S", "TIMES")


def _explain_waiting(form: str, id: str, attributes: dict[str, str], outlook: Outlook) -> None:
    facts = {name: printable(attributes.get(name, "")) for name in ("job_state", "queue", "comment")}
    if form == "table":
        comment = facts["comment"] or "no comment"
        view.say(f"{id}: state {facts['job_state']}, class {outlook.cls.value}, on no host; PBS: {comment}")
        view.say(_sum(outlook))
        click.echo()
    view.show(form, ANSWERS, _rows(outlook), {"job": id, **facts, "fits": outlook.fits, **to_builtins(outlook)})


def _explain_by_pbs(job: str, form: str) -> None:
    """For a user on a login node: where the job is, or which vnodes would take it, as PBS shows it."""
    known = login.vnodes("explain")
    id, attributes, cls, asked = _in_pbs(job, f"PBS cannot explain {job}")
    if on := login.placed_parts(attributes):
        login.explain_placed(form, PARTS, id, attributes, on)
        return
    _explain_waiting(form, id, attributes, pbs_view.outlook(known, cls, asked))


def _in_pbs(job: str, otherwise: str) -> tuple[str, dict[str, str], JobClass, list[Chunk]]:
    """The job's id, attributes, class and chunks by PBS. If it cannot tell them, print why and end the command."""
    try:
        name, attributes = qstat.job(job)
        select = attributes.get("schedselect") or attributes.get("Resource_List.select", "1")
        return printable(name), attributes, qstat.class_of_select(select), qstat.chunks(select)
    except (qstat.NoQstat, ValueError) as error:
        view.say(f"magrathea explain: {otherwise}: {error}", err=True)
        raise click.exceptions.Exit(sources.NOT_REACHABLE if isinstance(error, qstat.NoAnswer) else NOT_WELL) from error


def _part(snapshot: Snapshot, domain: DomainReport, job: JobReport, now: float) -> tuple[str, ...]:
    seconds = job.preempted_s
    if job.stopped_since is not None and job.stopper != StoppedBy.PBS:
        seconds += max(0.0, now - job.stopped_since)
    state = view.part_state(domain, job, now)
    return snapshot.host, domain.name, domain.vnode, job.cls.value, state, f"{seconds:.0f}", str(job.preemptions)


@click.command(short_help="what a submission would preempt now; changes nothing")
@click.option("-q", "queue", help="The queue of the submission; PBS is asked for its class.")
@click.option("--class", "cls", type=click.Choice([c.value for c in JobClass]), help="The class, without asking PBS.")
@click.option("-l", "resources", default="select=1", show_default=True, help="As for qsub: select=2:ncpus=4:mem=1gb.")
@sources.hub
@sources.socket
@sources.form_option
def preview(
    queue: str | None, cls: str | None, resources: str, hub_option: str | None, socket_option: str | None, form: str
) -> None:
    """Show what each domain would answer now to each chunk of such a job, which jobs it would preempt, and where all
    chunks together would go. It changes nothing.

    It puts the chunks one after another on the best vnode by rank, as PBS's scheduler does by default. It ignores
    `place` and the site's own resources. The hub knows exactly who accepts, but it chooses victims by CPUs only,
    because snapshots do not contain everything about memory. The host's own daemon (--socket) gives the answer that a
    claim would get at this moment, and says where the memory of preempted domains would go, to their swap or to disk,
    and how long that takes by what was measured there before. On a machine with neither (a login node) it answers by
    what is published in PBS, and names all jobs that may be preempted.

    \b
    Examples:
      magrathea preview -q high -l select=2:ncpus=4
      magrathea preview --class priority -l select=1:ncpus=1 --socket /run/magrathea/control.sock

    Columns of `plain`: the chunk's CPUs, host, domain, vnode, `accepts` or a refusal's code, what this chunk alone
    would preempt, how many such chunks would go there, why.

    Exit codes: 0 all chunks find a place; 1 not all do; 2 wrong usage, or PBS does not know the class; 3 neither hub
    nor daemon answers, or PBS is needed and does not answer.
    """
    name, _, select = resources.partition("=")
    try:
        if name != "select" or not (queue or cls):
            raise ValueError("it needs -q QUEUE or --class, and -l select=...")
        asked = qstat.chunks(select)
        job_class = JobClass(cls) if cls else qstat.class_of_queue(str(queue))
    except qstat.NoAnswer as error:
        view.say(f"magrathea preview: {error}; name the class (--class) to do without PBS", err=True)
        raise click.exceptions.Exit(sources.NOT_REACHABLE) from error
    except (ValueError, qstat.NoQstat) as error:
        view.say(f"magrathea preview: {error}; see `magrathea preview --help`", err=True)
        raise click.exceptions.Exit(USAGE) from error
    outlook = _outlook(job_class, asked, socket_option, hub_option)
    if form == "table":
        view.say(f"class {job_class.value}; {_sum(outlook)}")
        click.echo()
    view.show(form, ANSWERS, _rows(outlook), {"fits": outlook.fits, **to_builtins(outlook)})
    raise click.exceptions.Exit(0 if outlook.fits else NOT_WELL)


def _outlook(cls: JobClass, asked: list[Chunk], socket_option: str | None, hub_option: str | None) -> Outlook:
    if sources.by_pbs(socket_option, hub_option):
        return pbs_view.outlook(login.vnodes("preview"), cls, asked)
    if sources.by_hub(socket_option, hub_option):
        return outlook_farm(sources.farm("preview", None, hub_option).hosts, cls, asked)
    request = {"op": "preview", "cls": cls.value, "chunks": asked}
    try:
        return msgspec.json.decode(client.ask(client.socket_path(socket_option), request), type=Outlook)
    except (client.Unreachable, client.RequestRefused, *UNDECODABLE) as error:
        view.say(f"magrathea preview: {error}", err=True)
        raise click.exceptions.Exit(sources.NOT_REACHABLE) from error
