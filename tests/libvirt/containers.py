"""The tests' small host with LXC containers instead of virtual machines: see magrathea_lab/rigs/guest_host.py.

A container has the host's programs (its folders, mounted read-only), its own process namespace, and the folder of its
guest channel. It has no virtio-serial ports, so the tests reach its inside through a socket in its root folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import libvirt

from magrathea_lab.rigs.guest import Guest, Port
from magrathea_lab.rigs.guest_host import TREE, Hypervisor, Size

AGENT = Path(__file__).parents[2] / "node_daemon" / "agent"
PYTHON = Path("/usr/bin/python3")
PROGRAMS = "/magrathea-test"
"""Where the container has the tests' own programs."""
SHARED = ("usr", "bin", "sbin", "lib", "lib64")
"""Folders of the host's root."""
FOLDERS = ("dev", "proc", "sys", "tmp", "run", "channel", "etc/magrathea", "var/lib/magrathea", "var/spool")
AFTER_END_S = 2.0
"""libvirtd 9.0 crashed if a container was started right after its end."""
INIT = f"""#!/bin/sh
# The container's start and end: both services are started again whenever they end, as sbin/service does it in a guest.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
serve() {{
    name=$1
    shift
    while :; do
        while [ -e "/run/$name.off" ]; do sleep 0.1; done
        "$@" 2>> "/run/$name.log"
        sleep 0.1
    done
}}
serve mom {PYTHON} -S -E {PROGRAMS}/mom.py /run/test.sock &
serve agent {PYTHON} -I -S /magrathea-agent &
wait
"""


class Containers(Hypervisor):
    """Raises libvirt.libvirtError in `start` if this machine cannot start containers."""

    def __init__(self, sizes: Mapping[str, Size]) -> None:
        super().__init__(sizes, kind="lxc")

    def root(self, name: str) -> Path:
        return self.folder / name

    def define_all(self) -> None:
        for name in self.sizes:
            root, channel = self.root(name), self.run_dir / "guest" / name
            self._fill(root)
            channel.mkdir()
            own = self.libvirtd.prefix + name
            self.connect().defineXML(self._xml(own, root, channel, self.sizes[name]))
            guest = self.guests[name] = Guest(name, own, self.connect, self.folder)
            guest.port = Port(root / "run" / "test.sock")

    @staticmethod
    def _fill(root: Path) -> None:
        for folder in (*SHARED, *FOLDERS):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        shutil.copytree(TREE / "usr/lib/magrathea-test", root / PROGRAMS.strip("/"))
        shutil.copytree(AGENT, root / "magrathea-agent")
        (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nalice:x:1000:1000::/tmp:/bin/sh\n")
        (root / "etc/group").write_text("root:x:0:\nalice:x:1000:\n")
        agent = {"socket": "/run/agent.sock", "channel": "unix:/channel/agent.sock"}
        (root / "etc/magrathea/agent.json").write_text(json.dumps(agent))

    @staticmethod
    def _xml(name: str, root: Path, channel: Path, size: Size) -> str:
        shared = "".join(
            f"<filesystem type='mount'><source dir='/{one}'/><target dir='/{one}'/><readonly/></filesystem>"
            for one in SHARED
            if Path(f"/{one}").exists()
        )
        return f"""<domain type='lxc'><name>{name}</name><memory unit='MiB'>{size.memory_mib}</memory>
          <vcpu>{size.vcpus}</vcpu><os><type>exe</type><init>/init</init></os>
          <devices>
            <filesystem type='mount'><source dir='{root}'/><target dir='/'/></filesystem>{shared}
            <filesystem type='mount'><source dir='{channel}'/><target dir='/channel'/></filesystem>
            <console type='pty'/>
          </devices></domain>"""

    def start_all(self) -> None:
        for guest in self.guests.values():
            if not guest.up:
                time.sleep(AFTER_END_S)
                guest.boot()

    def restore_size(self, name: str, guest: Guest) -> None:
        guest.domain.setMemoryFlags(self.sizes[name].memory_mib * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        guest.domain.setSchedulerParametersFlags({"vcpu_quota": -1}, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def holding(mib: int) -> str:
    """As guest.holding, for a container."""
    return f"exec python3 -S -E {PROGRAMS}/hold.py {mib}"
