"""The wheel has every package that runs from it, also the laboratory's guests, and no test."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("magrathea", "node_daemon", "scheduler_plugin", "magrathea_lab")
EXECUTABLE = 0o100


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]))
    return zipfile.ZipFile(built)


def test_every_file_of_the_packages_is_in_it_and_stays_executable(wheel: zipfile.ZipFile) -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    names = [str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts]
    modes = {info.filename: info.external_attr >> 16 for info in wheel.infolist()}
    assert "magrathea_lab/guests/root/etc/init.d/rcS" in names
    assert [name for name in names if name not in modes] == []
    executable = [name for name in names if (ROOT / name).stat().st_mode & EXECUTABLE]
    assert [name for name in executable if not modes[name] & EXECUTABLE] == []


def test_nothing_of_the_tests_is_in_it(wheel: zipfile.ZipFile) -> None:
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == set(PACKAGES)


def test_every_entry_point_is_in_it(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    modules = {point.partition(":")[0].replace(".", "/") for group in groups for point in group.values()}
    names = set(wheel.namelist())
    assert [name for name in modules if f"{name}.py" not in names and f"{name}/__init__.py" not in names] == []
