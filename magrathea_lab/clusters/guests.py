"""A cluster with the PBS stand-in and real virtual machines: one host with two small QEMU guests as domains.

The PBS stand-in's server, the hub and the node daemon (driver libvirt) run here. The agent, the MoM hook and the
stand-in's MoM run in the guests. A guest is reached only through two virtio-serial ports: one leads to the node
daemon, one to the stand-in's server.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from magrathea.pbs_text.amounts import size_bytes, whole_mib
from magrathea.pbs_text.select import chunks
from node_daemon.hypervisor.libvirt.translation import CpuControl, How
from scheduler_plugin.setup.hook_texts import written

from .. import fleet
from ..fleet import DomainSpec, HostSpec
from ..guests.image import Image, build
from ..guests.private_libvirtd import QEMU_USER, PrivateLibvirtd
from ..guests.programs import copy_programs
from ..guests.xml import guest_xml
from ..pbs_standin import mom
from ..pbs_standin.client import reached
from ..work import PAUSE_S
from .standin import StandInCluster

GUEST_MIB, FLOOR_MIB, SWAP_MIB = 384, 176, 384
HOST = HostSpec(
    "h1",
    "exclusive",
    1,
    (DomainSpec("n1", "normal", 1), DomainSpec("p1", "priority", 1)),
    memory_mib=GUEST_MIB + FLOOR_MIB,
)
OWN_MIB = 16
"""Memory of the job's program itself. The job holds the rest of the memory that it asks for."""
LIMITS = {"min_run_s": 1.0, "young_s": 20.0, "allow_short_min_run": True}
"""For jobs that last seconds. All other steps keep the usual time, because an emulated guest needs it."""
LIST_S = 15.0
"""Interval of MoM's lists of jobs: each list costs an emulated guest half a second of CPU."""
PROBE_S = 8.0
"""A guest with hardware acceleration boots in two seconds. If it takes this long, something is wrong with it."""
HERE = Path(__file__).parents[1]
PROGRAMS = "usr/lib/magrathea"
CAP = CpuControl(How.QUOTA, "global_quota", "global_period")


@dataclass(frozen=True, slots=True)
class Figures:
    """One domain's figures, read from libvirt. `cpu_percent`: the cap in per cent of one CPU; None if there is none."""

    memory_mib: int
    cpu_percent: int | None


def held_mib(memory_mib: int) -> int:
    """How much memory a job that asks for `memory_mib` really holds."""
    return max(0, memory_mib - OWN_MIB)


