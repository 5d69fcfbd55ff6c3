"""A PBS server in memory for `magrathea pbs install | check | uninstall`: what qmgr, qstat, qalter and qdel say and do.

`pbs_commands.run` is replaced by `run`. Each change counts as a step, in the order in which it is asked for; so does
each writing of the scheduler's file. `fail_at` names the step that fails, and `how`:

    REFUSED  PBS refuses the step; as qmgr does, it carries out the other commands of the same call
    LOST     the step is done, but no answer comes
    KILLED   the step is done, and the command that asked for it is killed
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner, Result

from scheduler_plugin.setup import pbs_commands
from scheduler_plugin.setup.cli import pbs
from scheduler_plugin.setup.pbs_commands import Place
from scheduler_plugin.setup.sched_config import InstallError

REFUSED, LOST, KILLED = "refused", "lost", "killed"

Attributes = dict[str, str]
KINDS = {"resource": "Resource", "hook": "Hook", "queue": "Queue", "node": "Node", "server": "Server", "sched": "Sched"}
NEW_HOOK = {"type": "site", "enabled": "true", "event": '""', "order": "1", "alarm": "30"}
SCHED_CONFIG = 'node_sort_key: "sort_priority HIGH" ALL\nresources: "ncpus, mem" ALL\n'


class Killed(BaseException):
    """The command ends here, as with SIGKILL."""


class FakeQmgr:
    """`objects`: attributes by kind and name. `contents`: of hooks, by name and content type. `jobs`: by id."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, dict[str, Attributes]] = {kind: {} for kind in KINDS}
        self.contents: dict[tuple[str, str], str] = {}
        self.jobs: dict[str, Attributes] = {}
        self.home = directory / "home"
        for folder in ("server_priv", "sched_priv"):
            (self.home / folder).mkdir(parents=True)
        self.conf = directory / "pbs.conf"
        self.conf.write_text(f"PBS_EXEC=/nowhere\nPBS_HOME={self.home}\n")
        self.sched_config = self.home / "sched_priv/sched_config"
        self.sched_config.write_text(SCHED_CONFIG)
        self.steps: list[str] = []
        self.fail_at: int | None = None
        self.how = REFUSED
        self._write = pbs_commands.write_sched_config

    def serving(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """It answers the commands from now on."""
        monkeypatch.setattr(pbs_commands, "run", self.run)
        monkeypatch.setattr(pbs_commands, "write_sched_config", self.write_sched_config)
        return self

    def picture(self) -> object:
        """All that PBS has, to be compared."""
        return copy.deepcopy((self.objects, self.contents, self.jobs)), self.sched_config.read_bytes()

    def run(self, place: Place, argv: Sequence[str], text: str | None = None) -> str:
        """Replaces pbs_commands.run."""
        if argv[0] == "qstat":
            return _listing("Job Id:", self.jobs)
        if argv[0] == "qalter":
            self._step(" ".join(argv), lambda: self._choose_class(argv[-1]))
            return ""
        answers, refused = [], []
        for line in (text or "").splitlines():
            try:
                answers.append(self._command(line))
            except InstallError as error:
                refused.append(str(error))
        if refused:
            raise InstallError("qmgr: " + "; ".join(refused))
        return "".join(answers)

    def write_sched_config(self, place: Place, text: str) -> None:
        """Replaces pbs_commands.write_sched_config."""
        self._step("sched_config", lambda: self._write(place, text))

    def _step(self, name: str, do: object) -> None:
        assert callable(do)
        self.steps.append(name)
        fails = len(self.steps) - 1 == self.fail_at
        if fails and self.how == REFUSED:
            raise InstallError(f"{name}: the server refuses this step")
        do()
        if fails and self.how == LOST:
            raise InstallError(f"{name}: no answer within 60 s; does pbs_server run?")
        if fails:
            raise Killed(name)

    def _command(self, line: str) -> str:
        verb, kind, *rest = _words(line)
        if verb == "list":
            return "" if kind == "pbshook" else _listing(KINDS[kind], self.objects[kind])
        if verb == "export":
            if (rest[0], rest[1]) not in self.contents:
                raise InstallError("Failed to open the hook's file")
            return self.contents[rest[0], rest[1]]
        self._step(line, lambda: self._change(verb, kind, rest))
        return ""

    def _change(self, verb: str, kind: str, rest: list[str]) -> None:
        have = self.objects[kind]
        name = next(iter(have)) if kind == "server" else rest.pop(0)
        if verb == "create":
            if name in have or not name[0].isalpha():
                raise InstallError(f"create {kind} {name}: syntax error, or it exists")
            have[name] = dict(NEW_HOOK) if kind == "hook" else {}
            for pair in (pair for word in rest for pair in word.split(",")):
                attribute, _, value = pair.partition("=")
                have[name][attribute] = value
            return
        if name not in have:
            raise InstallError(f"{verb} {kind} {name}: Unknown {kind}")
        if verb == "delete":
            del have[name]
            self.contents = {key: text for key, text in self.contents.items() if key[0] != name or kind != "hook"}
        elif verb == "import":
            self.contents[name, rest[0]] = Path(rest[2]).read_text()
        elif verb == "unset":
            have[name].pop(rest[0])
        else:
            attribute, sign, value = rest
            have[name][attribute] = f"{have[name][attribute]},{value}" if sign == "+=" else value

    def _choose_class(self, id: str) -> None:
        job, server = self.jobs[id], next(iter(self.objects["server"].values()))
        chunk = "default_chunk.magrathea_accepts"
        cls = self.objects["queue"][job["queue"]].get(chunk, server.get(chunk))
        job["schedselect"] = job["Resource_List.select"] + (f":magrathea_accepts={cls}" if cls else "")


def magrathea(server: FakeQmgr, *args: str) -> Result:
    """Run a command of `magrathea pbs` on this server; a traceback is a failure."""
    done = CliRunner().invoke(pbs, [*args, "--conf", str(server.conf)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@cache
def _words(line: str) -> tuple[str, ...]:
    """The tests of each step ask the same a thousand times, and to split it took a third of their time."""
    return tuple(shlex.split(line))


def _listing(heading: str, objects: dict[str, Attributes]) -> str:
    lines = []
    for name, attributes in objects.items():
        lines += [f"{heading} {name}", *(f"    {key} = {value}" for key, value in attributes.items()), ""]
    return "".join(line + "\n" for line in lines)
