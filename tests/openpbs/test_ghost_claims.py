"""Root in a priority domain claims jobs that PBS has not given to it; a real one meanwhile preempts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    stands_still,
    wait_all_free,
    wait_domain,
    wait_running,
    wait_state,
    wait_stoppable,
)

from .conftest import EAGER
from .test_cheating import SAY, held


def claim(fleet: OpenPbsCluster, domain: str, id: str, run: int = 1) -> dict[str, Any]:
    """What root in the domain gets if it plays MoM's hook."""
    job = {"id": id, "run": run, "class": "priority", "cpus": 1, "memory_mib": 0, "rerunnable": True, "owner": "alice"}
    request = json.dumps({"op": "claim", "job": job, "deadline_s": 1.8})
    said = fleet.pbs.run(domain, ["python3", "-c", SAY, "/run/magrathea/agent.sock", request]).stdout
    answer: dict[str, Any] = json.loads(said)
    return answer


@pytest.mark.first
def test_no_job_is_stopped_for_one_that_pbs_has_not_given_to_the_guest_that_claims_it(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), held(fleet) as waiting:
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        wait_stoppable(fleet, "n4")
        wait_domain(fleet, "p4", "occupied-would-preempt")
        server = low.partition(".")[2]
        for ghost in (f"99999.{server}", f"99999[3].{server}", low, waiting):
            answer = claim(fleet, "p4", ghost)
            assert (answer["ok"], answer["code"]) == (False, "not-given"), (ghost, answer)
            wait_domain(fleet, "n4", "running-preemptible")
        goes_on(fleet, low, fleet.counter(low))
        assert fleet.jobs()[low].state == "R"

        high = fleet.submit("high", LONG)  # at its begin, PBS says already that it has given it to p4
        wait_running(fleet, high)
        assert "not-given" not in fleet.log("noded-h3").partition(high)[2]
        wait_state(fleet, low, "S")
        stands_still(fleet, low)
        ghost = f"88888.{server}"
        answer = claim(fleet, "p4", ghost)
        assert answer["code"] == "not-given", "it would keep the job stopped after the end of the real one"
        fleet.delete(high)
        finish(fleet, low)
        wait_all_free(fleet, EAGER)
