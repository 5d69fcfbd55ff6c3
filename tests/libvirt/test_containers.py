"""LXC containers: what the driver can do with them, how memory moves between them, and how one ends.

What containers and virtual machines have in common is tested elsewhere, with the fixture `anywhere`. If this machine
cannot start containers, the tests are skipped with libvirt's reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea_lab.rigs.guest import Guest, Job
from magrathea_lab.rigs.guest_host import Machine
from magrathea_lab.rigs.guest_host import machine as context
from node_daemon.hypervisor.base import CPU, LIFE, MEMORY, DriverError
from node_daemon.hypervisor.libvirt.driver import LibvirtDriver

from ..swap import swap
from .containers import AFTER_END_S, Containers, holding

SIZE_MIB, SMALL_MIB, FLOOR_MIB = 256, 96, 64
CAPACITY_MIB = SIZE_MIB + SMALL_MIB
NEEDS_MIB = 120
"""Memory of the priority job: more than p1 has before n1 has given some."""


def test_the_driver_caps_and_limits_containers_and_notes_what_they_lack(containers: Containers) -> None:
    async def work() -> None:
        names = {name: guest.libvirt_name for name, guest in containers.guests.items()}
        driver = LibvirtDriver("h1", containers.uri, names)
        try:
            await driver.start(lambda event: None)
            assert driver.capabilities == {CPU, MEMORY, LIFE}
            for lack in ("does not save", "not moved"):
                assert [note for note in driver.limits() if lack in note]
            assert all(domain.up for domain in (await driver.actual()).values())
            await driver.set_cpu("n1", 10)
            assert (await driver.actual())["n1"].cpu_percent == 10
            await driver.set_cpu("n1", None)
            assert (await driver.actual())["n1"].cpu_percent is None
            await driver.set_memory("n1", 200)
            assert (await driver.actual())["n1"].memory_mib == 200
            await driver.set_memory("n1", SIZE_MIB)
            with pytest.raises(DriverError) as caught:
                await driver.save("n1")
            assert caught.value.code == "not-supported"
        finally:
            await driver.close()

    asyncio.run(work())


def has_mib(guest: Guest) -> int:
    """The container's limit."""
    return int(guest.domain.memoryParameters()["hard_limit"]) // 1024


@pytest.fixture
def machine(containers: Containers) -> Iterator[Machine]:
    """p1 is small: the two cannot be large at the same time."""
    containers.guests["p1"].domain.setMemoryFlags(SMALL_MIB * 1024, 1)
    settings: dict[str, Any] = {
        "memory_mib": CAPACITY_MIB,
        "extra": "memory_step_mib = 32\nmemory_margin_mib = 16\nmemory_time_limit_s = 20.0\n",
        "domain": {"n1": f"floor_mib = {FLOOR_MIB}\nswap_mib = 256\n", "p1": f"floor_mib = {FLOOR_MIB}\n"},
    }
    with context(containers, **settings) as made:
        yield made


def rounds(guest: Guest, job: Job) -> int:
    """How often the job has found all its memory unchanged. Raises AssertionError if it has not."""
    row = guest.jobs()[job.id]
    assert "BAD" not in row["output"] and row["code"] is None, row
    return int(row["output"].count("round"))


def hold(machine: Machine, mib: int) -> Job:
    job = machine["n1"].qsub(Job("1.srv", "preemptible", holding(mib)))
    machine.until(lambda: rounds(machine["n1"], job) >= 1, f"{mib} MiB filled and checked")
    return job


def goes_on(machine: Machine, job: Job) -> None:
    before = rounds(machine["n1"], job)
    machine.until(lambda: rounds(machine["n1"], job) > before + 1, f"{job.id} has checked its memory twice")


def test_an_idle_containers_memory_goes_to_the_priority_job_and_its_limit_is_kept(machine: Machine) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    assert n1.memory()["MemTotal"] == SIZE_MIB, "the agent's figures are the container's, not the machine's"
    favoured = p1.qsub(Job("2.srv", "priority", holding(100), memory_mib=NEEDS_MIB))
    assert has_mib(p1) >= FLOOR_MIB + NEEDS_MIB - 2
    assert has_mib(n1) + has_mib(p1) <= CAPACITY_MIB + 2
    machine.until(lambda: rounds(p1, favoured) >= 1, "the priority job uses it")
    machine.until(lambda: machine.report("n1").move is None, "nothing moves any more")
    assert p1.memory()["MemTotal"] == has_mib(p1)
    p1.qdel(favoured)


def test_a_stopped_jobs_memory_is_pushed_out_of_its_container_and_comes_back_byte_for_byte(machine: Machine) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    with swap():
        job = hold(machine, 150)
        favoured = p1.qsub(Job("2.srv", "priority", holding(100), memory_mib=NEEDS_MIB))
        machine.until_states("n1", job, "T")
        assert has_mib(p1) >= FLOOR_MIB + NEEDS_MIB - 2
        assert has_mib(n1) + has_mib(p1) <= CAPACITY_MIB + 2
        assert n1.jobs()["1.srv"]["swapped_mib"] >= 40
        machine.until(lambda: rounds(p1, favoured) >= 1, "the priority job uses it")
        p1.qdel(favoured)
        goes_on(machine, job)
        assert has_mib(n1) >= SIZE_MIB - 2
        n1.qdel(job)


def test_a_container_is_shut_down_when_its_job_has_ended_and_boots_again(containers: Containers) -> None:
    with context(containers, domain={"n1": "shutdown_time_limit_s = 2"}) as m:
        job = m["n1"].qsub(Job("1.srv"))
        assert m.ask(op="domain", do="shutdown", domain="n1")["ok"]
        m.until_state("n1", "draining")
        m.until_states("n1", job, "RSD")
        m["n1"].end_last(job)
        m.until_state("n1", "down")
        assert not m["n1"].up and "on request" in m.report("n1").why
        time.sleep(AFTER_END_S)
        assert m.ask(op="domain", do="boot", domain="n1")["ok"]
        m.until_state("n1", "free")
        m["n1"].qdel(m["n1"].qsub(Job("2.srv")))
        assert m.ask(op="domain", do="freeze", domain="p1")["code"] == "not-supported"
        assert any("does not save" in note for note in m.status()["notes"]), "and why"


def test_an_ended_container_is_down_and_its_jobs_are_gone(machine: Machine) -> None:
    """Runs last: libvirtd 9.0 may crash, and the node daemon then finds the one that is started again."""
    machine["n1"].qsub(Job("1.srv"))
    machine.until(lambda: [j.id for j in machine.report("n1").jobs] == ["1.srv"], "the hub has heard of the job")
    assert machine.report("p1").jobs == [], "nobody can speak for another"
    machine["n1"].end()
    machine.until_state("n1", "down")
    assert machine.report("n1").jobs == []
