"""A preempted domain uses no more CPU than its cap, whatever runs in it besides its jobs, and it still answers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs import guest_host as machines
from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Machine

CAP_PERCENT = 5
"""Not the default, to prove that the configuration counts."""
SAMPLE_S = 6.0


@pytest.fixture(params=["qemu", "lxc"])
def capped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """MoM's lists come as seldom as in production. If they came every 0.5 s, each would cost such a guest its CPU for
    half a minute."""
    monkeypatch.setattr(machines, "LIST_S", 15.0)
    hypervisor = request.getfixturevalue("hypervisor" if request.param == "qemu" else "containers")
    with machines.machine(hypervisor, extra=f"preempted_cpu_percent = {CAP_PERCENT}") as made:
        yield made


def test_a_hungry_process_in_a_preempted_domain_gets_its_cap_and_mom_and_agent_answer(capped: Machine) -> None:
    n1, p1 = capped["n1"], capped["p1"]
    victim = n1.qsub(Job("1.srv", "preemptible"))
    n1.stray()
    busy = p1.qsub(Job("2.srv", "priority", script="while :; do :; done"))
    capped.until_states("n1", victim, "T")
    capped.until(lambda: capped.report("n1").cpu_percent == CAP_PERCENT, "n1 is capped")

    before, began = n1.cpu_seconds(), time.monotonic()
    while time.monotonic() - began < SAMPLE_S:
        assert n1.ask_agent({"op": "ping"})["connected"]
        assert n1.sh("echo MoM") == "MoM\n"  # MoM starts a process like this for a hook or a job
    used = (n1.cpu_seconds() - before) / (time.monotonic() - began)

    assert used * 100 <= CAP_PERCENT * 1.2, f"n1 took {used:.1%} of one CPU"
    assert used * 100 >= CAP_PERCENT / 3, f"n1 took {used:.1%}: nothing hungry ran there, so nothing was shown"
    p1.qdel(busy)
    capped.until_states("n1", victim, "RSD")
    capped.until(lambda: capped.report("n1").cpu_percent is None, "the cap is lifted")
