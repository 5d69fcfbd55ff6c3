"""Root in a real guest lies about its memory, or takes its balloon away. It gains nothing, and no sibling loses any.

n1 lies and p1 is its sibling. Other lies, in virtual time: tests/unit/node/test_memory_lies.py.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea_lab.rigs.guest import Guest, GuestError, Job, holding
from magrathea_lab.rigs.guest_host import Hypervisor, Machine, Size
from magrathea_lab.rigs.guest_host import machine as context
from magrathea_lab.waiting import until

from .test_memory import (
    CAPACITY_MIB,
    FLOOR_MIB,
    SETTINGS,
    SIZE_MIB,
    SMALL_MIB,
    goes_on,
    has_mib,
    hold,
    resize,
    rounds,
    until_refused,
)

NEEDS_MIB = 200
SLACK_MIB = 4
ENORMOUS = 2**40
"""The largest number that a message of a guest may have."""

LIAR = """

_honest = memory_report


def memory_report():
    import json
    try:
        with open("/run/lie.json") as file:
            lie = json.load(file)
    except FileNotFoundError:
        lie = {}
    return dict(_honest(), **lie)
"""
"""Appended to the agent's module: it reports whatever is in /run/lie.json."""


@pytest.fixture(scope="module")
def lying_hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor({"n1": Size(SIZE_MIB, swap_mib=512), "p1": Size(SIZE_MIB)}) as made:
        n1 = made.guests["n1"]
        source = n1.sh("cat /usr/lib/magrathea-agent/procfs.py")
        n1.write("/usr/lib/magrathea-agent/procfs.py", source.encode() + LIAR.encode())
        yield made


@pytest.fixture
def machine(lying_hypervisor: Hypervisor) -> Iterator[Machine]:
    resize(lying_hypervisor.guests["p1"], SMALL_MIB)
    tell_the_truth(lying_hypervisor.guests["n1"])
    with context(lying_hypervisor, **SETTINGS) as made:
        yield made


def lie(guest: Guest, **figures: int) -> None:
    """The agent reports this from now on. Returns when the daemon has entered it."""
    guest.write("/run/lie.json", json.dumps(figures).encode())
    heard(guest)


def tell_the_truth(guest: Guest) -> None:
    guest.sh("rm -f /run/lie.json")
    guest.kill("magrathea-agent")


def heard(guest: Guest) -> None:
    """Start the agent again. It reports as soon as it is connected; the claim comes after that on the same channel."""
    guest.kill("magrathea-agent")

    asks_for = Job("77.srv", "priority")  # n1 takes none of this class
    said: list[dict[str, Any]] = []

    def answered() -> bool:
        with contextlib.suppress(GuestError):
            said.append(guest.ask_agent({"op": "claim", "job": asks_for.described(), "deadline_s": 1.8}))
        return bool(said) and said[-1].get("code") == "wrong-class"

    until(answered, lambda: f"the daemon has answered the agent of {guest.name}: {said[-1:]}; {guest.console()}")


def preempt(machine: Machine) -> Job:
    """p1's job runs with its memory, and n1 has given all but its floor."""
    favoured = machine["p1"].qsub(Job("2.srv", "priority", holding(120), memory_mib=NEEDS_MIB))
    machine.until(lambda: rounds(machine["p1"], favoured) >= 1, "p1's job uses its memory")
    machine.until(lambda: has_mib(machine["n1"]) <= FLOOR_MIB + SLACK_MIB, "n1 has given all but its floor")
    machine.until(lambda: has_mib(machine["p1"]) >= SIZE_MIB - SLACK_MIB, "p1 has all that it may have")
    machine.until(lambda: machine.report("n1").move is None and machine.report("p1").move is None, "nothing moves")
    return favoured


def checks_again(machine: Machine, job: Job) -> None:
    """p1's job finds its memory unchanged once more."""
    before = rounds(machine["p1"], job)
    machine.until(lambda: rounds(machine["p1"], job) > before, "p1's job has checked its memory")


def balloons_set(log: str) -> list[str]:
    return [line for line in log.splitlines() if re.search(r"[np]1: (the balloon takes|memory )", line)]


def no_fault(machine: Machine) -> None:
    states = {name: machine.state(name) for name in machine.guests}
    assert "fault" not in states.values(), states


def test_reports_to_and_fro_from_negative_to_enormous_move_no_balloon(machine: Machine) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    job = hold(machine, 100)
    favoured = preempt(machine)
    read = machine.log.stat().st_size
    for mib in (ENORMOUS, -ENORMOUS, 300, -1, CAPACITY_MIB):
        lie(n1, unreclaimable_mib=mib)
        assert has_mib(p1) >= SIZE_MIB - SLACK_MIB and has_mib(n1) <= FLOOR_MIB + SLACK_MIB
    checks_again(machine, favoured)
    assert p1.claim(Job("3.srv", "priority")).get("ok"), "its sibling's claims are granted as ever"
    assert balloons_set(machine.log.read_bytes()[read:].decode()) == []
    p1.port.ask("release", job=Job("3.srv").described())
    p1.qdel(favoured)
    tell_the_truth(n1)
    goes_on(machine, job)
    no_fault(machine)


@pytest.mark.parametrize("figures", [{"available_mib": ENORMOUS}, {"total_mib": -1}], ids=["enormous", "negative"])
def test_impossible_figures_refuse_the_job_that_needs_the_memory_and_nothing_else(
    machine: Machine, figures: dict[str, int]
) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    job = hold(machine, 100)
    lie(n1, **figures)
    refused = until_refused(machine, Job("2.srv", "priority"), NEEDS_MIB)
    assert refused["code"] == "memory-short" and "n1" in refused["text"], refused
    goes_on(machine, job)
    small = p1.qsub(Job("3.srv", "priority"))
    machine.until_states("n1", job, "T")
    p1.qdel(small)
    goes_on(machine, job)
    assert has_mib(n1) + has_mib(p1) <= CAPACITY_MIB + SLACK_MIB
    no_fault(machine)


def test_a_guest_that_empties_its_balloon_takes_nothing_from_its_sibling_and_is_given_nothing(machine: Machine) -> None:
    n1, p1 = machine["n1"], machine["p1"]
    job = hold(machine, 100)
    favoured = preempt(machine)
    read = machine.log.stat().st_size
    n1.sh("rmmod virtio_balloon")
    try:
        machine.until(lambda: has_mib(n1) >= SIZE_MIB - SLACK_MIB, "n1 has emptied its balloon")
        machine.until(lambda: "memory-short: n1" in machine.log.read_bytes()[read:].decode(), "the daemon has noticed")
        checks_again(machine, favoured)
        assert has_mib(p1) >= SIZE_MIB - SLACK_MIB
        moved = [line for line in balloons_set(machine.log.read_bytes()[read:].decode()) if " p1: " in line]
        assert moved == []
        machine.until_states("n1", job, "T")
        assert p1.claim(Job("3.srv", "priority")).get("ok"), "its sibling's claims are granted as ever"
        p1.port.ask("release", job=Job("3.srv").described())
        p1.qdel(favoured)
        goes_on(machine, job)
        no_fault(machine)
    finally:
        n1.sh("insmod /lib/modules/virtio_balloon.ko")
