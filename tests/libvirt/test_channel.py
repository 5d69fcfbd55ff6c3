"""The guest channel over a real virtio-serial port: what a guest or its agent may do to it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Machine

PORT = "/dev/virtio-ports/org.magrathea.0"

FLOOD = f"""
import os, sys, time
port = os.open("{PORT}", os.O_RDWR)
line = {{"flood": b'{{"type":"request","id":1,"session":"0123456789abcdef","op":"release"}}\\n',
        "garbage": os.urandom(200) + b"\\n", "endless": b"x" * 4096}}[sys.argv[1]]
end = time.monotonic() + 4
while time.monotonic() < end:
    os.write(port, line * 50)
"""


@pytest.fixture
def without_agent(machine: Machine) -> Iterator[Machine]:
    """n1's port is free, so that others can write to it."""
    machine["n1"].stop_agent()
    machine["n1"].write("/tmp/flood.py", FLOOD.encode())
    yield machine
    machine["n1"].kill("flood.py")


@pytest.mark.parametrize("what", ["flood", "garbage", "endless"])
def test_a_guest_that_writes_nonsense_disturbs_nobody_and_its_next_agent_connects(
    without_agent: Machine, what: str
) -> None:
    machine = without_agent
    machine["n1"].sh(f"setsid python3 -S -E /tmp/flood.py {what} < /dev/null > /dev/null 2>&1 &")
    end = time.monotonic() + 3
    job = machine["p1"].qsub(Job("2.srv", "priority"))
    while time.monotonic() < end:
        machine.status()
        assert machine["p1"].ask_agent({"op": "ping"})["connected"]
    machine["p1"].qdel(job)
    machine["n1"].kill("flood.py")
    machine["n1"].start_agent()
    machine.until(lambda: machine["n1"].ask_agent({"op": "ping"}).get("connected"), "n1's agent is heard")
    machine.qsub_and_end("n1", Job("3.srv", "preemptible"))


def test_a_killed_agent_restarts_and_ignores_earlier_orders(anywhere: Machine) -> None:
    machine = anywhere
    guest = machine["n1"]
    job = guest.qsub(Job("1.srv", "preemptible"))
    machine.until_state("n1", "running-preemptible")
    # QEMU keeps the connection, so nobody notices an end; a container's end is noticed after a while
    guest.stop_agent()
    heard = {"host-busy"} if machine.hypervisor.kind == "lxc" else set()
    assert machine["p1"].claim(Job("2.srv", "priority"))["code"] in {"stop-timeout"} | heard
    guest.start_agent()  # it finds messages to its predecessor in the port
    machine.until(lambda: guest.ask_agent({"op": "ping"}).get("connected"), "n1's agent is back")
    time.sleep(1.0)
    assert "T" not in guest.states(job)
    favoured = machine["p1"].qsub(Job("3.srv", "priority"))
    machine.until_states("n1", job, "T")
    machine["p1"].qdel(favoured)
    machine.until_states("n1", job, "RSD")


def test_a_frozen_agent_is_given_up_and_found_again(machine: Machine) -> None:
    look = "for p in /proc/[0-9]*; do grep -qs magrathea-agent $p/cmdline && echo ${p#/proc/}; done; true"
    agent = machine["n1"].sh(look).split()[0]
    machine["n1"].sh(f"kill -STOP {agent}")
    machine.until(lambda: not machine.report("n1").agent, "n1's agent counts as lost")
    machine["n1"].sh(f"kill -CONT {agent}")
    machine.until(lambda: machine.report("n1").agent, "the same agent is back")
    machine.qsub_and_end("n1", Job("3.srv", "preemptible"))


def test_the_daemon_is_killed_in_the_middle_of_a_preemption_and_continues_with_it(anywhere: Machine) -> None:
    machine = anywhere
    victim = machine["n1"].qsub(Job("1.srv", "preemptible"))
    favoured = machine["p1"].qsub(Job("2.srv", "priority"))
    machine.until_states("n1", victim, "T")
    machine.stop_daemon(signal.SIGKILL)
    machine.start_daemon()
    machine.until(lambda: machine["p1"].ask_agent({"op": "ping"}).get("connected"), "p1's agent is back")
    machine.until(lambda: machine["n1"].ask_agent({"op": "ping"}).get("connected"), "n1's agent is back")
    assert machine["n1"].all_stopped(victim)
    machine["p1"].qdel(favoured)
    machine.until_states("n1", victim, "RSD")
