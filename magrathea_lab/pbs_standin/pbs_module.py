"""The stand-in's own `pbs` module: loads Magrathea's hook files as PBS does, and runs them for one event.

Rule 1: it has only what the hooks use, under OpenPBS's names (its modules/python/pbs/v1). As in PBS, a text attribute
is an object that equals only itself. So a hook that forgets `str(...)` fails here too.
Rule 2: standard library only, no import of Magrathea. As a program it replaces PBS's `pbs_python`, which MoM starts for
each event: `python -I -S pbs_module.py`, an event on standard input, the outcome on standard output.
"""

from __future__ import annotations

import builtins
import json
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

EVENTS = {  # include/hook.h
    "queuejob": 0x01,
    "modifyjob": 0x02,
    "resvsub": 0x04,
    "movejob": 0x08,
    "runjob": 0x10,
    "execjob_begin": 0x40,
    "execjob_prologue": 0x80,
    "execjob_epilogue": 0x100,
    "execjob_end": 0x200,
    "execjob_preterm": 0x400,
    "exechost_periodic": 0x1000,
    "exechost_startup": 0x2000,
    "periodic": 0x8000,
    "execjob_abort": 0x40000,
}
LEVELS = {"EVENT_ERROR": 1, "EVENT_SYSTEM": 2, "EVENT_ADMIN": 4, "EVENT_JOB": 8, "EVENT_DEBUG": 0x80}
LEVELS |= {"LOG_ERROR": 0x10001, "LOG_WARNING": 0x10002, "LOG_DEBUG": 0x10004}
VNODE_STATES = {"ND_STATE_FREE": 0, "ND_STATE_OFFLINE": 1, "ND_STATE_DOWN": 2}
WHOLE_NUMBERS = {"run_version", "run_count", "substate", "session_id", "Execution_Time", "Priority", "job_state"}
SETTABLE = {"Execution_Time", "Hold_Types", "run_count", "comment", "Output_Path"}
"""Job attributes that a MoM hook may send back (resmom's mom_updates_bundle.c) or a runjob hook may set."""


class Text:
    """An attribute's value. Compare `str` of it, as with PBS's `_generic_attr`."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __str__(self) -> str:
        return self._value

    __repr__ = __str__


def _value(name: str, value: Any) -> Any:
    if name in WHOLE_NUMBERS:
        return int(value)
    if name == "Variable_List":
        return value  # a hook may add to it
    if isinstance(value, dict):
        return Resources(value)
    return Text(str(value))


class Resources:
    """`Resource_List`, `resources_available`: read by item or attribute; None if unset, as in PBS."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_values"] = dict(values)

    def __getitem__(self, name: str) -> Any:
        value = self._values.get(name)
        return value if value is None or isinstance(value, int) else Text(str(value))

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"resource {name} cannot be set here")

    def keys(self) -> list[str]:
        return list(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self._values.items())


class Entity:
    """A job, vnode or queue: attributes by name, None if PBS has none. `changes` collects what a hook sets."""

    def __init__(self, key: str, name: str, attributes: Mapping[str, Any]) -> None:
        self.__dict__.update({key: name, "_name": name, "changes": {}})
        self.__dict__.update({n: _value(n, v) for n, v in attributes.items() if v is not None})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in SETTABLE and name != "state":
            raise AttributeError(f"attribute {name} cannot be set here")
        self.changes[name] = int(value) if name in WHOLE_NUMBERS or name == "state" else str(value)
        self.__dict__[name] = value

    def __str__(self) -> str:
        return str(self._name)


class HookJob(Entity):
    """A job. `queue_gives`: its queue's default_chunk."""

    def __init__(self, id: str, attributes: Mapping[str, Any], queue_gives: Mapping[str, str] | None = None) -> None:
        rest = {n: v for n, v in attributes.items() if n not in ("queue", "mother_superior")}
        super().__init__("id", id, rest)
        self.__dict__["queue"] = Entity("name", attributes.get("queue", ""), {"default_chunk": queue_gives})
        self.__dict__["_superior"] = bool(attributes.get("mother_superior", True))

    def in_ms_mom(self) -> bool:
        return bool(self._superior)

    def rerun(self) -> None:
        self.changes["rerun"] = True

    def delete(self) -> None:
        self.changes["delete"] = True


