"""MoM's hook on a real server, with an agent of the test in each machine: it grants or refuses, and keeps a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.setup.hook_texts import hook_text

MOMS = ("n1", "n2")
SHORTEST = "SHORTEST_WAIT_S = 1\n"

AGENT = """
import os, socket, sys
REFUSAL = b'{"ok": false, "code": "host-busy", "text": "busy", "retry_after_s": 0}\\n'
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
    refuses = os.path.exists(log + ".refuses") and '"claim"' in request
    link.sendall(REFUSAL if refuses else b'{"ok": true}\\n')
    link.close()
"""


class Rig:
    """A server with two MoMs, our MoM hook, and in each machine an agent that grants everything unless told otherwise.

    A refused job may start again at once.
    """

    def __init__(self, pbs: PrivateOpenPbs) -> None:
        self.pbs = pbs
        script = self._file("agent.py", AGENT)
        text = hook_text("magrathea_mom")
        assert text.count(SHORTEST) == 1
        hook = self._file("hook.py", text.replace(SHORTEST, "SHORTEST_WAIT_S = 0\n"))
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
        # not execjob_end, which runs in the background for a second: a job that is started again meanwhile may stay E
        pbs.qmgr('create hook claims\nset hook claims event="execjob_begin,execjob_abort"')
        pbs.run(HEAD, ["qmgr", "-c", f"import hook claims application/x-python default {hook}"])
        for mom in MOMS:
            pbs.wait((pbs.pbs_home(mom) / "mom_priv/hooks/claims.PY").exists, f"the hook at {mom}", BOUND_S)

    def _file(self, name: str, text: str) -> Path:
        path = self.pbs.base / name
        path.write_text(text, encoding="utf-8")
        return path

    def _log(self, mom: str) -> Path:
        return self.pbs.base / f"claims-{mom}"

    def refuse(self, mom: str, *, refuses: bool) -> None:
        """Let the agent of this machine refuse all claims from now on, or no longer."""
        flag = self._log(mom).with_name(self._log(mom).name + ".refuses")
        if refuses:
            flag.touch()
        else:
            flag.unlink()

    def named(self, name: str) -> None:
        """Let n1's MoM have one vnode, of this name.

        With a node the server takes its MoM's hooks away. A new one is free a moment before it has them again.
        """
        hooks = self.pbs.pbs_home("n1") / "mom_priv/hooks"
        files = [hooks / "claims.HK", hooks / "claims.PY"]
        before = [file.stat().st_mtime_ns for file in files]
        for vnode in self.pbs.vnodes():
            if vnode != "n2":
                self.pbs.qmgr(f"delete node {vnode}")
        self.pbs.qmgr(f"create node {name}")
        self.pbs.qmgr(f"set node {name} resources_available.ncpus=8\nset node {name} resources_available.mem=64gb")
        self.pbs.wait_free(name, "n2")
        for file, old in zip(files, before, strict=True):
            self.pbs.wait(
                lambda file=file, old=old: file.exists() and file.stat().st_mtime_ns != old,  # type: ignore[misc]
                f"{file.name} is at n1 again",
                BOUND_S,
            )

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
