"""libvirtd, QEMU and guests fail in all possible ways; afterwards everything is as it should be again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import libvirt
import pytest

from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Hypervisor, Machine
from magrathea_lab.rigs.guest_host import machine as a_machine


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Iterator[Machine]:
    """As in conftest, but a silent hypervisor or agent counts as unknown after 2 s."""
    with a_machine(hypervisor, limits="agent_silent_s = 2.0") as made:
        yield made


@pytest.fixture
def preempted(machine: Machine) -> tuple[Machine, Job, Job]:
    """n1's job is stopped for p1's."""
    return preempting(machine)


@pytest.fixture(params=["qemu", "lxc"])
def preempted_anywhere(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Job, Job]]:
    """The same, in virtual machines and in containers."""
    hypervisor = request.getfixturevalue("hypervisor" if request.param == "qemu" else "containers")
    with a_machine(hypervisor, limits="agent_silent_s = 2.0") as made:
        yield preempting(made)


def preempting(machine: Machine) -> tuple[Machine, Job, Job]:
    victim = machine["n1"].qsub(Job("1.srv", "preemptible"))
    favoured = machine["p1"].qsub(Job("2.srv", "priority"))
    machine.until_states("n1", victim, "T")
    machine.until(lambda: machine.report("n1").cpu_percent == 10, "n1 is capped")
    return machine, victim, favoured


def goes_on(machine: Machine, victim: Job) -> None:
    machine.until_states("n1", victim, "RSD")
    machine.until(lambda: machine.report("n1").cpu_percent is None, "the cap of n1 is gone")
    machine.until_state("n1", "running-preemptible")


def test_domains_are_unknown_while_libvirtd_is_dead(
    preempted_anywhere: tuple[Machine, Job, Job],
) -> None:
    machine, victim, favoured = preempted_anywhere
    machine.hypervisor.libvirtd.kill_libvirtd()
    machine.until_state("p1", "unknown")
    machine.until_state("n1", "unknown")
    assert any("cannot be reached" in note for note in machine.status()["notes"])
    assert [len(machine.report(name).jobs) for name in ("n1", "p1")] == [1, 1]
    assert machine["p1"].claim(Job("3.srv", "priority"))["code"] == "domain-unknown"

    machine.hypervisor.libvirtd.start_libvirtd()
    machine.until_state("n1", "preempted")
    machine.until_state("p1", "running-priority")
    assert machine["n1"].all_stopped(victim)
    machine["p1"].qdel(favoured)
    goes_on(machine, victim)


def test_libvirtd_crashes_and_the_one_that_systemd_starts_is_found(
    preempted_anywhere: tuple[Machine, Job, Job],
) -> None:
    machine, victim, favoured = preempted_anywhere
    machine.hypervisor.libvirtd.kill_libvirtd(signal.SIGSEGV)
    machine["p1"].qdel(favoured)
    goes_on(machine, victim)


def test_a_job_that_ends_while_libvirtd_is_away_gives_everything_back_when_it_returns(
    preempted_anywhere: tuple[Machine, Job, Job],
) -> None:
    """Until then the preempted job stays stopped (docs/known-limits.md): it would run with its domain's cap, and use up
    its walltime."""
    machine, victim, favoured = preempted_anywhere
    machine.hypervisor.libvirtd.kill_libvirtd()
    machine["p1"].qdel(favoured)
    machine.until(lambda: not machine.report("p1").jobs, "p1's job is released")
    machine.until(lambda: any("SetCpu of n1 fails" in n for n in machine.status()["notes"]), "what it waits for")
    assert machine["n1"].all_stopped(victim)
    machine.hypervisor.libvirtd.start_libvirtd()
    goes_on(machine, victim)


def test_a_domain_that_boots_while_libvirtd_dies_is_up_only_when_its_agent_connects(machine: Machine) -> None:
    machine["p1"].end()
    machine.until_state("p1", "down")
    assert machine.ask(op="domain", do="boot", domain="p1")["ok"]
    # before that, libvirtd has not registered the guest yet, and the next libvirtd would end it
    machine.until(lambda: machine["p1"].domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING, "its QEMU runs")
    machine.hypervisor.libvirtd.kill_libvirtd()
    machine.hypervisor.libvirtd.start_libvirtd()
    early = []

    def is_up() -> bool:
        report = machine.report("p1")
        if report.state.value != "booting" and not report.agent:
            early.append(report)
        return bool(report.state.value == "free")

    machine.until(is_up, "p1 is up")
    assert early == []


def test_libvirtd_hangs_and_neither_the_daemon_nor_a_claim_waits_for_it(preempted: tuple[Machine, Job, Job]) -> None:
    machine, victim, favoured = preempted
    machine.hypervisor.libvirtd.kill_libvirtd(signal.SIGSTOP)
    # calls that wait for libvirtd get no answer until this test continues it
    machine.until(lambda: machine.status() and machine.state("n1") == "unknown", "n1 is unknown")
    assert machine["p1"].claim(Job("3.srv", "priority"))["code"] == "domain-unknown"
    machine.hypervisor.libvirtd.kill_libvirtd(signal.SIGCONT)
    machine.until_state("n1", "preempted")
    machine["p1"].qdel(favoured)
    goes_on(machine, victim)


def test_the_qemu_of_the_priority_domain_is_killed_and_the_stopped_job_continues(
    preempted: tuple[Machine, Job, Job],
) -> None:
    machine, victim, _ = preempted
    os.kill(machine.hypervisor.libvirtd.qemu(machine["p1"].libvirt_name), signal.SIGKILL)
    machine.until_state("p1", "down")
    goes_on(machine, victim)
    machine["p1"].boot()
    machine["p1"].wait()
    machine.until_state("p1", "occupied-would-preempt")


def test_a_preempted_domain_is_free_after_its_qemu_was_killed(preempted: tuple[Machine, Job, Job]) -> None:
    machine, _, favoured = preempted
    os.kill(machine.hypervisor.libvirtd.qemu(machine["n1"].libvirt_name), signal.SIGKILL)
    machine.until_state("n1", "down")
    machine["n1"].boot()
    machine["n1"].wait()
    machine.until(lambda: machine.report("n1").agent, "its agent is back")
    machine.until_state("n1", "occupied")
    machine["p1"].qdel(favoured)
    machine.until_state("n1", "free")


def test_a_hanging_qemu_delays_only_its_own_domain(preempted: tuple[Machine, Job, Job]) -> None:
    machine, victim, favoured = preempted
    qemu = machine.hypervisor.libvirtd.qemu(machine["p1"].libvirt_name)
    os.kill(qemu, signal.SIGSTOP)
    for _ in range(20):  # calls that wait for that QEMU get no answer until this test continues it
        machine.status()
    assert machine["n1"].ask_agent({"op": "ping"})["connected"]
    os.kill(qemu, signal.SIGCONT)
    machine["p1"].qdel(favoured)
    goes_on(machine, victim)


def test_a_domain_that_an_admin_pauses_is_unknown_and_as_before_when_it_continues(
    preempted: tuple[Machine, Job, Job],
) -> None:
    machine, victim, favoured = preempted
    machine["p1"].domain.suspend()
    machine.until_state("p1", "unknown")
    assert machine["n1"].all_stopped(victim)
    machine["p1"].domain.resume()
    machine.until_state("p1", "running-priority")
    machine["p1"].qdel(favoured)
    goes_on(machine, victim)


def test_a_preempted_domain_that_is_paused_meanwhile_continues_when_both_are_over(
    preempted: tuple[Machine, Job, Job],
) -> None:
    machine, victim, favoured = preempted
    machine["n1"].domain.suspend()
    machine.until_state("n1", "unknown")
    machine["p1"].qdel(favoured)
    machine["n1"].domain.resume()
    goes_on(machine, victim)


def test_a_reset_guest_loses_its_job_according_to_moms_list(preempted: tuple[Machine, Job, Job]) -> None:
    machine, victim, _ = preempted
    machine["p1"].domain.reset()
    machine["p1"].wait()
    goes_on(machine, victim)
    machine.until(lambda: not machine.report("p1").jobs, "p1 has no job any more")
    again = machine["p1"].qsub(Job("3.srv", "priority"))
    machine.until_states("n1", victim, "T")
    machine["p1"].qdel(again)
    goes_on(machine, victim)


def test_a_guest_that_panics_is_down(preempted: tuple[Machine, Job, Job]) -> None:
    machine, victim, _ = preempted
    machine["p1"].write("/tmp/panic", b"#!/bin/sh\nsleep 0.3\necho c > /proc/sysrq-trigger\n", 0o755)
    machine["p1"].sh("setsid /tmp/panic < /dev/null > /dev/null 2>&1 &")
    machine.until_state("p1", "down")
    goes_on(machine, victim)
