"""Planned reboots on a real OpenPBS: two hosts with real guests (MoM, agent and jobs in them) are put to sleep, all of
their processes are killed, and they start again. The server lives on, and soon requeues running jobs of missing
machines."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.clusters.guest_openpbs import HOSTS, Fleet
from magrathea_lab.scenarios.scenarios import require, wait, wait_all_free, wait_domain, wait_state, wait_stoppable
from magrathea_lab.waiting import BOUND_S

from .test_guests import (
    ENOUGH,
    FAIL_REQUEUE_S,
    HELD_MIB,
    MOVED_S,
    checks,
    ends_right,
    holding,
    rounds,
    run_of,
    submit,
    wait_running,
    walltime_s,
)

SHUTDOWN = {"shutdown": {"domains": "sleep", "unbooked_after_s": 5.0}}
BOOTED = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
"""Shows a daemon the boot id in a file: it believes to run on a machine that has just booted."""
LATE_S = 3.0
"""A job goes on before the test sees that, and PBS counts whole seconds of walltime."""


class Rebooting(Fleet):
    """Hosts that can be put to sleep, switched off, and started again."""

    def __init__(self) -> None:
        super().__init__(SHUTDOWN)

    def _boot_id(self, host: str) -> Path:
        return self.directory / host / "boot_id"

    def noded_command(self, host: str) -> list[str]:
        if not self._boot_id(host).exists():
            self._new_boot_id(host)
        return ["unshare", "--mount", "sh", "-c", BOOTED, str(self._boot_id(host)), *super().noded_command(host)]

    def _new_boot_id(self, host: str) -> None:
        self._boot_id(host).write_text(secrets.token_hex(16) + "\n", encoding="ascii")

    def host_command(self, host: str, *words: str) -> subprocess.Popen[str]:
        """`magrathea host WORDS` on that host."""
        return subprocess.Popen(
            [sys.executable, "-m", "magrathea.cli", "host", *words],
            env={**os.environ, "MAGRATHEA_CONTROL": str(self.control_socket(host))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def goes_down(self, host: str) -> None:
        """All processes of the machine end, whatever they do."""
        libvirtd = self.pbs.hypervisors[host].libvirtd
        self.parts[f"noded-{host}"].kill()
        libvirtd.kill_libvirtd()
        for pid in libvirtd.processes("qemu-system"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait(self, f"nothing runs on {host}", lambda: not libvirtd.processes("qemu-system"))

    def boots(self, host: str, *, anew: bool = True) -> None:
        """`anew`: the machine has booted. Otherwise only its parts are started."""
        if anew:
            self._new_boot_id(host)
        self.pbs.hypervisors[host].libvirtd.start_libvirtd()
        self.start_part(f"noded-{host}")

    def restore(self) -> None:
        """Also after a test that has failed while a host was off."""
        for hypervisor in self.pbs.hypervisors.values():
            if not hypervisor.libvirtd.processes("libvirtd", "-f"):
                hypervisor.libvirtd.start_libvirtd()
            hypervisor.start_all()
            for guest in hypervisor.guests.values():
                guest.wait()
                guest.sh(f"rm -f {ENOUGH}")
        super().restore()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Rebooting]:
    fleet = Rebooting()
    with fleet:
        fleet.pbs.qmgr(f"set server node_fail_requeue={FAIL_REQUEUE_S}")
        yield fleet


@pytest.fixture
def fleet(cluster: Rebooting) -> Iterator[Rebooting]:
    """Both hosts on, all domains free, before and after the test."""
    yield cluster
    cluster.restore()


def said(command: subprocess.Popen[str]) -> str:
    """What the command printed. It must succeed."""
    text, _ = command.communicate(timeout=3 * BOUND_S)
    assert command.returncode == 0, text
    return text


def stay_off(fleet: Fleet, *domains: str) -> None:
    """PBS misses the domains' MoMs for longer than it lets running jobs wait for them."""
    missed = "PBS misses " + ", ".join(domains)
    wait(fleet, missed, lambda: all("down" in fleet.vnodes()[name].state for name in domains), MOVED_S)
    since = time.monotonic()
    wait(fleet, "node_fail_requeue is over", lambda: time.monotonic() > since + 2 * FAIL_REQUEUE_S)


def waits_for_hub(fleet: Fleet, host: str, domain: str) -> bool:
    try:
        domains = fleet.ask(host, op="status")["domains"]
    except OSError:
        return False  # its daemon is just starting
    return any(found["name"] == domain and "waits for a hub" in found["why"] for found in domains)


def is_whole(fleet: Fleet, domain: str, job: str) -> None:
    """The job's output has every line once, and in order."""
    printed = fleet.printed(domain, job)
    lines = "".join(f"round {number} ok\n" for number in range(1, rounds(fleet, domain, job) + 1))
    require(fleet, printed == f"filled\n{lines}all right\n", f"{job} has printed {printed!r}")


