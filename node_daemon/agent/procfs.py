"""Reading /proc: processes by their number, and the machine's memory."""

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional, Tuple

MAX_ENVIRON_BYTES = 1 << 20
STAT_BYTES = 2048  # more than /proc/PID/stat ever has
FORK_WCHANS = (b"wait_for_vfork_done", b"kernel_clone", b"_do_fork", b"do_fork")  # by version of the kernel


def read_file(path: str, limit: int = 65536) -> bytes:
    """A file of /proc or /sys, at most `limit` bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while limit > 0:
            data = os.read(fd, min(65536, limit))  # many of these files come in pieces of a page or less
            if not data:
                break
            pieces.append(data)
            limit -= len(data)
        return b"".join(pieces)
    finally:
        os.close(fd)


def read_stat(path: str) -> "Tuple[bytes, List[bytes]]":
    """Name, and fields from the third on, of a /proc stat file. Raises OSError, also if the process has just gone."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return stat_fields(os.read(fd, STAT_BYTES))  # this is the most frequent call of all
    finally:
        os.close(fd)


def stat_fields(line: bytes) -> "Tuple[bytes, List[bytes]]":
    """The same from a line that was read already."""
    end = line.rfind(b")")
    fields = line[end + 2 :].split(None, 26)
    if end < 0 or len(fields) < 26:
        raise OSError(errno.ESRCH, "the process has gone")
    return line[line.find(b"(") + 1 : end], fields


def start_of(pid: int) -> "Optional[int]":
    """Start time of a process in clock ticks since boot; None if there is no such process."""
    try:
        return int(read_stat("/proc/%d/stat" % pid)[1][19])
    except OSError:
        return None


def status_of(pid: int, names: "Tuple[bytes, ...]") -> "Dict[bytes, List[bytes]]":
    """Lines of /proc/PID/status as words. Raises OSError."""
    found = {}
    for line in read_file("/proc/%d/status" % pid).split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in names:
            found[name] = rest.split()
    return found


def uids_of(pid: int) -> "Tuple[int, ...]":
    """Real, effective and saved uid; empty if the process has gone."""
    try:
        return tuple(int(u) for u in status_of(pid, (b"Uid",)).get(b"Uid", [])[:3])
    except OSError:
        return ()


def read_environ(pid: int) -> bytes:
    """Environment of a process; empty if it has none, as during an exec. Raises PermissionError."""
    denied = None
    for place in ("", "task"):
        try:
            if place:  # if the main thread has ended, a later one has the memory
                place = "task/%d/" % max(int(t) for t in os.listdir("/proc/%d/task" % pid))
            data = read_file("/proc/%d/%senviron" % (pid, place), MAX_ENVIRON_BYTES)
        except PermissionError as error:
            denied = error
        except (OSError, ValueError):
            continue
        else:
            if data:
                return data
    if denied is not None:
        raise denied
    return b""


def catches(pid: int, number: int) -> bool:
    """Whether the process handles the signal and does not block it. Otherwise the signal might end it."""
    bit = 1 << (number - 1)
    try:
        masks = {name: int(words[0], 16) for name, words in status_of(pid, (b"SigCgt", b"SigBlk")).items()}
    except (OSError, IndexError):
        return False  # it has just gone
    return bool(masks.get(b"SigCgt", 0) & bit and not masks.get(b"SigBlk", bit) & bit)


def is_pending(pid: int, signal_bit: int) -> bool:
    """Whether a signal waits to be delivered to the process."""
    try:
        lines = status_of(pid, (b"SigPnd", b"ShdPnd"))
    except OSError:
        return False
    return any(words and int(words[0], 16) & signal_bit for words in lines.values())


def waits_for_vfork(pid: int) -> bool:
    """Whether the process waits in fork or vfork. In vfork it waits for its child, which may be stopped."""
    try:
        return read_file("/proc/%d/wchan" % pid) in FORK_WCHANS
    except OSError:
        return False


def thread_state(pid: int) -> str:
    """State of the first living thread of a process whose main thread has ended; "Z" if none lives."""
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            state = read_stat("/proc/%d/task/%s/stat" % (pid, thread))[1][0].decode()
            if state not in "ZXx":
                return state
    except OSError:
        return "Z"
    return "Z"


def boot_id() -> str:
    """Identifies this boot: pids and start times mean nothing in another."""
    try:
        return read_file("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        return "unknown"


def memory_report() -> "Dict[str, int]":
    """Memory of the machine in MiB.

    Unreclaimable are locked and huge pages. Swap cached are pages that were written to swap but are still in memory:
    they can be freed at once, but the kernel does not count them as available.
    """
    values = {}
    for line in read_file("/proc/meminfo").decode("ascii", "replace").split("\n"):
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[name] = int(words[0])
    huge_kib = max(values.get("Hugetlb", 0), values.get("HugePages_Total", 0) * values.get("Hugepagesize", 0))
    locked_kib = max(values.get("Unevictable", 0), values.get("Mlocked", 0))
    return {
        "total_mib": values.get("MemTotal", 0) >> 10,
        "available_mib": values.get("MemAvailable", 0) >> 10,
        "unreclaimable_mib": (huge_kib + locked_kib) >> 10,
        "swap_free_mib": values.get("SwapFree", 0) >> 10,
        "swap_total_mib": values.get("SwapTotal", 0) >> 10,
        "free_mib": values.get("MemFree", 0) >> 10,
        "swap_cached_mib": values.get("SwapCached", 0) >> 10,
    }
