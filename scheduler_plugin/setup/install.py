"""What Magrathea needs in PBS: resources, hooks, the scheduler's `resources:` line, queues, defaults.

Rule 1: `changes` compares what is with what should be and is pure (pbs_commands.py talks to PBS); it gives differences
only, so that a second run changes nothing.
Rule 2: the order of the changes is such that no job is shut out at any moment: vnodes accept all classes before
the server gives its jobs one, and jobs that wait get theirs last.
Rule 3: what is a site's own is never overwritten. `conflicts` names what is in the way, and nothing is changed.

The way back is in uninstall.py, what was there before in records.py, what is not as it should be in
checks.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from magrathea.pbs_text.select import CLASS_RESOURCE, job_class, resource_names
from magrathea.pbs_text.words import words

from ..pbs.base import Attributes
from .hook_texts import hook_text

CLASSES = "priority,preemptible,protected"

RESOURCES = {  # flag h: of a vnode; r: users cannot ask for it, queues do
    "magrathea": "string",
    "magrathea_accepts": "string_array",
    "magrathea_rank": "long",
    "magrathea_host": "string",
    "magrathea_siblings": "string_array",
    "magrathea_host_ncpus": "long",
}
FLAG = "hr"

SITE_HOOKS_LAST = "1000"
"""Highest order of a site's hook: if another begin hook rejects after ours accepted, neither end nor abort follows."""

SCRIPT, CONFIG = "application/x-python", "application/x-config"
OURS = "Magrathea's hook"
"""In the first line of each of our hooks' scripts, of every version: a hook without it is somebody else's."""

DEFAULT_CHUNK = "default_chunk.magrathea_accepts"
ACCEPTS = "resources_available.magrathea_accepts"
HOST = "resources_available.magrathea_host"

WAITING = frozenset("QHWB")
"""States of jobs whose class can still be given: PBS adds a default chunk at submission, at a move, and when the
job's select is altered, if only to what it is."""


class InstallError(Exception):
    """PBS cannot be set up; the text says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """What the admin asks for. Queues by class; `vnodes` that Magrathea will manage; `memory_moves`: whether the
    prologue hook is to wait for memory (costs 20 ms at each start of a job)."""

    priority: tuple[str, ...] = ()
    preemptible: tuple[str, ...] = ()
    vnodes: tuple[str, ...] = ()
    heartbeat: str = "/var/spool/pbs/magrathea.heartbeat"
    heartbeat_max_age_s: float = 30.0
    memory_moves: bool = False


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job as its class is concerned. `select`: what it asked for; `schedselect`: with the defaults added."""

    id: str
    state: str
    queue: str
    select: str
    schedselect: str

    @property
    def array(self) -> str:
        """Of a subjob, its array's id, which is what PBS's commands take; of others, their own."""
        return re.sub(r"\[\d+\]", "[]", self.id)


@dataclass(frozen=True, slots=True)
class Present:
    """What PBS has now; every mapping by name. `contents`: of (hook, content type). `sched_config`: one character a
    byte (latin-1), so that not a byte is lost. `jobs`: finished ones, too, as far as PBS remembers them."""

    resources: Mapping[str, Attributes] = field(default_factory=dict)
    hooks: Mapping[str, Attributes] = field(default_factory=dict)
    queues: Mapping[str, Attributes] = field(default_factory=dict)
    vnodes: Mapping[str, Attributes] = field(default_factory=dict)
    server: Attributes = field(default_factory=dict)
    contents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sched_config: str = ""
    scheds: Mapping[str, Attributes] = field(default_factory=dict)
    pbs_hooks: Mapping[str, Attributes] = field(default_factory=dict)
    jobs: tuple[SubmittedJob, ...] = ()

    @property
    def managed(self) -> list[str]:
        """Vnodes that the hub has registered."""
        return [name for name, attributes in self.vnodes.items() if HOST in attributes]


@dataclass(frozen=True, slots=True)
class SetupChange:
    """One step. `target`: which thing it puts right; `missing`: that thing is not there at all. `qmgr` is its command;
    of an import, `{file}` stands for a file with `content`. With `command` it is one of PBS's own programs instead.
    With neither, `content` is the whole new file of the scheduler's configuration.

    `about_job`: it fails without harm where the job has started or ended meanwhile.
    """

    text: str
    qmgr: str = ""
    content: str | None = None
    target: str = ""
    missing: bool = False
    command: tuple[str, ...] = ()
    about_job: str = ""


