"""A planned reboot of a host with real guests: `magrathea host sleep`, then everything of the machine is killed, as a
shutdown does it, and the machine boots. Low, high and protected jobs go on, and their outputs are right to the byte."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from magrathea_lab.rigs.guest import Guest, Job
from magrathea_lab.rigs.guest_host import Hypervisor, Machine, Size, machine
from magrathea_lab.waiting import BOUND_S, until

NUMBERS = 300
"""Lines of a job's output; each takes a quarter of a second or more. On a busy machine half a minute passes until the
jobs sleep."""
COUNTING = f"i=0; while [ $i -lt {NUMBERS} ]; do i=$((i+1)); echo $i; sleep 0.25; done; echo done"
OUTPUT = "".join(f"{i}\n" for i in range(1, NUMBERS + 1)) + "done\n"
SHUTDOWN = '[shutdown]\ndomains = "sleep"\n'
BOOTED = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
"""Shows a daemon the boot id in a file: it believes to run on a machine that has just booted."""
GUESTS = ("n1", "n2", "p1")


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    """Two normal domains, one priority domain."""
    with Hypervisor(dict.fromkeys(GUESTS, Size(memory_mib=192))) as made:
        yield made


class Rebooting:
    """A host that can be rebooted: counted, two CPUs."""

    def __init__(self, host: Machine, boot_id: Path) -> None:
        self.host = host
        self.boot_id = boot_id

    def sleep(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`magrathea host sleep`."""
        return subprocess.run(
            [sys.executable, "-m", "magrathea.cli", "host", "sleep", *words],
            env={**os.environ, "MAGRATHEA_CONTROL": str(self.host.hypervisor.run_dir / "control.sock")},
            capture_output=True,
            text=True,
            timeout=3 * BOUND_S,
            check=False,
        )

    def goes_down(self) -> None:
        """All processes of the machine end, in the midst of whatever they do."""
        host, libvirtd = self.host, self.host.hypervisor.libvirtd
        if host.daemon is not None:
            host.stop_daemon(signal.SIGKILL)
        libvirtd.kill_libvirtd()
        for pid in libvirtd.processes("qemu-system"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not libvirtd.processes("qemu-system"), "no guest is left")

    def boots(self) -> None:
        self.boot_id.write_text(secrets.token_hex(16) + "\n")
        self.host.hypervisor.libvirtd.start_libvirtd()
        self.host.start_daemon()


@pytest.fixture
def rebooting(hypervisor: Hypervisor, tmp_path: Path) -> Iterator[Rebooting]:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("before\n")
    with machine(
        hypervisor,
        mode="counted",
        cpus=2,
        tables=SHUTDOWN,
        domain=dict.fromkeys(GUESTS, "cpus = 2\nfloor_mib = 192"),  # no memory moves here
        enter=("unshare", "--mount", "sh", "-c", BOOTED, str(boot_id)),
    ) as host:
        yield Rebooting(host, boot_id)


def output(guest: Guest, job: Job) -> str:
    return str(guest.jobs()[job.id]["output"])


def ended(guest: Guest, job: Job) -> bool:
    return guest.jobs()[job.id]["code"] is not None


def is_back(m: Machine, name: str) -> None:
    m.until(lambda: m[name].up, f"{name} is back", 3 * BOUND_S)
    m[name].wait(3 * BOUND_S)


def test_a_reboot_with_low_high_and_protected_jobs_loses_nothing(rebooting: Rebooting) -> None:
    m = rebooting.host
    jobs = {
        "n1": m["n1"].qsub(Job("1.srv", "preemptible", COUNTING)),
        "n2": m["n2"].qsub(Job("2.srv", "protected", COUNTING)),
    }
    m.until_states("n1", jobs["n1"], "RSD")
    jobs["p1"] = m["p1"].qsub(Job("3.srv", "priority", COUNTING))
    m.until_states("n1", jobs["n1"], "T")
    runs = {name: job.run for name, job in jobs.items()}

    plan = rebooting.sleep("--dry-run")
    assert plan.returncode == 0 and "3 domains to put to sleep" in plan.stdout, plan.stdout + plan.stderr
    assert m.state("p1") == "running-priority", "a dry run changes nothing"

    said = rebooting.sleep()
    asleep_at = time.time()
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.index("n1: asleep") < said.stdout.index("p1: asleep"), said
    assert not any(m[name].up for name in GUESTS)
    assert all(m.state(name) == "asleep" for name in jobs)
    assert {(j.id, j.run) for name in jobs for j in m.report(name).jobs} == {(j.id, j.run) for j in jobs.values()}
    rebooting.goes_down()
    time.sleep(5.0)  # the guests' clocks must be wrong by at least this when they come back
    rebooting.boots()

    is_back(m, "p1")
    away_s = time.time() - asleep_at
    assert abs(float(m["p1"].sh("date +%s")) - time.time()) < away_s / 2, "its clock was set"
    for name in ("p1", "n2", "n1"):
        is_back(m, name)
        m.until(partial(ended, m[name], jobs[name]), f"the job of {name} ends", 3 * BOUND_S)
        assert m[name].jobs()[jobs[name].id]["code"] == 0
        assert output(m[name], jobs[name]) == OUTPUT
        assert jobs[name].run == runs[name]
        m[name].qdel(jobs[name])
    dry = rebooting.sleep("--dry-run", "--format", "json")
    assert '"expected_s"' in dry.stdout and (m.folder / "state" / "sleep-times.json").exists()
