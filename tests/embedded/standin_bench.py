"""The stand-in's server and two of its MoMs as processes, with a hook that does what a test tells it to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magrathea_lab import fleet
from magrathea_lab.clusters.keeper import Keeper, KeptProcess
from magrathea_lab.pbs_standin.client import StandInClient, reached
from magrathea_lab.waiting import until

COUNTING = "i=0; while [ $i -lt {steps} ]; do i=$((i+1)); echo $i > $PBS_JOBID.count; sleep 0.05; done; echo done\n"
HOOK = """
import os, pbs, time
e = pbs.event()
here = os.path.dirname(pbs.hook_config_filename)
if e.type == pbs.EXECJOB_BEGIN:
    while os.path.exists(here + "/slow"):
        time.sleep(0.02)
if e.type == pbs.EXECJOB_PROLOGUE and not e.job.in_ms_mom():
    while os.path.exists(here + "/slow-sister"):
        time.sleep(0.02)
if e.type == pbs.EXECJOB_BEGIN and os.path.exists(here + "/refuse"):
    if os.path.exists(here + "/later"):
        e.job.Execution_Time = int(time.time() + 2)
    e.reject("no")
if e.type == pbs.RUNJOB and os.path.exists(here + "/never"):
    e.reject("not now")
with open(here + "/events", "a") as file:
    file.write("%d\\n" % e.type)
"""


class StandInBench:
    """A server and the MoMs n1 and n2 (2 CPUs each), with a hook that obeys files in its directory. `server_hook`: the
    server's instead."""

    def __init__(self, directory: Path, server_hook: Path | None = None) -> None:
        self.directory = directory
        self.hook = directory / "hook.py"
        self.hook.write_text(HOOK, encoding="utf-8")
        self.keeper = Keeper({"PATH": os.environ["PATH"], "PYTHONPATH": str(fleet.ROOT)})
        self.parts: dict[str, KeptProcess] = {}
        hook = ["--hook", str(self.hook), "--hook-config", str(directory / "hook.json")]
        servers = ["--hook", str(server_hook or self.hook), *hook[2:]]
        self.start("server", ["--dir", str(directory), "--name", "t" + str(os.getpid()), *servers])
        self.client: StandInClient = self.until(lambda: reached(directory / "pbs.sock"))
        for name in ("n1", "n2"):
            own = ["--server", str(directory / "pbs.sock"), "--vnode", name, "--ncpus", "2", "--periodic-s", "0.5"]
            own += [
                "--hook-events",
                "execjob_begin,execjob_prologue,execjob_epilogue,execjob_preterm,execjob_end,exechost_periodic",
            ]
            self.start("mom", [*own, "--kill-delay-s", "0.5", *hook], name)
        self.until(lambda: len(self.client.vnodes()) == 2)
        self.offer()

    def offer(self) -> None:
        """Both vnodes accept jobs of class preemptible, for 2 CPUs."""
        for name in ("n1", "n2"):
            offered = {"resources_available.magrathea_accepts": "preemptible", "resources_available.ncpus": "2"}
            self.client.set_vnode(name, offered)

    def close(self) -> None:
        self.client.close()
        self.keeper.close()

    def start(self, module: str, arguments: list[str], name: str = "") -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(fleet.ROOT)}
        argv = [sys.executable, "-m", f"magrathea_lab.pbs_standin.{module}", *arguments]
        log = self.directory / f"{module}{name}.log"
        self.parts[name or module] = self.keeper.start(module, argv, environment, log)

    def until(self, condition: Callable[[], Any]) -> Any:
        return until(condition, lambda: str({log.name: log.read_text() for log in self.directory.glob("*.log")}))

    def tell(self, word: str) -> None:
        (self.directory / word).touch()

    def submit(self, steps: int = 1000, **more: Any) -> str:
        script = self.directory / f"{steps}.sh"
        if not script.exists():  # a job that has just started may be reading it
            script.write_text(COUNTING.format(steps=steps), encoding="utf-8")
        output = self.directory / f"out.{time.monotonic_ns()}"
        return self.client.submit("low", script, output, self.directory, **more)

    def shown(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.ask("job", job=job)
        return found

    def until_state(self, job: str, state: str, substate: int | None = None) -> dict[str, Any]:
        self.until(lambda: self.shown(job)["state"] == state and substate in (None, self.shown(job)["substate"]))
        return self.shown(job)

    def count(self, job: str) -> int:
        path = self.directory / f"{job}.count"
        return int(path.read_text() or 0) if path.exists() else 0

    def running(self, **more: Any) -> str:
        job = self.submit(**more)
        self.until_state(job, "R", 42)
        self.until(lambda: self.count(job))
        return job

    def vnode(self, name: str) -> Any:
        return next(v for v in self.client.vnodes() if v.name == name)