_RESOURCES_LINE = re.compile(r"(?m)^[ \t]*resources[ \t]*:.*$")
_UNDERSTOOD = re.compile(r'([ \t]*resources[ \t]*:[ \t]*")([^"\\\n]*)("[ \t]*(?:(?:all|ALL)[ \t]*)?\r?)')


def resources_lines(sched_config: str) -> list[re.Match[str]]:
    """The `resources:` lines that count: prefix, value, rest. Raises InstallError for one that is not understood."""
    found = []
    for line in _RESOURCES_LINE.finditer(sched_config):
        match = _UNDERSTOOD.fullmatch(sched_config, line.start(), line.end())
        if match is None:
            number = sched_config.count("\n", 0, line.start()) + 1
            raise InstallError(
                f"sched_config, line {number}: {line[0].strip()!r} is not understood, so nothing is changed;"
                ' write it as resources: "ncpus, mem, ..." on one line'
            )
        found.append(match)
    return found


def with_resources(sched_config: str, names: Iterable[str]) -> str:
    """The scheduler's configuration with `names` in its (last) `resources:` line; the same text if they all are there.

    A resource that is not there is dropped by the scheduler without a word, even a host-level one. Without any such
    line the scheduler regards all resources (seen on a real server): then none is added, it would shut out the others.
    """
    lines = resources_lines(sched_config)
    have = {word for line in lines for word in words(line[2])}
    lacking = [name for name in names if name not in have]
    if not lines or not lacking:
        return sched_config
    last = lines[-1]
    value = ", ".join([last[2].rstrip(" ,\t"), *lacking]) if words(last[2]) else ", ".join(lacking)
    return sched_config[: last.start()] + last[1] + value + last[3] + sched_config[last.end() :]


def without_resources(sched_config: str, names: Iterable[str]) -> str:
    """The scheduler's configuration without `names` in its `resources:` lines; other lines stay byte for byte."""
    unwanted = set(names)
    for line in reversed(resources_lines(sched_config)):
        if unwanted & set(words(line[2])):
            value = ", ".join(word for word in words(line[2]) if word not in unwanted)
            sched_config = sched_config[: line.start()] + line[1] + value + line[3] + sched_config[line.end() :]
    return sched_config


UPKEEP_FREQ_S = ((100, 2), (250, 5), (500, 10))
"""Up to so many vnodes of the server, the hook of vnodes runs every so many seconds; beyond, every UPKEEP_SLOWEST_S. A
run costs a process beside the server 9 ms and 0.28 ms a vnode (measured): so 2 % of one core, and less than 0.2 % of
the server's own thread. A preemption that meets it half done is booked one run later."""
UPKEEP_SLOWEST_S = 30


def maintenance_freq_s(vnodes: int) -> int:
    """How often the hook of vnodes runs where the server has so many vnodes."""
    return next((freq_s for most, freq_s in UPKEEP_FREQ_S if vnodes <= most), UPKEEP_SLOWEST_S)


