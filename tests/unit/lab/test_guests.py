"""The content of the guests of tests and demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from magrathea_lab.guests.image import own_files

ROOT = Path(__file__).parents[3]
RIG, DEMO, OPENPBS = (
    ROOT / tree for tree in ("magrathea_lab/guests/rig", "magrathea_lab/guests/demo", "magrathea_lab/guests/openpbs")
)


@pytest.mark.parametrize("trees", [(RIG,), (DEMO,), (RIG, OPENPBS)], ids=["rig", "demo", "OpenPBS"])
def test_a_guest_has_each_program_that_its_services_start(trees: tuple[Path, ...]) -> None:
    files = {path: content for path, _, content in own_files(trees)}
    programs = re.findall(r"exec python3 .*?(/\S+)", files["sbin/service"].decode())
    assert "/usr/lib/magrathea-agent" in programs
    # the program that makes the guest adds MoM's module and its options
    started = [program.lstrip("/") for program in programs if not program.startswith("/dev/")]
    assert [program for program in started if not {program, f"{program}/__main__.py"} & files.keys()] == []
