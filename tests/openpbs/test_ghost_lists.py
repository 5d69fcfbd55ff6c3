"""Root in a domain lists jobs that PBS has not given to it, or no longer, or claims one as smaller than it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import COUNTED
from magrathea_lab.scenarios.scenarios import (
    LONG,
    finish,
    goes_on,
    wait,
    wait_all_free,
    wait_running,
)
from node_daemon.journal import salvage

from .conftest import EAGER
from .jobs import command, preempt, submit
from .test_cheating import SAY, held
from .test_ghost_claims import claim


def lists(fleet: OpenPbsCluster, domain: str, id: str, run: int = 1) -> None:
    """Root plays MoM's hook and lists this job."""
    job = {"id": id, "run": run, "cpus": 2, "memory_mib": 0, "substate": 42, "rerunnable": True, "owner": "alice"}
    request = json.dumps({"op": "jobs", "jobs": [job]})
    assert json.loads(fleet.pbs.run(domain, ["python3", "-c", SAY, "/run/magrathea/agent.sock", request]).stdout)["ok"]


@contextmanager
def silent_hooks(fleet: OpenPbsCluster, domain: str) -> Iterator[None]:
    """MoM's own hooks say nothing to the agent meanwhile: they find no configuration of it."""
    path = fleet.directory / "m" / domain / "etc/magrathea/agent.json"
    text = path.read_text(encoding="utf-8")
    path.unlink()
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def test_a_job_that_is_only_listed_takes_nothing_for_long(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), held(fleet) as waiting, silent_hooks(fleet, "p4"):
        ghost = f"99999.{waiting.partition('.')[2]}"
        before = len(fleet.log("noded-h3"))

        def noted(word: str, id: str) -> bool:
            lists(fleet, "p4", id)
            return f"p4: {id} (run 1) {word}" in fleet.log("noded-h3")[before:]

        wait(fleet, "the list is believed at first", lambda: noted("adopted", ghost))
        wait(fleet, "PBS was asked", lambda: noted("not-given", ghost))
        low = fleet.submit("low", LONG)

        def runs() -> bool:
            lists(fleet, "p4", ghost)
            return fleet.jobs()[low].state == "R"

        wait(fleet, "a sibling's job runs", runs)
        lists(fleet, "p4", waiting)
        finish(fleet, low)
        wait_all_free(fleet, EAGER)
        assert not noted("adopted", waiting), "the guest was caught, so PBS is asked before another job counts"


def test_a_job_that_has_ended_in_pbs_and_is_listed_on_keeps_nobody_stopped(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER):
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        high = preempt(fleet, low, domain="n4", by="p4")
        with silent_hooks(fleet, "p4"):
            fleet.delete(high)

            def runs_again() -> bool:
                lists(fleet, "p4", high)
                return fleet.jobs()[low].state == "R"

            wait(fleet, "the job runs again", runs_again)
            goes_on(fleet, low, fleet.counter(low))
        finish(fleet, low)
        wait_all_free(fleet, EAGER)


def test_a_job_has_the_size_that_pbs_says_whatever_its_guest_claims(fleet: OpenPbsCluster) -> None:
    def ncpus(vnode: str) -> int:
        return int(fleet.pbs.vnodes()[vnode]["resources_available"]["ncpus"])

    with fleet.only(COUNTED), silent_hooks(fleet, "p3"):
        high = fleet.submit("high", LONG, cpus=3)
        wait_running(fleet, high)
        assert claim(fleet, "p3", high, fleet.jobs()[high].run_version)["ok"], "as a job of one CPU"
        wait(fleet, "three of four CPUs are taken", lambda: ncpus("n2") == 1)
        finish(fleet, high)
    wait_all_free(fleet, COUNTED)


def test_honest_jobs_are_known_as_given_subjobs_and_parts_of_a_job_on_two_hosts_too(fleet: OpenPbsCluster) -> None:
    def given(host: str, *ids: str) -> bool:
        facts = salvage(fleet.directory / host / "state" / "journal.sqlite")
        assert facts is not None
        return {job.key.id for domain in facts.domains for job in domain.jobs if job.given} == set(ids)

    array = submit(fleet, "low", f"exec {command(fleet, LONG)}", "-J", "0-1", "-l", "select=1:ncpus=1:host=n1")
    both = fleet.submit("low", LONG, select="1:ncpus=1:host=n2+1:ncpus=1:mem=10mb:host=n4")
    wait(fleet, "PBS was asked about the subjobs", lambda: given("h1", *(array.replace("[]", f"[{n}]") for n in "01")))
    for host in ("h2", "h3"):
        wait(fleet, f"PBS was asked about the part on {host}", lambda host=host: given(host, both))  # type: ignore[misc]
    for id in (array, both):
        fleet.delete(id)
