"""What Magrathea needs in PBS: resources, hooks, the scheduler's `resources:` line, queues, defaults.

Rule 1: `changes` is pure: it compares the present state with the wanted one and returns only the differences. So a
second run changes nothing. pbs_commands.py talks to PBS.
Rule 2: the changes are ordered so that every job can start at any moment. Vnodes accept all classes before the server
gives jobs a class; waiting jobs get theirs last.
Rule 3: settings of the site are never overwritten. `conflicts` lists what is in the way; then nothing is changed.

uninstall.py undoes it all, records.py keeps the old state, checks.py reports what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from magrathea.pbs_text.select import CLASS_RESOURCE, CLASSES, job_class, resource_names
from magrathea.pbs_text.words import words

from ..pbs.base import Attributes
from . import kept_resources, queue_names
from .hook_texts import hook_text
from .sched_config import InstallError, resources_lines, with_resources
from .setup_model import HOST, InstallOptions, Present, SetupChange, SubmittedJob

RESOURCES = {  # flag h: of a vnode; r: queues set it, users cannot ask for it
    "magrathea": "string",
    "magrathea_accepts": "string_array",
    "magrathea_rank": "long",
    "magrathea_host": "string",
    "magrathea_siblings": "string_array",
    "magrathea_host_ncpus": "long",
}
FLAG = "hr"

SITE_HOOKS_LAST = "1000"
"""Highest order of a site's hook. If another begin hook rejects a job after ours accepted it, neither end nor abort
follows."""

SCRIPT, CONFIG = "application/x-python", "application/x-config"
OURS = "Magrathea's hook"
"""In the first line of all our hooks' scripts, of every version. A hook without it belongs to somebody else."""

DEFAULT_CHUNK = "default_chunk.magrathea_accepts"
ACCEPTS = "resources_available.magrathea_accepts"

WAITING = frozenset("QHWB")
"""States of jobs that can still get a class.

PBS adds a default chunk at submission, at a move, and when the job's select is set, even to the same value.
"""


VNODES_HOOK_FREQ_S = ((100, 2), (250, 5), (500, 10))
"""(vnodes, seconds): on a server with up to so many vnodes the vnodes hook runs at this interval; else
VNODES_HOOK_SLOWEST_S.

A run costs a process beside the server 9 ms and 0.28 ms a vnode (measured). So it takes 2 % of one core, and less than
0.2 % of the server's own thread. A preemption that coincides with a run is booked one run later.
"""
VNODES_HOOK_SLOWEST_S = 30


def maintenance_freq_s(vnodes: int) -> int:
    """Interval of the vnodes hook, for a server with so many vnodes."""
    return next((freq_s for most, freq_s in VNODES_HOOK_FREQ_S if vnodes <= most), VNODES_HOOK_SLOWEST_S)


def wanted_hooks(options: InstallOptions, vnodes: int = 0) -> dict[str, tuple[dict[str, str], str, str | None]]:
    """Hooks by name: attributes, script, configuration. `vnodes`: the number of the server's vnodes."""
    mom = hook_text("magrathea_mom")
    config: dict[str, Any] = {"heartbeat": options.heartbeat, "heartbeat_max_age_s": options.heartbeat_max_age_s}
    protecting = {"protecting": list(options.protecting)} if options.protecting else {}
    hooks: dict[str, tuple[dict[str, str], str, str | None]] = {
        "magrathea_server": (
            {"event": "runjob,queuejob,modifyjob,movejob,resvsub", "alarm": "10"},
            hook_text("magrathea_server"),
            json.dumps(config | protecting, indent=1) + "\n",
        ),
        "magrathea_vnodes": (
            {"event": "periodic", "alarm": "30", "freq": str(maintenance_freq_s(vnodes))},
            hook_text("magrathea_vnodes"),
            json.dumps(config, indent=1) + "\n",
        ),
        "magrathea_mom": (
            {
                # Neither execjob_end nor execjob_epilogue: the first costs each job a second at its end, and a MoM with
                # a hook for the second no longer runs the site's epilogue script. The agent finds the end itself.
                "event": "execjob_begin,execjob_preterm,execjob_abort,exechost_periodic,exechost_startup",
                # a claim never takes so long; if the alarm killed a begin hook, PBS would try the job again at once
                "alarm": "30",
                "freq": "15",
            },
            mom,
            None,
        ),
    }
    if options.memory_moves:
        hooks["magrathea_prologue"] = ({"event": "execjob_prologue", "alarm": "600"}, mom, None)
    return hooks


