"""Real guests boot, shut down, reboot, are saved and restored, also if any part is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.guest import Guest, GuestError, Job
from magrathea_lab.rigs.guest_host import Hypervisor, Machine, machine


def order(m: Machine, do: str, domain: str, **fields: bool) -> str:
    """Send an administrator's order; return the daemon's answer."""
    answer = m.ask(op="domain", do=do, domain=domain, **fields)
    assert answer["ok"], answer
    return " ".join(answer["said"])


def told(m: Machine, name: str) -> str:
    return str(m.report(name).why)


def clock_error_s(guest: Guest) -> float:
    return abs(float(guest.sh("date +%s")) - time.time())


def boot_id(guest: Guest) -> str:
    """The guest's boot id. Raises GuestError, soon if the guest is shutting down."""
    return guest.sh("cat /proc/sys/kernel/random/boot_id", 2.0)


def entries(m: Machine) -> list[str]:
    """Names of the history's events."""
    return [e["name"] for e in m.ask(op="history", limit=1000)["entries"]]


@pytest.fixture
def counted(hypervisor: Hypervisor) -> Iterator[Machine]:
    """Two CPUs, each domain as big as the host: the CPUs of a saved domain can be borrowed."""
    with machine(
        hypervisor, mode="counted", cpus=2, domain=dict.fromkeys(("n1", "p1"), "cpus = 2\nfloor_mib = 176")
    ) as made:
        yield made


@pytest.fixture
def hasty(hypervisor: Hypervisor) -> Iterator[Machine]:
    """Short time limits, but some CPU for an agent that starts in a capped guest."""
    limits = "boot_time_limit_s = 2\nshutdown_time_limit_s = 2"
    with machine(
        hypervisor,
        extra="preempted_cpu_percent = 40",
        limits="agent_silent_s = 1",
        tables="script_time_limit_s = 2",
        domain={"n1": limits, "p1": limits},
    ) as made:
        yield made


def test_a_domain_is_shut_down_when_its_jobs_have_ended_and_boots_again(machine: Machine) -> None:
    job = machine["n1"].qsub(Job("1.srv"))
    assert "to be shut down" in order(machine, "shutdown", "n1")
    machine.until_state("n1", "draining")
    assert machine["n1"].claim(Job("2.srv"))["code"] == "domain-draining"
    machine.until_states("n1", job, "RSD")
    machine["n1"].end_last(job)
    machine.until_state("n1", "down")
    assert "on request" in told(machine, "n1") and not machine["n1"].up
    assert "it is ended" not in machine.log.read_text(), "it turned itself off"

    order(machine, "boot", "n1")
    machine.until_state("n1", "booting")
    assert machine.report("p1").accepts == []
    machine.until_state("n1", "free")
    machine["n1"].wait()
    machine["n1"].qdel(machine["n1"].qsub(Job("3.srv")))


def test_a_shutdown_when_idle_takes_jobs_until_there_is_none(machine: Machine) -> None:
    first = machine["n1"].qsub(Job("1.srv"))
    order(machine, "shutdown", "n1", when_idle=True)
    second = machine["n1"].qsub(Job("2.srv"))
    machine["n1"].qdel(first)
    machine.until_states("n1", second, "RSD")
    machine["n1"].end_last(second)
    machine.until_state("n1", "down")


def test_a_shutdown_now_ends_a_guest_that_hears_nobody_with_its_jobs(hasty: Machine) -> None:
    hasty["n1"].qsub(Job("1.srv"))
    hasty["n1"].stop_agent()
    order(hasty, "shutdown", "n1", now=True)
    hasty.until_state("n1", "down")
    assert "it is ended" in hasty.log.read_text()
    assert hasty.report("n1").jobs == []
    assert hasty.ask(op="domain", do="boot", domain="n1", now=True, when_idle=True)["code"] == "bad-request"


def test_a_reboot_is_a_new_life_without_a_second_wish(machine: Machine) -> None:
    before = boot_id(machine["n1"])
    order(machine, "reboot", "n1")
    machine.until_state("n1", "booting")
    machine.until_state("n1", "free")
    machine["n1"].wait()
    assert boot_id(machine["n1"]) != before
    machine["n1"].qdel(machine["n1"].qsub(Job("1.srv")))


def test_a_shutdown_is_given_up_by_undrain(machine: Machine) -> None:
    job = machine["n1"].qsub(Job("1.srv"))
    order(machine, "shutdown", "n1")
    assert machine.ask(op="undrain", domain="n1")["ok"]
    machine["n1"].qdel(job)
    machine["n1"].qdel(machine["n1"].qsub(Job("2.srv")))
    assert machine["n1"].up


def test_a_boot_that_does_not_register_in_time_is_down_and_up_when_it_does_after_all(hasty: Machine) -> None:
    order(hasty, "reboot", "n1", now=True)
    hasty.until_state("n1", "booting")
    hasty.until_state("n1", "down")
    assert "did not register within its time limit" in told(hasty, "n1")
    assert hasty.state("p1") == "free"
    hasty.until_state("n1", "free")


