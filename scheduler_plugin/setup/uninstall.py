"""Undoes `magrathea pbs install`: the changes that restore PBS as it was before.

Rule 1: pure, like install.py. It removes only what is ours, and restores only what the hub has written.
Rule 2: the order is reversed. New jobs get no class any more, then waiting jobs lose theirs, then hooks and the vnodes'
values are removed, then the scheduler's line, and the resources last.
Rule 3: what PBS cannot remove yet is left and reported, and a second run removes it. Examples: a resource that a
running or a remembered job names, a queue with jobs.

Jobs that Magrathea has stopped must be resumed before (`preempted`): nobody would resume them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator

from magrathea.pbs_text.select import CLASS_RESOURCE, resource_names
from magrathea.pbs_text.words import words

from . import kept_resources
from .install import ACCEPTS, DEFAULT_CHUNK, RESOURCES, altered, can_be_altered
from .records import RESTORED, Record
from .sched_config import InstallError, resources_lines, with_resources, without_resources
from .setup_model import Present, SetupChange, SubmittedJob

OUR_HOOKS = ("magrathea_server", "magrathea_vnodes", "magrathea_mom", "magrathea_prologue")
OUR_RESOURCES = (*RESOURCES, kept_resources.KEEPS)
FINISHED = frozenset("FXM")


def preempted(now: Present) -> list[SubmittedJob]:
    """Jobs that are admin-suspended on our vnodes. Those that an administrator suspended count too: PBS shows no
    difference."""
    suspended: set[str] = set()
    for name in now.managed:
        suspended.update(words(now.vnodes[name].get("maintenance_jobs", "")))
    return [job for job in now.jobs if job.state == "S" and job.id in suspended]


def changes(now: Present, record: Record | None, *, delete_history: bool = False) -> list[SetupChange]:
    """The steps from the present state to the old one, in order; [] if nothing of ours is left. Raises InstallError."""
    found: list[SetupChange] = []
    if DEFAULT_CHUNK in now.server:
        found.append(_plain(f"unset server {DEFAULT_CHUNK}"))
    for name, queue in now.queues.items():
        if DEFAULT_CHUNK in queue:
            found.append(_plain(f"unset queue {name} {DEFAULT_CHUNK}"))
    found += _job_changes(now)
    for name in OUR_HOOKS:
        if name in now.hooks:
            found += _hook_changes(name)
    for name in now.vnodes:
        found += _vnode_changes(now, record, name)
    if record:
        found += kept_resources.restored(now, record.release_before, record.release_ours)
    config = _sched_config(now, record)
    if config != now.sched_config:
        text = "sched_config: restore the resources: line; the scheduler reads it again"
        found.append(SetupChange(text, content=config))
    for name in record.queues if record else []:
        if name in now.queues:
            found.append(_plain(f"delete queue {name}"))
    if delete_history:
        for id in dict.fromkeys(job.array for job in now.jobs if _remembered(job)):
            text = f"delete the finished job {id} from PBS's history: it names magrathea_accepts"
            found.append(SetupChange(text, command=("qdel", "-x", id), about_job=id))
    found += [_plain(f"delete resource {name}") for name in OUR_RESOURCES if name in now.resources]
    return found


def queue_changes(now: Present, record: Record, name: str) -> list[SetupChange]:
    """The steps that take one queue out again. It is deleted if install created it; other queues stay. Raises
    InstallError."""
    known = [*record.priority, *record.preemptible, *record.queues]
    have = now.queues.get(name, {})
    if name not in known and DEFAULT_CHUNK not in have:
        told = ", ".join(dict.fromkeys(known)) or "none"
        raise InstallError(f"queue {name} has no class from Magrathea; install knows these: {told}")
    found = [_plain(f"unset queue {name} {DEFAULT_CHUNK}")] if DEFAULT_CHUNK in have else []
    for job in now.jobs if found else ():
        if job.queue == name and can_be_altered(job) and CLASS_RESOURCE not in resource_names(job.select):
            found.append(altered(job, f"job {job.id} gets the server's class"))
    if name in record.queues and name in now.queues:
        found.append(_plain(f"delete queue {name}"))
    return found


def queue_leftovers(now: Present, record: Record, name: str) -> list[str]:
    """Why one queue could not be taken out whole: a sentence each, with what to do."""
    have = now.queues.get(name, {})
    found = [f"queue {name} still has its class; run this again"] if DEFAULT_CHUNK in have else []
    return found + (_kept_queue(now, name) if name in record.queues else [])


def _hook_changes(name: str) -> list[SetupChange]:
    """Disable a hook, make it periodic, delete it.

    If somebody has set the freq of an enabled MoM hook, the server runs it for ever (install._disabled). `delete hook`
    stops that timer only if the hook has the event periodic.
    """
    return [
        _plain(f"set hook {name} enabled = false"),
        _plain(f"set hook {name} event += periodic"),
        _plain(f"delete hook {name}"),
    ]


def _plain(command: str) -> SetupChange:
    return SetupChange(command, command)


def _remembered(job: SubmittedJob) -> bool:
    """True for a finished job that PBS still knows: it prevents the deletion of a resource."""
    return job.state in FINISHED and (job.keeps or _names(job, CLASS_RESOURCE))


def _names(job: SubmittedJob, resource: str) -> bool:
    return job.keeps if resource == kept_resources.KEEPS else resource in resource_names(job.schedselect)


def _job_changes(now: Present) -> Iterator[SetupChange]:
    for job in now.jobs:
        if can_be_altered(job) and CLASS_RESOURCE in resource_names(job.schedselect) - resource_names(job.select):
            yield altered(job, f"job {job.id} loses its class")


def _vnode_changes(now: Present, record: Record | None, name: str) -> Iterator[SetupChange]:
    have = now.vnodes[name]
    was = record.vnodes.get(name) if record else None
    if record and was is not None and (name in now.managed or name in record.managed):
        for attribute in RESTORED:
            if attribute not in was and attribute in have:
                yield _plain(f"unset node {name} {attribute}")
            elif attribute in was and have.get(attribute) != was[attribute]:
                command = f'set node {name} {attribute} = "{was[attribute]}"'
                yield SetupChange(f"{command} (was {have.get(attribute, 'unset')})", command)
    for resource in RESOURCES:
        if f"resources_available.{resource}" in have:
            yield _plain(f"unset node {name} resources_available.{resource}")


def unknown_values(now: Present, record: Record | None) -> list[str]:
    """Sentences about vnodes that keep the hub's values, because nobody knows their old ones."""
    known = record.vnodes if record else {}
    return [
        f"vnode {name} keeps its present ncpus, mem, Priority and resv_enable: their old values are unknown"
        for name in now.managed
        if name not in known
    ]


