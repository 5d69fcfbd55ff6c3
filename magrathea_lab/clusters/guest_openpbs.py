"""An OpenPBS cluster with real guests as execution hosts: two small physical hosts.

Each host has a libvirtd, a node daemon and two QEMU guests. MoM, the agent and the MoM hook run inside the guests. The
PBS server and the hub run in a machine of private_openpbs.py; the guests' network devices belong to its bridge. A
guest's root is made of Debian's packages; OpenPBS is added at run time, as it is installed here.

Rule 1: the guests share no file system with the server's machine. MoM leaves a job's output in the guest, and
`Fleet.output` reads it there.
Rule 2: tests look inside a guest only through its own virtio-serial port (rigs/guest.py).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import fleet
from ..fleet import DomainSpec, HostSpec
from ..guests.image import NETWORK_MODULES, Extra
from ..guests.private_libvirtd import QEMU_USER
from ..rigs.guest import Guest, GuestError
from ..rigs.guest_host import Hypervisor, Size, ask
from ..waiting import until
from .openpbs import KILL_DELAY_S, USER, VNODES_HOOK_S, OpenPbsCluster
from .openpbs_machine import BRIDGE
from .private_openpbs import FIRST_UID, HEAD, HOST, MachineProcess, PrivateOpenPbs

SIZE_MIB = 480
SMALL_MIB = 224
"""A priority domain before its first job: a host's two domains do not both fit at full size."""
FLOOR_MIB = 208
"""For MoM, agent and root (in memory, 75 MiB) of a guest that gives all it can."""
SWAP_MIB = 512
LISTS_S = 15
"""Interval of MoM's lists, as in production: each costs half a second of an emulated guest's CPU."""
KEEPALIVE = "1,5,2,2,10000"
"""With these, PBS's daemons notice after 9 s that a machine has vanished; normally after 60 s. On, idle, interval,
probes, ms."""

HOSTS = tuple(
    HostSpec(
        f"h{number}",
        "exclusive",
        1,
        (DomainSpec(f"n{number}", "normal", 1), DomainSpec(f"p{number}", "priority", 1)),
        memory_mib=SIZE_MIB + SMALL_MIB,
        limits={"agent_silent_s": 30.0, "claim_s": 60.0},
    )
    for number in (1, 2)
)

PACKAGES = ("libpython3.11", "libhwloc15", "libssl3", "libudev1", "libcap2")
PBS_FILES = (
    *("sbin/pbs_mom", "sbin/pbs_demux", "sbin/pbs_rcp"),
    *("bin/pbs_python", "bin/pbs_attach", "bin/pbs_tmrsh", "bin/pbsdsh"),
)
PBS_LIBRARIES = ("libpbs.so*", "libauth_munge.so*")
PBS_HOME = "var/spool/pbs"
PBS_FOLDERS = {
    **{f"{PBS_HOME}/{name}": 0o755 for name in ("aux", "mom_logs")},
    **{f"{PBS_HOME}/{name}": 0o751 for name in ("mom_priv", "mom_priv/jobs", "mom_priv/hooks", "mom_priv/hooks/tmp")},
    **{f"{PBS_HOME}/{name}": 0o1777 for name in ("spool", "undelivered")},
    f"{PBS_HOME}/checkpoint": 0o700,
    "var/tmp": 0o1777,
    f"home/{USER}": 0o755,
}
"""As PBS's pbs_postinstall makes them."""


