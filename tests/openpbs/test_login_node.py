"""The commands of users on a machine with neither hub nor daemon, by what a real PBS shows there.

The cluster's daemons have their sockets in other places than the default ones, so the server's machine is to these
commands what a login node is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE

USER = "alice"


def asked(fleet: OpenPbsCluster, *words: str) -> tuple[int, Any]:
    """Exit code and JSON of a command that asks only PBS."""
    argv = [sys.executable, "-c", "from magrathea.cli.main import main; main()", *words, "--format", "json"]
    done = fleet.pbs.run(HEAD, argv, env=fleet.environment, check=False)
    assert "systemctl" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def test_users_see_hosts_jobs_and_previews_by_pbs_alone(fleet: OpenPbsCluster) -> None:
    pbs = fleet.pbs
    assert "resources_available.magrathea_host" in pbs.run(HEAD, ["pbsnodes", "-av"], user=USER).stdout
    code, rows = asked(fleet, "hosts")
    assert code == 0
    assert {name for row in rows if row["what"] == "host" for name in row["names"]} == {h.name for h in fleet.hosts}
    with fleet.only(EXCLUSIVE):
        low = pbs.run(HEAD, ["qsub", "-q", "low", "--", "/bin/sleep", "3600"], user=USER).stdout.strip()
        pbs.wait(lambda: fleet.vnodes()["p1"].magrathea == "occupied-would-preempt", "a job that may be stopped")
        code, outlook = asked(fleet, "preview", "-q", "high", "-l", "select=1:ncpus=1")
        assert (code, outlook["fits"], outlook["placed"][0]["jobs"]) == (0, True, [low])
        high = pbs.run(HEAD, ["qsub", "-q", "high", "--", "/bin/sleep", "3600"], user=USER).stdout.strip()
        pbs.wait(lambda: pbs.job(low)["job_state"] == "S", "the stop in PBS's books")
        pbs.wait(lambda: fleet.vnodes()["n1"].magrathea == "preempted", "the published stop")
        code, [part] = asked(fleet, "explain", low)
        assert (code, part["host"], part["vnode"], part["job"]["state"]) == (0, "h1", "n1", "stopped")
        assert high.partition(".")[0] in part["job"]["comment"]
        code, vnodes = asked(fleet, "status", "h1")
        assert code == 0
        states = {row["vnode"]: (row["state"], row["jobs"]) for row in vnodes}
        assert states["p1"] == ("running-priority", [high])
        assert states["n1"][0] == "preempted"
        waiting = pbs.run(HEAD, ["qsub", "-q", "low", "--", "/bin/true"], user=USER).stdout.strip()
        pbs.wait(lambda: pbs.job(waiting).get("comment"), "a comment why it waits")
        code, said = asked(fleet, "explain", waiting)
        assert (code, said["job_state"], said["fits"]) == (0, "Q", False)
        pbs.run(HEAD, ["qdel", "-W", "force", waiting, high, low], check=False)
    assert asked(fleet, "explain", "999999")[0] == 1
