"""What Magrathea needs in PBS: resources, hooks, the scheduler's `resources:` line, queues, defaults.

Rule 1: `changes` compares what is with what should be and is pure; only `apply` and `present` talk to PBS (by qmgr's
standard input: with `-c` it carries out the last command only) and only differences are applied, so that a second
run changes nothing.
Rule 2: the order of the changes is such that no job is shut out at any moment: vnodes accept all classes before
the server gives its jobs one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOOKS = Path(__file__).parent / "hooks"
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
QMGR_S = 60.0
GREETING = "Max open servers:"
"""qmgr says this in its first line when it reads standard input."""


class InstallError(Exception):
    """PBS cannot be set up; the text says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the admin asks for. Queues by class; `vnodes` that Magrathea will manage; `memory_moves`: whether the
    prologue hook is to wait for memory (costs 20 ms at each start of a job)."""

    priority: tuple[str, ...] = ()
    preemptible: tuple[str, ...] = ()
    vnodes: tuple[str, ...] = ()
    heartbeat: str = "/var/spool/pbs/magrathea.heartbeat"
    heartbeat_max_age_s: float = 30.0
    memory_moves: bool = False


Attributes = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Present:
    """What PBS has now; every mapping by name. `contents`: of (hook, content type)."""

    resources: Mapping[str, Attributes] = field(default_factory=dict)
    hooks: Mapping[str, Attributes] = field(default_factory=dict)
    queues: Mapping[str, Attributes] = field(default_factory=dict)
    vnodes: Mapping[str, Attributes] = field(default_factory=dict)
    server: Attributes = field(default_factory=dict)
    contents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sched_config: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One step. `qmgr` is its command; of an import, `{file}` stands for a file with `content`; of the scheduler's
    configuration, `content` is the whole new file and `qmgr` is empty."""

    text: str
    qmgr: str = ""
    content: str | None = None


def parse_list(text: str) -> dict[str, dict[str, str]]:
    """qmgr's answer to `list`: attributes by object's name. Long values go on in lines that begin with a tab."""
    objects: dict[str, dict[str, str]] = {}
    attributes: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line.startswith("\t") and last:
            attributes[last] += line.strip()
        elif line.startswith("    ") and " = " in line:
            last, _, value = line.strip().partition(" = ")
            attributes[last] = value.strip()
        elif match := re.fullmatch(r"(?:Resource|Hook|Queue|Node|Server) (\S+)", line):
            attributes = objects.setdefault(match[1], {})
            last = ""
    return objects


def with_resources(sched_config: str, names: Iterable[str]) -> str:
    """The scheduler's configuration with `names` in its `resources:` line; the same text if they all are there.

    A resource that is not there is dropped by the scheduler without a word, even a host-level one.
    """

    def added(match: re.Match[str]) -> str:
        have = [word.strip() for word in match[2].split(",") if word.strip()]
        return match[1] + ", ".join([*have, *(name for name in names if name not in have)]) + match[3]

    new, count = re.subn(r'(?m)^(\s*resources:\s*")([^"\n]*)(")', added, sched_config)
    if count == 0:
        new = (
            sched_config.rstrip("\n")
            + f'\n\nresources: "ncpus, mem, arch, host, vnode, aoe, eoe, {", ".join(names)}"\n'
        )
    return new


def wanted_hooks(wish: Wish) -> dict[str, tuple[dict[str, str], str, str | None]]:
    """By name: attributes, script, configuration."""
    mom = (HOOKS / "magrathea_mom.py").read_text(encoding="utf-8")
    config = {"heartbeat": wish.heartbeat, "heartbeat_max_age_s": wish.heartbeat_max_age_s}
    hooks: dict[str, tuple[dict[str, str], str, str | None]] = {
        "magrathea_server": (
            {"event": "runjob", "alarm": "10"},
            (HOOKS / "magrathea_server.py").read_text(encoding="utf-8"),
            json.dumps(config, indent=1) + "\n",
        ),
        "magrathea_mom": (
            {
                "event": "execjob_begin,execjob_abort,execjob_end,exechost_periodic,exechost_startup",
                "alarm": "30",  # never reached by a claim; killed by it, a begin would be tried again at once
                "freq": "15",
            },
            mom,
            None,
        ),
    }
    if wish.memory_moves:
        hooks["magrathea_prologue"] = ({"event": "execjob_prologue", "alarm": "600"}, mom, None)
    return hooks


