"""Whatever a killed run leaves, the next run removes, and no run touches another's things."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from magrathea_lab import leftovers
from magrathea_lab.leftovers import Kind
from magrathea_lab.waiting import until
from node_daemon.hypervisor.local import cgroups

from ..killed_runs import KilledRun, left

PLAIN = """
directory, _ = leftovers.take_directory("mgtest-")
(directory / "full").mkdir()
shell = "sleep 1000 & exec sleep 1000"
marked = subprocess.Popen(["/bin/sh", "-c", shell], start_new_session=True)
# A keeper that does not end with its owner, and whose children nothing marks.
keeper = subprocess.Popen(["/bin/sh", "-c", shell], start_new_session=True, env={})
leftovers.take_process(keeper.pid)
say(directory=str(directory), processes=[marked.pid, keeper.pid])
"""
CLUSTER = """
from magrathea_lab.clusters.standin import StandInCluster
from magrathea_lab.fleet import EXCLUSIVE
cluster = StandInCluster([EXCLUSIVE])
cluster.start()
job = cluster.submit("low", 100000)
while not cluster.counter(job):
    time.sleep(0.05)
say(directory=str(cluster.directory), processes=[cluster._keeper.pid])
"""
SWAP = """
from tests.swap import swap
with swap():
    say()
"""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of this test only, so that no other run clears before it does."""
    monkeypatch.setattr(leftovers, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(leftovers, "ENDING_S", 0.5)
    return tmp_path / "records"


@pytest.fixture
def killed(records: Path, request: pytest.FixtureRequest) -> Iterator[KilledRun]:
    run = KilledRun(records, request.param)
    try:
        yield run
    finally:
        run.kill()
        leftovers.clear()


@pytest.mark.parametrize(
    ("killed", "number"),
    [
        pytest.param(PLAIN, signal.SIGSTOP, id="processes, keeper stuck"),
        pytest.param(CLUSTER, signal.SIGSTOP, id="cluster, keeper stuck"),
        pytest.param(CLUSTER, signal.SIGKILL, id="cluster, keeper killed"),
    ],
    indirect=["killed"],
)
def test_the_next_run_clears_what_a_killed_run_leaves(killed: KilledRun, number: signal.Signals) -> None:
    assert left(killed)
    assert leftovers.clear() == [], "it is alive"
    assert left(killed)
    keeper = killed.said["processes"][-1]
    os.kill(keeper, number)  # it cannot clear anything
    killed.kill()
    assert left(killed), "nobody has cleared yet"
    cleared = leftovers.clear()
    assert left(killed) == []
    assert any(line.startswith("directory ") for line in cleared)
    assert leftovers.clear() == [], "once"


@pytest.mark.skipif(os.geteuid() != 0, reason="turning swap on needs root")
def test_swap_of_a_run_that_is_killed_is_turned_off(records: Path) -> None:
    try:
        run = KilledRun(records, SWAP)
    except AssertionError:
        pytest.skip("this machine has no zram device that a test may borrow")
    there = "/dev/zram0" in Path("/proc/swaps").read_text()
    run.kill()
    cleared = leftovers.clear()
    if there:
        assert "swap /dev/zram0 of process" in " ".join(cleared)


@pytest.mark.skipif(os.geteuid() != 0, reason="making control groups needs root")
def test_control_groups_are_removed_with_the_processes_in_them(records: Path) -> None:
    texts = [Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup")]
    tops = [top for version, top, _ in cgroups.own_groups(*texts) if version is cgroups.V1 and os.access(top, os.W_OK)]
    if not tops:
        pytest.skip("no control group may be made here")
    name = f"mgtest.{os.getpid()}"
    taken = leftovers.take(Kind.GROUP, name)
    inner = tops[0] / "magrathea" / name / "n1"
    inner.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (inner / "cgroup.procs").write_text(str(process.pid))
        taken.undo()
        assert process.wait() == -signal.SIGKILL
        assert not inner.parent.exists()
    finally:
        process.kill()
        process.wait()


def test_a_pid_that_is_in_use_again_is_not_the_owner(records: Path, tmp_path: Path) -> None:
    mine = leftovers.this_process()
    assert not mine.has_ended()
    assert replace(mine, start=mine.start - 1).has_ended()
    assert replace(mine, boot="another").has_ended()


def test_a_process_of_another_namespace_may_be_alive(records: Path) -> None:
    assert not replace(leftovers.this_process(), pid=2**22 + 1, namespace="pid:[1]").has_ended()
    assert replace(leftovers.this_process(), pid=2**22 + 1).has_ended()


def test_a_leftover_that_cannot_be_cleared_is_reported_and_tried_again(
    records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = replace(leftovers.this_process(), start=1)
    monkeypatch.setattr(leftovers, "this_process", lambda: ended)
    taken = leftovers.take(Kind.DIRECTORY, "/proc/self/task")
    (told,) = leftovers.clear()
    assert "cannot be cleared" in told and taken.record.exists()
    taken.record.unlink()


def test_a_folder_of_records_that_others_may_write_to_is_not_trusted(records: Path) -> None:
    leftovers.take(Kind.DIRECTORY, "/nowhere")
    records.chmod(0o777)
    with pytest.raises(leftovers.UntrustedRecords, match="nobody else"):
        leftovers.clear()


def test_undoing_removes_the_record(records: Path) -> None:
    path, taken = leftovers.take_directory("mgtest-")
    until(records.exists, "the record")
    taken.undo()
    assert not path.exists() and not records.exists()
