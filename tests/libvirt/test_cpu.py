"""A preempted domain costs next to nothing, whatever runs in it beside its jobs, and still answers."""

from __future__ import annotations

import time

from .guest import Job
from .machine import Machine

CAP_PERCENT = 10
"""The default of `preempted_cpu_percent`."""
SAMPLE_S = 4.0


def test_a_hungry_process_in_a_preempted_guest_gets_its_cap_and_the_agent_answers(machine: Machine) -> None:
    victim = machine["n1"].qsub(Job("1", "preemptible"))
    machine["n1"].stray()
    busy = machine["p1"].qsub(Job("2", "priority", script="while :; do :; done"))
    machine.until_states("n1", victim, "T")
    machine.until(lambda: machine.report("n1").cpu_percent == CAP_PERCENT, 5, "n1 is capped")

    before, began = machine["n1"].cpu_seconds(), time.monotonic()
    answers = []
    while time.monotonic() - began < SAMPLE_S:
        asked = time.monotonic()
        assert machine["n1"].ask_agent({"op": "ping"})["connected"]
        answers.append(time.monotonic() - asked)
    used = (machine["n1"].cpu_seconds() - before) / (time.monotonic() - began)

    assert used * 100 <= CAP_PERCENT * 1.2, f"n1 took {used:.1%} of one CPU"
    assert sorted(answers)[len(answers) // 2] < 2.0, answers
    machine["p1"].qdel(busy)
    machine.until_states("n1", victim, "RSD")
    machine.until(lambda: machine.report("n1").cpu_percent is None, 5, "the cap is lifted")
