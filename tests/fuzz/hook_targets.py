"""The three hooks, whole, in a `pbs` module whose objects hold what the input says.

An input is one JSON document. What no PBS can give (no document, no such event, text for a whole number) is refused by
the targets themselves.
"""

from __future__ import annotations

import builtins
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from magrathea.pbs_text.host_loads import load_path
from magrathea.pbs_text.words import is_subjob
from magrathea_lab.pbs_standin.pbs_module import Entity, Hook, HookJob, HookOutcome, Server
from scheduler_plugin.setup.hook_texts import hook_text
from tests.fakes.hook_vnode import HookVnode

from .driver import Reader

Doc = dict[str, Any]

SERVER_EVENTS = ("runjob", "queuejob", "modifyjob", "movejob")
SELECT_RULES = ("own-class", "select-unclear")
MOST_LATER_S = 600
"""What the server's hook lets a job wait that cannot start until something is changed."""
MOST_MESSAGE = 8192
"""Characters of a refusal. PBS cuts what is longer than its reply."""


class NotPbs(Exception):
    """No PBS can give this to a hook."""


def _document(data: bytes) -> Doc:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotPbs from error
    if not isinstance(found, dict):
        raise NotPbs
    return found


def _objects(make: Callable[[str, Doc], Any], found: Any) -> Doc:
    """Raises NotPbs."""
    if not isinstance(found, dict):
        raise NotPbs
    try:
        return {name: make(name, attributes) for name, attributes in found.items()}
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise NotPbs from error


def _bounded(outcome: HookOutcome) -> None:
    assert len(outcome.message) < MOST_MESSAGE, f"a message of {len(outcome.message)} characters"


# The server's hook


def server_hook(folder: Path) -> Reader:
    """Rule 1 of the hook: an error may refuse a job on a vnode of ours, and nothing else."""
    config, heartbeat = folder / "hook.json", folder / "heartbeat"
    heartbeat.touch()
    config.write_text(json.dumps({"heartbeat": str(heartbeat), "heartbeat_max_age_s": 30}))
    hook = Hook("magrathea_server", hook_text("magrathea_server"), config)

    def read(data: bytes) -> None:
        given = _document(data)
        event = given.get("event", "runjob")
        if event not in SERVER_EVENTS:
            raise NotPbs
        vnodes, jobs = given.get("vnodes", {}), given.get("jobs", {})
        _objects(lambda name, found: Entity("name", name, found), vnodes)
        _objects(HookJob, jobs)
        told = given.get("job", {})
        if not isinstance(told, dict) or not isinstance(told.get("Resource_List"), dict | None):
            raise NotPbs
        if not isinstance(told.get("Variable_List"), dict | None):
            raise NotPbs
        job = _objects(HookJob, {str(given.get("id", "9.srv")): told}).popitem()[1]
        outcome = hook.run(event, server=Server("srv", vnodes, jobs), job=job)
        _bounded(outcome)
        for line in outcome.log:
            assert not line.startswith("Traceback"), line
        later_s = outcome.changes.pop("Execution_Time", time.time()) - time.time()
        mark = outcome.changes.pop("Output_Path", "")
        assert -1 <= later_s <= MOST_LATER_S + 1 and not outcome.changes and not (outcome.accepted and later_s > 0)
        assert not mark or (job.Variable_List is None and outcome.accepted and is_subjob(str(job.id)))
        ours = any(_is_ours(found) for found in vnodes.values())
        if event == "runjob" and not outcome.accepted:
            assert ours, f"a job on vnodes that are not ours was refused: {outcome.message}"
            assert not is_subjob(str(job.id)), f"PBS tries a refused subjob without end: {outcome.message}"
        if event != "runjob" and not outcome.accepted:
            assert any(rule in outcome.message for rule in SELECT_RULES), outcome.message

    return read


def _is_ours(vnode: Doc) -> bool:
    available = vnode.get("resources_available")
    return isinstance(available, dict) and available.get("magrathea_siblings") not in (None, "", "None")


# The file about a counted host's load, which the server's hook reads


