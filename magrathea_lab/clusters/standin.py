"""A whole small cluster on this machine without root and without PBS: all parts of Magrathea, and the PBS stand-in.

    with StandInCluster([EXCLUSIVE, COUNTED]) as cluster:
        job = cluster.submit("low", 100)

Every part is started by its own command line, with its own configuration file, in one temporary directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from magrathea.client import status
from node_daemon.main import group_name
from scheduler_plugin.pbs.base import PbsError
from scheduler_plugin.setup.hook_texts import written

from .. import fleet, leftovers, work
from ..cluster import JobView, VnodeView
from ..fleet import BOTH, HostSpec
from ..pbs_standin.client import StandInClient, reached
from ..waiting import BOUND_S
from ..work import PAUSE_S
from .keeper import Keeper, KeptProcess
from .parts import PartsCluster

T = TypeVar("T")

PERIODIC_S = 2.0
"""Interval of MoM's lists of jobs, in seconds; 15 in production, where jobs last longer."""
KILL_DELAY_S = 2.0
"""Time from SIGTERM to SIGKILL of a deleted job; 10 s in PBS."""


class NotUp(Exception):
    """The cluster did not start; the text says which part is missing, and shows each part's last output."""


class StandInCluster(PartsCluster[KeptProcess]):
    """See the module's docstring and cluster.Cluster. `parts`: by name ("hub", "noded-h1", "agent-n1", "mom-n1",
    "server")."""

    noded_options: tuple[str, ...] = ()

    def __init__(self, hosts: Sequence[HostSpec] = BOTH, *, name: str = "", base: Path | None = None) -> None:
        """`name`: the PBS server's name. It must be unique on this machine, because job ids end with it.

        `base`: the cluster's directory is created there.
        """
        self.hosts: Sequence[HostSpec] = tuple(hosts)
        self.server_name = name or f"s{os.getpid()}x{time.monotonic_ns() % 100000}"
        self.directory, taken = leftovers.take_directory("magrathea-", base)
        self.parts: dict[str, KeptProcess] = {}
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(fleet.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            **leftovers.mark(),
        }
        self._keeper = Keeper(self._environment, self.directory)
        groups = [group_name(host.name, str(self.directory / host.name / fleet.PATHS["run_dir"])) for host in hosts]
        self._taken = [
            taken,
            leftovers.take_process(self._keeper.pid),
            *(leftovers.take(leftovers.Kind.GROUP, name) for name in groups),
        ]
        self._client: StandInClient | None = None

    # Up and down

    def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Start all parts; all domains are `free` afterwards. Raises NotUp."""
        for name in ("log", "jobs"):
            (self.directory / name).mkdir()
        self._write_configuration()
        progress("the PBS stand-in: a server with a scheduler, and a MoM in every domain")
        self.start_part("server")
        self._client = self._until("server that listens", lambda: reached(self.directory / "pbs.sock"))
        for host, domain in fleet.domains_of(self.hosts):
            self.start_part(f"mom-{domain.name}", host)
        everything = {domain.name for _, domain in fleet.domains_of(self.hosts)}
        self._until("vnodes of all MoMs", lambda: everything <= self.vnodes().keys())
        progress("the hub beside the server, a node daemon per host, an agent in every domain")
        self.start_part("hub")
        for host in self.hosts:
            self.start_part(f"noded-{host.name}")
        for _, domain in fleet.domains_of(self.hosts):
            self.start_part(f"agent-{domain.name}")
        self._until("the hub's heartbeat file", (self.directory / "heartbeat").exists)
        self._until("all domains free, and their agents connected", lambda: self._all_free() and self._all_connected())

    def close(self) -> None:
        """End every process and remove the directory. May be called more than once."""
        if self._client is not None:
            self._client.close()
            self._client = None
        try:
            self._keeper.close()
        finally:
            leftovers.undo_all(self._taken)
            self._taken = []

    def _write_configuration(self) -> None:
        here = self.directory
        hub_socket = f"ipc://{here}/hub.ipc"
        hub: dict[str, dict[str, Any]] = {
            "hub": {
                "listen": [hub_socket],
                "state_dir": str(here / "hub"),
                "keys_dir": str(here / "hub" / "keys"),
                "heartbeat_file": str(here / "heartbeat"),
                "control_socket": str(here / "hub-control.sock"),
            },
            "pbs": {"kind": "standin", "socket": str(here / "pbs.sock")},
        }
        (here / "hub").mkdir()
        (here / "hub.toml").write_text(fleet.toml(hub), encoding="utf-8")
        for hook in ("magrathea_server", "magrathea_mom"):
            written(hook, here)
        (here / "hook.json").write_text(fleet.hook_json(here / "heartbeat"), encoding="utf-8")
        for host in self.hosts:
            its = here / host.name
            its.mkdir(exist_ok=True)
            (its / "noded.toml").write_text(self._noded_toml(host, its, hub_socket), encoding="utf-8")
            for domain in host.domains:
                (here / domain.name).mkdir()
                agent = fleet.agent_json(here / domain.name, its / "run" / "guest" / f"{domain.name}.sock")
                (here / domain.name / "agent.json").write_text(agent, encoding="utf-8")

    def _noded_toml(self, host: HostSpec, directory: Path, hub: str) -> str:
        pid_files = {d.name: self.directory / d.name / "pid" for d in host.domains}
        return fleet.noded_toml(host, directory, hub, pid_files)

    def start_part(self, name: str, host: HostSpec | None = None) -> KeptProcess:
        """Start a part, for the first time or again, by its name. `host` gives the size of a MoM's domain."""
        kind, _, of = name.partition("-")
        here = self.directory
        environment = dict(self._environment)
        module: list[str]
        if kind == "server":
            module = ["magrathea_lab.pbs_standin.server", "--dir", str(here), "--name", self.server_name]
            module += ["--hook", str(here / "magrathea_server.py"), "--hook-config", str(here / "hook.json")]
        elif kind == "hub":
            module = ["scheduler_plugin.hub.main", "--config", str(here / "hub.toml")]
        elif kind == "noded":
            module = ["node_daemon.main", "--config", str(here / of / "noded.toml"), *self.noded_options]
        elif kind == "agent":
            module = ["node_daemon.agent", "--config", str(here / of / "agent.json")]
        else:
            assert host is not None
            cpus = next(d.cpus for d in host.domains if d.name == of)
            environment["MAGRATHEA_AGENT_CONF"] = str(here / of / "agent.json")
            module = ["magrathea_lab.pbs_standin.mom", "--server", str(here / "pbs.sock"), "--vnode", of]
            module += [
                "--ncpus",
                str(cpus),
                "--mem-mib",
                str(host.memory_mib),
                "--hook",
                str(here / "magrathea_mom.py"),
            ]
            module += ["--pid-file", str(here / of / "pid"), "--periodic-s", str(PERIODIC_S)]
            module += ["--kill-delay-s", str(KILL_DELAY_S), "--home", str(here / of / "pbs")]
        log = here / "log" / f"{name}.log"
        part = self._keeper.start(name, [sys.executable, "-m", *module], environment, log)
        self.parts[name] = part
        return part

    def _all_free(self) -> bool:
        vnodes = self.vnodes()
        names = [domain.name for _, domain in fleet.domains_of(self.hosts)]
        return all(name in vnodes and vnodes[name].magrathea == "free" for name in names)

    def _all_connected(self) -> bool:
        return all(d.agent for host in self.hosts for d in status(self.control_socket(host.name)).domains)

    def _until(self, what: str, condition: Callable[[], T | None]) -> T:
        """What `condition` returns as soon as that is true."""
        deadline = time.monotonic() + BOUND_S
        while not (found := condition()):
            ended = [name for name, part in self.parts.items() if not part.running()]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended at once" if ended else f"no {what} within {BOUND_S:g} s"
                raise NotUp(f"the cluster does not start: {why}\n{self.picture()}")
            time.sleep(0.05)
        return found

    # The methods of cluster.Cluster

    @property
    def client(self) -> StandInClient:
        assert self._client is not None, "the cluster is not up"
        return self._client

    def submit(
        self, queue: str, steps: int, *, cpus: int = 1, select: str = "", walltime_s: int | None = None,
        rerunnable: bool = True, name: str = "job",
    ) -> str:  # fmt: skip
        jobs = self.directory / "jobs"
        command = f'exec "{sys.executable}" -S "{work.__file__}" {{steps}} {PAUSE_S} "{jobs}/$PBS_JOBID.count"\n'
        script = jobs / f"{steps}.sh"
        if not script.exists():  # writing it again would empty it while a job that has just started reads it
            script.write_text(command.format(steps=steps), encoding="utf-8")
        output = jobs / f"out.{time.monotonic_ns()}"
        return self.client.submit(
            queue, script, output, jobs,
            select=select or f"1:ncpus={cpus}", walltime_s=walltime_s, rerunnable=rerunnable, name=name,
        )  # fmt: skip

    def jobs(self) -> Mapping[str, JobView]:
        names = ("id", "state", "substate", "run_version", "comment", "exit_status")
        found = self.client.history()
        return {job["id"]: JobView(vnodes=tuple(job["vnodes"]), **{n: job[n] for n in names}) for job in found}

    def vnodes(self) -> Mapping[str, VnodeView]:
        def view(name: str, attributes: Mapping[str, str], state: frozenset[str]) -> VnodeView:
            accepts = attributes.get("resources_available.magrathea_accepts", "")
            return VnodeView(
                name, attributes.get("resources_available.magrathea", ""), tuple(accepts.split(",")), state
            )

        return {v.name: view(v.name, v.attributes, v.state) for v in self.client.vnodes()}

    def finish(self, job: str) -> None:
        (self.directory / "jobs" / f"{job}{work.FINISH}").touch()

    def counter(self, job: str) -> int:
        path = self.directory / "jobs" / f"{job}.count"
        return int(path.read_text(encoding="ascii") or 0) if path.exists() else 0

    def output(self, job: str) -> str:
        path = Path(self.client.ask("job", job=job)["output"])
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def delete(self, job: str) -> None:
        self.client.delete(job)

    def picture(self) -> str:
        """Jobs, vnodes and the last lines of every part's log."""
        lines: list[str] = []
        if self._client is not None:
            try:
                lines += [json.dumps(job) for job in self.client.history()]
                lines += [json.dumps(vnode) for vnode in self.client.ask("vnodes")]
            except PbsError as error:
                lines.append(str(error))
        return "\n".join([*lines, *self.last_lines()])
