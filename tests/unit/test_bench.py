"""The arithmetic and the tables of benchmark figures, on which all published figures depend. Nothing is measured
here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from bench import __main__ as every
from bench import core_events, core_growth, core_mutation, figure
from bench.figure import Figure, at_most, below, missing, percentile
from magrathea.core.model import JobClass

SCRIPTS = Path(figure.__file__).parent
ON_LIBVIRT = ("guests", "memory")


@pytest.mark.parametrize(
    ("values", "percent", "result"),
    [
        ([3.0], 50, 3.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        (list(range(1, 201)), 99, 198),
        ([5.0, 1.0], 100, 5.0),
        ([5.0, 1.0], 0, 1.0),
    ],
)
def test_percentile_is_a_measured_value_of_nearest_rank(values: list[float], percent: float, result: float) -> None:
    assert percentile(values, percent) == result


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_met_and_missed() -> None:
    assert at_most("x", 10, "ms", 10).met
    assert not below("x", 10, "ms", 10).met
    assert missing("x", "ms", "<= 1", "no PBS").met is None


def test_the_table_shows_missed_goals_and_missing_measurements() -> None:
    lines = figure.table([at_most("a", 12.345678, "ms", 10), missing("b", "s", "<= 1", "no PBS here")]).splitlines()
    assert lines[1].split() == ["a", "12.35", "ms", "<=", "10", "MISSED"]
    assert lines[2].split() == ["b", "-", "s", "<=", "1", "no", "PBS", "here"]


def test_json_has_every_field() -> None:
    [entry] = json.loads(figure.as_json([at_most("a", 1, "ms", 2)]))
    assert entry == {"name": "a", "value": 1, "unit": "ms", "target": "<= 2", "met": True, "note": ""}


@pytest.mark.parametrize("name", every.SCRIPTS)
def test_every_script_of_the_table_has_figures(name: str) -> None:
    if name in ON_LIBVIRT and importlib.util.find_spec("libvirt") is None:
        pytest.skip("NOT RUN: libvirt's binding is not installed; `make libvirt` does that")
    assert callable(importlib.import_module(f"bench.{name}").figures)


def test_every_script_is_in_the_table() -> None:
    found = {p.stem for p in SCRIPTS.glob("*.py") if "def figures(" in p.read_text()}
    assert found - {"figure"} == set(every.SCRIPTS)


def test_a_script_that_fails_is_a_line_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(quick: bool) -> list[Figure]:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(importlib.import_module("bench.status_time"), "figures", fails)
    [line] = every.measure("status_time", quick=True)
    assert line.met is False
    assert "no such thing" in line.note


@pytest.mark.long
def test_broken_sequences_of_the_core_are_reported_and_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Number 1 ends after 10 of its 60 events: the events that are missing come from sequences after the last."""

    def fake(seed: int, number: int) -> core_events.Tally:
        return core_events.Tally(10, broken=((1, "the story"),)) if number == 1 else core_events.Tally(60)

    monkeypatch.setattr(core_events, "sequence", fake)
    monkeypatch.setattr("sys.argv", ["core_events", "--events", "180", "--seed", "7", "--processes", "1", "--json"])
    assert core_events.main() == 1
    printed = capsys.readouterr()
    events, broken, *_ = json.loads(printed.out)
    assert events["value"] == 190 and events["met"] is True
    assert broken["value"] == 1 and broken["note"].endswith("--seed 7 --only I, I = 1")
    assert printed.err == "sequence 1: the story\n"


RESULTS = """
    magrathea.core.plan.x_steps__mutmut_1: killed
    magrathea.core.plan.x_steps__mutmut_2: survived
    magrathea.core.states.x_rank__mutmut_1: timeout
    magrathea.core.states.x_rank__mutmut_2: no tests
"""


def test_mutmuts_output_is_counted_by_module() -> None:
    found = core_mutation.mutants(RESULTS)
    assert [m.status for m in found] == ["killed", "survived", "timeout", "no tests"]
    lines = [
        line.split() for line in core_mutation.table(found, {"magrathea.core.states.x_rank__mutmut_2"}).splitlines()
    ]
    assert lines[1:] == [
        ["magrathea.core.plan", "2", "50.0", "%", "100.0", "%"],
        ["magrathea.core.states", "2", "50.0", "%", "50.0", "%"],
        ["all", "4", "50.0", "%", "75.0", "%"],
    ]


def test_the_second_round_runs_the_property_tests_too(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text((Path(figure.__file__).parents[1] / "pyproject.toml").read_text())
    core_mutation.add_property_tests(project)
    settings = tomllib.loads(project.read_text())["tool"]["mutmut"]
    assert "tests/property" in settings["pytest_add_cli_args_test_selection"]
    assert "--hypothesis-profile=small" in settings["pytest_add_cli_args"]


def test_the_sample_of_mutants_depends_on_the_seed_alone() -> None:
    found = core_mutation.mutants(RESULTS)
    assert core_mutation.sample(found, 2, seed=1) == core_mutation.sample(reversed(found), 2, seed=1)
    assert len(core_mutation.sample(found, 2, seed=1)) == 2
    assert len(core_mutation.sample(found, 9, seed=1)) == 4


def test_growth_is_reported_for_each_doubling() -> None:
    assert core_growth.growth(1.0, 16.0, 4) == pytest.approx(4.0), (
        "four times the jobs, sixteen times the cost: squared"
    )
    assert core_growth.growth(3.0, 12.0, 4) == pytest.approx(2.0)


@pytest.mark.parametrize("shape", core_growth.SHAPES, ids=str)
def test_every_kind_of_host_has_as_many_jobs_as_its_row_says(shape: core_growth.Shape) -> None:
    host = core_growth.a_host(shape, 8, 16)
    of_normals = [j for d in host.domains for j in d.jobs if j.cls is JobClass.PREEMPTIBLE]
    assert len(host.domains) == 8
    assert len(of_normals) == 16
    assert bool([j for j in of_normals if j.stopped_by_us]) is shape.half_preempted
    assert core_growth.unseen(host) == host


@pytest.mark.long
def test_the_cost_of_a_host_is_measured() -> None:
    assert core_growth.cost(core_growth.a_host(core_growth.SHAPES[0], 2, 2), 1).together > 0