class Server:
    """`pbs.server()`: looks jobs and vnodes up in the stand-in server's current data (empty in a MoM).

    `gives`: its default_chunk.
    """

    def __init__(
        self,
        name: str,
        vnodes: Mapping[str, Mapping[str, Any]],
        jobs: Mapping[str, Mapping[str, Any]],
        gives: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.default_chunk = Resources(gives or {})
        self._vnodes, self._jobs = vnodes, jobs

    def vnode(self, name: str) -> Entity | None:
        found = self._vnodes.get(str(name))
        return None if found is None else Entity("name", str(name), found)

    def job(self, id: str) -> HookJob | None:
        full = str(id) if "." in str(id) else f"{id}.{self.name}"
        found = self._jobs.get(full)
        return None if found is None else HookJob(full, found)

    def vnodes(self) -> Iterator[Entity]:
        return (Entity("name", name, found) for name, found in self._vnodes.items())

    def jobs(self) -> Iterator[HookJob]:
        return (HookJob(name, found) for name, found in self._jobs.items())


class HookEvent:
    """`pbs.event()`."""

    def __init__(self, name: str, hook: str, parameters: Mapping[str, Any]) -> None:
        self.type, self.hook_name, self.hook_type = EVENTS[name], hook, "site"
        self.requestor, self.requestor_host = "Scheduler" if name == "runjob" else "pbs_mom", "localhost"
        self.freq = 15
        self._param = dict(parameters)
        self.accepted, self.message = True, ""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_param"][name]
        except KeyError:
            raise AttributeError(f'"{name}" not found in the event') from None

    def accept(self, ecode: int = 0) -> NoReturn:
        self.accepted = True
        raise SystemExit(str(ecode))

    def reject(self, emsg: str = "", ecode: int = 255) -> NoReturn:
        self.accepted, self.message = False, str(emsg)
        raise SystemExit(str(ecode))


@dataclass
class HookOutcome:
    """A hook's answer. `changes`: what it set on its job. `log`: its log messages. `ms`: how long it ran."""

    accepted: bool
    message: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    ms: float = 0.0


class Hook:
    """One hook's source, compiled once, with its configuration file (`import hook ... application/x-config`).

    `pbs_home`: where the hook would find MoM's log and the files about its jobs.
    """

    def __init__(self, name: str, text: str, config: Path | None = None, pbs_home: Path | None = None) -> None:
        self.name = name
        self.config = None if config is None else str(config)
        self._pbs_conf = {} if pbs_home is None else {"PBS_HOME": str(pbs_home)}
        self._code = compile(text, name, "exec")

    @classmethod
    def of_file(cls, path: Path, config: Path | None = None, pbs_home: Path | None = None) -> Hook:
        return cls(path.stem, path.read_text(encoding="utf-8"), config, pbs_home)

    def run(
        self,
        event: str,
        *,
        server: Server,
        vnode: str = "",
        job: HookJob | None = None,
        vnode_list: Mapping[str, Entity] | None = None,
        job_list: Mapping[str, HookJob] | None = None,
        resv: Entity | None = None,
    ) -> HookOutcome:
        """Run the hook for one event. An exception in the hook counts as a reject, as in PBS."""
        given = {"job": job, "vnode_list": vnode_list, "job_list": job_list, "resv": resv}
        current = HookEvent(event, self.name, {n: v for n, v in given.items() if v is not None})
        outcome = HookOutcome(True)
        begun = time.monotonic()
        module = self._module(current, server, vnode, outcome.log.append)
        before, sys.modules["pbs"] = sys.modules.get("pbs"), module
        try:
            # PBS sets no __name__ for a hook, so the hook finds the one of its builtins: "builtins".
            exec(self._code, {"__builtins__": builtins, "pbs": module})
        except SystemExit:
            outcome.accepted, outcome.message = current.accepted, current.message
        except Exception as error:  # noqa: BLE001  PBS rejects whatever a hook raises; so does the stand-in
            outcome.accepted, outcome.message = False, f"hook '{self.name}' encountered an exception: {error}"
            outcome.log.append(traceback.format_exc())
        finally:
            if before is None:
                del sys.modules["pbs"]
            else:
                sys.modules["pbs"] = before
        outcome.changes = {} if job is None else dict(job.changes)
        outcome.ms = (time.monotonic() - begun) * 1000
        return outcome

    def _module(self, event: HookEvent, server: Server, vnode: str, log: Callable[[str], None]) -> types.ModuleType:
        module = types.ModuleType("pbs")
        names: dict[str, Any] = {name.upper(): value for name, value in EVENTS.items()}
        names |= {f"HOOK_EVENT_{name.upper()}": value for name, value in EVENTS.items()}
        names |= LEVELS | VNODE_STATES
        names |= {
            "event": lambda: event,
            "server": lambda: server,
            "logmsg": lambda level, message: log(str(message)),
            "logjobmsg": lambda id, message: log(f"{id};{message}"),
            "get_local_nodename": lambda: vnode,
            "hook_config_filename": self.config,
            "pbs_conf": self._pbs_conf,
            "UnsetAttributeNameError": AttributeError,
            "UnsetResourceNameError": AttributeError,
            "EventIncompatibleError": AttributeError,
        }
        module.__dict__.update(names)
        return module


def main() -> None:
    """Run one MoM event: JSON {hook, config, home, event, server, vnode, job, jobs} in, JSON outcome out."""
    given = json.load(sys.stdin)
    answer, sys.stdout = sys.stdout, sys.stderr
    config, home = (Path(given[name]) if given.get(name) else None for name in ("config", "home"))
    hook = Hook.of_file(Path(given["hook"]), config, home)
    job = HookJob(given["job"]["id"], given["job"]) if given.get("job") else None
    jobs = None if given.get("jobs") is None else {j["id"]: HookJob(j["id"], j) for j in given["jobs"]}
    own = {given["vnode"]: Entity("name", given["vnode"], {})}
    server = Server(given["server"], {}, {})
    outcome = hook.run(given["event"], server=server, vnode=given["vnode"], job=job, job_list=jobs, vnode_list=own)
    json.dump(outcome.__dict__, answer)


if __name__ == "__main__":
    main()
