"""Memory that does not answer, and processes that no signal wakes, hold up nobody's stop.

A file server that never answers a read stands for a dead one, and for a user's own FUSE program.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab import processes
from magrathea_lab.rigs.agent_rig import MARK, Rig, descendants, owner, running, start_time, state
from magrathea_lab.waiting import BOUND_S, until
from tests.embedded.test_agent_memory import NAME, ROOM_MIB, hold, kib, slices
from tests.swap import swap

ATTACKER = "games"
"""Its processes are read by no agent but ours: all other tests have jobs of another user."""
DEAD_FILE = r"""
import ctypes, mmap, os, signal, struct, sys, threading, time
signal.alarm(600)
shared, uid, count, idle = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
c = ctypes.CDLL(None, use_errno=True)
assert c.unshare(0x20000) == 0 and c.mount(b"none", b"/", None, 0x44000, None) == 0  # mounts of its own
file = shared + "/file"
open(file, "w").close()
device = os.open("/dev/fuse", os.O_RDWR)
options = "fd=%d,rootmode=100644,user_id=%d,group_id=%d" % (device, uid, uid)
assert c.mount(b"none", file.encode(), b"fuse", 6, options.encode()) == 0, ctypes.get_errno()

def serve():
    attributes = struct.pack("QII6Q10I", 600, 0, 0, 1, 65536, 128, 0, 0, 0, 0, 0, 0, 0o100644, 1, uid, uid, 0, 4096, 0)
    answers = {
        26: struct.pack("4I2H2I2H8I", 7, 31, 0, 0, 9, 9, 4096, 1, 1, 0, *[0] * 8),  # init
        3: attributes,
        14: struct.pack("QII", 0, 0, 0),  # open
    }
    while True:
        request = os.read(device, 1 << 17)
        _, number, unique = struct.unpack("IIQ", request[:16])
        if number in answers:
            os.write(device, struct.pack("IiQ", 16 + len(answers[number]), 0, unique) + answers[number])
        elif number not in (2, 15, 36):  # a read is never answered
            os.write(device, struct.pack("IiQ", 16, -38, unique))

server = os.fork()
if server == 0:
    signal.alarm(600)
    serve()
os.close(device)
os.setgid(uid)
os.setuid(uid)
c.prctl(4, 1, 0, 0, 0)  # dumpable

def hang():
    pages = mmap.mmap(os.open(file, os.O_RDONLY), 65536, mmap.MAP_PRIVATE, mmap.PROT_READ)
    address = int(next(line for line in open("/proc/self/maps") if line.rstrip().endswith(file)).split("-")[0], 16)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    if idle:
        threading.Thread(target=hang_mapping, daemon=True).start()
    threading.Thread(target=os.pread, args=(memory, 1, address), daemon=True).start()
    if idle:
        signal.pause()
    hang_mapping()

def hang_mapping():
    while True:
        mmap.mmap(-1, 4096).close()  # hangs once the thread reads

for _ in range(count - 1):
    if os.fork() == 0:
        signal.alarm(600)
        break
while not os.path.exists(shared + "/go"):
    time.sleep(0.01)