FULL = {"n1": 3, "p1": 1}
"""CPUs of the host's vnodes by the server's own sums; the host has 4. So only the file can make a job fit."""
COMPARED_AFTER, NOW = 900.0, 1000.0
"""On the monotonic clock: the hook takes a file that was compared in between."""


class _StandingClock:
    """Replaces the module `time` for the hook: the machine was booted NOW seconds ago."""

    monotonic = staticmethod(lambda: NOW)
    time = staticmethod(time.time)


def host_load(folder: Path) -> Reader:
    """The file either shows that the job fits, or it is as if there were none."""
    config, heartbeat = folder / "hook.json", folder / "heartbeat"
    config.write_text(json.dumps({"heartbeat": str(heartbeat), "heartbeat_max_age_s": 30}))
    hook = Hook("magrathea_server", hook_text("magrathea_server"), config)
    path = Path(load_path(str(heartbeat), "h1") or "")
    path.parent.mkdir()
    vnodes: Doc = {
        name: {
            "resources_available": {
                "magrathea_host": "h1",
                "magrathea_host_ncpus": 4,
                "ncpus": 4,
                "magrathea_siblings": ",".join(FULL.keys() - {name}),
            },
            "resources_assigned": {"ncpus": cpus},
            "jobs": None,
        }
        for name, cpus in FULL.items()
    }
    about = {"queue": "q", "schedselect": "1:ncpus=1:magrathea_accepts=protected", "exec_vnode": "(n1:ncpus=1)"}

    def read(data: bytes) -> None:
        heartbeat.touch()
        path.write_bytes(data)
        server = Server("srv", vnodes, {}, {"magrathea_accepts": "protected"})
        remembered = SimpleNamespace(starts={}, complete_since=COMPARED_AFTER, started={}, tried={})
        with patch.dict("sys.modules", {"time": _StandingClock, "magrathea_server_memory": remembered}):
            outcome = hook.run("runjob", server=server, job=HookJob("9.srv", about, {}))
        if not outcome.accepted:
            assert "no-cpus" in outcome.message, f"refused for another reason: {outcome.message}"
            raise NotPbs

    return read


# MoM's hook


class _Agent:
    """Replaces the module `_socket`: an agent whose answers are given. After the last one it never answers."""

    AF_UNIX = SOCK_STREAM = 1

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.answered: list[bytes] = []

    def socket(self, *kinds: int) -> _Agent:
        return self

    def settimeout(self, seconds: float) -> None: ...

    def connect(self, path: str) -> None: ...

    def sendall(self, data: bytes) -> None:
        assert data.endswith(b"\n") and data.count(b"\n") == 1, data
        json.loads(data)
        self.asked.append(data)

    def recv(self, most: int) -> bytes:
        if not self.answers:
            raise TimeoutError("timed out")
        self.answered.append(self.answers.pop(0))
        return self.answered[-1]

    def close(self) -> None: ...


