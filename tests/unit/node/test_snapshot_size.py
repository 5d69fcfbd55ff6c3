"""If a guest makes its host's report too large, only jobs of its own domain are affected, not the host."""

from __future__ import annotations

from msgspec import structs

from magrathea.messages import MAX_BYTES, JobReport, Snapshot, decode_to_hub, encode
from node_daemon.snapshot import fitting
from tests.fakes.reports import domain, report, snapshot


def talkative(count: int) -> list[JobReport]:
    return [structs.replace(report(f"{n}.srv"), waits="x" * 4096) for n in range(count)]


def jobs(made: Snapshot) -> dict[str, int]:
    return {d.name: len(d.jobs) for d in made.domains}


def test_a_snapshot_that_fits_is_unchanged() -> None:
    made = snapshot(domain("n1", talkative(100)), domain("p1", talkative(100)))
    assert fitting(made) is made


def test_a_snapshot_that_is_too_long_loses_jobs_of_the_longest_domain() -> None:
    made = snapshot(domain("n1", talkative(2000)), domain("n2", talkative(2000)), domain("p1", talkative(300)))
    fits = fitting(made)
    data = encode(fits)
    assert MAX_BYTES * 0.8 < len(data) <= MAX_BYTES
    assert decode_to_hub(data) == fits
    left = jobs(fits)
    assert left["p1"] == 300 and 300 <= left["n1"] == left["n2"] < 400
    assert fits.domains[0].jobs == made.domains[0].jobs[: left["n1"]]
    assert f"{4300 - sum(left.values())} jobs are not reported" in fits.notes[-1]
