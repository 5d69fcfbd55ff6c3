"""The private cluster itself: it runs jobs, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magrathea_lab import leftovers
from magrathea_lab.clusters import openpbs_machine
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.waiting import BOUND_S, until

from ..killed_runs import KilledRun, left

CLUSTER = """
from magrathea_lab.clusters.private_openpbs import PrivateOpenPbs
cluster = PrivateOpenPbs([])
cluster.start()
say(directory=str(cluster.base), processes=[cluster._supervisor.pid])
"""


def test_a_job_runs_as_its_user_on_a_machine_of_its_own_name(fleet: OpenPbsCluster) -> None:
    job = fleet.pbs.qsub("bob", "-l", "host=n1", script="hostname; id -un; grep -c . /etc/magrathea/agent.json")
    fleet.pbs.wait_job(job, "F")
    assert fleet.pbs.output("bob", job).split() == ["n1", "bob", "1"]


def test_nothing_is_written_outside_of_it(fleet: OpenPbsCluster) -> None:
    assert not Path("/etc/pbs.conf").is_relative_to(fleet.directory)
    ours = (fleet.directory / "m/n1/etc/pbs.conf").read_text()
    assert not Path("/etc/pbs.conf").exists() or Path("/etc/pbs.conf").read_text() != ours
    assert not Path("/sys/class/net", openpbs_machine.BRIDGE).exists()


def test_when_the_owner_is_killed_everything_goes(tmp_path: Path) -> None:
    base = tmp_path / "cluster"
    (base / "etc").mkdir(parents=True)
    (base / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (base / "cluster.json").write_text('{"gateway": "10.118.0.1", "machines": {}}')
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {openpbs_machine.__file__!r}, 'supervise', {str(base)!r}],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    try:
        until((base / "root.ready").exists, "the namespaces are there")
        first = int((base / "root.pid").read_text())
        inside = ["nsenter", "-t", str(first), "-p", "-m", "-n", "setsid", "-f", "sleep", "61"]
        subprocess.run(inside, check=True, timeout=BOUND_S)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(BOUND_S)
    until(lambda: not base.exists(), "the directory is removed")
    until(lambda: not Path(f"/proc/{first}").exists(), "the first process is gone")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert entry.read_bytes() != b"sleep\x0061\x00", f"{entry.parent.name} was left behind"
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert os.path.ismount(tmp_path) is False


def test_the_next_run_clears_what_a_killed_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also its shared memory, which outlives PostgreSQL's processes."""
    monkeypatch.setattr(leftovers, "RECORDS", tmp_path / "records")
    run = KilledRun(tmp_path / "records", CLUSTER)
    base, (supervisor,) = Path(run.said["directory"]), run.said["processes"]
    try:
        assert list((base / "m/head/shm").glob("PostgreSQL.*"))
        os.kill(supervisor, signal.SIGKILL)
        run.kill()
        until(lambda: left(run) == [str(base)], lambda: f"its processes end with the supervisor; {left(run)}")
        assert leftovers.clear()
        assert left(run) == []
    finally:
        run.kill()
        leftovers.clear()