def test_a_frozen_domain_lends_its_cpus_and_its_restore_preempts_the_borrowers(counted: Machine) -> None:
    m = counted
    last = m["p1"].qsub(Job("1.srv", "priority"))
    order(m, "freeze", "p1")
    m.until_state("p1", "draining")
    m["p1"].end_last(last)
    m.until_state("p1", "frozen")
    assert not m["p1"].up and m["p1"].domain.hasManagedSaveImage()
    assert m.report("p1").accepts == []

    borrower = m["n1"].qsub(Job("2.srv", "preemptible", cpus=2))
    time.sleep(1.5)  # the saved guest's clock must be wrong by at least this
    assert "preempted for it: n1" in order(m, "defrost", "p1")
    m.until(lambda: m.state("p1") not in ("frozen", "booting"), "p1 is back")
    m["p1"].wait()
    assert clock_error_s(m["p1"]) < 1.5
    m.until_states("n1", borrower, "RSD")
    favoured = m["p1"].qsub(Job("3.srv", "priority", cpus=2))
    m.until_states("n1", borrower, "T")
    m["p1"].qdel(favoured)
    m.until_states("n1", borrower, "RSD")


def test_a_failed_restore_keeps_the_image_is_reported_and_can_be_tried_again(machine: Machine) -> None:
    order(machine, "freeze", "p1")
    machine.until_state("p1", "frozen")
    image = next(machine.hypervisor.libvirtd.folder.rglob(f"{machine['p1'].libvirt_name}.save"))
    whole = image.read_bytes()
    image.write_bytes(b"no image at all!" + whole[16:])

    order(machine, "defrost", "p1")
    machine.until(lambda: "its restore failed" in told(machine, "p1"), "it is said")
    assert machine.state("p1") == "frozen" and "image is kept" in told(machine, "p1")
    assert image.exists() and not machine["p1"].up

    image.write_bytes(whole)
    order(machine, "defrost", "p1")
    machine.until_state("p1", "free")


def test_a_killed_qemu_is_down_its_jobs_are_gone_and_its_host_is_free(machine: Machine) -> None:
    machine["n1"].qsub(Job("1.srv"))
    favoured = machine["p1"].qsub(Job("2.srv", "priority"))
    os.kill(machine.hypervisor.libvirtd.qemu(machine["n1"].libvirt_name), signal.SIGKILL)
    machine.until_state("n1", "down")
    assert machine.report("n1").jobs == [] and told(machine, "n1")
    machine["p1"].qdel(favoured)
    machine.until_state("p1", "free")
    order(machine, "boot", "n1")
    machine.until_state("n1", "free")


def test_a_domain_paused_by_an_admin_is_unknown_until_it_continues(machine: Machine) -> None:
    job = machine["n1"].qsub(Job("1.srv"))
    machine["n1"].domain.suspend()
    machine.until_state("n1", "unknown")
    assert "paused by somebody else" in told(machine, "n1")
    assert [j.id for j in machine.report("n1").jobs] == ["1.srv"]
    assert machine["p1"].claim(Job("2.srv", "priority"))["code"] == "host-busy"
    machine["n1"].domain.resume()
    machine.until_state("n1", "running-preemptible")
    favoured = machine["p1"].qsub(Job("3.srv", "priority"))
    machine.until_states("n1", job, "T")
    machine["p1"].qdel(favoured)


def test_a_domain_saved_behind_our_back_is_down_and_a_boot_brings_it_back_with_its_job(machine: Machine) -> None:
    job = machine["n1"].qsub(Job("1.srv"))
    machine["n1"].domain.managedSave()
    machine.until_state("n1", "down")
    machine.until(lambda: "somebody else saved it" in told(machine, "n1"), "why it is down")
    order(machine, "boot", "n1")
    machine.until(lambda: machine.state("n1") not in ("down", "booting"), "n1 is back")
    machine.until_states("n1", job, "RSD")
    machine.until(lambda: [j.id for j in machine.report("n1").jobs] == ["1.srv"], "MoM's list is the truth")
    assert clock_error_s(machine["n1"]) < 1.5


def test_after_a_loss_of_the_agent_the_right_jobs_are_stopped_and_the_others_run(hasty: Machine) -> None:
    m = hasty
    victim = m["n1"].qsub(Job("1.srv"))
    favoured = m["p1"].qsub(Job("2.srv", "priority"))
    m.until_states("n1", victim, "T")
    m["n1"].stop_agent()
    m.until_state("n1", "unknown")  # although nothing was closed
    assert not m.report("n1").agent
    assert [j.id for j in m.report("n1").jobs] == ["1.srv"], "kept and counted"
    m["n1"].sh("for p in $(grep -lz PBS_JOBID=1 /proc/[0-9]*/environ | cut -d/ -f3); do kill -CONT $p; done; true")
    m.until_states("n1", victim, "RSD")
    m["n1"].start_agent()
    m.until_states("n1", victim, "T")
    m.until_state("n1", "preempted")

    m["n1"].stop_agent()
    m["p1"].qdel(favoured)
    assert m["n1"].all_stopped(victim)
    m["n1"].start_agent()
    m.until_states("n1", victim, "RSD")


