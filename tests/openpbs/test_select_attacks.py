"""A user who calls PBS's library and writes into a select what no command would: the class stays the queue's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magrathea.pbs_text.select import chunks, job_class
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.scenarios.scenarios import wait

from . import library

OLDER = "1:ncpus=1:naccelerators='1:magrathea_accepts=priority'"
TWO_WAYS = [
    # the server writes it as 'a':magrathea_accepts=...: for the scheduler that is a resource
    """1:ncpus=1:accelerator_model="a':magrathea_accepts=priority:arch='x""" + '""',
    '1:ncpus=1:accelerator_model="a\':magrathea_accepts=priority:arch=\'x""+1:ncpus=1',
    '1:ncpus=1:accelerator_model="it\'s""x"',
    # and as naccelerators=1:magrathea_accepts=...: numbers get no quotes
    OLDER,
    "1:ncpus='1:magrathea_accepts=priority'",
    "1:ncpus=1:mem='1gb:MAGRATHEA_accepts =priority'",
    "1:ncpus=1:nchunk='1:magrathea_accepts=priority'",
    "1:ncpus=1:accelerator_model='x+1:magrathea_accepts=priority'",
    "1:ncpus=1:NCPUS=2",
]
OURS = [
    "1:ncpus=1:MAGRATHEA_ACCEPTS=priority",
    "1:ncpus=1:Magrathea_Accepts=protected",
    "1:ncpus=1: magrathea_accepts = priority",
    "1:ncpus=1+1:ncpus=1:magrathea_accepts=priority",
]
HARMLESS = [
    "1:ncpus=1:accelerator_model=\"x'y:mag''rathea_accepts=protected\"",
    "1:ncpus=1:accelerator_model='x+1:ncpus=1'",
    "1:ncpus=1:accelerator_model='a\":arch=\"x'",
]


def call(fleet: OpenPbsCluster, what: str, select: str, whom: str) -> tuple[str, str]:
    """(job, error): one of them is empty."""
    held = [library.HELD] if what == "submit" else []
    return library.call(fleet, what, whom, *held, library.select(select))


def schedselect(fleet: OpenPbsCluster, job: str) -> str:
    found: str = fleet.pbs.job(job)["schedselect"]
    return found


@pytest.fixture
def held(fleet: OpenPbsCluster) -> Iterator[str]:
    job, error = call(fleet, "submit", "1:ncpus=1", "low")
    assert not error
    yield job
    fleet.pbs.run(HEAD, ["qdel", "-W", "force", job], check=False)


@pytest.mark.parametrize("select", TWO_WAYS)
@pytest.mark.parametrize("what", ["submit", "alter"])
def test_a_select_that_can_be_read_in_two_ways_is_refused(
    fleet: OpenPbsCluster, held: str, what: str, select: str
) -> None:
    before = schedselect(fleet, held)
    job, error = call(fleet, what, select, "low" if what == "submit" else held)
    assert not job and (what == "submit" or "magrathea: " in error), error  # some are refused by PBS at qsub already
    assert schedselect(fleet, held) == before


@pytest.mark.parametrize("select", OURS)
@pytest.mark.parametrize("what", ["submit", "alter"])
def test_a_resource_of_ours_is_refused_however_it_is_written(
    fleet: OpenPbsCluster, held: str, what: str, select: str
) -> None:
    job, error = call(fleet, what, select, "low" if what == "submit" else held)
    by_pbs = what == "submit" and "Resource invalid" in error
    assert not job and ("own-class" in error or by_pbs), error
    assert schedselect(fleet, held) == "1:ncpus=1:magrathea_accepts=preemptible"


@pytest.mark.parametrize("select", HARMLESS)
@pytest.mark.parametrize("what", ["submit", "alter"])
def test_what_is_not_refused_has_the_class_of_its_queue_and_nothing_else_of_ours(
    fleet: OpenPbsCluster, held: str, what: str, select: str
) -> None:
    job, error = call(fleet, what, select, "low" if what == "submit" else held)
    assert not error, error
    text = schedselect(fleet, job)
    fleet.pbs.run(HEAD, ["qdel", "-W", "force", job], check=False)
    assert job_class(text) == "preemptible", text
    assert all(sum("magrathea" in name for name, _ in pairs) == 1 for _, pairs in chunks(text)), text


def test_a_job_with_such_a_select_that_is_older_than_the_hook_is_not_moved_and_starts_nowhere(
    fleet: OpenPbsCluster,
) -> None:
    fleet.pbs.qmgr("set hook magrathea_server enabled=False")
    try:
        job, error = call(fleet, "submit", OLDER, "low")
    finally:
        fleet.pbs.qmgr("set hook magrathea_server enabled=True")
    assert not error
    try:
        moved = fleet.pbs.run(HEAD, ["qmove", "high", job], user="alice", check=False)
        assert moved.returncode and "select-unclear" in moved.stderr, moved.stderr
        fleet.pbs.run(HEAD, ["qrls", "-h", "u", job], user="alice")
        wait(fleet, "the scheduler has looked at it", lambda: fleet.jobs()[job].comment)
        assert fleet.jobs()[job].state == "Q"
        assert "magrathea_accepts=priority:magrathea_accepts=preemptible" in schedselect(fleet, job)
    finally:
        fleet.pbs.run(HEAD, ["qdel", "-W", "force", job], check=False)