class GuestCluster(StandInCluster):
    """See the module's docstring. `start` raises NoImage, NoLibvirt, and what libvirt raises."""

    noded_options = ("--log-level", "debug")

    def __init__(self) -> None:
        self.libvirtd = PrivateLibvirtd()
        super().__init__([HOST], base=self.libvirtd.folder.parent)
        self.accelerated = False
        self.why_emulated = ""
        self._connection: Any = None

    def names(self) -> list[str]:
        return [domain.name for domain in HOST.domains]

    # Up and down

    def start(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Start all parts; both domains are `free` afterwards. Raises NotUp."""
        self.directory.chmod(0o711)  # QEMU's user may pass through, but not list
        for name in ("log", "jobs", "guests"):
            (self.directory / name).mkdir(mode=0o711)
        progress("a libvirtd of its own, with its own directories")
        self.libvirtd.start()
        self._connection = libvirt.open(self.libvirtd.uri())
        progress("guests made of Debian's packages: kernel, busybox, Python, agent, MoM stand-in")
        image = self._image()
        self.accelerated = self._probe(image)
        how = "with hardware acceleration (KVM)" if self.accelerated else f"by emulation: {self.why_emulated}"
        progress(f"guests {how}")
        self._write_configuration()
        self.start_part("server")
        server = self.directory / "pbs.sock"
        self._client = self._until("server that listens", lambda: reached(server))
        shutil.chown(server, QEMU_USER)
        for name in self.names():
            self._define(name, image)
        progress("the PBS stand-in's server, and the node daemon with its libvirt driver")
        self.start_part("noded-h1")
        guests = [self.channel(name) for name in self.names()]
        self._until("channels of the guests", lambda: all(path.is_socket() for path in guests))
        progress("two virtual machines: n1 (normal) and p1 (priority), an agent and a MoM in each")
        for name in self.names():
            self.domain(name).create()
        self._until("vnodes of both MoMs", lambda: set(self.names()) <= self.vnodes().keys())
        self.start_part("hub")  # only now: the hub waits before it asks again about vnodes that PBS does not have yet
        self._until("the hub's heartbeat file", (self.directory / "heartbeat").exists)
        self._until("both domains free, and their agents connected", lambda: self._all_free() and self._all_connected())

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):  # it may be broken, and nobody needs it any more
                    self._connection.close()
                self._connection = None
            self.libvirtd.close()

    def _image(self) -> Image:
        """All files of the repository that the guests need, besides the packages."""
        tree = self.directory / "guests" / "tree"
        copy_programs(tree / PROGRAMS)
        hook = written("magrathea_mom", tree / PROGRAMS)
        events = "execjob_prologue," + mom.EVENTS  # the prologue is where memory moves
        options = {"--server": "/dev/virtio-ports/org.magrathea.mom", "--hook": f"/{PROGRAMS}/{hook.name}"}
        options |= {"--home": "/run/pbs", "--hook-events": events}
        options |= {"--periodic-s": f"{LIST_S}", "--mem-mib": f"{GUEST_MIB}"}
        text = " ".join(f"{name} {value}" for name, value in options.items())
        (tree / PROGRAMS / "mom.options").write_text(text + "\n", encoding="utf-8")
        return build(self.directory / "guests", (HERE / "guests" / "demo", tree))

    def _probe(self, image: Image) -> bool:
        """True if a guest with hardware acceleration boots. Some machines have a /dev/kvm, but guests hang with it."""
        if not Path("/dev/kvm").exists():
            self.why_emulated = "this machine has no /dev/kvm"
            return False
        console = self.directory / "guests" / "probe.console"
        channel = self.channel("probe")
        channel.parent.mkdir(parents=True, mode=0o711)
        channel.touch()
        xml = guest_xml(
            self.libvirtd.prefix + "probe", image,
            channel=channel, console=console, hostname="probe", memory_mib=FLOOR_MIB, kind="kvm",
        )  # fmt: skip
        try:
            domain = self._connection.createXML(xml, 0)
        except libvirt.libvirtError as error:
            why = str(error).splitlines()[0].rpartition(": ")[2]
            self.why_emulated = f"/dev/kvm is there, but QEMU does not start with it ({why})"
            return False
        until = time.monotonic() + PROBE_S
        up = False
        while not up and time.monotonic() < until:
            time.sleep(0.05)
            up = console.exists() and "probe is up" in console.read_text(errors="replace")
        with contextlib.suppress(libvirt.libvirtError):  # the guest may have stopped by itself
            domain.destroy()
        channel.unlink()
        self.why_emulated = f"/dev/kvm is there, but a guest with it did not boot within {PROBE_S:g} s"
        return up

    def _define(self, name: str, image: Image) -> None:
        swap = self.directory / "guests" / f"{name}.swap"
        with swap.open("wb") as file:
            file.truncate(SWAP_MIB * 2**20)
        subprocess.run(["mkswap", str(swap)], check=True, capture_output=True, env={"PATH": "/usr/sbin:/sbin:/bin"})
        xml = guest_xml(
            self.libvirtd.prefix + name, image,
            channel=self.channel(name), mom_socket=self.directory / "pbs.sock",
            console=self.console(name), hostname=name, memory_mib=GUEST_MIB,
            current_mib=GUEST_MIB if name == "n1" else FLOOR_MIB, swap=swap,
            kind="kvm" if self.accelerated else "qemu",
        )  # fmt: skip
        self._connection.defineXML(xml)

    def _noded_toml(self, host: HostSpec, directory: Path, hub: str) -> str:
        domains = {
            f"domain.{d.name}": {
                "kind": d.kind, "cpus": d.cpus, "memory_mib": GUEST_MIB, "floor_mib": FLOOR_MIB, "swap_mib": SWAP_MIB,
                "libvirt.name": self.libvirtd.prefix + d.name,
            }
            for d in host.domains
        }  # fmt: skip
        return fleet.toml(
            {
                "host": {
                    "name": host.name, "mode": host.mode, "cpus": host.cpus, "memory_mib": host.memory_mib,
                    "reserve_mib": 0, "driver": "libvirt", "uri": self.libvirtd.uri(), "qemu_user": QEMU_USER,
                    "memory_step_mib": 64,
                },
                "limits": LIMITS,
                "hub": {"endpoints": [hub]},
                "paths": {name: str(directory / part) for name, part in fleet.PATHS.items()},
                **domains,
            }
        )  # fmt: skip

    # Places

    def channel(self, name: str) -> Path:
        return self.directory / HOST.name / "run" / "guest" / f"{name}.sock"

    def console(self, name: str) -> Path:
        return self.directory / "guests" / f"{name}.console"

    def domain(self, name: str) -> Any:
        """libvirt's object of the domain. Raises libvirt.libvirtError."""
        return self._connection.lookupByName(self.libvirtd.prefix + name)

    def figures(self) -> dict[str, Figures]:
        """The figures of each domain, read from libvirt and not from Magrathea. Raises libvirt.libvirtError."""
        found = {}
        for name in self.names():
            domain = self.domain(name)
            found[name] = Figures(domain.info()[2] // 1024, CAP.percent(domain.schedulerParameters(), 1))
        return found

    def swapped_mib(self, job: str) -> int:
        """MiB of swap in use in the job's guest."""
        lines = (line.split() for line in self._read(job, "/proc/meminfo").splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        return (kib.get("SwapTotal:", 0) - kib.get("SwapFree:", 0)) // 1024

    # The methods of cluster.Cluster

    def submit(
        self, queue: str, steps: int, *, cpus: int = 1, select: str = "", walltime_s: int | None = None,
        rerunnable: bool = True, name: str = "job",
    ) -> str:  # fmt: skip
        """See Cluster.submit. A job that asks for memory (`mem` in `select`) holds nearly all of it."""
        wanted = select or f"1:ncpus={cpus}"
        asked = dict(resource for _, resources in chunks(wanted) for resource in resources)
        memory_mib = whole_mib(size_bytes(asked.get("mem", "0")))
        sizes = {"STEPS": str(steps), "PAUSE_S": str(PAUSE_S), "HOLD_MIB": str(held_mib(memory_mib))}
        output = Path("/var/spool") / f"out.{time.monotonic_ns()}"
        return self.client.submit(
            queue, Path("/") / PROGRAMS / "job.sh", output, Path("/var/spool"), select=wanted, variables=sizes,
            walltime_s=walltime_s, rerunnable=rerunnable, name=name,
        )  # fmt: skip

    def counter(self, job: str) -> int:
        return int(self._read(job, f"/var/spool/{job}.count") or 0)

    def output(self, job: str) -> str:
        return self._read(job, self.client.ask("job", job=job)["output"])

    def _read(self, job: str, path: str) -> str:
        return str(self.client.ask("read", job=job, path=path))

    def picture(self) -> str:
        parts = [super().picture()]
        for name in self.names():
            with contextlib.suppress(OSError):
                parts.append(f"--- console of {name}:\n{self.console(name).read_text(errors='replace')[-2000:]}")
        return "\n".join([*parts, "--- libvirtd:", self.libvirtd.log()])