def _same(attribute: str, now: str | None, wanted: str) -> bool:
    if attribute == "event" and now is not None:
        return set(now.replace(" ", "").split(",")) == set(wanted.split(","))
    return (now or "").strip('"') == wanted


def _hook_changes(now: Present, wish: Wish) -> list[Change]:
    found: list[Change] = []
    for name, (attributes, script, config) in wanted_hooks(wish).items():
        have = now.hooks.get(name)
        if have is None:
            found.append(Change(f"create hook {name}", f"create hook {name}"))
        # before its events are set: a hook without its script or configuration never runs
        for content_type, content in ((SCRIPT, script), (CONFIG, config)):
            if content is not None and now.contents.get((name, content_type), "").strip() != content.strip():
                what = "script" if content_type == SCRIPT else "configuration"
                command = f"import hook {name} {content_type} default {{file}}"
                found.append(Change(f"import the {what} of hook {name}", command, content))
        for attribute, value in {**attributes, "order": SITE_HOOKS_LAST, "enabled": "true"}.items():
            found += _setting(f"hook {name}", have or {}, attribute, value)
    if not wish.memory_moves and "magrathea_prologue" in now.hooks:
        found.append(Change("delete hook magrathea_prologue: no memory moves", "delete hook magrathea_prologue"))
    return found


def _setting(target: str, have: Attributes, attribute: str, value: str) -> list[Change]:
    if _same(attribute, have.get(attribute), value):
        return []
    was = f" (was {have[attribute]})" if attribute in have else ""
    command = f'set {target} {attribute} = "{value}"'
    return [Change(command + was, command)]


def changes(now: Present, wish: Wish) -> list[Change]:
    """The steps from what is to what should be, in order. Raises InstallError if they contradict each other."""
    if both := set(wish.priority) & set(wish.preemptible):
        raise InstallError(f"queue {', '.join(sorted(both))}: either --priority or --preemptible, not both")
    if unknown := [name for name in wish.vnodes if name not in now.vnodes]:
        raise InstallError(f"vnode {', '.join(unknown)}: PBS knows no such vnode; create it first (qmgr: create node)")
    found: list[Change] = []
    for name, kind in RESOURCES.items():
        have = now.resources.get(name)
        if have is None:
            command = f"create resource {name} type={kind},flag={FLAG}"
            found.append(Change(command, command))
        elif have.get("type") != kind:
            raise InstallError(
                f"resource {name} exists with type {have.get('type')}, {kind} is needed; delete it first"
                " (qmgr: delete resource), after unsetting it everywhere"
            )
        elif have.get("flag") != FLAG:
            command = f"set resource {name} flag={FLAG}"
            found.append(Change(f"{command} (was {have.get('flag')})", command))
    config = with_resources(now.sched_config, RESOURCES)
    if config != now.sched_config:
        text = "sched_config: resources: line gets " + ", ".join(RESOURCES) + "; the scheduler reads it again"
        found.append(Change(text, content=config))
    found += _hook_changes(now, wish)
    for name, have in now.vnodes.items():
        if "resources_available.magrathea_accepts" not in have:
            found += _setting(f"node {name}", have, "resources_available.magrathea_accepts", CLASSES)
        if name in wish.vnodes or "resources_available.magrathea_host" in have:
            found += _setting(f"node {name}", have, "resv_enable", "False")
    for cls, queues in (("priority", wish.priority), ("preemptible", wish.preemptible)):
        for name in queues:
            if name not in now.queues:
                found.append(Change(f"create queue {name}", f"create queue {name} queue_type=Execution"))
            have = now.queues.get(name, {})
            found += _setting(f"queue {name}", have, "default_chunk.magrathea_accepts", cls)
            if name not in now.queues:
                found += _setting(f"queue {name}", have, "enabled", "True")
                found += _setting(f"queue {name}", have, "started", "True")
    return found + _setting("server", now.server, "default_chunk.magrathea_accepts", "protected")


