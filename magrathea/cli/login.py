"""The pages of `hosts`, `status`, `explain` and `preview` on a machine with neither hub nor node daemon.

They show what PBS itself shows, so a user of a login node needs nothing but PBS's commands. See magrathea/pbs_view.py.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NoReturn

import click

from magrathea import pbs_view, qstat
from magrathea.cli import sources, view
from magrathea.core.words import State
from magrathea.name_folding import fold
from magrathea.pbs_text.placement import vnodes_of
from magrathea.pbs_view import PublishedVnode
from magrathea.text import printable

OK, TROUBLE = 0, 1
BAD_STATES = (State.FAULT, State.UNKNOWN)
SOURCE = "as PBS shows it; this machine has neither hub nor node daemon"


def fail(command: str, error: Exception) -> NoReturn:
    """End the command because PBS cannot be asked. Nobody is told to start a daemon here."""
    text = f"this machine has neither hub nor node daemon, and PBS cannot be asked: {error}"
    view.say(f"magrathea {command}: {text}; try it where qstat works", err=True)
    raise click.exceptions.Exit(sources.NOT_REACHABLE) from error


def vnodes(command: str) -> list[PublishedVnode]:
    """The managed vnodes, as PBS shows them. If it cannot be asked, print why and end the command."""
    try:
        return pbs_view.published(qstat.vnodes())
    except (qstat.NoQstat, ValueError) as error:
        fail(command, error)


def groups(command: str) -> dict[tuple[str, str], list[str]]:
    """Names of hosts and domains by (what, state), as `magrathea hosts` counts them."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    hosts: dict[str, list[str]] = defaultdict(list)
    for vnode in vnodes(command):
        found["domain", vnode.state].append(vnode.name)
        hosts[vnode.host].append(vnode.state)
    for host, states in hosts.items():
        found["host", "silent" if set(states) == {State.UNKNOWN.value} else "live"].append(host)
    return found


STATUS = ("HOST", "VNODE", "STATE", "ACCEPTS", "FREE CPUS", "JOBS", "PBS")


def status(form: str, host: str | None) -> tuple[str, int]:
    """The page and its exit code."""
    known = vnodes("status")
    shown = [vnode for vnode in known if host in (None, vnode.host)]
    if host and not shown:
        names = fold({vnode.host for vnode in known}) or "none"
        raise click.UsageError(f"PBS knows no host {host}; known: {names}")
    rows = [
        (v.host, v.name, v.state, ",".join(v.accepts) or "-", str(v.cpus), ",".join(v.jobs) or "-", v.pbs)
        for v in shown
    ]
    keys = ("host", "vnode", "state", "accepts", "free_cpus", "jobs", "pbs_state")
    data = [dict(zip(keys, (v.host, v.name, v.state, v.accepts, v.cpus, v.jobs, v.pbs), strict=True)) for v in shown]
    code = TROUBLE if any(vnode.state in BAD_STATES for vnode in shown) else OK
    if form == "json":
        return view.json_text(data) + "\n", code
    if form == "plain":
        return "".join(view.tabs(row) + "\n" for row in rows), code
    return "\n".join([*(line.rstrip() for line in view.grid(STATUS, rows)), "", SOURCE, ""]), code


WORDS = {"R": "running", "S": "stopped", "E": "ending", "U": "suspended", "T": "moving"}
"""By the states in which a job has a place."""


def placed_parts(attributes: dict[str, str]) -> list[str]:
    """The vnodes on which the job is, or is suspended."""
    if attributes.get("job_state") not in WORDS:
        return []
    try:
        return list(dict.fromkeys(vnodes_of(attributes.get("exec_vnode", ""))))
    except ValueError:
        return []


def explain_placed(form: str, headings: tuple[str, ...], id: str, job: dict[str, str], on: list[str]) -> None:
    """Print where the job is. For how long it was preempted only hub and daemon know: that is in its comment."""
    hosts = {vnode.name: vnode.host for vnode in vnodes("explain")}
    cls = qstat.class_of_select(job.get("schedselect", "")).value
    state, comment = WORDS[job["job_state"]], printable(job.get("comment", ""))
    if form == "table":
        view.say(f"{id}: state {job['job_state']}, class {cls}, in {', '.join(on)}; PBS: {comment or 'no comment'}")
        click.echo()
    rows = [(hosts.get(name, "-"), name, name, cls, state, "-", "-") for name in on]
    facts = {"id": id, "cls": cls, "job_state": job["job_state"], "state": state, "comment": comment}
    data = [{"host": hosts.get(name, ""), "domain": name, "vnode": name, "job": facts} for name in on]
    view.show(form, headings, rows, data)
    say_source(form)


def say_source(form: str) -> None:
    """Tell people where the answer comes from."""
    if form == "table":
        click.echo()
        view.say(SOURCE)
