"""A priority job in one guest stops the job of the other, takes its CPU, and gives everything back."""

from __future__ import annotations

import pytest

from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Machine


@pytest.mark.first
def test_a_priority_job_stops_the_preemptible_one_which_continues_after_it(anywhere: Machine) -> None:
    machine = anywhere
    victim = machine["n1"].qsub(Job("1.srv", "preemptible"))
    machine.until_states("n1", victim, "RSD")

    favoured = machine["p1"].qsub(Job("2.srv", "priority"))
    machine.until_states("n1", victim, "T")
    machine.until_state("n1", "preempted")
    machine.until(lambda: machine.report("n1").cpu_percent == 10, "n1 is capped")
    assert machine.report("p1").cpu_percent is None

    machine["p1"].qdel(favoured)
    machine.until_states("n1", victim, "RSD")
    machine.until(lambda: machine.report("n1").cpu_percent is None, "the cap of n1 is gone")
    machine.until_state("p1", "occupied-would-preempt")