# The only part that touches PBS


@dataclass(frozen=True, slots=True)
class Place:
    """Where PBS is on this machine."""

    exec_dir: Path
    home: Path

    @property
    def sched_config(self) -> Path:
        return self.home / "sched_priv/sched_config"


def find_pbs(conf: Path) -> Place:
    """Read pbs.conf. Raises InstallError."""
    try:
        lines = conf.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InstallError(
            f"{conf}: {error.strerror}; run this on the PBS server's machine, or name it: --conf"
        ) from error
    values = dict(line.strip().split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    if lacking := [name for name in ("PBS_EXEC", "PBS_HOME") if name not in values]:
        raise InstallError(f"{conf}: {', '.join(lacking)} is not set")
    return Place(Path(values["PBS_EXEC"].strip()), Path(values["PBS_HOME"].strip()))


def qmgr(place: Place, command: str) -> str:
    """One qmgr command. Raises InstallError with qmgr's own words."""
    try:
        done = subprocess.run(
            [place.exec_dir / "bin/qmgr"], input=command + "\n", capture_output=True, text=True, timeout=QMGR_S
        )
    except FileNotFoundError as error:
        raise InstallError(f"{place.exec_dir}/bin/qmgr is not there; PBS_EXEC in pbs.conf is wrong") from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"qmgr: {command}: no answer within {QMGR_S:.0f} s; does pbs_server run?") from error
    if done.returncode != 0:
        raise InstallError(f"qmgr: {command}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout.removeprefix(done.stdout.partition("\n")[0] + "\n" if done.stdout.startswith(GREETING) else "")


def present(place: Place) -> Present:
    """Ask PBS for all that `changes` looks at. Raises InstallError."""
    hooks = parse_list(qmgr(place, "list hook"))
    ours = [name for name in hooks if name.startswith("magrathea_")]
    contents: dict[tuple[str, str], str] = {}
    for name in ours:
        for content_type in (SCRIPT, CONFIG):
            try:
                contents[name, content_type] = qmgr(place, f"export hook {name} {content_type} default")
            except InstallError as error:  # a hook without this content: it is to be imported
                if "failed to open" not in str(error).lower():
                    raise
    try:
        vnodes = parse_list(qmgr(place, "list node @default"))
    except InstallError as error:
        if "no nodes" not in str(error).lower() and "unknown node" not in str(error).lower():
            raise
        vnodes = {}
    try:
        sched_config = place.sched_config.read_text(encoding="utf-8")
    except OSError as error:
        raise InstallError(
            f"{place.sched_config}: {error.strerror}; run this as root on the server's machine"
        ) from error
    return Present(
        resources=parse_list(qmgr(place, "list resource")),
        hooks=hooks,
        queues=parse_list(qmgr(place, "list queue @default")),
        vnodes=vnodes,
        server=next(iter(parse_list(qmgr(place, "list server")).values()), {}),
        contents=contents,
        sched_config=sched_config,
    )


def apply(place: Place, change: Change) -> None:
    """Carry one change out. Raises InstallError."""
    if change.qmgr == "":
        assert change.content is not None
        write_sched_config(place, change.content)
    elif change.content is None:
        qmgr(place, change.qmgr)
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".magrathea", encoding="utf-8") as file:
            file.write(change.content)
            file.flush()
            qmgr(place, change.qmgr.replace("{file}", file.name))


def write_sched_config(place: Place, text: str) -> None:
    """Replace the file at once, keep the first one as `sched_config.before-magrathea`, tell the scheduler."""
    path = place.sched_config
    backup = path.with_name(path.name + ".before-magrathea")
    if not backup.exists():
        shutil.copy2(path, backup)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    shutil.copystat(path, new)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.rename(path)
    lock = path.with_name("sched.lock")
    try:
        os.kill(int(lock.read_text().strip()), signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise InstallError(
            f"{path} is written, but the scheduler of {lock} was not told ({error}); send it SIGHUP"
        ) from error
