"""The runjob hook on a counted host, with the hub's file about its load.

What it asks the server for, and that it lets through no more than the server's own sums allow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea.pbs_text.host_loads import MOST_LOAD_BYTES, load_path
from magrathea_lab.pbs_standin.pbs_module import Entity, Hook, HookJob, HookOutcome, Server
from scheduler_plugin.setup.hook_texts import hook_text

HOST_CPUS = 8
DOMAINS = ("n1", "n2", "n3")
MEMORY = "magrathea_server_memory"
Jobs = dict[str, dict[str, list[int]]]
"""By vnode and job id: run version and CPUs."""


class CountingServer(Server):
    """Remembers whose vnodes it was asked for."""

    asked: list[str]

    def vnode(self, name: str) -> Entity | None:
        self.asked.append(name)
        return super().vnode(name)


class LoadSite:
    """A counted host, the server's sums for it, and the hub's file. All jobs are of one CPU unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self.heartbeat = directory / "heartbeat"
        self.heartbeat.touch()
        config = directory / "hook.json"
        config.write_text(json.dumps({"heartbeat": str(self.heartbeat), "heartbeat_max_age_s": 30}))
        self.hook = Hook("magrathea_server", hook_text("magrathea_server"), config)
        self.assigned = dict.fromkeys(DOMAINS, 0)
        path = load_path(str(self.heartbeat), "h1")
        assert path is not None
        self.file = Path(path)
        self.file.parent.mkdir()
        self.asked: list[str] = []

    def write(self, jobs: Jobs, *, ago_s: float = 0.0) -> None:
        """The hub's file, with a comparison so long ago."""
        self.file.write_text(json.dumps({"compared": time.monotonic() - ago_s, "vnodes": jobs}))

    def run(self, id: str, vnode: str = "n1", cpus: int = 1, run: int = 0) -> HookOutcome:
        """The hook's outcome for a job; if it is let through, the server counts it."""
        published = {"magrathea_host": "h1", "magrathea_host_ncpus": HOST_CPUS, "ncpus": HOST_CPUS}
        vnodes: dict[str, dict[str, Any]] = {
            name: {
                "resources_available": {
                    **published,
                    "magrathea_siblings": ",".join(other for other in DOMAINS if other != name),
                },
                "resources_assigned": {"ncpus": self.assigned[name]},
                "jobs": None,
            }
            for name in DOMAINS
        }
        server = CountingServer("srv", vnodes, {}, {"magrathea_accepts": "protected"})
        server.asked = self.asked = []
        job = {
            "id": id,
            "queue": "q",
            "schedselect": f"1:ncpus={cpus}:magrathea_accepts=protected",
            "exec_vnode": f"({vnode}:ncpus={cpus})",
            "run_version": run,
        }
        outcome = self.hook.run("runjob", server=server, job=HookJob(id, job, {}))
        if outcome.accepted:
            self.assigned[vnode] += cpus
        return outcome

    @property
    def asked_for_all(self) -> bool:
        return set(self.asked) == set(DOMAINS)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LoadSite]:
    sys.modules.pop(MEMORY, None)
    made = LoadSite(tmp_path)
    assert made.run("0.srv", cpus=0).accepted  # from now on the hook remembers what it lets through
    yield made
    sys.modules.pop(MEMORY, None)


def test_with_the_hubs_file_it_asks_for_the_jobs_own_vnode_only(site: LoadSite) -> None:
    site.assigned["n2"] = 3
    site.write({"n1": {}, "n2": {"7.srv": [1, 3]}, "n3": {}})
    assert site.run("1.srv", cpus=5).accepted
    assert site.asked == ["n1"]


def test_what_the_file_says_is_too_much_is_decided_by_the_servers_sums(site: LoadSite) -> None:
    site.write({"n1": {}, "n2": {"7.srv": [1, 8]}, "n3": {}})  # the server knows already that it has ended
    assert site.run("1.srv").accepted
    assert site.asked_for_all
    site.assigned["n2"] = 8
    refused = site.run("2.srv")
    assert not refused.accepted
    assert "no-cpus" in refused.message


def test_a_start_that_the_file_does_not_show_yet_counts(site: LoadSite) -> None:
    site.write({"n1": {}, "n2": {}, "n3": {}})
    assert site.run("1.srv", "n1", cpus=5).accepted
    assert not site.run("2.srv", "n2", cpus=4).accepted
    assert site.asked_for_all
    assert site.run("2.srv", "n2", cpus=3).accepted
    assert site.asked == ["n2"]


def test_a_start_that_the_file_has_shown_is_over_when_the_file_shows_it_no_longer(site: LoadSite) -> None:
    site.write({"n1": {}, "n2": {}, "n3": {}}, ago_s=0)
    assert site.run("1.srv", "n1", cpus=5).accepted
    site.write({"n1": {"1.srv": [1, 5]}, "n2": {}, "n3": {}})
    assert site.run("2.srv", "n2", cpus=3).accepted
    site.write({"n1": {}, "n2": {"2.srv": [1, 3]}, "n3": {}})
    assert site.run("3.srv", "n3", cpus=5).accepted
    assert site.asked == ["n3"]


def test_an_older_run_in_the_file_does_not_stand_for_a_new_start(site: LoadSite) -> None:
    site.write({"n1": {"1.srv": [3, 1]}, "n2": {}, "n3": {}})
    assert site.run("1.srv", "n1", cpus=7, run=3).accepted
    site.run("2.srv", "n2")
    assert site.asked_for_all


