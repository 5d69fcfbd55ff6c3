"""The scenarios on the PBS stand-in; hub, node daemons, agents and hook files are real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magrathea_lab.clusters.standin import StandInCluster
from magrathea_lab.fleet import HostSpec
from magrathea_lab.scenarios.scenarios import SCENARIOS, Scenario


class Clusters:
    """One cluster at a time, reused while the next scenario needs the same hosts and none has failed."""

    def __init__(self) -> None:
        self._hosts: tuple[HostSpec, ...] = ()
        self._cluster: StandInCluster | None = None

    def of(self, hosts: tuple[HostSpec, ...]) -> StandInCluster:
        if self._cluster is None or self._hosts != hosts:
            self.close()
            cluster = StandInCluster(hosts)
            try:
                cluster.start()
            except BaseException:
                cluster.close()
                raise
            self._cluster, self._hosts = cluster, hosts
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


@pytest.fixture(scope="module")
def clusters() -> Iterator[Clusters]:
    made = Clusters()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(clusters: Clusters, scenario: Scenario) -> None:
    cluster = clusters.of(SCENARIOS[scenario])
    try:
        scenario(cluster)
    except BaseException:
        clusters.close()  # the next scenario gets a new cluster
        raise
