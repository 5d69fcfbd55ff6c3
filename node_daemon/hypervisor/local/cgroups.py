"""CPU caps by control groups, version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`), for the local driver.

Rule 1: a cap is a quota with full weight, never a low weight. A preempted domain must stay responsive; with a low
weight beside a busy domain its ping takes half a minute.
Rule 2: a group is removed only when it is empty; a domain that still runs keeps its cap.

The groups: <own group of the daemon>/magrathea/<host>/<domain>. Version 2 allows processes in leaves only, so the
daemon moves itself into <own>/magrathea-daemon. If other processes share its group, root may use the tree's top.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from ..cpu_quota import LEAST_QUOTA_US, LONG_PERIOD_US, PERIOD_US

DAEMON_LEAF = "magrathea-daemon"


class NoGroups(Exception):
    """No CPU control groups can be used here; the text says why."""


@dataclass(frozen=True, slots=True)
class Version:
    """The differences between the versions: file names, and how a quota is written."""

    number: int
    weight_file: str
    weight_of_one_cpu: int
    weight_limit: int
    files: tuple[str, ...]


V1 = Version(1, "cpu.shares", 1024, 262_144, ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cgroup.procs"))
V2 = Version(2, "cpu.weight", 100, 10_000, ("cpu.max", "cgroup.procs"))


def _unescape(path: str) -> str:
    """Decode a path: mountinfo writes space, tab, newline and backslash in octal."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def own_groups(mountinfo: str, cgroup: str) -> list[tuple[Version, Path, Path]]:
    """(version, top of the tree, this process's own group) for every tree that could have the CPU controller.

    `mountinfo`, `cgroup`: the texts of /proc/self/mountinfo and /proc/self/cgroup. On a hybrid machine both versions
    are mounted, and one of them has the controller; only an attempt shows which.
    """
    own: dict[str, str] = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mount_root, mount_point = (_unescape(field) for field in left.split()[3:5])
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup2" and "" in own:
            version, path = V2, own[""]
        elif kind == "cgroup" and "cpu" in options.split(",") and "cpu" in own:
            version, path = V1, own["cpu"]
        else:
            continue
        relative = os.path.relpath(path, mount_root) if path.startswith(mount_root) else "."
        top = Path(mount_point)
        found.append((version, top, top / relative))
    return sorted(found, key=lambda one: -one[0].number)


def write(file: Path, text: str) -> None:
    """Write the text with a single write, as the kernel requires. Raises OSError that names the file."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {text!r})", str(file)) from error
    finally:
        os.close(fd)


def pids_in(group: Path) -> set[int]:
    return {int(pid) for pid in (group / "cgroup.procs").read_text().split()}


def quota(percent: int) -> tuple[int, int]:
    """(quota, period) in microseconds for `percent` of one CPU."""
    period = PERIOD_US if percent * PERIOD_US >= LEAST_QUOTA_US * 100 else LONG_PERIOD_US
    return percent * period // 100, period


def set_cap(version: Version, group: Path, percent: int | None) -> None:
    """Cap all processes of the group together at `percent` of one CPU; None: no cap. Raises OSError."""
    if version is V2:
        write(group / "cpu.max", "max" if percent is None else "{} {}".format(*quota(percent)))
        return
    if percent is None:
        write(group / "cpu.cfs_quota_us", "-1")
        return
    amount, period = quota(percent)
    if int((group / "cpu.cfs_period_us").read_text()) != period:
        # the kernel checks both files together; without a quota it accepts every period
        write(group / "cpu.cfs_quota_us", "-1")
        write(group / "cpu.cfs_period_us", str(period))
    write(group / "cpu.cfs_quota_us", str(amount))


def get_cap(version: Version, group: Path) -> int | None:
    """The group's cap in per cent of one CPU; None if it has none. Raises OSError."""
    if version is V2:
        amount, period = (group / "cpu.max").read_text().split()
    else:
        amount = (group / "cpu.cfs_quota_us").read_text().strip()
        period = (group / "cpu.cfs_period_us").read_text()
    return None if amount in ("max", "-1") else round(int(amount) * 100 / int(period))


