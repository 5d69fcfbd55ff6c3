"""docs/walk-through.md, followed line by line on a real OpenPBS without Magrathea (pages.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from tests.documents import ROOT, blocks

from .pages import PIP, bare_site, follow
from .test_install import picture

DOCUMENT = ROOT / "docs/walk-through.md"
GUIDE = ROOT / "docs/admin-guide.md"
GUIDES_JOB = "explain 12"


@pytest.fixture
def site() -> Iterator[PrivateOpenPbs]:
    with bare_site() as cluster:
        yield cluster


def _operate(cluster: PrivateOpenPbs) -> None:
    """Run the administrator's guide's commands that name a place, on the present cluster."""
    [job] = cluster.run(HEAD, ["qselect", "-N", "patient"]).stdout.split()
    found = [block for block in blocks(GUIDE) if block.language == "sh" and block.words]
    assert any(GUIDES_JOB in block.text for block in found)
    for block in found:
        follow(cluster, replace(block, text=block.text.replace(GUIDES_JOB, f"explain {job}")), None)


def test_every_command_of_the_walk_through_does_what_it_shows(site: PrivateOpenPbs) -> None:
    before = picture(site)
    found = blocks(DOCUMENT)
    begins = DOCUMENT.read_text().partition("## 6.")[0].count("\n")
    assert begins < found[-1].line
    assert {block.language for block in found} == {"sh", "output"}
    assert sum(bool(PIP.search(block.text)) for block in found) == 1, "what stands in for pip is used"
    for number, block in enumerate(found):
        if block.line > begins:
            begins = sys.maxsize
            _operate(site)
        if block.language == "sh":
            following = found[number + 1] if number + 1 < len(found) else None
            expected = following.text if following and following.language == "output" else None
            follow(site, block, expected)
    site.qmgr("delete resource stop_signal")  # the guide lets an administrator create it by hand
    assert picture(site) == before