def _sched_config(now: Present, record: Record | None) -> str:
    """The old file, byte for byte, if only our line differs; else the present file without our words."""
    if record:
        ours = with_resources(record.sched_config, RESOURCES)
        if now.sched_config == ours:
            return record.sched_config
        for was, became in zip(resources_lines(record.sched_config), resources_lines(ours), strict=True):
            if was[0] != became[0] and now.sched_config.count(became[0]) == 1:
                return now.sched_config.replace(became[0], was[0])
    return without_resources(now.sched_config, RESOURCES)


def leftovers(now: Present, record: Record | None) -> list[str]:
    """What still exists after all changes were tried: a sentence each, with what to do."""
    found = []
    for name in OUR_RESOURCES:
        if name in now.resources:
            users = [job for job in now.jobs if _names(job, name)]
            alive = [job.id for job in users if job.state not in FINISHED]
            dead = [job.id for job in users if job.state in FINISHED]
            why = "something still uses it"
            if alive:
                why = f"{_some(alive)} still name it; run this again when they have ended"
            elif dead:
                why = f"PBS remembers {_some(dead)}, which name it; remove them with --delete-history"
            found.append(f"resource {name}: {why}")
    for name in record.queues if record else []:
        found += _kept_queue(now, name)
    if DEFAULT_CHUNK in now.server or any(ACCEPTS in vnode for vnode in now.vnodes.values()):
        found.append("a default chunk or values on vnodes have come back: does another install or a hub run?")
    told = ("delete resource ", "delete queue ", f"unset server {DEFAULT_CHUNK}")
    undone = [one.text for one in changes(now, record) if not one.text.startswith(told) and ACCEPTS not in one.text]
    return found + [f"not done: {text}; see what was refused above, then run this again" for text in undone]


def _kept_queue(now: Present, name: str) -> list[str]:
    """Why PBS still has a queue that install created."""
    if name not in now.queues:
        return []
    jobs = [job.id for job in now.jobs if job.queue == name and job.state not in FINISHED]
    why = f"it has {_some(jobs)}" if jobs else "PBS keeps it"
    return [f"queue {name}, which install created: {why}; move them (qmove), or run this again later"]


def _some(ids: list[str]) -> str:
    return f"{len(ids)} jobs ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''})"
