"""The hub's files for the runjob hook: which vnodes of a counted host they show, and when they are there at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from magrathea.core.model import Mode, State
from magrathea.messages import DomainReport
from magrathea.pbs_text.host_loads import MOST_LOAD_BYTES
from scheduler_plugin.hub.farm import LEASE_S
from scheduler_plugin.hub.vnode_attributes import HOST
from scheduler_plugin.pbs.base import PbsJob
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, job, report, snapshot
from tests.unit.hub.simulated_hub import SimHub


@pytest.fixture
def pbs() -> FakePbs:
    return FakePbs("n1", "n2", "n3")


def running(id: str, state: str = "R", vnode: str = "n1") -> PbsJob:
    """A job of one CPU on that vnode."""
    return replace(job(id, state, vnodes=(vnode,)), exec_vnode=f"({vnode}:ncpus=1)")


class CountedHost:
    """A hub and one counted host."""

    def __init__(self, pbs: FakePbs) -> None:
        self.hub = SimHub(pbs)
        self.revision = 0

    def says(self, *domains: DomainReport, boot_id: str = "boot", mode: Mode = Mode.COUNTED) -> None:
        self.revision += 1
        made = snapshot(*domains, revision=self.revision, boot_id=boot_id, mode=mode)
        self.hub.farm.snapshot(made, self.hub.at, self.hub.at)
        wanted, _ = self.hub.farm.publication(self.hub.at, "h1")
        for name, attributes in wanted.items():
            self.hub.pbs.connect().set_vnode(name, {HOST: attributes[HOST]} if HOST in attributes else {})

    @property
    def shown(self) -> dict[str, Any]:
        """The jobs in its file, by vnode; empty without a file."""
        data = self.hub.farm.load("h1")
        return dict(json.loads(data)["vnodes"]) if data else {}


@pytest.fixture
def host(pbs: FakePbs) -> CountedHost:
    """Its vnodes n1 and n2 are published. n1 has a job."""
    made = CountedHost(pbs)
    pbs.put(running("1.srv"))
    made.says(domain("n1", [report("1.srv", 4)]), domain("n2"))
    assert made.shown == {}, "nothing was compared yet"
    made.hub.read()
    return made


def test_after_a_comparison_the_file_has_the_jobs_of_all_vnodes(host: CountedHost) -> None:
    assert host.shown == {"n1": {"1.srv": [4, 1]}, "n2": {}}
    assert json.loads(host.hub.farm.load("h1"))["compared"] == host.hub.at


def test_the_file_follows_the_hosts_reports(host: CountedHost) -> None:
    host.says(domain("n1"), domain("n2", [report("2.srv", 1, stop=True)]))
    assert host.shown == {"n1": {}, "n2": {"2.srv": [1, 1]}}


def test_a_vnode_with_a_job_that_its_host_does_not_report_is_left_out(host: CountedHost, pbs: FakePbs) -> None:
    pbs.put(running("5.srv", vnode="n2"))
    host.hub.read()
    assert host.shown == {"n1": {"1.srv": [4, 1]}}
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2", [report("5.srv")]))
    host.hub.read()
    assert host.shown.keys() == {"n1", "n2"}


def test_so_is_one_with_a_job_that_has_more_cpus_in_pbs(host: CountedHost, pbs: FakePbs) -> None:
    for there in ("(n1:ncpus=8)", "", "(n1:ncpus=x)"):
        pbs.change("1.srv", exec_vnode=there)
        host.hub.read()
        assert host.shown.keys() == {"n2"}


def test_a_job_that_ends_or_is_suspended_in_pbs_need_not_be_reported(host: CountedHost, pbs: FakePbs) -> None:
    pbs.put(running("5.srv", "E", "n2"))
    pbs.put(running("6.srv", "S", "n2"))
    host.hub.read()
    assert host.shown.keys() == {"n1", "n2"}


def test_a_daemon_that_starts_anew_is_believed_after_the_next_comparison(host: CountedHost) -> None:
    """It may have lost its facts."""
    host.says(domain("n1"), domain("n2"), boot_id="another")
    assert host.shown == {}
    host.hub.read()
    assert host.shown == {"n2": {}}


@pytest.mark.parametrize("state", [State.DOWN, State.BOOTING, State.UNKNOWN, State.FROZEN])
def test_a_domain_without_lists_is_left_out_until_the_next_comparison(host: CountedHost, state: State) -> None:
    """PBS may still run its jobs, which the host has forgotten."""
    n1 = [report("1.srv", 4)]
    host.says(domain("n1", state=state), domain("n2"))
    host.says(domain("n1", n1), domain("n2"))
    assert host.shown == {"n2": {}}
    host.hub.read()
    assert host.shown.keys() == {"n1", "n2"}


def test_an_empty_domain_that_is_down_hinders_nothing(host: CountedHost) -> None:
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2", state=State.DOWN))
    host.hub.read()
    assert host.shown.keys() == {"n1", "n2"}
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2"))
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2", state=State.DOWN))
    assert host.shown.keys() == {"n1"}, "it was up meanwhile"


def test_a_silent_host_an_exclusive_one_and_an_unknown_one_have_no_file(host: CountedHost) -> None:
    assert host.hub.farm.load("h2") == b""
    host.hub.farm.leases(host.hub.at + LEASE_S + 1)
    assert host.shown == {}
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2"), mode=Mode.EXCLUSIVE)
    host.hub.read()
    assert host.shown == {}


def test_a_vnode_that_was_not_published_as_the_hosts_when_they_were_compared_is_left_out(host: CountedHost) -> None:
    """The hook did not remember what started there."""
    host.says(domain("n1", [report("1.srv", 4)]), domain("n3"))
    assert host.shown.keys() == {"n1"}
    host.hub.read()
    assert host.shown.keys() == {"n1", "n3"}


def test_a_file_that_would_be_too_long_is_not_written(host: CountedHost) -> None:
    many = [report(f"{number}.srv") for number in range(MOST_LOAD_BYTES // 16)]
    host.says(domain("n1", [report("1.srv", 4)]), domain("n2", many))
    assert host.shown == {}
