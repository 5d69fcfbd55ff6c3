"""The stand-in's scenarios on a real PBS: if the two differ, the stand-in is wrong."""

from __future__ import annotations

import pytest

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.scenarios.scenarios import SCENARIOS, Scenario


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(fleet: OpenPbsCluster, scenario: Scenario) -> None:
    with fleet.only(*SCENARIOS[scenario]):
        scenario(fleet)
