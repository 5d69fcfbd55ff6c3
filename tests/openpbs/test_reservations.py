"""Reservations: a user gets no other class and no domain by one; in one for maintenance jobs have a class."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from magrathea.pbs_text.select import job_class
from magrathea.pbs_text.states import RUNNING_SUBSTATE
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import wait, wait_running

from .jobs import LONG, configured, pbs, refused
from .library import HELD, Attribute, call, select

NAMED = "1:ncpus=1:magrathea_accepts=priority"


def class_of(fleet: OpenPbsCluster, job: str) -> str | None:
    return job_class(fleet.pbs.job(job)["schedselect"])


def reservations(fleet: OpenPbsCluster) -> list[str]:
    lines = pbs(fleet, "pbs_rstat", "-B").stdout.splitlines()
    return [line.removeprefix("Resv ID: ").strip() for line in lines if line.startswith("Resv ID: ")]


@pytest.fixture(autouse=True)
def _no_reservation_stays(fleet: OpenPbsCluster) -> Iterator[None]:
    yield
    for name in reservations(fleet):
        pbs(fleet, "pbs_rdel", name)
    wait(fleet, "no reservation is left", lambda: not reservations(fleet))


def window(after_s: int = 3) -> list[Attribute]:
    """Start and end of a reservation that begins soon."""
    start = int(time.time()) + after_s
    return [("reserve_start", "", str(start)), ("reserve_end", "", str(start + 600))]


DECIDED: Attribute = ("interactive", "", "60")
"""Lets the call wait for the scheduler's decision."""


def test_a_reservation_is_not_made_from_a_running_job(fleet: OpenPbsCluster) -> None:
    """PBS would confirm it whatever `resv_enable` of the vnode is, and the job would become protected."""
    job = fleet.submit("low", LONG)
    wait_running(fleet, job)
    assert "no-reservation" in refused(fleet, "pbs_rsub", "--job", job, user="alice")
    for wish in ([("reserve_job", "", job)], [("reserve_job", "", job), *window()], [("reserve_job", "", job[:-5])]):
        assert "no-reservation" in call(fleet, "reserve", "", *wish)[1], wish
    assert not reservations(fleet)
    assert (fleet.pbs.job(job)["queue"], class_of(fleet, job)) == ("low", "preemptible")
    fleet.delete(job)


def test_a_job_that_asks_for_a_reservation_at_its_start_gets_none(fleet: OpenPbsCluster) -> None:
    wish = ["-q", "low", "-W", "create_resv_from_job=1", "-l", "select=1:ncpus=1", "--", "/bin/sleep", "1000"]
    job = pbs(fleet, "qsub", *wish, user="alice").stdout.strip()
    wait(fleet, "it has started", lambda: fleet.jobs()[job].substate == RUNNING_SUBSTATE)
    marker = fleet.submit("low", LONG)  # what the first job's start has caused is done before this one starts
    wait_running(fleet, marker)
    assert not reservations(fleet)
    assert (fleet.pbs.job(job)["queue"], class_of(fleet, job)) == ("low", "preemptible")
    for one in (job, marker):
        fleet.delete(one)


@pytest.mark.parametrize("place", ["", ":host=n1", ":host=p1", ":vnode=p1"])
def test_no_domain_is_reserved_in_advance(fleet: OpenPbsCluster, place: str) -> None:
    answer, error = call(fleet, "reserve", "", *window(60), select(f"1:ncpus=1{place}"), DECIDED)
    assert "DENIED" in answer, (answer, error)


def test_no_domain_is_reserved_again_and_again_or_for_a_waiting_job(fleet: OpenPbsCluster) -> None:
    standing: list[Attribute] = [
        ("reserve_rrule", "", "FREQ=DAILY;COUNT=3"),
        ("reserve_timezone", "", "UTC"),
        select("1:ncpus=1"),
    ]
    answer, error = call(fleet, "reserve", "", *window(60), *standing, DECIDED)
    assert "CONFIRMED" not in answer.replace("UNCONFIRMED", ""), (answer, error)
    job, _ = call(fleet, "submit", "low", HELD)
    answer, error = call(fleet, "reserve", "", ("qmove", "", job), *window(60), select("1:ncpus=1"), DECIDED)
    assert "CONFIRMED" not in answer.replace("UNCONFIRMED", ""), (answer, error)
    assert (fleet.pbs.job(job)["queue"], class_of(fleet, job)) == ("low", "preemptible")


@pytest.mark.parametrize(
    "wish", [select(NAMED), select("1:Magrathea_Accepts=priority"), ("Resource_List", "magrathea_accepts", "priority")]
)
@pytest.mark.parametrize("for_a_job", [False, True])
def test_a_reservation_names_no_class(fleet: OpenPbsCluster, wish: Attribute, for_a_job: bool) -> None:
    """PBS lets a user who asks for `qmove` write everything into a reservation, read-only resources too."""
    job, _ = call(fleet, "submit", "low", HELD)
    more: list[Attribute] = [("qmove", "", job)] if for_a_job else []
    assert "own-class" in call(fleet, "reserve", "", *more, *window(60), wish)[1]


