"""Each quick path of the documents leads from a bare PBS to a first preemption, with nothing but what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from tests.documents import DOCUMENTS, ROOT, Block, blocks

from .pages import MACHINES, bare_site, follow

WORD = "path"
"""The blocks of a page with this word, one after another, are its quick path."""
PAGES = [page for page in DOCUMENTS if any(WORD in block.words for block in blocks(page))]


def path_of(page: Path) -> list[tuple[Block, str | None]]:
    """Each block of the quick path, and what the page shows as its output."""
    found = blocks(page)
    shown = [after.text if after.language == "output" else None for after in found[1:]] + [None]
    return [(block, text) for block, text in zip(found, shown, strict=True) if WORD in block.words]


def state(site: PrivateOpenPbs, name: str) -> str:
    """The state letter of the job with this name."""
    [job] = site.run(HEAD, ["qselect", "-x", "-N", name]).stdout.split()
    return str(site.job(job)["job_state"])


def test_the_pages_with_a_quick_path_are_found() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} == {"README.md", "deploy/README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_quick_path_leads_to_a_first_preemption(page: Path) -> None:
    with bare_site() as site:
        for block, shown in path_of(page):
            assert set(block.words) <= {*MACHINES, WORD, "again"}, block.place
            follow(site, block, shown)
        assert state(site, "patient") == "S"
        assert site.run(HEAD, ["bash", "-l", "-c", "magrathea pbs check --format plain"]).returncode == 0
