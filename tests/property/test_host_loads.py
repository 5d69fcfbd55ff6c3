"""The hub's file about a counted host and the hook's memory together never let too much through.

Whatever the order in which jobs start, are claimed, reported, end and are compared: the hook lets a job through only if
PBS's own sum allows it, apart from jobs that the host knows to have ended.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from magrathea.core.model import Mode, State
from magrathea.pbs_text.host_loads import load_path
from magrathea_lab.pbs_standin.pbs_module import Hook, HookJob, Server
from scheduler_plugin.hub.farm import Farm
from scheduler_plugin.hub.ledger import Kept
from scheduler_plugin.pbs.base import PbsJob, Vnode
from scheduler_plugin.setup.hook_texts import hook_text
from tests.fakes.reports import domain, report, snapshot

HOST_CPUS = 6
DOMAINS = ("n1", "n2", "n3")
MEMORY = "magrathea_server_memory"
AT_ONCE = {"UNSEEN_S = 5.0 ": "UNSEEN_S = 0.0 "}


def quick_hook(config: Path) -> Hook:
    """Nothing happens between a start and the moment at which PBS shows it, so no start is remembered longer."""
    text = hook_text("magrathea_server")
    for old, new in AT_ONCE.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    return Hook("magrathea_server", text, config)


@dataclass
class Running:
    """A job in PBS. `ended`: its host knows that it has ended."""

    vnode: str
    run: int
    ended: bool = False


class LoadWorld:
    """PBS, a counted host, the hub's farm and the hook. Each job has 2 CPUs."""

    def __init__(self, directory: Path) -> None:
        sys.modules.pop(MEMORY, None)
        heartbeat, config = directory / "heartbeat", directory / "hook.json"
        heartbeat.touch()
        config.write_text(json.dumps({"heartbeat": str(heartbeat), "heartbeat_max_age_s": 1e9}))
        self.hook = quick_hook(config)
        path = load_path(str(heartbeat), "h1")
        assert path is not None
        self.file = Path(path)
        self.file.parent.mkdir()
        self.farm = Farm(Kept([], {}), time.monotonic())
        self.in_pbs: dict[str, Running] = {}
        self.on_host: dict[str, Running] = {}
        self.down: set[str] = set()
        self.runs = self.boots = self.revision = self.by_file = 0
        self.starts(0)  # from now on the hook remembers
        self.in_pbs.clear()
        self.reports(0)
        self.compares(0)

    def assigned(self, vnode: str) -> int:
        return 2 * sum(job.vnode == vnode for job in self.in_pbs.values())

    def starts(self, number: int) -> None:
        """One of few jobs, so that some are started again."""
        id, vnode = f"{number}.srv", DOMAINS[number % len(DOMAINS)]
        if id in self.in_pbs:
            return
        published = {"magrathea_host": "h1", "magrathea_host_ncpus": HOST_CPUS, "magrathea_siblings": ""}
        vnodes = {
            one: {
                "resources_available": {
                    **published, "magrathea_siblings": ",".join(other for other in DOMAINS if other != one)
                },
                "resources_assigned": {"ncpus": self.assigned(one)}, "jobs": None,
            }
            for one in DOMAINS
        }  # fmt: skip
        job = {
            "id": id, "queue": "q", "schedselect": "1:ncpus=2:magrathea_accepts=protected",
            "exec_vnode": f"({vnode}:ncpus=2)", "run_version": self.runs,
        }  # fmt: skip
        server = Server("srv", vnodes, {}, {"magrathea_accepts": "protected"})
        if self.hook.run("runjob", server=server, job=HookJob(id, job, {})).accepted:
            really = 2 * sum(not running.ended for running in self.in_pbs.values())
            assert really + 2 <= HOST_CPUS
            self.by_file += 2 * len(self.in_pbs) + 2 > HOST_CPUS
            self.runs += 1
            self.in_pbs[id] = Running(vnode, self.runs)

    def claims(self, number: int) -> None:
        id = f"{number}.srv"
        if id in self.in_pbs and not self.in_pbs[id].ended and self.in_pbs[id].vnode not in self.down:
            self.on_host[id] = self.in_pbs[id]

    def ends(self, number: int) -> None:
        """First at the host, then, if it is said again, in PBS."""
        id = f"{number}.srv"
        if self.on_host.pop(id, None) is not None:
            if id in self.in_pbs:
                self.in_pbs[id].ended = True
        else:
            self.in_pbs.pop(id, None)

    def reports(self, _: int) -> None:
        domains = [
            domain(
                name,
                [replace(report(id, job.run), cpus=2) for id, job in self.on_host.items() if job.vnode == name],
                state=State.DOWN if name in self.down else State.RUNNING,
            )
            for name in DOMAINS
        ]
        self.revision += 1
        told = snapshot(*domains, boot_id=str(self.boots), revision=self.revision, mode=Mode.COUNTED, cpus=HOST_CPUS)
        self.farm.snapshot(told, time.time(), time.monotonic())
        self.writes()

    def compares(self, _: int) -> None:
        vnodes = [
            Vnode(name, {"resources_available.magrathea_host": "h1"}, frozenset({"free"}), ()) for name in DOMAINS
        ]
        jobs = [
            PbsJob(id, "R", 42, job.run, "q", (job.vnode,), exec_vnode=f"({job.vnode}:ncpus=2)")
            for id, job in self.in_pbs.items()
        ]
        mono = time.monotonic()
        self.farm.read_vnodes(vnodes, {})
        self.farm.read_jobs(jobs, time.time(), mono)
        self.writes()

    def writes(self) -> None:
        data = self.farm.load("h1")
        if data:
            self.file.write_bytes(data)
        else:
            self.file.unlink(missing_ok=True)

    def forgets(self, number: int) -> None:
        """The daemon starts anew without the facts of one domain."""
        vnode = DOMAINS[number % len(DOMAINS)]
        self.boots += 1
        self.on_host = {id: job for id, job in self.on_host.items() if job.vnode != vnode}
        self.reports(0)

    def switches(self, number: int) -> None:
        """A domain goes off or on."""
        vnode = DOMAINS[number % len(DOMAINS)]
        self.down ^= {vnode}
        self.on_host = {id: job for id, job in self.on_host.items() if job.vnode not in self.down}
        self.reports(0)

    def interprets_anew(self, _: int) -> None:
        sys.modules.pop(MEMORY, None)


EVENTS: list[Callable[[LoadWorld, int], None]] = [
    *[LoadWorld.starts] * 6, *[LoadWorld.claims] * 3, *[LoadWorld.reports] * 3, LoadWorld.ends, LoadWorld.compares,
    LoadWorld.forgets, LoadWorld.switches, LoadWorld.interprets_anew,
]  # fmt: skip
SOME = 20
"""Fewer events hardly fill the host."""


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), min_size=SOME, max_size=3 * SOME))
def test_no_order_of_events_lets_too_much_through(events: list[tuple[Callable[[LoadWorld, int], None], int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        world = LoadWorld(Path(directory))
        for happens, number in events:
            happens(world, number)


def test_the_hook_does_let_jobs_through_because_of_the_file(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    world = LoadWorld(tmp_path)
    for number in (5, 0, 1):
        for happens in (LoadWorld.starts, LoadWorld.claims, LoadWorld.reports):
            happens(world, number)
        world.compares(0)
    world.ends(0)
    world.reports(0)
    world.starts(2)
    assert (len(world.in_pbs), world.by_file) == (4, 1)