def test_a_guest_that_makes_its_job_smaller_makes_no_room(site: LoadSite) -> None:
    """The file has what the guest has claimed, until the host has asked PBS."""
    site.write({"n1": {}, "n2": {}, "n3": {}})
    assert site.run("1.srv", "n1", cpus=5).accepted
    site.write({"n1": {"1.srv": [1, 0]}, "n2": {}, "n3": {}})
    assert not site.run("2.srv", "n2", cpus=4).accepted


def test_a_vnode_that_the_file_leaves_out_is_asked_about(site: LoadSite) -> None:
    site.assigned["n3"] = 6
    site.write({"n1": {}, "n2": {}})
    assert site.run("1.srv", cpus=2).accepted
    assert site.asked == ["n1", "n3"]
    assert not site.run("2.srv", cpus=1).accepted


def test_a_file_from_before_the_hooks_memory_is_not_used(site: LoadSite) -> None:
    """PBS starts a new interpreter now and then. What it let through before is forgotten."""
    site.write({"n1": {}, "n2": {}, "n3": {}})
    assert site.run("1.srv", "n1", cpus=8).accepted
    sys.modules.pop(MEMORY)
    assert not site.run("2.srv", "n2").accepted


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"compared": 1e9, "vnodes": {}}', '{"compared": "x", "vnodes": {}}', '{"compared": 1}',
        '{"compared": NOW, "vnodes": []}', '{"compared": NOW, "vnodes": {"n2": {"1.srv": [1, -99]}}}',
        '{"compared": NOW, "vnodes": {"n2": {"1.srv": 5}}}', '{"compared": NOW, "vnodes": {"n2": {"1.srv": [1]}}}',
        '{"compared": NOW, "vnodes": {"n2": 5}}', '{"compared": NOW, "vnodes": {"n2": {"1.srv": ["1", "1"]}}}',
        '{"compared": NOW, "vnodes": {"n2": {}}, "x": "\xff"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_as_good_as_none(site: LoadSite, content: str) -> None:
    site.assigned["n2"] = 8
    site.file.write_bytes(content.replace("NOW", str(time.monotonic())).encode("latin-1"))
    assert not site.run("1.srv").accepted
    site.assigned["n2"] = 7
    assert site.run("1.srv").accepted


def test_a_file_that_others_may_write_a_link_a_pipe_and_a_long_one_are_not_used(site: LoadSite, tmp_path: Path) -> None:
    site.assigned["n2"] = 8

    def used() -> bool:
        return site.run("1.srv").accepted

    site.write({"n1": {}, "n2": {}, "n3": {}})
    site.file.chmod(0o666)
    assert not used()
    site.file.chmod(0o644)
    site.file.rename(tmp_path / "elsewhere")
    site.file.symlink_to(tmp_path / "elsewhere")
    assert not used()
    site.file.unlink()
    os.mkfifo(site.file)
    assert not used()
    site.file.unlink()
    site.write({"n1": {}, "n2": {}, "n3": {}})
    site.file.write_text(site.file.read_text() + " " * MOST_LOAD_BYTES)
    assert not used()
    site.write({"n1": {}, "n2": {}, "n3": {}})
    assert used(), "otherwise none of the above shows anything"


def test_without_a_hub_that_answers_the_file_is_not_used(site: LoadSite) -> None:
    site.assigned["n2"] = 8
    site.write({"n1": {}, "n2": {}, "n3": {}})
    os.utime(site.heartbeat, (time.time() - 60, time.time() - 60))
    assert not site.run("1.srv").accepted


@pytest.mark.parametrize("host", ["", "..", ".x", "a/b", "../h1", "a b", "h\n", "h" * 300, "x\0", "hé", "½"])
def test_a_host_with_an_unsafe_name_has_no_file(host: str) -> None:
    assert load_path("/run/heartbeat", host) is None


def test_the_hook_remembers_a_bounded_number_of_starts(site: LoadSite) -> None:
    site.hook = Hook(
        "magrathea_server",
        hook_text("magrathea_server").replace("MOST_STARTS = 10000 ", "MOST_STARTS = 3 "),
        Path(str(site.hook.config)),
    )
    site.write({"n1": {}, "n2": {}, "n3": {}})
    for number in range(HOST_CPUS):
        assert site.run(f"{number}.srv").accepted
        assert len(sys.modules[MEMORY].starts["h1"]) <= 3
    assert not site.run("9.srv", "n2").accepted


def test_the_hook_forgets_old_starts_and_then_uses_no_comparison_from_before(site: LoadSite) -> None:
    """PBS may keep its interpreter for months, and remembers starts on all hosts."""
    text = hook_text("magrathea_server")
    assert text.count("KEPT_S = 900.0 ") == 1
    site.hook = Hook("magrathea_server", text.replace("KEPT_S = 900.0 ", "KEPT_S = 0.0 "), Path(str(site.hook.config)))
    for number in range(1, HOST_CPUS):
        assert site.run(f"{number}.srv").accepted
        assert len(sys.modules[MEMORY].starts["h1"]) == 1
    site.write({"n1": {}, "n2": {}, "n3": {}})
    assert site.run("8.srv").accepted
    assert site.asked_for_all