def test_the_sites_scripts_run_here_and_there_and_a_save_waits_for_them(machine: Machine) -> None:
    folder = machine.folder / "scripts"
    folder.mkdir(exist_ok=True)
    said = folder / "said"
    names = ("freeze", "defrost", "shutdown", "boot")
    try:
        for name in (f"{when}-{what}" for what in names for when in ("before", "after")):
            script = folder / name
            script.write_text(f'#!/bin/sh\nsleep 0.2\necho "$MAGRATHEA_OCCASION $MAGRATHEA_DOMAIN" >> {said}\nexit 1\n')
            script.chmod(0o755)
        machine["p1"].sh("mkdir -p /etc/magrathea/hooks.d/guest && chmod 755 /etc/magrathea/hooks.d/guest")
        inside = b'#!/bin/sh\nsleep 0.5\necho "$MAGRATHEA_OCCASION $MAGRATHEA_KIND" >> /run/said\n'
        machine["p1"].write("/etc/magrathea/hooks.d/guest/before-freeze", inside, 0o755)
        machine["p1"].write("/etc/magrathea/hooks.d/guest/after-defrost", inside, 0o755)
        order(machine, "freeze", "p1")
        machine.until_state("p1", "frozen")
        order(machine, "defrost", "p1")
        machine.until_state("p1", "free")
        machine["p1"].wait()
        machine.until(lambda: "after-defrost" in machine["p1"].sh("cat /run/said"), "the guest's second script")
        assert machine["p1"].sh("cat /run/said").split() == ["before-freeze", "priority", "after-defrost", "priority"]
        order(machine, "reboot", "p1")
        machine.until_state("p1", "booting")
        machine.until_state("p1", "free")
        expected = [f"{when}-{what} p1" for what in names for when in ("before", "after")]
        machine.until(lambda: len(said.read_text().splitlines()) >= len(expected), "all scripts of the host")
        assert sorted(said.read_text().splitlines()) == sorted(expected)
    finally:
        for file in folder.iterdir():
            file.unlink()


REBOOT = ("commit ShutdownRequested", "power-off p1", "commit DomainStopped", "boot p1", "register p1")
FREEZE = ("commit FreezeRequested", "save p1", "commit FreezeEnded")
DEFROST = ("commit DefrostRequested", "boot p1", "register p1", "commit DomainStarted")


def status(m: Machine, name: str = "p1") -> str:
    """The state as the daemon reports it now; empty if it does not answer."""
    try:
        found = m.status()
    except OSError:
        return ""
    return next(str(d["state"]) for d in found["domains"] if d["name"] == name) if found["hub_connected"] else ""


def booted_since(guest: Guest, before: str) -> bool:
    try:
        return boot_id(guest) != before
    except GuestError:
        return False


def killed_after(m: Machine, step: str, do: str, name: str = "p1", **fields: bool) -> None:
    """Order `do`; the daemon is killed after the step and started again."""
    armed = m.folder / "armed"
    calm = status(m, name)
    m.stop_daemon()
    m.start_daemon(MAGRATHEA_CRASH_AFTER=f"{step}#1", MAGRATHEA_CRASH_ARMED=str(armed))
    m.until(lambda: status(m, name) == calm, f"{step}: calm before")
    armed.write_text("self")
    try:
        with contextlib.suppress(OSError):  # it may be killed before it answers
            order(m, do, name, **fields)
        m.until(lambda: m.daemon is None or m.daemon.poll() is not None, f"{do}: killed after {step}")
    finally:
        armed.unlink()
    m.start_daemon()


def test_a_daemon_killed_at_any_step_of_freezing_and_defrosting_continues(machine: Machine) -> None:
    for step, back in zip((*FREEZE, FREEZE[0]), DEFROST, strict=True):
        killed_after(machine, step, "freeze")
        machine.until(lambda: status(machine) == "frozen", "p1 is frozen")
        killed_after(machine, back, "defrost")
        machine.until(lambda: status(machine) == "free", "p1 is back")
    machine["p1"].wait()
    machine["p1"].qdel(machine["p1"].qsub(Job("9.srv", "priority")))


@pytest.mark.parametrize("step", REBOOT)
def test_a_daemon_killed_at_any_step_of_a_reboot_continues(machine: Machine, step: str) -> None:
    before = boot_id(machine["p1"])
    killed_after(machine, step, "reboot")
    machine.until(lambda: booted_since(machine["p1"], before), "p1 has booted")
    machine.until(lambda: status(machine) == "free", "p1 is back")