def guest_root(target: Path, cluster: PrivateOpenPbs) -> None:
    """Add to the guests what packages lack: OpenPBS's part for a MoM, its home, and the cluster's names."""
    exec_dir = cluster.exec_dir
    pbs = target / str(exec_dir).lstrip("/")
    for name in PBS_FILES:
        (pbs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(exec_dir / name, pbs / name)
    for pattern in PBS_LIBRARIES:
        for path in (exec_dir / "lib").glob(pattern):
            (pbs / "lib").mkdir(exist_ok=True)
            shutil.copy2(path, pbs / "lib" / path.name, follow_symlinks=False)
    python = pbs / "lib/python/altair"
    shutil.copytree(exec_dir / "lib/python/altair", python, ignore=shutil.ignore_patterns("__pycache__", "pbs_hooks"))
    # otherwise each hook would compile it anew: a guest does not keep the times of files
    compiler = (sys.executable, "-W", "ignore", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
    subprocess.run([*compiler, str(python)], check=True)
    (pbs / "python/bin").mkdir(parents=True)
    (pbs / "python/bin/python3").symlink_to("/usr/bin/python3.11")
    for name, mode in PBS_FOLDERS.items():
        (target / name).mkdir(parents=True, exist_ok=True)
        (target / name).chmod(mode)
    files = {
        "etc/pbs.conf": f"PBS_EXEC={exec_dir}\nPBS_HOME=/{PBS_HOME}\nPBS_SERVER={HEAD}\nPBS_START_MOM=1\n"
        "PBS_LOG_HIGHRES_TIMESTAMP=1\nPBS_SCP=/bin/false\n",
        "etc/hosts": (cluster.base / "etc/hosts").read_text(encoding="ascii"),
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\n",
        "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{FIRST_UID}:{FIRST_UID}::/home/{USER}:/bin/sh\n",
        "etc/group": f"root:x:0:\n{USER}:x:{FIRST_UID}:\n",
        f"{PBS_HOME}/pbs_environment": "PATH=/bin:/usr/bin\n",
        f"{PBS_HOME}/mom_priv/config": f"$clienthost {HEAD}\n$usecp *:{cluster.base}/home/ /home/\n",
    }
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="ascii")
    shutil.copytree(Path(__file__).parents[1] / "guests" / "openpbs", target, dirs_exist_ok=True)


class GuestCluster(PrivateOpenPbs):
    """The server's machine, and guests in place of the MoMs' machines. `hypervisors`: by host.

    `swap_mib`: of each guest; 0: none.
    """

    def __init__(self, hosts: Sequence[HostSpec] = HOSTS, swap_mib: int = SWAP_MIB) -> None:
        super().__init__([domain.name for _, domain in fleet.domains_of(hosts)], ncpus=hosts[0].cpus)
        self.hosts = tuple(hosts)
        self.hypervisors: dict[str, Hypervisor] = {}
        self.swap_mib = swap_mib

    def guest(self, name: str) -> Guest:
        return next(h.guests[name] for h in self.hypervisors.values() if name in h.guests)

    def _prepare(self, name: str) -> None:
        if name == HEAD:
            super()._prepare(name)
            guest_root(self.base / "guest", self)

    def _set_up_mom(self, mom: str) -> None:
        """The first MoM of a host starts the host with its guests."""
        for host in self.hosts:
            if host.domains[0].name == mom:
                self._set_up(host)

    def _set_up(self, host: HostSpec) -> None:
        extra = Extra(PACKAGES, NETWORK_MODULES, self.base / "guest")
        sizes = {domain.name: self._size(domain) for domain in host.domains}
        self.hypervisors[host.name] = self._hypervisor(host, sizes, extra)
        self.hypervisors[host.name].start()

    def _hypervisor(self, host: HostSpec, sizes: Mapping[str, Size], extra: Extra) -> Hypervisor:
        """One whose guests are on the cluster's bridge."""
        return Hypervisor(sizes, extra, enter=self.enter)

    @property
    def enter(self) -> tuple[str, ...]:
        """A command that runs another one in the network namespace with the cluster's bridge."""
        return ("nsenter", "--net", "-t", str(self._root_pid), "--")

    def _size(self, domain: DomainSpec) -> Size:
        number = self.moms.index(domain.name)
        address = f"10.117.0.{number + 3}"
        assert f"{address} {domain.name}\n" in (self.base / "etc/hosts").read_text(encoding="ascii")
        link = f"""<interface type='bridge'>
      <source bridge='{BRIDGE}'/><mac address='52:54:00:75:00:{number + 3:02x}'/><model type='virtio'/>
      <rom enabled='no'/>
    </interface>"""
        return Size(SIZE_MIB, swap_mib=self.swap_mib, arguments=f"magrathea.address={address}/24", devices=link)

    def start_mom(self, name: str, *args: str) -> None:
        """Nothing to do: the guest's init has started it."""

    def _habitat(self, name: str) -> None:
        super()._habitat(name)
        with (self.pbs_home(name) / "pbs_environment").open("a", encoding="ascii") as file:
            file.write(f"PBS_TCP_KEEPALIVE={KEEPALIVE}\n")

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            ended = [pool.submit(hypervisor.close) for hypervisor in self.hypervisors.values()]
        self.hypervisors = {}
        super().stop()
        for done in ended:
            done.result()


class Fleet(OpenPbsCluster):
    """Magrathea on the guests. Parts: "hub", "noded-h1", "noded-h2"; the guests start their own agents."""

    pbs: GuestCluster
    noded = "node_daemon.main"
    """The module that is the node daemon."""

    def __init__(self, tables: Mapping[str, dict[str, Any]] | None = None, pbs: GuestCluster | None = None) -> None:
        """`tables`: more tables of each host's noded.toml. `pbs`: another cluster than the usual one."""
        made = pbs or GuestCluster()
        super().__init__(made.hosts, pbs=made)
        self._tables = dict(tables or {})

    def tables(self, host: HostSpec) -> Mapping[str, dict[str, Any]]:
        """More tables of this host's noded.toml."""
        return self._tables

    def guest(self, name: str) -> Guest:
        return self.pbs.guest(name)

    # Up

    def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        self.pbs.start()
        self.start_magrathea()

    def start_magrathea(self) -> None:
        """Install Magrathea on the running PBS; all domains are free afterwards."""
        self.install("--memory-moves")
        self._for_short_jobs()
        self._fit()
        self._write_configuration()
        for name in ["hub", *(f"noded-{host.name}" for host in self.hosts)]:
            self.start_part(name)
        self.wait_free()

    def _fit(self) -> None:
        """Make the guests so small that all of a host's fit."""
        for host in self.hosts:
            self.resize(host.domains[1].name, SMALL_MIB)

    def start_part(self, name: str) -> MachineProcess:
        kind, _, host = name.partition("-")
        if kind != "noded":
            return super().start_part(name)
        self.parts[name] = self.pbs.spawn(HOST, name, self.noded_command(host), env=self.environment)
        return self.parts[name]

    def noded_command(self, host: str) -> list[str]:
        """What runs the host's node daemon."""
        return [sys.executable, "-m", self.noded, "--config", str(self.directory / host / "noded.toml")]

    def _for_short_jobs(self) -> None:
        lines = [f"set queue {name} kill_delay={KILL_DELAY_S}" for name in ("high", "low")]
        lines += [
            f"set hook magrathea_vnodes {what}" for what in ("enabled=false", f"freq={VNODES_HOOK_S}", "enabled=true")
        ]
        self.pbs.qmgr("\n".join(lines))
        for mom in self.pbs.moms:
            wanted = [f"/{PBS_HOME}/mom_priv/hooks/magrathea_{name}.PY" for name in ("mom", "prologue")]
            script = "ls -l " + " ".join(wanted) + " 2>&1; true"
            self.pbs.wait(
                lambda mom=mom, script=script: "No such" not in self.guest(mom).sh(script),  # type: ignore[misc]
                f"MoM's hooks in {mom}",
                60,
                0.5,
            )

    def _write_configuration(self) -> None:
        self._write_hub_configuration()
        for host in self.hosts:
            (self.directory / host.name).mkdir()
            hypervisor = self.pbs.hypervisors[host.name]
            tables: dict[str, dict[str, Any]] = {
                "host": {
                    "name": host.name,
                    "mode": host.mode,
                    "cpus": host.cpus,
                    "memory_mib": host.memory_mib,
                    "reserve_mib": 0,
                    "driver": "libvirt",
                    "uri": hypervisor.libvirtd.uri(),
                    "qemu_user": QEMU_USER,
                    "memory_step_mib": 64,
                    "memory_time_limit_s": 100.0,
                },
                "limits": {**fleet.SHORT_LIMITS, **host.limits, "allow_short_min_run": True},
                "hub": {"endpoints": [self._endpoint]},
                "paths": {
                    "run_dir": str(hypervisor.run_dir),
                    "state_dir": str(self.directory / host.name / "state"),
                    "scripts": str(self.directory / host.name / "scripts"),
                },
                **self.tables(host),
            }
            for domain in host.domains:
                tables[f"domain.{domain.name}"] = {
                    "kind": domain.kind,
                    "cpus": domain.cpus,
                    "floor_mib": FLOOR_MIB,
                    "swap_mib": self.pbs.swap_mib,
                    "libvirt.name": hypervisor.guests[domain.name].libvirt_name,
                }
            (self.directory / host.name / "noded.toml").write_text(fleet.toml(tables), encoding="utf-8")

    # From outside

    def has_mib(self, name: str) -> int:
        """The guest's memory, according to the hypervisor."""
        return int(self.guest(name).domain.info()[2]) // 1024

    def resize(self, name: str, mib: int) -> None:
        self.guest(name).domain.setMemoryFlags(mib * 1024, 1)  # of the running domain
        until(lambda: abs(self.has_mib(name) - mib) <= 1, lambda: f"{name} has {self.has_mib(name)}, not {mib} MiB")

    def control_socket(self, host: str) -> Path:
        return self.pbs.hypervisors[host].run_dir / "control.sock"

    def ask(self, host: str, **message: Any) -> dict[str, Any]:
        """Send an operation over the control socket of a host's node daemon."""
        return ask(self.control_socket(host), message)

    # Jobs

    def qsub(self, queue: str, script: str, *argv: str) -> str:
        return self.pbs.qsub(USER, "-q", queue, "-N", "job", "-j", "oe", *argv, script=script)

    def printed(self, guest: str, job: str) -> str:
        """What a job in the guest has printed so far, or has left there at its end."""
        number = job.partition(".")[0]
        places = f"/{PBS_HOME}/spool/{number}.*.OU /home/{USER}/job.o{number}"
        return self.guest(guest).sh(f"cat {places} 2>/dev/null; true")

    def picture(self) -> str:
        lines = [super().picture()]
        for name in self.pbs.moms:
            lines.append(f"--- {name}:")
            with contextlib.suppress(GuestError, StopIteration):
                script = f"tail -n 12 /run/agent.log; tail -qn 25 /{PBS_HOME}/mom_logs/*; free -m; ps | grep -v '\\['"
                lines.append(self.guest(name).sh(script, 5.0))
        return "\n".join(lines)