def _same(attribute: str, now: str | None, wanted: str) -> bool:
    if attribute == "event" and now is not None:
        return set(words(now)) == set(words(wanted))
    return (now or "").strip('"') == wanted


def _hook_changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    found: list[SetupChange] = []
    for name, (attributes, script, config) in wanted_hooks(options, len(now.vnodes)).items():
        have = now.hooks.get(name)
        target = f"hook {name}"
        if have is None:
            found.append(SetupChange(f"create hook {name}", f"create hook {name}", target=target, missing=True))
            found.append(_disabled(name))
        # before the events are set, so that the hook never runs without its script or configuration
        for content_type, content in ((SCRIPT, script), (CONFIG, config)):
            if content is not None and now.contents.get((name, content_type), "").strip() != content.strip():
                what = "script" if content_type == SCRIPT else "configuration"
                command = f"import hook {name} {content_type} default {{file}}"
                found.append(SetupChange(f"import the {what} of hook {name}", command, content, target=target))
        settings = [
            change
            for attribute, value in {**attributes, **_order(attributes)}.items()
            for change in _setting(target, have or {}, attribute, value)
        ]
        if have is not None and any(" freq = " in change.qmgr for change in settings):
            settings.insert(0, _disabled(name))
            have = {}
        found += settings + _setting(target, have or {}, "enabled", "true")
    if not options.memory_moves and "magrathea_prologue" in now.hooks:
        text = "delete hook magrathea_prologue: no memory moves"
        found.append(SetupChange(text, "delete hook magrathea_prologue", target="hook magrathea_prologue"))
    return found


def _order(attributes: Attributes) -> Attributes:
    """Attributes for the hook's order; PBS accepts none for periodic hooks."""
    return {} if attributes["event"] == "periodic" else {"order": SITE_HOOKS_LAST}


def _disabled(name: str) -> SetupChange:
    """The change that disables a hook before its freq is set.

    If a MoM hook is enabled and has a script, setting its freq makes PBS's server take it for one of its own `periodic`
    hooks. It forks every freq seconds, even after the hook is deleted, and then uses freed memory: it hung and filled
    the disk with its log (seen; mgr_hook_set, run_periodic_hook in hook_func.c).
    """
    command = f'set hook {name} enabled = "false"'
    return SetupChange(command, command, target=f"hook {name}")


def _setting(target: str, have: Attributes, attribute: str, value: str) -> list[SetupChange]:
    if _same(attribute, have.get(attribute), value):
        return []
    was = f" (was {have[attribute]})" if attribute in have else ""
    command = f'set {target} {attribute} = "{value}"'
    return [SetupChange(command + was, command, target=target, missing=attribute not in have)]


def conflicts(now: Present, options: InstallOptions) -> list[tuple[str, str]]:
    """What is in the way: (thing, sentence with the fix). If there is any, nothing may be changed."""
    found: list[tuple[str, str]] = []
    for name in sorted(set(options.priority) & set(options.preemptible)):
        found.append((f"queue {name}", f"queue {name}: either --priority or --preemptible, not both"))
    for name in options.vnodes:
        if name not in now.vnodes:
            text = f"vnode {name} does not exist in PBS; create it first (qmgr: create node)"
            found.append((f"node {name}", text))
    for name in (*options.priority, *options.preemptible):
        found += ((f"queue {name}", text) for text in _queue_fault(now, name))
    found += kept_resources.conflicts(now, options)
    for name, kind in RESOURCES.items():
        have = now.resources.get(name)
        if have is not None and (have.get("type"), have.get("flag")) != (kind, FLAG):
            text = f"resource {name} exists with type {have.get('type')}, flag {have.get('flag', 'none')};"
            fix = "delete it (qmgr: delete resource), if it is not needed for something else"
            found.append((f"resource {name}", f"{text} {kind}, {FLAG} is needed: {fix}"))
    for name in wanted_hooks(options):
        script = now.contents.get((name, SCRIPT), "").strip()
        if name in now.hooks and script and OURS not in script.splitlines()[0]:
            found.append((f"hook {name}", f"hook {name} exists and is not ours; give it another name, or delete it"))
    try:
        resources_lines(now.sched_config)
    except InstallError as error:
        found.append(("sched_config", str(error)))
    return found


