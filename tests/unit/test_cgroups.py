"""Finding and using control groups: every layout from its texts, version 2 on a tree of plain files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from node_daemon.hypervisor.local import cgroups
from node_daemon.hypervisor.local.cgroups import V1, V2, NoGroups

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
JOINED = "34 25 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
BOUND = "34 25 0:31 /docker/abc /sys/fs/cgroup/cpu\\040set ro - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("mountinfo", "cgroup", "found"),
    [
        (
            HYBRID,
            "3:cpuset:/other\n1:cpu:/me\n0::/\n",
            [
                (V2, "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"),
                (V1, "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/me"),
            ],
        ),
        (UNIFIED, "0::/system.slice/x\n", [(V2, "/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/x")]),
        (JOINED, "4:cpu,cpuacct:/a\n", [(V1, "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a")]),
        (BOUND, "4:cpu:/docker/abc/x\n", [(V1, "/sys/fs/cgroup/cpu set", "/sys/fs/cgroup/cpu set/x")]),
        ("", "0::/\n", []),
    ],
)
def test_own_groups(mountinfo: str, cgroup: str, found: list[tuple[cgroups.Version, str, str]]) -> None:
    expected = [(version, Path(top), Path(own)) for version, top, own in found]
    assert cgroups.own_groups(mountinfo, cgroup) == expected


@pytest.mark.parametrize(
    ("percent", "quota"),
    [
        (25, (5_000, 20_000)),
        (5, (1_000, 20_000)),
        (4, (4_000, 100_000)),
        (1, (1_000, 100_000)),
        (250, (50_000, 20_000)),
    ],
)
def test_a_quota_is_exact_and_never_below_the_kernels_least(percent: int, quota: tuple[int, int]) -> None:
    assert cgroups.quota(percent) == quota


class Kernel:
    """Version 2 on plain files: a new group's files, moving, and no controllers for children of a group that has
    processes. The group itself may have the CPU controller for them, because that one is for threads, too."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, strangers: dict[Path, set[int]]) -> None:
        self.top = top
        self.procs = strangers
        self.real_mkdir = Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda path, exist_ok=False: self.mkdir(path))
        monkeypatch.setattr(Path, "rmdir", lambda path: self.rmdir(path))
        monkeypatch.setattr(cgroups, "write", self.write)

    def mkdir(self, path: Path) -> None:
        if path.exists():
            return
        self.real_mkdir(path)
        granted = (path.parent / "cgroup.subtree_control").read_text() if path != self.top else "cpu io"
        (path / "cgroup.controllers").write_text(granted)
        (path / "cgroup.subtree_control").write_text("")
        (path / "cgroup.procs").write_text("")
        if "cpu" in granted:
            (path / "cpu.max").write_text("max 100000\n")
            (path / "cpu.weight").write_text("100\n")
        self.procs.setdefault(path, set())

    def rmdir(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        if self.procs[path] or any(child.is_dir() for child in path.iterdir()):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        for file in path.iterdir():
            file.unlink()
        os.rmdir(path)  # noqa: PTH106 - Path.rmdir is this function

    def write(self, file: Path, text: str) -> None:
        group = file.parent
        if file.name == "cgroup.procs":
            for pids in self.procs.values():
                pids.discard(int(text))
            self.procs[group].add(int(text))
            for path, pids in self.procs.items():
                if path.exists():
                    (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        elif file.name == "cgroup.subtree_control":
            if any(self.procs.get(path) for path in group.parents if path != self.top):
                raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(file))
            file.write_text(text.strip("+"))
        else:
            file.write_text(text + "\n")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def kernel(top: Path, monkeypatch: pytest.MonkeyPatch, beside: set[int]) -> Kernel:
    """A tree with a group `/unit` that holds this process and the processes `beside` it."""
    made = Kernel(top, monkeypatch, {})
    top.mkdir()
    made.write(top / "cgroup.subtree_control", "+cpu")
    (top / "unit").mkdir()
    for pid in {os.getpid(), *beside}:
        made.write(top / "unit" / "cgroup.procs", str(pid))
    return made


def make(top: Path) -> cgroups.Groups:
    mountinfo = f"30 23 0:27 / {top} rw - cgroup2 cgroup2 rw\n"
    return cgroups.make("h1", ["n1", "p1"], 4, mountinfo, "0::/unit\n")


def test_version_2_the_daemon_moves_into_a_leaf_and_domains_beside_it(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = kernel(top, monkeypatch, beside=set())
    groups = make(top)
    assert tree.procs[top / "unit" / "magrathea-daemon"] == {os.getpid()}
    assert groups.of["n1"] == top / "unit" / "magrathea" / "h1" / "n1"
    assert (top / "unit" / "magrathea" / "cpu.weight").read_text() == "400\n"
    cgroups.set_cap(groups.version, groups.of["n1"], 10)
    assert (groups.of["n1"] / "cpu.max").read_text() == "2000 20000\n"
    assert cgroups.get_cap(groups.version, groups.of["n1"]) == 10
    cgroups.set_cap(groups.version, groups.of["n1"], None)
    assert (groups.of["n1"] / "cpu.max").read_text() == "max\n"


def test_version_2_with_others_in_our_group_the_top_of_the_tree_is_used(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = kernel(top, monkeypatch, beside={77})
    groups = make(top)
    assert groups.of["n1"] == top / "magrathea" / "h1" / "n1"
    assert tree.procs[top / "unit"] == {77, os.getpid()}, "the daemon went back to where it was"
    assert not (top / "unit" / "magrathea-daemon").exists()


def test_groups_are_removed_only_when_empty(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = kernel(top, monkeypatch, beside={77})
    groups = make(top)
    assert groups.adopt("n1", [78, 79]) == 2
    assert groups.adopt("n1", [78, 79]) == 0
    groups.remove()
    assert groups.of["n1"].exists()
    assert not groups.of["p1"].exists()
    tree.procs[groups.of["n1"]].clear()
    groups.remove()
    assert not (top / "magrathea").exists()


def test_without_the_cpu_controller_the_reason_is_reported(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = kernel(top, monkeypatch, beside=set())
    for group in (top, top / "unit"):
        (group / "cgroup.controllers").write_text("io memory")
    with pytest.raises(NoGroups, match="CPU controller"):
        make(top)
    assert tree.procs[top / "unit"] == {os.getpid()}


def test_without_any_control_groups_that_is_reported() -> None:
    with pytest.raises(NoGroups, match="mounted"):
        cgroups.make("h1", ["n1"], 4, "", "")


def test_a_write_that_fails_names_file_and_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cgroups.write(tmp_path / "gone", "1")
    with pytest.raises(OSError, match="writing 'x'"):
        cgroups.write(Path("/dev/full"), "x")
