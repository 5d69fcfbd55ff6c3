"""The local driver with real processes: control groups if the machine permits them, affinity as an ordinary user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S, eventually, until
from node_daemon.hypervisor.base import CPU, LIFE, SAVE, DomainChange, DriverError
from node_daemon.hypervisor.local import cgroups, processes
from node_daemon.hypervisor.local import driver as local
from node_daemon.hypervisor.local.driver import AffinityCapper, GroupCapper, LocalDriver

NOBODY = 65534
CPUS = sorted(os.sched_getaffinity(0))
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="NOT RUN: affinity can cap nothing on a machine with one CPU")

# A root process with a thread, a child that has a child, and the same again in a session of its own.
TREE = """
import os, subprocess, threading, time
# user
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
subprocess.Popen(["sh", "-c", "sleep 600 & exec sleep 600"])
subprocess.Popen(["sh", "-c", "sleep 600 & exec sleep 600"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
MEMBERS = 5
# Only root may be able to read the interpreter, so the user changes after its start.
AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="magrathea-local-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """The rest of the test has no root rights, whoever runs it."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def grouped() -> None:
    """Skip the test, with the reason, if this machine or user may not make control groups."""
    host = f"probe-{os.getpid()}"
    capper = local.choose_capper(host, ["n1"])
    capper.close()
    if not isinstance(capper, GroupCapper):
        pytest.skip(f"NOT RUN: capping by control groups; {capper.notes[0]}")


class Machine:
    """A domain's processes. `start` writes the pid file as a real start script does."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file
        self.root: subprocess.Popen[str] | None = None
        self.pids: list[int] = []

    def start(self, program: str = TREE) -> int:
        only_effective = os.getuid() == 0 != os.geteuid()
        if only_effective:
            program = program.replace("# user", AS_NOBODY)
            os.seteuid(0)
        try:
            self.root = subprocess.Popen(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        finally:
            if only_effective:
                os.seteuid(NOBODY)
        assert self.root.stdout is not None
        assert self.root.stdout.readline() == "ready\n"
        self.pid_file.write_text(f"{self.root.pid}\n")
        self.pids = self.members()
        if "sleep" in program:
            until(lambda: len(self.members()) == MEMBERS, "all shells have forked")
            self.pids = self.members()
        return self.root.pid

    def members(self) -> list[int]:
        assert self.root is not None
        process = processes.look(self.root.pid)
        return [] if process is None else processes.Members(process).find()

    def end_root(self) -> None:
        assert self.root is not None
        self.root.kill()
        self.root.wait(BOUND_S)

    def clean(self) -> None:
        if self.root is None:
            return
        with contextlib.ExitStack() as stack:
            if os.getuid() == 0 != os.geteuid():
                os.seteuid(0)
                stack.callback(os.seteuid, NOBODY)
            for pid in {*self.pids, *self.members()} - {self.root.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.end_root()
        assert self.root.stdout is not None
        self.root.stdout.close()


@pytest.fixture
def machine(place: Path) -> Iterator[Machine]:
    machine = Machine(place / "n1.pid")
    yield machine
    machine.clean()
    for _, group in groups_of(f"test-{os.getpid()}"):  # left by a driver that closed while the domain was up
        wait_until_empty(group)
        for empty in (group, group.parent, group.parent.parent):
            cgroups.remove_if_empty(empty)


@contextlib.asynccontextmanager
async def driving(
    machine: Machine, choose: Callable[[str, list[str]], local.Capper] = local.choose_capper
) -> AsyncIterator[tuple[LocalDriver, asyncio.Queue[DomainChange]]]:
    driver = LocalDriver(f"test-{os.getpid()}", {"n1": machine.pid_file}, choose)
    events: asyncio.Queue[DomainChange] = asyncio.Queue()
    try:
        await driver.start(events.put_nowait)
        yield driver, events
    finally:
        await driver.close()


async def next_event(events: asyncio.Queue[DomainChange]) -> DomainChange:
    return await asyncio.wait_for(events.get(), BOUND_S)


def affinities(pids: list[int]) -> set[frozenset[int]]:
    return {frozenset(os.sched_getaffinity(thread)) for pid in pids for thread in processes.threads(pid)}


async def check_life_and_death(machine: Machine) -> None:
    async with driving(machine) as (driver, events):
        assert await next_event(events) == DomainChange("n1", up=False)
        assert not (await driver.actual())["n1"].up
        machine.start()
        assert await next_event(events) == DomainChange("n1", up=True)
        assert (await driver.actual())["n1"].up
        machine.end_root()
        assert await next_event(events) == DomainChange("n1", up=False)
        assert not (await driver.actual())["n1"].up
        with pytest.raises(DriverError) as down:
            await driver.set_cpu("n1", 10)
        assert down.value.code == "domain-down"


def test_a_domain_is_up_while_its_root_process_lives(machine: Machine) -> None:
    asyncio.run(check_life_and_death(machine))


def test_without_pidfds_the_end_of_a_root_process_is_noticed_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_call(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", no_such_call)
    asyncio.run(check_life_and_death(machine))


def test_a_domain_already_up_is_reported_during_start(machine: Machine) -> None:
    async def run() -> None:
        machine.start()
        async with driving(machine) as (_, events):
            assert events.get_nowait() == DomainChange("n1", up=True)

    asyncio.run(run())


def test_a_pid_file_that_names_a_younger_process_is_stale(machine: Machine) -> None:
    machine.start()
    assert processes.root_of(machine.pid_file) is not None
    before = time.time() - 3600
    os.utime(machine.pid_file, (before, before))
    assert processes.root_of(machine.pid_file) is None


@pytest.mark.parametrize(("text", "pid"), [("", None), ("4194999\n", None), ("1\n", ValueError), ("x", ValueError)])
def test_a_pid_file_without_a_living_process(place: Path, text: str, pid: type[Exception] | None) -> None:
    (place / "f").write_text(text)
    if pid is None:
        assert processes.root_of(place / "f") is None
    else:
        with pytest.raises(pid):
            processes.root_of(place / "f")


def test_members_are_remembered_when_their_parent_has_ended(machine: Machine) -> None:
    pid = machine.start()
    root = processes.look(pid)
    assert root is not None
    members = processes.Members(root)
    before = set(members.find())
    assert len(before) == MEMBERS
    machine.end_root()
    assert set(members.find()) == before - {pid}
    assert set(members.known()) == before - {pid}


def test_the_daemon_and_its_children_are_no_members() -> None:
    mine = processes.look(os.getppid())
    assert mine is not None
    assert os.getpid() not in processes.Members(mine).find()


async def check_group_cap(machine: Machine) -> None:
    machine.start()
    async with driving(machine) as (driver, events):
        assert (await next_event(events)).up
        assert driver.capabilities == {CPU}
        await driver.set_cpu("n1", 10)
        assert (await driver.actual())["n1"].cpu_percent == 10
        [(version, group)] = groups_of(f"test-{os.getpid()}")
        assert cgroups.pids_in(group) == set(machine.members())
        for percent in (2, 150, 5, None):
            await driver.set_cpu("n1", percent)
            assert (await driver.actual())["n1"].cpu_percent == percent == driver.nearest_cpu(percent)
        await driver.set_cpu("n1", 20)
    # the processes still run, so they are still capped, and the next driver reads the cap back
    assert cgroups.get_cap(version, group) == 20
    async with driving(machine) as (driver, _):
        assert (await driver.actual())["n1"].cpu_percent == 20
        machine.clean()
        wait_until_empty(group)
    assert not group.exists()
    assert not group.parent.exists()


def groups_of(host: str) -> list[tuple[cgroups.Version, Path]]:
    texts = [Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup")]
    return [
        (version, base / "magrathea" / host / "n1")
        for version, top, own in cgroups.own_groups(*texts)
        for base in {own, own.parent, top}
        if (base / "magrathea" / host / "n1").is_dir()
    ]


def wait_until_empty(group: Path) -> None:
    until(lambda: not cgroups.pids_in(group), lambda: f"{group} has no processes; {cgroups.pids_in(group)}")


@pytest.mark.usefixtures("grouped")
def test_a_control_group_caps_all_processes_and_is_read_back(machine: Machine) -> None:
    asyncio.run(check_group_cap(machine))


@pytest.mark.usefixtures("grouped")
def test_a_capped_group_is_throttled(machine: Machine) -> None:
    async def run() -> None:
        machine.start("print('ready', flush=True)\nwhile True: pass")
        async with driving(machine) as (driver, _):
            await driver.set_cpu("n1", 10)
            [(_, group)] = groups_of(f"test-{os.getpid()}")

            def throttled() -> bool:
                stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
                return int(stat["nr_throttled"]) > 3

            await eventually(throttled, lambda: f"it is throttled; {(group / 'cpu.stat').read_text()}")

    asyncio.run(run())


@needs_two_cpus
@pytest.mark.usefixtures("ordinary_user")
def test_an_ordinary_user_caps_by_affinity() -> None:
    place = Path(tempfile.mkdtemp(prefix="magrathea-local-"))  # as that user
    machine = Machine(place / "n1.pid")

    async def run() -> None:
        machine.start()
        async with driving(machine, lambda host, names: AffinityCapper(CPUS, "the test wants it so")) as (driver, _):
            assert driver.capabilities == {CPU}
            assert (await driver.actual())["n1"].cpu_percent is None
            await driver.set_cpu("n1", 10)
            assert affinities(machine.members()) == {frozenset(CPUS[:1])}
            assert (await driver.actual())["n1"].cpu_percent == 100 == driver.nearest_cpu(10)
            await driver.set_cpu("n1", None)
            assert affinities(machine.members()) == {frozenset(CPUS)}
            assert (await driver.actual())["n1"].cpu_percent is None is driver.nearest_cpu(100 * len(CPUS))

    try:
        asyncio.run(run())
    finally:
        machine.clean()
        shutil.rmtree(place)


@pytest.mark.usefixtures("ordinary_user")
def test_the_notes_tell_an_ordinary_user_that_there_are_no_groups() -> None:
    capper = local.choose_capper(f"test-{os.getpid()}", ["n1"])
    try:
        if isinstance(capper, GroupCapper):
            pytest.skip("NOT RUN: affinity instead of control groups; this user may make control groups")
        assert "control groups cannot be used" in capper.notes[0]
    finally:
        capper.close()


@needs_two_cpus
def test_a_process_of_another_user_cannot_be_capped_and_that_is_reported(machine: Machine) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: processes of another user; only root can start one")

    async def run() -> None:
        machine.start()  # as root
        async with driving(machine, lambda host, names: AffinityCapper(CPUS, "the test wants it so")) as (driver, _):
            os.seteuid(NOBODY)
            try:
                with pytest.raises(DriverError) as refused:
                    await driver.set_cpu("n1", 10)
            finally:
                os.seteuid(0)
            assert refused.value.code == "not-permitted"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("domain", "percent", "code"), [("n2", 10, "no-domain"), ("n1", 0, "bad-value"), ("n1", -5, "bad-value")]
)
def test_impossible_caps_are_refused(machine: Machine, domain: str, percent: int, code: str) -> None:
    async def run() -> None:
        machine.start()
        async with driving(machine, lambda host, names: AffinityCapper(CPUS, "")) as (driver, _):
            with pytest.raises(DriverError) as refused:
                await driver.set_cpu(domain, percent)
            assert refused.value.code == code

    asyncio.run(run())


def test_memory_is_not_moved_and_that_is_reported(machine: Machine) -> None:
    async def run() -> None:
        async with driving(machine, lambda host, names: AffinityCapper(CPUS, "")) as (driver, _):
            with pytest.raises(DriverError) as refused:
                await driver.set_memory("n1", 100)
            assert refused.value.code == "not-supported"
            assert any("memory" in note for note in driver.notes())

    asyncio.run(run())


def test_a_call_that_hangs_ends_at_its_deadline(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    class Hanging(AffinityCapper):
        def cap(self, domain: str, members: processes.Members, percent: int | None) -> None:
            release.wait(BOUND_S)

    async def run() -> None:
        machine.start()
        async with driving(machine, lambda host, names: Hanging(CPUS, "")) as (driver, _):
            with monkeypatch.context() as quick:
                quick.setattr(local, "CALL_DEADLINE_S", 0.05)
                with pytest.raises(DriverError) as late:
                    await driver.set_cpu("n1", 10)
            assert late.value.code == "timeout"
            release.set()

    try:
        asyncio.run(run())
    finally:
        release.set()


@pytest.mark.parametrize("what", ["boot", "shutdown", "save", "resume"])
def test_impossible_calls_are_refused_and_not_among_its_capabilities(machine: Machine, what: str) -> None:
    async def run() -> None:
        machine.start()
        async with driving(machine) as (driver, _):
            assert not {LIFE, SAVE} & driver.capabilities
            with pytest.raises(DriverError) as refused:
                await getattr(driver, what)("n1")
            assert refused.value.code == "not-supported"
            with pytest.raises(DriverError) as unknown:
                await getattr(driver, what)("n9")
            assert unknown.value.code == "no-domain"

    asyncio.run(run())


def test_destroying_a_domain_ends_all_its_processes_and_may_be_repeated(machine: Machine) -> None:
    async def run() -> None:
        machine.start()
        async with driving(machine) as (driver, events):
            assert await next_event(events) == DomainChange("n1", up=True)
            assert machine.root is not None
            members = processes.Members(processes.look(machine.root.pid) or pytest.fail("no root"))
            pids = members.find()
            await driver.destroy("n1")
            assert await next_event(events) == DomainChange("n1", up=False)
            assert [processes.look(pid) for pid in pids] == [None] * len(pids)
            await driver.destroy("n1")

    asyncio.run(run())
