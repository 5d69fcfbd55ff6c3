"""`magrathea doctor` on the machines of a real cluster: a healthy server, host and guest, and each with something
missing.

The kernel's clock is this machine's, and may be anything.
"""

from __future__ import annotations

import json
import sys

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, HOST


def doctor(fleet: OpenPbsCluster, machine: str, part: str, *options: str) -> tuple[int, dict[str, str]]:
    """The command's exit code, and the status of each check except that of the kernel's clock."""
    argv = [sys.executable, "-c", "from magrathea.cli.main import main; main()", "doctor", "--format", "json"]
    done = fleet.pbs.run(machine, [*argv, "--part", part, *options], env=fleet.environment, check=False)
    found = json.loads(done.stdout)
    assert all(check["status"] == "ok" or (check["cause"] and check["fix"]) for check in found)
    worst = {"ok": 0, "note": 0, "skip": 0, "warn": 1, "fail": 2}
    assert done.returncode == max(worst[check["status"]] for check in found), "for monitoring"
    return done.returncode, {check["name"]: check["status"] for check in found if check["name"] != "clock"}


def bad(checks: dict[str, str]) -> dict[str, str]:
    return {name: status for name, status in checks.items() if status == "fail"}


def server(fleet: OpenPbsCluster) -> dict[str, str]:
    return doctor(fleet, HEAD, "server", "--hub", str(fleet.directory / "hub.toml"))[1]


def host(fleet: OpenPbsCluster, name: str) -> dict[str, str]:
    return doctor(fleet, HOST, "host", "--noded", str(fleet.directory / name / "noded.toml"))[1]


def guest(fleet: OpenPbsCluster, name: str) -> dict[str, str]:
    return doctor(fleet, name, "guest")[1]


def test_a_cluster_that_is_well_has_no_failure_anywhere(fleet: OpenPbsCluster) -> None:
    seen = server(fleet)
    assert set(bad(seen)) <= {"hook-magrathea_mom", "hook-magrathea_vnodes"}, "whose freq this cluster makes shorter"
    names = {one.name for one in fleet.hosts}
    assert {f"host-{name}" for name in names} | {f"clock-{name}" for name in names} <= set(seen)
    assert {"heartbeat", "hub-ipc", "operator", "hook-magrathea_mom", "sched_config", "scheduling"} <= set(seen)
    seen = host(fleet, "h1")
    assert bad(seen) == {} and {"daemon", "hub-connected", "domain-n1", "guest-sockets", "memory"} <= set(seen)
    assert "note" in seen.values()
    assert "warn" not in seen.values(), "a healthy host with the local driver ends with 0"
    seen = guest(fleet, "n1")
    assert bad(seen) == {} and {"agent", "connected", "channel", "mom", "mom-hook", "swap"} <= set(seen)


def test_each_missing_part_is_reported_where_it_is_missing(fleet: OpenPbsCluster) -> None:
    fleet.parts["agent-n1"].kill()
    assert bad(guest(fleet, "n1")) == {"agent": "fail"}
    assert host(fleet, "h1")["domain-n1"] == "warn", "its agent is away, but not for long"
    fleet.parts["noded-h1"].kill()
    assert bad(guest(fleet, "p1")) == {"connected": "fail"}
    assert "daemon" in bad(host(fleet, "h1"))
    fleet.pbs.wait(lambda: "host-h1" in bad(server(fleet)), "the end of the host's lease", every_s=1.0)
    fleet.parts["hub"].kill()
    assert {"hub-answers", "hub-ipc"} <= set(bad(server(fleet)))
    assert {"hub"} <= set(bad(host(fleet, "h2")))