def test_low_high_and_protected_jobs_go_on_after_a_reboot_of_their_hosts_in_the_same_run(fleet: Rebooting) -> None:
    began = time.monotonic()
    low, protected = submit(fleet, "low", "n1"), submit(fleet, "workq", "n2")
    wait_running(fleet, "n1", low)
    wait_running(fleet, "n2", protected)
    wait_stoppable(fleet, "n1")
    high = submit(fleet, "high", "p1")
    wait_state(fleet, low, "S", MOVED_S)
    suspended_at = {low: time.monotonic()}
    wait_running(fleet, "p1", high)
    jobs = {low: "n1", high: "p1", protected: "n2"}
    runs = {job: (run_of(fleet, job), fleet.pbs.job(job)["run_count"]) for job in jobs}

    commands = {host.name: fleet.host_command(host.name, "sleep") for host in HOSTS}
    for job in (high, protected):
        wait_state(fleet, job, "S", MOVED_S)
        suspended_at[job] = time.monotonic()
    texts = {host: said(command) for host, command in commands.items()}
    require(fleet, texts["h1"].index("n1: asleep") < texts["h1"].index("p1: asleep"), texts["h1"])
    for host in HOSTS:
        fleet.goes_down(host.name)
    stay_off(fleet, *jobs.values())
    require(fleet, all(fleet.jobs()[job].state == "S" for job in jobs), "nothing is requeued")
    told = {job: fleet.jobs()[job].comment for job in jobs}
    require(fleet, all(text.startswith("asleep on h") for text in told.values()), f"owners are told: {told}")

    fleet.boots("h1")
    fleet.boots("h2", anew=False)
    wait_state(fleet, high, "R", 2 * MOVED_S)
    away_s = {high: time.monotonic() - suspended_at[high]}
    require(fleet, not fleet.guest("n2").up, "without a boot nobody is woken unasked")
    assert "n2 is brought back" in said(fleet.host_command("h2", "wake"))
    checks(fleet, "p1", high, 1)
    require(fleet, fleet.jobs()[low].state == "S", "the preempted job waits for the one that had the host")
    ends_right(fleet, "p1", high, run=runs[high][0])
    for job in (protected, low):
        wait_state(fleet, job, "R", 2 * MOVED_S)
        away_s[job] = time.monotonic() - suspended_at[job]
        checks(fleet, jobs[job], job, 1)
        ends_right(fleet, jobs[job], job, run=runs[job][0])
    lived_s = time.monotonic() - began
    for job, domain in jobs.items():
        is_whole(fleet, domain, job)
        attributes = fleet.pbs.job(job)
        require(fleet, (run_of(fleet, job), attributes["run_count"]) == runs[job], f"{job} in {runs[job]}")
        used_s = walltime_s(fleet, job)
        require(fleet, used_s <= lived_s - away_s[job] + LATE_S, f"{job}: {used_s} of {lived_s}, {away_s[job]} away")
    for host in HOSTS:
        wait_all_free(fleet, host)


def test_a_job_that_slept_without_pbs_knowing_and_runs_elsewhere_by_now_does_not_run_twice(fleet: Rebooting) -> None:
    """The hub is away when the host shuts down, and when it boots. PBS takes the job for a running one of a lost
    machine, and starts it again in n2."""
    job = fleet.qsub("low", holding(HELD_MIB), "-l", f"select=1:ncpus=1:mem={HELD_MIB + 20}mb", "-r", "y")
    wait(fleet, "it runs", lambda: fleet.jobs()[job].state == "R" and bool(fleet.jobs()[job].vnodes), MOVED_S)
    [domain] = fleet.jobs()[job].vnodes
    host, [other] = ("h1", ["n2"]) if domain == "n1" else ("h2", ["n1"])
    wait_running(fleet, domain, job)
    first_run = run_of(fleet, job)
    fleet.parts["hub"].kill()
    assert f"{domain}: asleep" in said(fleet.host_command(host, "sleep"))
    fleet.goes_down(host)
    wait(fleet, "it runs again", lambda: fleet.jobs()[job].vnodes == (other,), 2 * MOVED_S)
    wait_running(fleet, other, job)
    second_run = run_of(fleet, job)
    assert second_run > first_run

    fleet.boots(host)
    wait(fleet, "it waits for a hub", lambda: waits_for_hub(fleet, host, domain), MOVED_S)
    require(fleet, not fleet.guest(domain).up, "without a hub nobody knows where the job runs")
    fleet.start_part("hub")
    wait(fleet, "it is back", lambda: fleet.guest(domain).up, MOVED_S)
    fleet.guest(domain).wait(MOVED_S)
    stood_at = rounds(fleet, domain, job)
    wait_domain(fleet, domain, "free")
    require(fleet, rounds(fleet, domain, job) in (0, stood_at), "the first run did not go on")
    checks(fleet, other, job, 1)
    ends_right(fleet, other, job, run=second_run)
    is_whole(fleet, other, job)
    for spec in HOSTS:
        wait_all_free(fleet, spec)
