"""Every limit of preemption that an admin can set, on a real server: what users notice of each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import HostSpec, toml
from magrathea_lab.scenarios.scenarios import (
    LONG,
    STILL_S,
    goes_on,
    stands_still,
    wait,
    wait_all_free,
    wait_domain,
    wait_running,
    wait_state,
)

from .conftest import EAGER
from .jobs import preempt


@contextmanager
def limits(fleet: OpenPbsCluster, host: HostSpec, **values: object) -> Iterator[None]:
    """Inside the `with` the host's running daemon has these limits."""
    path = fleet.directory / host.name / "noded.toml"
    before = path.read_text()
    head, _, rest = before.partition("[limits]\n")
    old, gap, tail = rest.partition("\n\n")
    kept = [line for line in old.splitlines() if line.split(" = ")[0] not in values]
    take_over(fleet, host, path, head + toml({"limits": values}) + "\n".join(kept) + gap + tail)
    try:
        yield
    finally:
        take_over(fleet, host, path, before)


def take_over(fleet: OpenPbsCluster, host: HostSpec, path: Path, text: str) -> None:
    """Reload the configuration, as `systemctl reload magrathea-noded` does."""
    part, said = f"noded-{host.name}", "configuration read again"
    path.write_text(text)
    times = fleet.log(part).count(said)
    os.kill(fleet.parts[part].pid, signal.SIGHUP)
    wait(fleet, f"{part} reads {path}", lambda: fleet.log(part).count(said) > times)


def preempted(fleet: OpenPbsCluster, *, rerunnable: bool = True) -> tuple[str, str]:
    """A preempted low job (state S), and the priority job that preempted it."""
    low = fleet.submit("low", LONG, rerunnable=rerunnable)
    wait_running(fleet, low)
    return low, preempt(fleet, low, domain="n4", by="p4")


def end(fleet: OpenPbsCluster, *jobs: str) -> None:
    for job in jobs:
        fleet.delete(job)
    wait_all_free(fleet, EAGER)


def starts(fleet: OpenPbsCluster, job: str) -> int:
    path = fleet.directory / "home/alice" / f"{job}.starts"
    return len(path.read_text().splitlines())


def test_a_job_stopped_longer_than_the_limit_is_requeued_and_starts_again(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, max_preempted_s=2.0):
        low, high = preempted(fleet)
        wait_state(fleet, low, "Q")
        assert fleet.jobs()[high].state == "R"
        fleet.delete(high)
        wait_state(fleet, low, "R")
        wait(fleet, "it begins anew", lambda: starts(fleet, low) == 2)
        end(fleet, low)


def test_a_job_that_must_not_be_rerun_stays_stopped_whatever_the_limit(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, max_preempted_s=1.0):
        low, high = preempted(fleet, rerunnable=False)
        step = stands_still(fleet, low)
        assert stands_still(fleet, low) == step
        assert fleet.jobs()[low].state == "S"
        fleet.delete(high)
        goes_on(fleet, low, step)
        assert starts(fleet, low) == 1
        end(fleet, low)


def test_preempted_as_often_as_allowed_a_job_is_not_preempted_again(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, max_preemptions=1):
        low, high = preempted(fleet)
        fleet.delete(high)
        wait_state(fleet, low, "R")
        wait_domain(fleet, "n4", "running")  # no longer running-preemptible
        second = fleet.submit("high", LONG)
        step = fleet.counter(low)
        time.sleep(STILL_S)
        assert (fleet.jobs()[second].state, fleet.jobs()[low].state) == ("Q", "R")
        goes_on(fleet, low, step)
        fleet.delete(low)
        wait_running(fleet, second)
        end(fleet, second)


def test_a_job_that_has_just_started_runs_for_its_minimum_first(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, min_run_s=3.0):
        began = time.monotonic()
        low = fleet.submit("low", LONG)
        wait_running(fleet, low)
        high = fleet.submit("high", LONG)
        wait_domain(fleet, "n4", "running")
        assert fleet.jobs()[high].state in "QW"
        wait_running(fleet, high)
        assert time.monotonic() - began >= 3.0
        wait_state(fleet, low, "S")
        end(fleet, high, low)


def test_after_its_last_job_a_priority_domain_keeps_the_host_for_the_next_one(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, linger_s=20.0):  # the next job must come within it
        low, high = preempted(fleet)
        step = fleet.counter(low)
        fleet.delete(high)
        wait_state(fleet, high, "F")
        second = fleet.submit("high", LONG)
        wait_running(fleet, second)
        assert (fleet.counter(low), fleet.jobs()[low].state) == (step, "S")
        ended = time.monotonic()
        fleet.delete(second)
        goes_on(fleet, low, step)
        assert time.monotonic() - ended >= 20.0
        end(fleet, low)
