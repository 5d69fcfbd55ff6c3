"""One private OpenPBS cluster, with Magrathea on it, for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.fleet import ANOTHER, COUNTED, EXCLUSIVE

EAGER = replace(ANOTHER, limits={"min_run_s": 0.0})
"""Stops a job as soon as the agent sees a process of it."""


@pytest.fixture(scope="session")
def _fleet() -> Iterator[OpenPbsCluster]:
    with OpenPbsCluster([EXCLUSIVE, COUNTED, EAGER]) as fleet:
        yield fleet


@pytest.fixture
def fleet(_fleet: OpenPbsCluster) -> Iterator[OpenPbsCluster]:
    """The cluster with all parts running and all domains free, before and after the test."""
    yield _fleet
    _fleet.restore()
