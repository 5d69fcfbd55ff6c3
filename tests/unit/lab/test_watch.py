"""The demo's proof must notice a preempted job that kept running, was not continued, or lost its work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from magrathea_lab.cluster import Failed, JobView, VnodeView
from magrathea_lab.demo.proof import percentile, switch_times_ms
from magrathea_lab.demo.watch import Stop, Watch, Watched
from magrathea_lab.fleet import EXCLUSIVE, HostSpec
from magrathea_lab.work import MIB, MarkedMemory, held, result
from magrathea_lab.work import main as work

RIGHT = f"{result(3)}\nstarted 1 times\nlongest pause 0.10 s\n"


def finished(output: str = RIGHT, exit_status: int = 0) -> Watched:
    return Watched("1.s", "low-1", "low", 1, 3, 0.0, state="F", exit_status=exit_status, output=output)


class Scripted:
    """A cluster that shows one job's states and counters one after the other, one item for each look."""

    hosts: Sequence[HostSpec] = (EXCLUSIVE,)

    def __init__(self, *seen: tuple[str, int, int]) -> None:
        """`seen`: state, counter before PBS is asked, counter after."""
        self.seen = list(seen)
        self._asked = False

    def submit(self, queue: str, steps: int, **more: object) -> str:
        return "1.s"

    def jobs(self) -> Mapping[str, JobView]:
        self._asked = True
        return {"1.s": JobView("1.s", self.seen[0][0], vnodes=("n1",))}

    def counter(self, job: str) -> int:
        _, before, after = self.seen[0]
        return after if self._asked else before

    def vnodes(self) -> Mapping[str, VnodeView]:
        self.seen, self._asked = self.seen[1:], False
        return {}


def watched(*seen: tuple[str, int, int]) -> Watched:
    cluster = Scripted(*seen)
    watch = Watch(cluster, lambda text: None, lambda watch: None)  # type: ignore[arg-type]
    job = watch.submit("low", "low-1", 3, 1)
    for _ in seen:
        watch.look()
    return job


def test_a_job_that_stands_still_and_continues_is_proof() -> None:
    job = watched(("R", 3, 4), ("S", 4, 5), ("S", 5, 5), ("S", 5, 5), ("R", 5, 6), ("R", 9, 9))
    assert [stop.flaw() for stop in job.stops] == [""]
    assert (job.stops[0].at_step, job.stops[0].domain) == (5, "n1")


def test_values_read_before_pbs_reported_the_stop_do_not_count() -> None:
    assert watched(("R", 1, 2), ("S", 3, 7), ("S", 7, 7), ("R", 8, 8)).stops[0].at_step == 7


def test_a_job_that_is_still_stopped_has_not_been_continued() -> None:
    assert "never continued" in watched(("R", 1, 1), ("S", 2, 2)).stops[0].flaw()


def test_a_job_that_does_not_continue_is_seen() -> None:
    assert "did not go on" in watched(("R", 1, 1), ("S", 2, 2), ("R", 2, 2)).stops[0].flaw()


def test_a_job_that_runs_on_while_preempted_is_seen() -> None:
    stop = Stop("n1", 0.0, [(0.0, 5), (1.0, 6), (2.0, 6)], end=3.0, next_counter=9)
    assert "went on to 6" in stop.flaw()


def test_a_job_may_continue_shortly_before_pbs_reports_it() -> None:
    assert Stop("n1", 0.0, [(0.0, 5), (1.0, 5), (2.9, 6)], end=3.0, next_counter=9).flaw() == ""


def test_each_stop_of_a_job_counts_separately() -> None:
    job = watched(("R", 1, 1), ("S", 2, 2), ("R", 3, 3), ("S", 4, 4), ("R", 5, 5))
    assert [stop.at_step for stop in job.stops] == [2, 4]


def test_right_work_has_no_flaw() -> None:
    assert finished().flaw() == ""


@pytest.mark.parametrize(
    "job",
    [
        finished(output=""),
        finished(output=RIGHT.replace("primes", "numbers")),
        finished(output=RIGHT.replace("started 1", "started 2")),
        finished(exit_status=271),
        Watched("1.s", "low-1", "low", 1, 3, 0.0, state="R"),
    ],
)
def test_lost_or_wrong_work_is_seen(job: Watched) -> None:
    assert job.flaw()


def test_a_wait_in_vain_fails_with_its_name() -> None:
    watch = Watch(Scripted(*[("Q", 0, 0)] * 50), lambda text: None, lambda watch: None)  # type: ignore[arg-type]
    with pytest.raises(Failed, match="spring"):
        watch.until("spring", lambda: False, 0.2)


def test_the_job_prints_what_a_sieve_finds_and_how_often_it_was_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for times in (1, 2):
        work(3, 0.0, tmp_path / "1.s.count")
        assert capsys.readouterr().out.startswith(f"{result(3)}\nstarted {times} times\n")
    assert int((tmp_path / "1.s.count").read_text()) == 3


def test_a_job_that_holds_memory_prints_that_each_byte_is_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work(3, 0.0, tmp_path / "1.s.count", 2)
    output = capsys.readouterr().out
    job = finished(output)
    job.holds_mib = 2
    assert job.flaw() == ""
    job.output = output.replace(held(2), "1 MiB have CHANGED")
    assert "memory" in job.flaw()


def test_one_byte_of_its_memory_that_has_changed_is_seen() -> None:
    memory = MarkedMemory(2)
    assert memory.verdict() == held(2)
    memory._blocks[1][MIB - 1] ^= 1
    assert memory.verdict() == "1 MiB have CHANGED"


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (99, 4.0), (1, 1.0)])
def test_percentiles_are_values_that_were_seen(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_switch_times_are_those_of_claims_that_preempted() -> None:
    class Logs(Scripted):
        def log(self, part: str) -> str:
            return (
                "12:00:00 INFO p1: 7.s (run 1) accepted, preempting n1\n"
                "12:00:00 INFO p1: claim of 7.s (run 1) granted after 12.5 ms\n"
                "12:00:01 INFO n1: 8.s (run 1) accepted\n"
                "12:00:01 INFO n1: claim of 8.s (run 1) granted after 1.5 ms\n"
            )

    assert switch_times_ms(Logs()) == [12.5]  # type: ignore[arg-type]
