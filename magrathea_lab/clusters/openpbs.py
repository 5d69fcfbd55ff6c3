"""Magrathea on a private OpenPBS cluster, with the same parts, configurations and scenarios as standin.py.

    with OpenPbsCluster([EXCLUSIVE, COUNTED]) as cluster:
        job = cluster.submit("low", 100)

Every domain is a machine of private_openpbs.py with its own MoM and agent. A host is a group of domains with a node
daemon beside them. The hub runs on the PBS server's machine. `magrathea pbs install` itself sets PBS up.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from magrathea.pbs_text.placement import vnodes_of
from magrathea.pbs_text.words import words
from node_daemon.main import group_name

from .. import fleet, leftovers, work
from ..cluster import JobView, VnodeView
from ..fleet import BOTH, HostSpec
from ..waiting import BOUND_S
from ..work import PAUSE_S
from .parts import PartsCluster
from .private_openpbs import HEAD, HOST, PBS_HOME, MachineProcess, PrivateOpenPbs, Timeout

USER = "alice"
PERIODIC_S = 5
"""Interval of MoM's lists of jobs; 15 s in production, where jobs last longer."""
VNODES_HOOK_S = 2
"""How often the server's hook does its periodic work; 30 s in production."""
COMPARE_S = 3
"""How often the hub compares its books with PBS; a minute in production."""
KILL_DELAY_S = 2
"""Time from SIGTERM to SIGKILL of a deleted job; 10 s in production."""


