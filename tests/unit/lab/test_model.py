"""Where a job fits on the stand-in: as OpenPBS's scheduler decides, as far as Magrathea depends on it."""

from __future__ import annotations

import pytest

from magrathea_lab.pbs_standin.model import StandInError, StandInJob, StandInVnode, assign, chunks_of, mib
from scheduler_plugin.pbs.base import Code


def vnode(name: str, accepts: str = "preemptible", ncpus: int = 2, priority: int = 0) -> StandInVnode:
    attributes = {"resources_available.ncpus": str(ncpus), "resources_available.mem": "1gb"}
    attributes |= {"resources_available.magrathea_accepts": accepts, "Priority": str(priority)}
    return StandInVnode(name, attributes)


def job(select: str, id: str = "1.srv", **more: object) -> StandInJob:
    given = {"queue": "low", "script": "", "output": "", "workdir": "", **more}
    return StandInJob(id=id, schedselect=select, **given)  # type: ignore[arg-type]


def low(ncpus: int = 1, count: int = 1, id: str = "1.srv", **more: object) -> StandInJob:
    return job(f"{count}:ncpus={ncpus}:magrathea_accepts=preemptible", id, **more)


@pytest.mark.parametrize(("size", "expected"), [("1gb", 1024), ("512mb", 512), ("1048576kb", 1024), ("0b", 0)])
def test_sizes_are_read(size: str, expected: float) -> None:
    assert mib(size) == expected


@pytest.mark.parametrize("text", ["2x:ncpus=1", "ncpus", "1:ncpus=many", "1:mem=lots"])
def test_an_impossible_select_is_refused(text: str) -> None:
    with pytest.raises(StandInError):
        chunks_of(text)


def test_a_chunk_is_repeated_and_has_one_cpu_by_default() -> None:
    assert chunks_of("2:mem=1gb+ncpus=4") == [{"ncpus": "1", "mem": "1gb"}] * 2 + [{"ncpus": "4"}]


def test_one_equal_word_of_a_string_array_matches() -> None:
    assert assign(low(), [vnode("n1", "preemptible,protected")], [])[0] == "(n1:ncpus=1)"


def test_part_of_a_word_does_not_match() -> None:
    assert assign(low(), [vnode("n1", "preemptible-only")], [])[0] == ""


def test_without_any_vnode_of_the_class_it_can_never_run() -> None:
    assert assign(low(), [vnode("p1", "priority")], [])[1].startswith("Can Never Run")


def test_the_highest_priority_is_taken_first() -> None:
    assert assign(low(), [vnode("n1", priority=1), vnode("n2", priority=5)], [])[0] == "(n2:ncpus=1)"


def test_jobs_use_up_cpus() -> None:
    first = low(2)
    first.exec_vnode, first.state, first.substate = "(n1:ncpus=2)", "R", 42
    assert assign(low(1, id="2.srv"), [vnode("n1")], [first]) == (
        "",
        "Not Running: Insufficient amount of resource: ncpus",
    )


def test_a_suspended_job_holds_nothing_and_is_not_listed_but_its_vnode_is_in_maintenance() -> None:
    suspended = low(2)
    suspended.exec_vnode, suspended.state, suspended.substate = "(n1:ncpus=2)", "S", 43
    there = vnode("n1")
    assert there.free([suspended])[0] == 2
    assert there.for_hook([suspended])["jobs"] is None
    there.maintenance_jobs.append(suspended.id)
    assert there.state([suspended]) == ["maintenance"]
    assert assign(low(id="2.srv"), [there], [suspended])[0] == ""


def test_chunks_are_placed_each_for_itself() -> None:
    assert assign(low(2, count=2), [vnode("n1"), vnode("n2")], [])[0] == "(n1:ncpus=2)+(n2:ncpus=2)"


def test_scatter_puts_each_chunk_elsewhere() -> None:
    assert assign(low(1, count=2, place="scatter"), [vnode("n1"), vnode("n2")], [])[0] == "(n1:ncpus=1)+(n2:ncpus=1)"
    assert assign(low(1, count=2, place="scatter"), [vnode("n1")], [])[0] == ""


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("Priority", "1024", Code.BAD_VALUE),
        ("resources_available.magrathea_rank", "high", Code.BAD_VALUE),
        ("resources_available.magic", "1", Code.UNKNOWN_RESOURCE),
        ("jobs", "1", Code.UNKNOWN_ATTRIBUTE),
    ],
)
def test_a_wrong_attribute_is_refused_and_none_is_set(name: str, value: str, code: Code) -> None:
    there = vnode("n1")
    with pytest.raises(StandInError) as refused:
        there.set({"comment": "x", name: value})
    assert refused.value.code == code
    assert "comment" not in there.attributes
