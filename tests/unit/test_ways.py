"""The four ways of use (deploy/ways/): the daemon itself reads each file, and its host does what the file's head
states."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea.core.machine import handle
from magrathea.core.model import Host, Lifecycle
from magrathea.core.reconfiguration import UNKNOWN_HOST
from magrathea_lab.waiting import BOUND_S
from node_daemon.configuration import read
from scheduler_plugin.setup.cli import pbs
from tests.samples import on_a_host
from tests.unit.core.builders import HIGH, LOW, PROTECTED, T, accepts, claim, defrost, run, set_domain, wanted

WAYS = Path(__file__).parents[2] / "deploy/ways"
FILES = sorted(WAYS.glob("*.toml"))


def up(way: str) -> Host:
    """The file's host with all domains up and connected, and a hub."""
    host = handle(UNKNOWN_HOST, read(WAYS / f"{way}.toml").reconfigured(T))[0]
    domains = tuple(replace(d, lifecycle=Lifecycle.UP, agent_lost_at=None) for d in host.domains)
    return replace(host, domains=domains, hub_lost=False)


def test_there_is_a_file_for_each_way() -> None:
    assert {file.stem for file in FILES} == {"exclusive", "preemption", "counted", "frozen"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_daemon_takes_it(file: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "node_daemon.main", "--check", "--config", str(on_a_host(file, tmp_path))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BOUND_S)
    if read(file).host.driver == "libvirt" and find_spec("libvirt") is None:
        assert "magrathea[libvirt]" in done.stderr, "all that it lacks here"
        assert done.stderr.count("ERROR") == 1
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_command_for_pbs_names_its_vnodes(file: Path) -> None:
    [line] = re.findall(r"^#   magrathea pbs (install .*)$", file.read_text(), re.MULTILINE)
    words = line.split()
    parsed = CliRunner().invoke(pbs, [*words, "--conf", "/nonexistent"])
    assert parsed.exit_code == 1 and "/nonexistent" in parsed.output, "understood, as far as the missing pbs.conf"
    workers = {name for name, table in read(file).domain.items() if table.kind != "service"}
    assert {words[i + 1] for i, word in enumerate(words) if word == "--vnode"} == workers


def test_exclusive_one_environment_has_the_host_and_nobody_is_stopped() -> None:
    h = up("exclusive")
    assert accepts(h, "debian1") == accepts(h, "rocky1") == {LOW, PROTECTED}
    h = run(h, "debian1", "1", cls=PROTECTED)
    assert claim(h, "debian1", "2", cls=PROTECTED).ok
    assert claim(h, "rocky1", "3", cls=PROTECTED).code == "host-busy" and not accepts(h, "rocky1")


def test_preemption_a_priority_job_stops_preemptible_ones_and_no_others() -> None:
    h = run(up("preemption"), "n1", "1")
    assert accepts(h, "p1") == {HIGH}
    answer = claim(h, "p1", "2")
    assert answer.victims == ("n1",) and wanted(answer.host) == {"1"}
    assert claim(run(h, "n1", "3", cls=PROTECTED), "p1", "2").code == "host-busy"
    assert claim(run(h, "n1", "3", age=30), "p1", "2").code == "host-busy", "it has not run a minute yet"


def test_counted_the_best_fitting_domain_is_stopped_and_the_service_is_only_subtracted() -> None:
    h = up("counted")
    for domain, cpus in (("n1", 32), ("n2", 16), ("n3", 12)):
        h = run(h, domain, domain, cpus=cpus)
    assert claim(h, "n3", "8").code == "cpus", "64 less 4 of the storage server are taken"
    assert claim(h, "p1", "9", cpus=16).victims == ("n2",)
    assert claim(h, "p1", "9", cpus=12).victims == ("n3",)
    assert claim(h, "p1", "9", cpus=28).victims == ("n2", "n3")


def test_only_preemptible_jobs_borrow_a_frozen_domains_cpus_and_are_stopped_for_its_return() -> None:
    h = set_domain(up("frozen"), "web", frozen=True, lifecycle=Lifecycle.DOWN)
    h = run(h, "n1", "1", cpus=48)
    assert claim(h, "n2", "2", cls=PROTECTED).code == "cpus"
    assert claim(h, "n2", "2", cpus=16).ok
    h = run(h, "n2", "2", cpus=16)
    answer = defrost(h, "web", within=120)
    assert answer.victims == ("n2",)