def remove_if_empty(group: Path) -> bool:
    """Remove the group. Returns False if it is not empty or not ours. Raises OSError for other errors."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _enable_cpu(group: Path) -> None:
    """Version 2: let the children of `group` have the CPU controller. Raises OSError, NoGroups."""
    if "cpu" not in (group / "cgroup.controllers").read_text().split():
        raise NoGroups(f"{group} does not have the CPU controller")
    if "cpu" not in (group / "cgroup.subtree_control").read_text().split():
        write(group / "cgroup.subtree_control", "+cpu")


def _vacate(own: Path) -> Path:
    """Version 2: return the group to build in, with the CPU controller for its children. The daemon moves into a leaf
    of it first: the kernel lets a group with processes have this controller, but its children are of no use then.

    Raises OSError, NoGroups; then nothing has changed.
    """
    if own.name == DAEMON_LEAF:  # from an earlier start of this process, or systemd's DelegateSubgroup
        _enable_cpu(own.parent)
        return own.parent
    leaf = own / DAEMON_LEAF
    leaf.mkdir(exist_ok=True)
    write(leaf / "cgroup.procs", str(os.getpid()))
    try:
        if pids_in(own):
            raise NoGroups(f"{own} has other processes, too")
        _enable_cpu(own)
    except (OSError, NoGroups):
        write(own / "cgroup.procs", str(os.getpid()))
        remove_if_empty(leaf)
        raise
    return own


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one host's domains, made and ready."""

    version: Version
    made: tuple[Path, ...]
    """Our groups above the domains' own groups, innermost first."""
    of: dict[str, Path]
    """The group of each domain."""

    def adopt(self, domain: str, pids: list[int]) -> int:
        """Move processes into the domain's group; return how many were not in it yet. Raises OSError."""
        group = self.of[domain]
        moved = 0
        for pid in set(pids) - pids_in(group):
            try:
                write(group / "cgroup.procs", str(pid))
                moved += 1
            except ProcessLookupError:
                continue  # it has ended meanwhile
        return moved

    def remove(self) -> None:
        """Remove all groups that are empty. Raises OSError."""
        for group in [*self.of.values(), *self.made]:
            remove_if_empty(group)


def _make(version: Version, base: Path, host: str, domains: list[str], cpus: int) -> Groups:
    """Make the groups below `base`. Raises OSError, NoGroups."""
    ours = base / "magrathea"
    host_group = ours / host
    groups = Groups(version, (host_group, ours), {domain: host_group / domain for domain in domains})
    # together the domains weigh as much as the machine has CPUs, else they count like a single process
    weight = str(min(version.weight_of_one_cpu * cpus, version.weight_limit))
    try:
        for group in (ours, host_group):
            group.mkdir(exist_ok=True)
            if version is V2:
                _enable_cpu(group)
            write(group / version.weight_file, weight)
        for group in groups.of.values():
            group.mkdir(exist_ok=True)
            for name in version.files:
                if not os.access(group / name, os.W_OK):
                    raise NoGroups(f"{group / name} cannot be written")
        if version is V2 and not os.access(base / "cgroup.procs", os.W_OK):
            raise NoGroups(f"{base}: processes cannot be moved from beside")
    except (OSError, NoGroups):
        groups.remove()
        raise
    return groups


def make(host: str, domains: list[str], cpus: int, mountinfo: str, cgroup: str) -> Groups:
    """The groups of a host's domains in the first tree that allows it. Raises NoGroups with all the reasons."""

    def attempt(version: Version, base: Path, is_top: bool) -> Groups:
        if version is V2 and is_top:
            _enable_cpu(base)
        elif version is V2:
            base = _vacate(base)
        return _make(version, base, host, domains, cpus)

    reasons = []
    for version, top, own in own_groups(mountinfo, cgroup):
        for base in (own, top) if version is V2 and top != own else (own,):
            try:
                return attempt(version, base, is_top=base == top)
            except NoGroups as error:
                reasons.append(str(error))
            except OSError as error:
                reasons.append(f"{error.filename}: {error.strerror}")
    raise NoGroups("; ".join(dict.fromkeys(reasons)) or "no cgroup file system with the CPU controller is mounted")
