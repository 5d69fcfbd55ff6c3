"""Root in a guest lists jobs that PBS has not given to it, or no longer, or makes them larger or smaller: it costs its
siblings nothing for long."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from magrathea.core.model import Amount
from magrathea_lab.waiting import eventually
from tests.embedded.rig import Job, Rig, running, states_of, stopped

from .test_ghost_claims import both, play


def lists(r: Rig, domain: str, *jobs: Job) -> None:
    """From now on the guest lists these jobs, too. Nobody has claimed them."""
    r.domains[domain].jobs |= {job.id: job for job in jobs}


def jobs_of(r: Rig, domain: str) -> set[str]:
    return {job.id for job in r.report(domain).jobs}


def accepts(r: Rig, domain: str) -> bool:
    return bool(r.report(domain).accepts)


@both
def test_a_job_that_is_only_listed_takes_nothing_for_long_and_no_list_brings_it_back(tmp_path: Path, mode: str) -> None:
    async def test(r: Rig) -> None:
        ghosts = [Job(f"{number}.ghost", 1, "", cpus=4) for number in range(3)]
        r.hub.given = lambda asked: not asked.job.endswith(".ghost")
        lists(r, "p1", *ghosts[:2])
        await eventually(lambda: jobs_of(r, "p1") != set() and not accepts(r, "n1"), "the list is believed at first")
        await eventually(lambda: jobs_of(r, "p1") == set() and accepts(r, "n1"), "the siblings have their CPUs again")
        shown = len(r.hub.snapshots)
        lists(r, "p1", ghosts[2], Job("7.srv", 1, "", cpus=1))
        await eventually(lambda: "7.srv" in jobs_of(r, "p1"), "what PBS has given is believed")
        assert any(asked.job == ghosts[2].id for asked in r.hub.asked)
        seen = {job.id for snapshot in r.hub.snapshots[shown:] for d in snapshot.domains for job in d.jobs}
        assert seen == {"7.srv"}, "the guest was caught, so PBS is asked before a new job counts"

    play(tmp_path, test, mode)


@both
def test_nobody_stays_stopped_for_a_job_that_is_only_listed(tmp_path: Path, mode: str) -> None:
    async def test(r: Rig) -> None:
        low, high = Job("1.srv", 1, "preemptible", cpus=4), Job("2.srv", 1, "priority", cpus=4)
        r.hub.given = lambda asked: not asked.job.endswith(".ghost")
        await r.start_job("n1", low)
        await eventually(lambda: r.report("p1").state == "occupied-would-preempt", "the job can be stopped")
        await r.start_job("p1", high)
        lists(r, "p2", Job("9.ghost", 1, "", cpus=4))
        await eventually(lambda: "9.ghost" in jobs_of(r, "p2"), "the list is believed at first")
        await r.end_job("p1", high)
        await eventually(lambda: running(states_of(low.session)), "the job runs again")
        await eventually(lambda: jobs_of(r, "p2") == set(), "PBS has denied it")

    play(tmp_path, test, mode)


@both
def test_a_job_that_has_ended_in_pbs_and_is_listed_on_lets_go_of_what_was_stopped_for_it(
    tmp_path: Path, mode: str
) -> None:
    async def test(r: Rig) -> None:
        low, high = Job("1.srv", 1, "preemptible", cpus=4), Job("2.srv", 1, "priority", cpus=4)
        await r.start_job("n1", low)
        await eventually(lambda: r.report("p1").state == "occupied-would-preempt", "the job can be stopped")
        await r.start_job("p1", high)
        assert stopped(states_of(low.session))
        r.hub.given = lambda asked: asked.job != high.id
        await eventually(lambda: running(states_of(low.session)), "the job runs again")
        assert high.id in r.domains["p1"].jobs, "it is listed on"
        assert jobs_of(r, "p1") == set()

    play(tmp_path, test, mode)


def test_a_job_has_the_size_that_pbs_says(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        small, large = Job("1.srv", 1, "priority", cpus=1), Job("2.srv", 1, "", cpus=4)
        r.hub.sizes = {small.id: Amount(3, 0), large.id: Amount(1, 0)}
        await r.start_job("p1", small)
        await eventually(lambda: r.report("n1").ncpus == 1, "the job that was claimed as one CPU has three")
        lists(r, "p2", large)
        await eventually(lambda: not accepts(r, "n1"), "the list is believed at first")
        await eventually(lambda: [job.cpus for job in r.report("p2").jobs] == [1], "PBS says that it is smaller")

    play(tmp_path, test, "counted")


def test_a_job_about_which_pbs_cannot_be_asked_stays(tmp_path: Path) -> None:
    async def test(r: Rig) -> None:
        r.hub.given = lambda asked: None
        await r.start_job("p1", Job("1.srv", 1, "priority"))
        lists(r, "p1", Job("2.srv", 1, ""))

        def asked_twice() -> bool:
            times = Counter(asked.job for asked in r.hub.asked)
            return times["1.srv"] >= 2 and times["2.srv"] >= 2

        await eventually(asked_twice, "both are asked about again")
        assert jobs_of(r, "p1") == {"1.srv", "2.srv"}
        r.hub.given = lambda asked: True
        before = len(r.hub.asked)
        await eventually(lambda: len(r.hub.asked) >= before + 2, "PBS answers again")
        assert jobs_of(r, "p1") == {"1.srv", "2.srv"}

    play(tmp_path, test)


@both
def test_a_guest_that_claims_one_ghost_after_the_other_takes_cpus_with_the_first_one_only(
    tmp_path: Path, mode: str
) -> None:
    async def test(r: Rig) -> None:
        r.hub.given = lambda asked: not asked.job.endswith(".ghost")
        assert (await r.claim("p1", Job("1.ghost", 1, "priority", cpus=4)))["ok"], "it costs nobody anything"
        await eventually(lambda: not accepts(r, "n1"), "the claim is believed at first")
        await eventually(lambda: accepts(r, "n1"), "the siblings have their CPUs again")
        for number in range(2, 5):
            assert (await r.claim("p1", Job(f"{number}.ghost", 1, "priority", cpus=4)))["code"] == "not-given"
        assert accepts(r, "n1")
        assert (await r.claim("p1", Job("1.srv", 1, "priority", cpus=4)))["ok"], "an honest job starts"

    play(tmp_path, test, mode)