def _queue_fault(now: Present, name: str) -> Iterator[str]:
    """Why this queue can give no class, and the fix."""
    if fault := queue_names.fault(name):
        yield f"queue {name!r}: its name {fault}"
    elif name in now.queues and (kind := now.queues[name].get("queue_type", "")) != "Execution":
        if kind:
            text = f"is a {kind} queue, and only an Execution queue can give a class; name the queues that it routes to"
        else:
            text = f"has no type yet, so that it can have no jobs; qmgr -c 'set queue {name} queue_type = Execution'"
        yield f"queue {name} {text}"


def targets(now: Present, options: InstallOptions) -> list[str]:
    """All items that must be right, in the order of their installation."""
    return [
        *(f"resource {name}" for name in RESOURCES),
        "sched_config",
        *(f"hook {name}" for name in wanted_hooks(options)),
        *(f"node {name}" for name in now.vnodes),
        *(f"queue {name}" for name in (*options.priority, *options.preemptible)),
        "server",
        *kept_resources.targets(options),
        "jobs",
    ]


def changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    """The steps from the present state to the wanted one, in order. Raises InstallError if something is in the way."""
    if bad := conflicts(now, options):
        raise InstallError("; ".join(text for _, text in bad))
    found: list[SetupChange] = []
    for name, kind in RESOURCES.items():
        if name not in now.resources:
            command = f"create resource {name} type={kind},flag={FLAG}"
            found.append(SetupChange(command, command, target=f"resource {name}", missing=True))
    config = with_resources(now.sched_config, RESOURCES)
    if config != now.sched_config:
        text = "sched_config: add to the resources: line " + ", ".join(RESOURCES) + "; the scheduler reads it again"
        found.append(SetupChange(text, content=config, target="sched_config", missing=True))
    found += _hook_changes(now, options)
    for name, have in now.vnodes.items():
        if ACCEPTS not in have:
            found += _setting(f"node {name}", have, ACCEPTS, ",".join(CLASSES))
        if name in options.vnodes or HOST in have:
            found += _setting(f"node {name}", have, "resv_enable", "False")
    for cls, queues in (("priority", options.priority), ("preemptible", options.preemptible)):
        for name in queues:
            target = f"queue {name}"
            if name not in now.queues:
                command = f"create queue {name} queue_type=Execution"
                found.append(SetupChange(f"create queue {name}", command, target=target, missing=True))
            have = now.queues.get(name, {})
            found += _setting(target, have, DEFAULT_CHUNK, cls)
            if name not in now.queues:
                found += _setting(target, have, "enabled", "True")
                found += _setting(target, have, "started", "True")
    found += _setting("server", now.server, DEFAULT_CHUNK, "protected")
    found += kept_resources.changes(now, options)
    return found + _job_changes(now, options)


def _job_changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    """Give waiting jobs their queue's class by setting their select to its present value.

    They keep their place in the queue. A `qmove` to the same queue would put them at its end, and is refused for arrays
    that have begun.
    """
    given = {name: have[DEFAULT_CHUNK] for name, have in now.queues.items() if DEFAULT_CHUNK in have}
    given |= dict.fromkeys(options.priority, "priority") | dict.fromkeys(options.preemptible, "preemptible")
    found = []
    for job in now.jobs:
        executes = now.queues.get(job.queue, {}).get("queue_type", "Execution") == "Execution"
        if not can_be_altered(job) or not executes or not job.schedselect:
            continue
        if CLASS_RESOURCE in resource_names(job.select):
            continue  # a manager has named a class in the select on purpose
        cls = given.get(job.queue, "protected")
        if (have := job_class(job.schedselect)) != cls:
            found.append(altered(job, f"job {job.id} gets class {cls} (was {have or 'none'})", missing=have is None))
    return found


def can_be_altered(job: SubmittedJob) -> bool:
    """True for a job that can still get a class; subjobs follow their array."""
    return job.state in WAITING and job.id == job.array


def altered(job: SubmittedJob, text: str, *, missing: bool = False) -> SetupChange:
    """The change that makes PBS add its default chunks to a waiting job again."""
    command = ("qalter", "-l", f"select={job.select}", job.id)
    return SetupChange(text, command=command, target="jobs", missing=missing, about_job=job.id)
