"""What a claim counts, with any name of a vnode, any size and any chunk that PBS takes. The agent is the test's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.setup.hook_texts import hook_text

MOMS = ("n1", "n2")

AGENT = """
import json, os, socket, sys
path, log = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(16)
open(log, "a").close()
while True:
    link, _ = listener.accept()
    request = link.makefile().readline()
    with open(log, "a") as file:
        file.write(request)
    link.sendall(b'{"ok": true}\\n')
    link.close()
"""


class Rig:
    """A server with two MoMs, our MoM hook, and in each machine an agent that grants everything and keeps a record."""

    def __init__(self, pbs: PrivateOpenPbs) -> None:
        self.pbs = pbs
        script = self._file("agent.py", AGENT)
        hook = self._file("hook.py", hook_text("magrathea_mom"))
        for mom in MOMS:
            (pbs.base / "m" / mom / "etc/magrathea").mkdir(exist_ok=True)
            configuration = pbs.base / "m" / mom / "etc/magrathea/agent.json"
            configuration.write_text(json.dumps({"socket": "/run/agent.sock"}))
            pbs.spawn(mom, f"agent-{mom}", ["python3", "-S", str(script), "/run/agent.sock", str(self._log(mom))])
            pbs.wait(self._log(mom).exists, f"the agent of {mom}")
        address = pbs.run("n1", ["cat", "/etc/hosts"]).stdout
        self.address = next(line.split()[0] for line in address.splitlines() if "n1" in line.split()[1:])
        for machine in (HEAD, *MOMS):
            hosts = pbs.base / "m" / machine / "etc/hosts"
            hosts.write_text(f"{hosts.read_text()}{self.address} n1-ib N1.cluster.example\n")
        pbs.qmgr("create hook claims\nset hook claims event=execjob_begin")
        pbs.run(HEAD, ["qmgr", "-c", f"import hook claims application/x-python default {hook}"])
        for mom in MOMS:
            pbs.wait((pbs.pbs_home(mom) / "mom_priv/hooks/claims.PY").exists, f"the hook at {mom}", BOUND_S)

    def _file(self, name: str, text: str) -> Path:
        path = self.pbs.base / name
        path.write_text(text, encoding="utf-8")
        return path

    def _log(self, mom: str) -> Path:
        return self.pbs.base / f"claims-{mom}"

    def named(self, name: str) -> None:
        """Let n1's MoM have one vnode, of this name."""
        for vnode in self.pbs.vnodes():
            if vnode != "n2":
                self.pbs.qmgr(f"delete node {vnode}")
        self.pbs.qmgr(f"create node {name}")
        self.pbs.qmgr(f"set node {name} resources_available.ncpus=8\nset node {name} resources_available.mem=64gb")
        self.pbs.wait_free(name, "n2")

    def claims(self, job: str) -> dict[str, dict[str, Any]]:
        """What each MoM's hook has claimed for a job."""
        found = {}
        for mom in MOMS:
            for line in self._log(mom).read_text().splitlines():
                request = json.loads(line)
                if request["op"] == "claim" and request["job"]["id"] == job:
                    found[mom] = request["job"]
        return found

    def run(self, *asked: str) -> dict[str, dict[str, Any]]:
        """Run a job to its end; return its claims."""
        job = self.pbs.qsub("alice", *asked, script="exit 0")
        assert self.pbs.wait_job(job, "F")["Exit_status"] == 0
        return self.claims(job)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with PrivateOpenPbs(list(MOMS)) as pbs:
        yield Rig(pbs)


@pytest.mark.parametrize("name", ["n1", "N1", "n1-ib", "N1.cluster.example", "address"])
def test_a_vnode_may_have_any_name_that_leads_to_its_mom(rig: Rig, name: str) -> None:
    name = rig.address if name == "address" else name
    rig.named(name)
    alone = rig.run("-l", f"select=1:ncpus=3:mem=5mb:vnode={name}")
    assert {mom: (job["cpus"], job["memory_mib"]) for mom, job in alone.items()} == {"n1": (3, 5)}
    first = rig.run("-l", f"select=1:ncpus=3:vnode={name}+1:ncpus=1:vnode=n2")
    assert {mom: (job["cpus"], job.get("sister", False)) for mom, job in first.items()} == {
        "n1": (3, False), "n2": (1, True)
    }  # fmt: skip
    second = rig.run("-l", f"select=1:ncpus=1:vnode=n2+1:ncpus=3:vnode={name}")
    assert {mom: (job["cpus"], job.get("sister", False)) for mom, job in second.items()} == {
        "n1": (3, True), "n2": (1, False)
    }  # fmt: skip


@pytest.mark.parametrize(
    "select", ["1:ncpus=0:vnode=n2", "1:ncpus=0:mem=10mb:vnode=n2", "1:ncpus=2:vnode=n1+1:ncpus=0:vnode=n2"]
)
def test_a_chunk_without_cpus_claims_none(rig: Rig, select: str) -> None:
    rig.named("n1")
    assert rig.run("-l", f"select={select}")["n2"]["cpus"] == 0


SIZES = {
    "100m": 100, "100mb": 100, "100M": 100, "100Mb": 100, "1g": 1024, "1GB": 1024, "2048k": 2, "2048KB": 2,
    "1048576": 1, "1048577b": 2, "131072w": 1, "1mw": 8, "1KW": 1, "1gw": 8192, "0": 0, "0b": 0,
}  # fmt: skip


def test_every_size_that_an_administrator_may_write(rig: Rig) -> None:
    """`qrun -H` gives MoM the administrator's own text; the scheduler writes kb only."""
    rig.named("n1")
    with rig.pbs.stopped_scheduling():
        for size, mib in SIZES.items():
            job = rig.pbs.qsub("alice", "-l", "select=1:ncpus=1", script="exit 0")
            rig.pbs.run(HEAD, ["qrun", "-H", f"(n2:ncpus=1:mem={size})", job])
            rig.pbs.wait_job(job, "F")
            assert rig.claims(job)["n2"]["memory_mib"] == mib, size