hang()
"""
"""A process with a thread that waits for a page of a dead file, and so keeps its address space locked."""


def may_mount() -> bool:
    """True if this process may mount, and so bring its own file server."""
    status = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    return bool(int(status, 16) >> 21 & 1) and os.access("/dev/fuse", os.R_OK | os.W_OK)


pytestmark = pytest.mark.skipif(not may_mount(), reason="a file server needs root and /dev/fuse")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def prepare(rig: Rig, count: int = 1, id: str | None = None, idle: bool = False) -> int:
    """Start processes of the attacker that will hang. Returns the first; all others descend from it. `idle`: their main
    thread does not hang."""
    shared = rig.directory / "shared"
    shared.mkdir()
    uid = pwd.getpwnam(ATTACKER).pw_uid
    argv = [sys.executable, "-c", DEAD_FILE, str(shared), str(uid), str(count), str(int(idle))]
    return rig.run_job(argv, id=id, uid=0).pid


def hang(rig: Rig, top: int, count: int = 1) -> list[int]:
    (rig.directory / "shared" / "go").touch()

    def there() -> list[int]:
        found = [pid for pid in (top, *descendants(top)) if state(pid) == "D"]
        return found if len(found) == count else []

    pids: list[int] = until(there, f"{count} processes that hang")
    return pids


def attackers_job(rig: Rig) -> int:
    rig.claim("13.srv", owner=ATTACKER)
    return rig.run_job("sleep 600", id="13.srv", uid=pwd.getpwnam(ATTACKER).pw_uid).pid


def test_a_users_process_whose_memory_does_not_answer_holds_up_no_stop(rig: Rig) -> None:
    hang(rig, prepare(rig, 6), 6)
    mine, his = rig.run_job("sleep 600").pid, attackers_job(rig)
    rig.claim()
    answer = rig.host.orders(j12="stop", j13="stop", deadline_s=BOUND_S)
    assert answer["ok"]
    assert [(row["processes"], row["stopped"]) for row in answer["jobs"]] == [(1, 1), (1, 1)]
    assert (state(mine), state(his)) == ("T", "T")
    assert rig.host.orders(j12="run", j13="run", deadline_s=BOUND_S)["ok"]
    assert (state(mine), state(his)) != ("T", "T")


def test_a_process_that_hangs_keeps_no_run_from_finding_what_another_one_has_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "UNREADABLE_S", 0.5)
    (hung,) = hang(rig, prepare(rig))
    other = rig.run_job("sleep 600").pid
    marked = f"{MARK}={rig.directory.name}"
    until(lambda: other in processes.with_environment(marked), "the process that can be read")
    assert hung not in processes.with_environment(marked)


def test_it_is_told_once_and_the_agent_leaves_no_reader_behind(rig: Rig) -> None:
    (pid,) = hang(rig, prepare(rig))
    attackers_job(rig)
    told = f"process {pid} of uid"
    assert rig.host.orders(j13="stop", deadline_s=BOUND_S)["ok"]
    until(lambda: told in rig.log_text(), "a line about the process that hangs")
    for word in ("run", "stop"):
        assert rig.host.orders(j13=word, deadline_s=BOUND_S)["ok"]
    assert rig.log_text().count(told) == 1
    assert rig.mom("status")["unread"] == 1
    readers = {reader: start_time(reader) for reader in rig.readers()}
    assert readers
    rig.kill(signal.SIGKILL)
    until(lambda: not set(readers) & set(descendants(os.getpid())), "the end of its readers")


def test_a_reader_that_hangs_ends_with_the_agent(rig: Rig) -> None:
    (pid,) = hang(rig, prepare(rig))
    attackers_job(rig)
    rig.host.send("orders", orders=[{"id": "13.srv", "run": 1, "order": "stop"}], deadline_s=BOUND_S)
    end, readers = time.monotonic() + BOUND_S, list[int]()
    while not readers:  # without a pause: the agent kills it after half a second
        assert time.monotonic() < end, f"no reader hangs\n{rig.log_text()}"
        readers = [reader for reader in rig.readers() if state(reader) == "D"]
    rig.kill(signal.SIGKILL)
    until(lambda: not set(readers) & set(descendants(os.getpid())), "its end")
    assert state(pid)


def test_twenty_processes_in_uninterruptible_sleep_hold_up_no_stop(rig: Rig) -> None:
    rig.claim("13.srv", owner=ATTACKER)
    top = prepare(rig, 20, "13.srv")
    rig.host.await_op("launched")
    hang(rig, top, 20)
    mine = rig.run_job("sleep 600").pid
    rig.claim()
    answer = rig.host.orders(j12="stop", j13="stop", deadline_s=BOUND_S)
    assert answer["ok"]
    rows = [(row["processes"], row["stopped"], row["pending"]) for row in answer["jobs"]]
    assert rows == [(1, 1, 0), (21, 1, 20)], "the file server is the job's, too, and stops"
    assert state(mine) == "T"


def test_a_process_that_keeps_its_memory_locked_keeps_no_other_memory_from_going_out(rig: Rig) -> None:
    with swap():
        rig.claim("13.srv", owner=ATTACKER)
        top = prepare(rig, 1, "13.srv", idle=True)
        rig.host.await_op("launched")
        (rig.directory / "shared" / "go").touch()
        until(lambda: len(thread_states(top)) == 3 and "D" in thread_states(top), "a thread that hangs")
        rig.claim()
        pid, _ = hold(rig)
        assert rig.host.orders(j12="stop", j13="stop", deadline_s=BOUND_S)["ok"]
        assert state(top) == "T"
        slices(rig, "push-out", jobs=[NAME, {**NAME, "id": "13.srv"}])
        assert kib(pid, "VmSwap") >= (ROOM_MIB - 4) * 1024
    assert rig.log_text().count(f"process {top}: its memory cannot be moved") == 1


def thread_states(pid: int) -> list[str]:
    return [(path / "stat").read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").iterdir()]


def test_the_owner_of_other_tests_jobs_is_not_the_attacker() -> None:
    assert owner().pw_uid != pwd.getpwnam(ATTACKER).pw_uid


def test_a_job_is_not_over_while_a_process_of_its_owner_cannot_be_read(rig: Rig) -> None:
    """It may be the job's: this one is."""
    (pid,) = hang(rig, prepare(rig, id="13.srv"))
    his = attackers_job(rig)
    rig.host.await_op("launched")
    until(lambda: rig.mom("status")["unread"] == 1, "the agent has given it up")
    os.kill(his, signal.SIGKILL)
    until(lambda: state(his) in "Z", "its end")
    for _ in range(3):
        assert rig.host.orders(j13="lift", deadline_s=BOUND_S)["ok"]
        assert [row["id"] for row in rig.mom("status")["jobs"]] == ["13.srv"]
    assert rig.host.seen("release") == []
    for each in (pid, *descendants(pid)):  # a thread of it waits for the file server
        os.kill(each, signal.SIGKILL)
    rig.host.await_op("release")