class _Clock:
    """Replaces the module `time` for the hook: pauses pass at once."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLAIMS = ("execjob_begin", "execjob_prologue")
MOM_EVENTS = (
    *CLAIMS,
    *("execjob_preterm", "execjob_abort", "execjob_end", "exechost_periodic", "exechost_startup"),
)


def mom_hook(folder: Path) -> Reader:
    """Rule 2 of the hook: a claim that the agent did not accept is refused, and the job gets a later time."""
    config = folder / "agent.json"
    config.write_text(json.dumps({"channel": "unix:/x", "socket": "/none", "state": "/y"}))
    hook = Hook("magrathea_mom", hook_text("magrathea_mom"))

    def read(data: bytes) -> None:
        given = _document(data)
        event = given.get("event")
        if event not in MOM_EVENTS:
            raise NotPbs
        jobs = _objects(HookJob, given.get("jobs", {}))
        job = _objects(HookJob, {str(given.get("id", "9.srv")): given.get("job", {})}).popitem()[1]
        here = str(given.get("here", "n1"))
        answers = given.get("answers", [])
        if not isinstance(answers, list):
            raise NotPbs
        agent = _Agent([_answer(one) for one in answers])
        with (
            patch.dict("sys.modules", {"_socket": agent, "time": _Clock()}),
            patch.dict(os.environ, {"MAGRATHEA_AGENT_CONF": str(config)}),
        ):
            outcome = hook.run(event, server=Server("srv", {}, {}), vnode=here, job=job, job_list=jobs)
        if event in CLAIMS and job.in_ms_mom():
            _is_claimed(event, outcome, agent, job)
        elif event not in CLAIMS:
            _is_told(outcome, agent)

    return read


def _answer(said: Any) -> bytes:
    text = said if isinstance(said, str) else json.dumps(said)
    return text.encode("utf-8", "surrogatepass").replace(b"\n", b" ") + b"\n"


def _read(answer: bytes) -> Doc:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_claimed(event: str, outcome: HookOutcome, agent: _Agent, job: HookJob) -> None:
    if outcome.accepted:
        said = [_read(answer) for answer in agent.answered]
        if event == "execjob_begin":
            assert said and said[0].get("ok") is True, f"accepted without a yes: {agent.answered}"
        else:
            last = said[-1] if said else {}
            assert not agent.asked or (last.get("ok") and last.get("ready")), f"accepted unready: {agent.answered}"
        return
    later = outcome.changes.get("Execution_Time", 0) > 1000
    # a subjob gets no later time, but the start that PBS has counted is taken back
    uncounted = "[" in str(job.id) and "run_count" in outcome.changes
    assert outcome.changes.get("delete") or later or uncounted, outcome


def _is_told(outcome: HookOutcome, agent: _Agent) -> None:
    """Such an event fails only by an answer that is none, and by amounts that no server writes. Nothing depends on
    it."""
    if not outcome.accepted:
        amount = any(line.rstrip().rpartition("\n")[2].startswith("ValueError: ") for line in outcome.log)
        assert amount or (agent.answered and not _read(agent.answered[-1])), outcome.log


# The hook for vnodes


class _Vnode(HookVnode):
    def __init__(self, name: str, found: Any) -> None:
        if not isinstance(found, dict) or not isinstance(found.get("state", 0), int):
            raise TypeError(name)
        super().__init__(name, found.get("state", 0), found.get("siblings"))
        self.siblings = found.get("siblings")


def vnodes_hook(folder: Path) -> Reader:
    """The files of the hub's account, read by root. An event without an answer would hang the server."""
    config, heartbeat = folder / "hook.json", folder / "heartbeat"
    config.write_text(json.dumps({"heartbeat": str(heartbeat)}))
    code = compile(hook_text("magrathea_vnodes"), "magrathea_vnodes", "exec")
    asked, answered = folder / "heartbeat.forget", folder / "heartbeat.forgotten"

    def read(data: bytes) -> None:
        given = _document(data)
        vnodes = _objects(_Vnode, given.get("vnodes", {}))
        for path, name in ((asked, "asked"), (answered, "answered")):
            text = given.get(name)
            found = text if isinstance(text, str) else json.dumps(text)
            path.write_bytes(found.encode("utf-8", "surrogatepass"))
        accepted = _run_for_vnodes(code, str(config), vnodes)
        assert accepted, "a rejection inherited from another event would hang the server"
        for vnode in vnodes.values():
            assert vnode.siblings not in (None, "", "None") or not vnode.set, f"{vnode.name} is not ours"
            assert not set(vnode.set) - {"", "none"}

    return read


def _run_for_vnodes(code: CodeType, config: str, vnodes: Doc) -> bool:
    accepted: list[bool] = []
    pbs: Any = ModuleType("pbs")
    pbs.event = lambda: SimpleNamespace(vnode_list=vnodes, accept=lambda: accepted.append(True))
    pbs.hook_config_filename = config
    pbs.logmsg = lambda level, text: None
    pbs.EVENT_DEBUG3 = pbs.EVENT_ERROR = 0
    pbs.UnsetResourceNameError = type("UnsetResourceNameError", (Exception,), {})
    with patch.dict("sys.modules", {"pbs": pbs}):
        exec(code, {"__builtins__": builtins, "time": time})
    return bool(accepted)