class OpenPbsCluster(PartsCluster[MachineProcess]):
    """See the module's docstring and cluster.Cluster.

    `pbs`: the private OpenPBS cluster, which has the MoMs and PBS's server. `parts`: Magrathea's parts by name ("hub",
    "noded-h1", "agent-n1").
    """

    def __init__(
        self, hosts: Sequence[HostSpec] = BOTH, *, on_disk: bool = False, pbs: PrivateOpenPbs | None = None
    ) -> None:
        """`on_disk`: keep all files on disk, not in memory; a benchmark of the journal must include its disk.

        `pbs`: a cluster that replaces the ordinary one; its MoMs are the hosts' domains.
        """
        self.hosts = tuple(hosts)
        names = [domain.name for _, domain in fleet.domains_of(self.hosts)]
        self.pbs = pbs if pbs is not None else PrivateOpenPbs(names, on_disk=on_disk)
        self.directory = self.pbs.base
        self.parts: dict[str, MachineProcess] = {}
        self._groups: list[leftovers.Taken] = []
        self.environment = {"PYTHONPATH": str(fleet.ROOT), "PYTHONUNBUFFERED": "1"}

    # Up and down

    def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Start all parts; all domains are `free` afterwards. Raises private_openpbs's errors."""
        progress("OpenPBS: a server with its scheduler, and a MoM for every domain, each in namespaces of its own")
        self.pbs.start()
        progress("magrathea pbs install: resources, hooks, queues")
        self.install()
        self._for_short_jobs()
        self._write_configuration()
        progress("the hub beside the server, a node daemon per host, an agent in every domain")
        for name in ["hub", *(f"noded-{host.name}" for host in self.hosts)]:
            self.start_part(name)
        for domain in self.pbs.moms:
            self.start_part(f"agent-{domain}")
        self.wait_free()

    def close(self) -> None:
        """End everything and remove it. May be called more than once."""
        for name, part in self.parts.items():
            if name.startswith("noded-") and part.running():
                part.kill(15)  # SIGTERM lets it remove its control groups, which outlive namespaces
        self.parts = {}
        self.pbs.stop()
        leftovers.undo_all(self._groups)
        self._groups = []

    def install(self, *more: str) -> str:
        """Run `magrathea pbs install` with the arguments `more`, as an admin does; return its output. May be
        repeated."""
        code = "from scheduler_plugin.setup.cli import pbs; pbs()"
        argv = [sys.executable, "-c", code, "install", "--priority", "high", "--preemptible", "low"]
        argv += ["--heartbeat", f"{PBS_HOME}/magrathea.heartbeat", *more]
        argv += [*(word for domain in self.pbs.moms for word in ("--vnode", domain))]
        return self.pbs.run(HEAD, argv, env=self.environment, timeout=BOUND_S).stdout

    def _for_short_jobs(self) -> None:
        """Set frequent lists of jobs and quick deletions, and add a queue of protected jobs. Returns when all MoMs have
        the hook."""
        # for an enabled MoM hook PBS's server would also start its own timer (install._disabled)
        lines = [
            f"set hook {hook} {setting}"
            for hook, freq_s in (("magrathea_mom", PERIODIC_S), ("magrathea_vnodes", VNODES_HOOK_S))
            for setting in ("enabled=false", f"freq={freq_s}", "enabled=true")
        ]
        lines += ["create queue normal queue_type=Execution"]
        lines += ["set queue normal enabled=True", "set queue normal started=True"]
        lines += [f"set queue {name} kill_delay={KILL_DELAY_S}" for name in ("high", "low", "normal")]
        self.pbs.qmgr("\n".join(lines))
        for mom in self.pbs.moms:
            hooks = self.pbs.pbs_home(mom) / "mom_priv/hooks"
            self.pbs.wait(partial(self._has_hook, hooks), f"MoM's hook at {mom}", BOUND_S)

    @staticmethod
    def _has_hook(directory: Path) -> bool:
        """True if a MoM has the hook with its last attributes. MoM's file has only attributes that differ from PBS's
        defaults."""
        attributes, script = directory / "magrathea_mom.HK", directory / "magrathea_mom.PY"
        if not (attributes.exists() and script.exists()):
            return False
        lines = attributes.read_text().splitlines()
        return f"freq={PERIODIC_S}" in lines and not any(line.startswith("enabled=") for line in lines)

    def _write_hub_configuration(self) -> None:
        here = self.directory
        (here / "hub").mkdir()
        hub: dict[str, dict[str, Any]] = {
            "hub": {
                "listen": [self._endpoint],
                "state_dir": str(here / "hub"),
                "control_socket": str(here / "hub-control.sock"),
                "keys_dir": str(here / "hub" / "keys"),
                "heartbeat_file": f"{PBS_HOME}/magrathea.heartbeat",
            },
            "pbs": {"kind": "openpbs", "conf": "/etc/pbs.conf", "compare_s": COMPARE_S},
        }
        (here / "hub.toml").write_text(fleet.toml(hub), encoding="utf-8")

    def _write_configuration(self) -> None:
        here = self.directory
        shutil.copy(work.__file__, here / "work.py")
        self._write_hub_configuration()
        for host in self.hosts:
            its = here / host.name
            its.mkdir()
            for domain in host.domains:
                machine = here / "m" / domain.name
                (machine / "run/magrathea").mkdir(exist_ok=True)
                channel = its / "run/guest" / f"{domain.name}.sock"
                text = fleet.agent_json(Path("/run/magrathea"), channel)
                (machine / "etc/magrathea/agent.json").write_text(text, encoding="utf-8")
            pid_files = {d.name: here / "m" / d.name / "pid" for d in host.domains}
            (its / "noded.toml").write_text(fleet.noded_toml(host, its, self._endpoint, pid_files), encoding="utf-8")
            group = group_name(host.name, str(its / fleet.PATHS["run_dir"]))
            self._groups.append(leftovers.take(leftovers.Kind.GROUP, group))

    @property
    def _endpoint(self) -> str:
        return f"ipc://{self.directory}/hub/hub.ipc"

    def start_part(self, name: str) -> MachineProcess:
        """Start a part, for the first time or again, by its name."""
        kind, _, of = name.partition("-")
        module, machine, config = {
            "hub": ("scheduler_plugin.hub.main", HEAD, str(self.directory / "hub.toml")),
            "noded": ("node_daemon.main", HOST, str(self.directory / of / "noded.toml")),
            "agent": ("node_daemon.agent", of, "/etc/magrathea/agent.json"),
        }[kind]
        argv = [sys.executable, "-m", module, "--config", config]
        self.parts[name] = self.pbs.spawn(machine, name, argv, env=self.environment)
        return self.parts[name]

    def wait_free(self, hosts: Iterable[HostSpec] = ()) -> None:
        """Wait until all domains of `hosts` (default: all) are published as `free` and all parts are running."""
        names = [domain.name for _, domain in fleet.domains_of(tuple(hosts) or self.hosts)]

        def free() -> bool:
            if ended := [name for name, part in self.parts.items() if not part.running()]:
                raise RuntimeError(f"{', '.join(ended)} ended\n{self.picture()}")
            vnodes = self.vnodes()
            return all(vnodes[name].magrathea == "free" and vnodes[name].state == {"free"} for name in names)

        self.pbs.wait(free, f"domains free: {', '.join(names)}", BOUND_S, 0.1)

    @contextmanager
    def only(self, *hosts: HostSpec) -> Iterator[None]:
        """Inside the `with`, PBS starts jobs on `hosts` only; the other hosts are offline."""
        others = [d.name for host, d in fleet.domains_of(self.hosts) if host.name not in {h.name for h in hosts}]
        if others:
            self.pbs.run(HEAD, ["pbsnodes", "-o", *others])
        try:
            yield
        finally:
            if others:
                self.pbs.run(HEAD, ["pbsnodes", "-r", *others])

    def restore(self) -> None:
        """Clean up after any test: no jobs, all parts running, all domains free. Raises private_openpbs.Timeout."""
        left = self.pbs.run(HEAD, ["qselect"]).stdout.split()
        if left:
            self.pbs.run(HEAD, ["qdel", "-W", "force", *left], check=False, timeout=BOUND_S)
        for name in [name for name, part in self.parts.items() if not part.running()]:
            self.start_part(name)
        self.pbs.run(HEAD, ["pbsnodes", "-r", *self.pbs.moms])
        try:
            self.wait_free()
        except Timeout:
            if not self._end_maintenance():
                raise
            self.wait_free()

    def _end_maintenance(self) -> bool:
        """Take vnodes without suspended jobs out of maintenance; return True if there were any.

        PBS leaves such vnodes behind if its server is restarted soon after a preemption (docs/known-limits.md). The
        hub's alert tells managers to do the same.
        """
        held = [name for name, vnode in self.pbs.vnodes().items() if "maintenance" in str(vnode.get("state"))]
        for name in held:
            self.pbs.qmgr(f"delete node {name}")
            self.pbs.qmgr(f"create node {name}\nset node {name} resources_available.ncpus={self.pbs.ncpus}")
            self.pbs.qmgr(f"set node {name} resv_enable=False")  # as `magrathea pbs install` would
        return bool(held)

    # The methods of cluster.Cluster

    def submit(
        self,
        queue: str,
        steps: int,
        *,
        cpus: int = 1,
        select: str = "",
        walltime_s: int | None = None,
        rerunnable: bool = True,
        name: str = "job",
    ) -> str:
        argv = ["-q", queue, "-N", name, "-j", "oe", "-r", "y" if rerunnable else "n"]
        argv += ["-l", f"select={select or f'1:ncpus={cpus}'}"]
        if walltime_s is not None:
            argv += ["-l", f"walltime={walltime_s}"]
        # use neither this interpreter nor this clone: an ordinary user may not be able to read them
        command = f'exec python3 -S "{self.directory}/work.py" {steps} {PAUSE_S} "$HOME/$PBS_JOBID.count"'
        return self.pbs.qsub(USER, *argv, script=command)

    def jobs(self) -> Mapping[str, JobView]:
        return {id: self._view(id, job) for id, job in self.pbs.jobs().items()}

    @staticmethod
    def _view(id: str, job: Mapping[str, Any]) -> JobView:
        placement = str(job.get("exec_vnode", ""))
        status = job.get("Exit_status")
        return JobView(
            id=id,
            state=str(job.get("job_state", "")),
            substate=int(job.get("substate", 0)),
            run_version=int(job.get("run_version", 0)),
            vnodes=tuple(vnodes_of(placement)) if placement else (),
            comment=str(job.get("comment", "")),
            exit_status=None if status is None else int(status),
        )

    def vnodes(self) -> Mapping[str, VnodeView]:
        return {name: self._vnode(name, vnode) for name, vnode in self.pbs.vnodes().items()}

    @staticmethod
    def _vnode(name: str, vnode: Mapping[str, Any]) -> VnodeView:
        have = vnode.get("resources_available", {})
        accepts = words(str(have.get("magrathea_accepts", "")))
        return VnodeView(
            name, str(have.get("magrathea", "")), tuple(accepts), frozenset(words(str(vnode.get("state", ""))))
        )

    def finish(self, job: str) -> None:
        (self.directory / "home" / USER / f"{job}{work.FINISH}").touch()

    def counter(self, job: str) -> int:
        path = self.directory / "home" / USER / f"{job}.count"
        return int(path.read_text(encoding="ascii") or 0) if path.exists() else 0

    def output(self, job: str) -> str:
        number = job.partition(".")[0]
        found = list((self.directory / "home" / USER).glob(f"*.o{number}"))
        return found[0].read_text(encoding="utf-8") if found else ""

    def delete(self, job: str) -> None:
        self.pbs.run(HEAD, ["qdel", job], user=USER, timeout=BOUND_S)

    def picture(self) -> str:
        """Jobs, vnodes and the last lines of every part's log."""
        return "\n".join([time.strftime("%H:%M:%S"), self.pbs.picture(), *self.last_lines()])