def reservable(fleet: OpenPbsCluster, vnode: str) -> AbstractContextManager[None]:
    """Inside the `with` this vnode takes reservations, as one does that is managed since the last `pbs install`."""
    return configured(fleet, f"set node {vnode} resv_enable=True", f"set node {vnode} resv_enable=False")


def test_a_job_in_a_users_reservation_starts_in_no_domain(fleet: OpenPbsCluster) -> None:
    with fleet.only(EXCLUSIVE), reservable(fleet, "n1"):
        answer, error = call(fleet, "reserve", "", *window(5), select("1:ncpus=1"), DECIDED)
        name = answer.split()[0]
        assert "CONFIRMED" in answer and "UNCONFIRMED" not in answer, (answer, error)
        queue = name.split(".")[0]
        job, error = call(fleet, "submit", queue, select("1:ncpus=1"))
        assert not error, error
        assert class_of(fleet, job) == "protected"
        wait(fleet, "it is refused", lambda: "magrathea: no-reservation" in fleet.jobs()[job].comment)
        call(fleet, "alter-reservation", name, select(NAMED))
        assert class_of(fleet, job) == "protected"
        assert "own-class" in call(fleet, "alter", job, select(NAMED))[1]
        fleet.pbs.run(HEAD, ["qmove", "low", job], user="alice")
        assert class_of(fleet, job) == "preemptible"


def test_a_domain_in_maintenance_takes_jobs_of_the_servers_class_from_its_queue_only(fleet: OpenPbsCluster) -> None:
    """`pbs_rsub --hosts` is for operators. They name the users."""
    soon = time.strftime("%H%M", time.localtime(time.time() + 60))
    wish = ["pbs_rsub", "-R", soon, "-D", "600", "-U", "alice", "--hosts", "n1"]
    assert "Unauthorized" in refused(fleet, *wish, user="alice")
    with fleet.only(EXCLUSIVE):
        name = pbs(fleet, *wish).stdout.split()[0]
        assert name.startswith("M")
        queue = name.split(".")[0]
        job = pbs(fleet, "qsub", "-q", queue, "--", "/bin/sleep", "1000", user="alice").stdout.strip()
        assert class_of(fleet, job) == "protected"
        altered, _ = call(fleet, "submit", queue, HELD)
        call(fleet, "asyalter", altered, select(NAMED))
        wait(fleet, "it has another class", lambda: class_of(fleet, altered) == "priority")
        wait(fleet, "it starts when its time has come", lambda: fleet.jobs()[job].run_version == 1)
        assert fleet.jobs()[job].vnodes == ("n1",)
        fleet.pbs.run(HEAD, ["qrls", "-h", "u", altered], user="alice")
        wait(fleet, "it is looked at", lambda: fleet.jobs()[altered].comment)
        assert fleet.jobs()[altered].run_version == 0
        for one in (job, altered):
            fleet.pbs.run(HEAD, ["qdel", "-W", "force", one])


def test_before_a_maintenance_only_jobs_that_fit_start_in_a_domain(fleet: OpenPbsCluster) -> None:
    """docs/maintenance.md says so: PBS keeps the time free by itself."""
    later = time.strftime("%Y%m%d%H%M", time.localtime(time.time() + 7200))

    def submitted(*limit: str) -> str:
        return pbs(fleet, "qsub", "-q", "low", *limit, "--", "/bin/sleep", "1000", user="alice").stdout.strip()

    with fleet.only(EXCLUSIVE):
        name = pbs(fleet, "pbs_rsub", "-R", later, "-D", "600", "--hosts", "n1").stdout.split()[0]
        endless, long = submitted(), submitted("-l", "walltime=24:00:00")
        for one in (endless, long):
            wait(fleet, "it is looked at", lambda one=one: fleet.jobs()[one].comment)  # type: ignore[misc]
        short = submitted("-l", "walltime=3600")
        wait(fleet, "the job that fits starts", lambda: fleet.jobs()[short].run_version == 1)
        assert fleet.jobs()[short].vnodes == ("n1",)
        assert [fleet.jobs()[one].run_version for one in (endless, long)] == [0, 0]
        fleet.pbs.run(HEAD, ["qdel", "-W", "force", short])
        pbs(fleet, "pbs_rdel", name)
        wait(fleet, "the others start without it", lambda: fleet.jobs()[endless].run_version == 1)
        for one in (endless, long):
            fleet.pbs.run(HEAD, ["qdel", "-W", "force", one])