def wanted_hooks(options: InstallOptions, vnodes: int = 0) -> dict[str, tuple[dict[str, str], str, str | None]]:
    """By name: attributes, script, configuration. `vnodes`: how many the server has."""
    mom = hook_text("magrathea_mom")
    config = {"heartbeat": options.heartbeat, "heartbeat_max_age_s": options.heartbeat_max_age_s}
    hooks: dict[str, tuple[dict[str, str], str, str | None]] = {
        "magrathea_server": (
            {"event": "runjob,modifyjob", "alarm": "10"},
            hook_text("magrathea_server"),
            json.dumps(config, indent=1) + "\n",
        ),
        "magrathea_vnodes": (
            {"event": "periodic", "alarm": "30", "freq": str(maintenance_freq_s(vnodes))},
            hook_text("magrathea_vnodes"),
            json.dumps(config, indent=1) + "\n",
        ),
        "magrathea_mom": (
            {
                # Not execjob_epilogue, though it comes 1 s before the end: a MoM that has a hook for it does not run
                # the site's epilogue script any more.
                "event": "execjob_begin,execjob_preterm,execjob_abort,execjob_end,exechost_periodic,exechost_startup",
                "alarm": "30",  # never reached by a claim; killed by it, a begin would be tried again at once
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
        # before its events are set: a hook without its script or configuration never runs
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
    """PBS takes no order for periodic hooks."""
    return {} if attributes["event"] == "periodic" else {"order": SITE_HOOKS_LAST}


def _disabled(name: str) -> SetupChange:
    """Before a hook's freq is set: where it is enabled and has a script, PBS's server takes a MoM hook for one of its
    own `periodic` ones, forks itself every freq seconds, and goes on when the hook is deleted, with memory that it has
    given back: it hung and filled the disk with its log (seen; mgr_hook_set, run_periodic_hook in hook_func.c)."""
    command = f'set hook {name} enabled = "false"'
    return SetupChange(command, command, target=f"hook {name}")


def _setting(target: str, have: Attributes, attribute: str, value: str) -> list[SetupChange]:
    if _same(attribute, have.get(attribute), value):
        return []
    was = f" (was {have[attribute]})" if attribute in have else ""
    command = f'set {target} {attribute} = "{value}"'
    return [SetupChange(command + was, command, target=target, missing=attribute not in have)]


def conflicts(now: Present, options: InstallOptions) -> list[tuple[str, str]]:
    """What is in the way: the thing, and a sentence with the fix. Nothing may be changed while there is any."""
    found: list[tuple[str, str]] = []
    for name in sorted(set(options.priority) & set(options.preemptible)):
        found.append((f"queue {name}", f"queue {name}: either --priority or --preemptible, not both"))
    for name in options.vnodes:
        if name not in now.vnodes:
            text = f"vnode {name}: PBS knows no such vnode; create it first (qmgr: create node)"
            found.append((f"node {name}", text))
    for name in (*options.priority, *options.preemptible):
        if (kind := now.queues.get(name, {}).get("queue_type", "Execution")) != "Execution":
            text = f"queue {name} is a {kind} queue, and only an Execution queue gives a class"
            found.append((f"queue {name}", f"{text}; name the queues that it routes to"))
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


def targets(now: Present, options: InstallOptions) -> list[str]:
    """Everything that has to be right, in the order in which it is put right."""
    return [
        *(f"resource {name}" for name in RESOURCES),
        "sched_config",
        *(f"hook {name}" for name in wanted_hooks(options)),
        *(f"node {name}" for name in now.vnodes),
        *(f"queue {name}" for name in (*options.priority, *options.preemptible)),
        "server",
        "jobs",
    ]


def changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    """The steps from what is to what should be, in order. Raises InstallError if something is in the way."""
    if bad := conflicts(now, options):
        raise InstallError("; ".join(text for _, text in bad))
    found: list[SetupChange] = []
    for name, kind in RESOURCES.items():
        if name not in now.resources:
            command = f"create resource {name} type={kind},flag={FLAG}"
            found.append(SetupChange(command, command, target=f"resource {name}", missing=True))
    config = with_resources(now.sched_config, RESOURCES)
    if config != now.sched_config:
        text = "sched_config: resources: line gets " + ", ".join(RESOURCES) + "; the scheduler reads it again"
        found.append(SetupChange(text, content=config, target="sched_config", missing=True))
    found += _hook_changes(now, options)
    for name, have in now.vnodes.items():
        if ACCEPTS not in have:
            found += _setting(f"node {name}", have, ACCEPTS, CLASSES)
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
    return found + _job_changes(now, options)


def _job_changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    """Jobs that wait get their queue's class by having their select set to what it is. Their place in the queue
    stays (a `qmove` to the same queue puts them at its end and is refused for arrays that have begun)."""
    given = {name: have[DEFAULT_CHUNK] for name, have in now.queues.items() if DEFAULT_CHUNK in have}
    given |= dict.fromkeys(options.priority, "priority") | dict.fromkeys(options.preemptible, "preemptible")
    found = []
    for job in now.jobs:
        executes = now.queues.get(job.queue, {}).get("queue_type", "Execution") == "Execution"
        if job.state not in WAITING or job.id != job.array or not executes or not job.schedselect:
            continue  # subjobs follow their array
        if CLASS_RESOURCE in resource_names(job.select):
            continue  # a manager who names a class in a select knows why
        cls = given.get(job.queue, "protected")
        if (have := job_class(job.schedselect)) != cls:
            found.append(altered(job, f"job {job.id} gets class {cls} (was {have or 'none'})", missing=have is None))
    return found


def altered(job: SubmittedJob, text: str, *, missing: bool = False) -> SetupChange:
    """The change that lets PBS add its default chunks to a waiting job anew."""
    command = ("qalter", "-l", f"select={job.select}", job.id)
    return SetupChange(text, command=command, target="jobs", missing=missing, about_job=job.id)
