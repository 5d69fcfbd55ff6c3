"""A stop finds every process of a job, however it tries to hide, and no process of anything else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.rigs.agent_rig import MARK, Rig, descendants, job_python, owner, running, start_time, state
from magrathea_lab.waiting import until

COUNT = "while :; do :; done"
HIDE = r"""
import os, sys, time
def child(n, **env):
    if os.fork() == 0:
        work(n)
def work(n):
    with open(sys.argv[1] + "/pid." + n, "w") as f:
        f.write(str(os.getpid()))
    while True:
        time.sleep(0.01)
def orphan(n, env=None):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if env is None:
                work(n)
            code = "import os,sys,time\nopen(sys.argv[1],'w').write(str(os.getpid()))\nwhile True: time.sleep(0.01)"
            os.execve(sys.executable, [sys.executable, "-c", code, sys.argv[1] + "/pid." + n], env)
        os._exit(0)
"""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def python_job(rig: Rig, code: str, names: str, id: str | None = "12.srv") -> dict[str, int]:
    """A job in Python that has HIDE's helpers; returns pids by name once all of `names` exist."""
    shared = rig.directory / "shared"
    shared.mkdir(exist_ok=True)
    shared.chmod(0o777)
    rig.run_job([job_python(), "-c", HIDE + code + "\nwork('top')", str(shared)], id=id)
    wanted = [*names.split(), "top"]

    def there() -> dict[str, int] | None:
        found = {n: p.read_text() for n in wanted if (p := shared / f"pid.{n}").exists()}
        return (
            {n: int(text) for n, text in found.items()} if len(found) == len(wanted) and all(found.values()) else None
        )

    pids: dict[str, int] = until(there, f"processes {wanted}")
    return pids


def test_ten_processes_of_a_shell_are_stopped_and_continued(rig: Rig) -> None:
    assert rig.claim() == {"ok": True}
    job = rig.run_job(f"for i in 1 2 3 4 5 6 7 8 9; do ({COUNT}) & done; wait")
    until(lambda: len(rig.children()) == 10, "ten processes")
    row = rig.host.order("stop")
    assert (row["order"], row["processes"], row["stopped"], row["pending"]) == ("stop", 10, 10, 0)
    found = {job.pid: state(job.pid), **descendants(job.pid)}
    assert len(found) == 10 and set(found.values()) == {"T"}, found
    row = rig.host.order("run")
    assert (row["processes"], row["stopped"]) == (10, 0)
    assert "T" not in {state(pid) for pid in found}
    assert job.poll() is None


def test_lift_touches_nothing_and_ends_the_sweeps_of_that_job(rig: Rig) -> None:
    rig.claim()
    rig.claim("13.srv")
    job, other = rig.run_job(COUNT), rig.run_job(COUNT, id="13.srv")
    until(lambda: len(rig.host.seen("launched")) >= 2, "both jobs")
    rig.host.orders(j12="stop", j13="stop")
    rig.host.orders(j12="lift", j13="stop")
    assert state(job.pid) == "T"
    job.send_signal(signal.SIGCONT)  # as PBS does for a resume
    for _ in range(2):  # sweeps, which stop the other job again
        other.send_signal(signal.SIGCONT)
        until(lambda: state(other.pid) == "T", "the next sweep")
    assert state(job.pid) == "R"


def test_a_job_that_is_not_named_is_lifted(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert rig.host.orders()["jobs"] == []
    assert state(job.pid) == "T"


def test_setsid_nohup_double_fork_and_a_clean_environment_do_not_hide(rig: Rig) -> None:
    rig.claim()
    pids = python_job(
        rig,
        """
child("plain")
orphan("orphan")
if os.fork() == 0:
    os.setsid(); work("session")
if os.fork() == 0:
    os.execve(sys.executable, [sys.executable, "-c", HIDDEN, sys.argv[1] + "/pid.clean"], {})
os.system("nohup %s -c '%s' %s/pid.nohup >/dev/null 2>&1 &" % (sys.executable, HIDDEN, sys.argv[1]))
""".replace("HIDDEN", repr('import os,sys,time;open(sys.argv[1],"w").write(str(os.getpid()));time.sleep(600)')).replace(
            "nohup %s -c '%s'", "nohup %s -c \\'%s\\'"
        ),
        "plain orphan session clean nohup",
    )
    rig.host.await_op("launched")
    row = rig.host.order("stop")
    assert row["processes"] == len(pids) == row["stopped"]
    assert {name: state(pid) for name, pid in pids.items()} == dict.fromkeys(pids, "T")
    rig.host.order("run")
    assert "T" not in {state(pid) for pid in pids.values()}


def test_a_clean_orphan_in_a_session_of_the_job_is_found(rig: Rig) -> None:
    """Its parent and its session's leader have ended and its environment is empty: only the session identifies it."""
    rig.claim()
    pids = python_job(
        rig,
        """
if os.fork() == 0:
    os.setsid()
    child("first")
    while not os.path.exists(sys.argv[1] + "/go"):  # until the agent has seen this leader
        time.sleep(0.01)
    orphan_env = {}
    if os.fork() == 0:
        code = "import os,sys,time;open(sys.argv[1],'w').write(str(os.getpid()));time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-c", code, sys.argv[1] + "/pid.late"], {})
    os._exit(0)
""",
        "first",
    )
    rig.host.await_op("launched")
    rig.host.order("lift")  # searches once more
    (rig.directory / "shared" / "go").touch()
    late = rig.directory / "shared" / "pid.late"
    until(lambda: late.exists() and late.read_text(), "the late process")
    rig.host.order("stop")
    assert state(int(late.read_text())) == "T"
    assert state(pids["first"]) == "T"


def test_only_the_job_named_is_stopped(rig: Rig) -> None:
    rig.claim()
    rig.claim("13.srv")
    mine, other = rig.run_job(COUNT), rig.run_job(COUNT, id="13.srv")
    until(lambda: len(rig.host.seen("launched")) >= 2, "both jobs")
    rig.host.order("stop")
    assert (state(mine.pid), state(other.pid)) == ("T", "R")


def test_the_owners_login_shell_is_not_touched(rig: Rig) -> None:
    rig.claim()
    # it has a job's process in its own session and group, as when somebody experiments by hand
    shell = rig.run_job(f"PBS_JOBID=12.srv /bin/bash -c '{COUNT}' & {COUNT}", id=None)
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    until(lambda: len(rig.children()) == 3, "three processes")
    rig.host.order("stop")
    assert state(job.pid) == "T"
    assert state(shell.pid) == "R"


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the agent sees its own user's processes only")
def test_another_users_process_with_the_jobs_id_is_not_touched(rig: Rig) -> None:
    rig.claim()
    stranger = rig.run_job(COUNT, uid=owner().pw_uid - 7)
    mom_child = rig.run_job(COUNT, uid=0)  # MoM's own children have the job's id too
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    row = rig.host.order("stop")
    assert row["processes"] == 1
    assert [state(p.pid) for p in (job, stranger, mom_child)] == ["T", "R", "R"]


def test_a_process_that_forks_during_the_stop_does_not_escape(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job("f() { while :; do (sleep 0.01) & (sleep 0.02) & wait; done; }; f & f & f & f & wait")
    rig.host.await_op("launched")
    for _ in range(10):
        row = rig.host.order("stop")
        assert row["stopped"] == row["processes"] > 0
        first = descendants(job.pid)
        rig.host.order("stop")  # answered after two more looks
        until(lambda: set(descendants(job.pid).values()) == {"T"}, "the end of what was exiting when the stop came")
        assert descendants(job.pid).keys() <= first.keys(), "nothing has been forked since"
        rig.host.order("run")
        until(lambda before=set(first): not before >= descendants(job.pid).keys(), "new processes")  # type: ignore[misc]


def test_a_users_own_continue_is_undone(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    for _ in range(3):
        job.send_signal(signal.SIGCONT)
        until(lambda: state(job.pid) == "T", "the next sweep")


def test_a_job_that_starts_under_a_stop_is_stopped(rig: Rig) -> None:
    rig.claim()
    assert rig.host.order("stop")["processes"] == 0
    job = rig.run_job(COUNT)
    until(lambda: state(job.pid) == "T", "the standing stop")


def test_a_stop_of_a_job_that_has_ended_is_not_waited_for(rig: Rig) -> None:
    rig.claim()
    row = rig.host.order("stop")
    assert row["processes"] == row["stopped"] == 0


def test_an_ending_job_is_neither_stopped_nor_waited_for(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    row = {**rig.job(), "substate": 51}
    assert rig.mom("jobs", jobs=[row])["ok"]
    rig.host.order("stop")
    assert state(job.pid) == "R"


def test_a_process_that_waits_for_its_vfork_child_counts_at_once(rig: Rig) -> None:
    rig.claim()
    code = "import ctypes; c = ctypes.CDLL(None); pid = c.vfork()\nif pid == 0:\n  c.sleep(600); c._exit(0)"
    job = rig.run_job([job_python(), "-c", code])
    until(lambda: state(job.pid) == "D" and len(rig.children()) == 2, "the parent waiting in vfork")  # not for a disk
    row = rig.host.order("stop")
    assert row["processes"] == 2
    assert row["stopped"] + row["pending"] == 2
    rig.host.order("run")


def test_a_process_without_its_main_thread_is_stopped(rig: Rig) -> None:
    rig.claim()
    code = (
        "import ctypes, threading, time\n"
        "def work():\n  while True: time.sleep(0.005)\n"
        "threading.Thread(target=work).start()\nctypes.CDLL(None).pthread_exit(None)"
    )
    job = rig.run_job([job_python(), "-c", code])
    until(lambda: state(job.pid) == "Z", "the end of the main thread")
    rig.host.await_op("launched")
    row = rig.host.order("stop")
    assert (row["processes"], row["stopped"]) == (1, 1)
    threads = list(Path(f"/proc/{job.pid}/task").iterdir())
    assert {(t / "stat").read_text().rpartition(")")[2].split()[0] for t in threads} == {"Z", "T"}


def test_mom_is_never_touched_even_as_the_owner_with_the_jobs_id(rig: Rig) -> None:
    """Without root, MoM's stand-in belongs to the same user as the job."""
    if os.geteuid() == 0:
        rig.mom("claim", job=rig.job(owner="root"), deadline_s=5)
    else:
        rig.claim()
    hook = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        f"s.connect({str(rig.socket)!r})\n"
        """s.sendall(b'{"op":"ping"}\\n')\n"""
        "print(s.recv(100), flush=True)\n"
        "time.sleep(600)"
    )
    mom = subprocess.Popen(
        [sys.executable, "-c", hook], env={"PBS_JOBID": "12.srv", MARK: rig.directory.name}, stdout=subprocess.PIPE
    )
    assert mom.stdout is not None
    job = rig.run_job(COUNT, uid=os.geteuid())
    rig.host.await_op("launched")
    assert b"ok" in mom.stdout.readline()
    rig.host.order("stop")
    assert state(job.pid) == "T"
    assert state(mom.pid) == "S"
    mom.stdout.close()


def test_a_released_job_under_a_stop_is_killed_if_mom_missed_it(rig: Rig) -> None:
    rig.claim()
    pids = python_job(rig, "orphan('orphan')", "orphan")
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert rig.mom("release", job={"id": "12.srv", "run": 1}) == {"ok": True}
    until(lambda: all(state(pid) in ("", "Z") for pid in pids.values()), "the end of what was stopped")


def test_a_stopped_job_that_is_deleted_gets_its_sigterm_but_processes_outside_its_session_stay_stopped(
    rig: Rig,
) -> None:
    """Processes that MoM's signals reach end like those of any deleted job, in their own time. The rest ends
    afterwards."""
    rig.claim()
    code = "import signal; signal.signal(15, lambda *a: (time.sleep(0.7), os._exit(3))); orphan('left')"
    pids = python_job(rig, code, "left")
    rig.host.await_op("launched")
    rig.host.order("stop")
    assert rig.mom("ending", job={"id": "12.srv", "run": 1}) == {"ok": True}
    os.kill(pids["top"], signal.SIGTERM)
    until(lambda: state(pids["top"]) in ("", "Z"), "the end of what got the signal")
    assert state(pids["left"]) == "T"
    assert rig.mom("release", job={"id": "12.srv", "run": 1}) == {"ok": True}
    until(lambda: state(pids["left"]) in ("", "Z"), "the end of what was stopped")


def test_a_running_job_that_is_deleted_is_neither_stopped_nor_waited_for(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    assert rig.mom("ending", job={"id": "12.srv", "run": 1}) == {"ok": True}
    row = rig.host.order("stop")
    assert row["processes"] == row["stopped"]
    assert state(job.pid) == "R"


def test_a_released_job_that_runs_is_left_to_mom(rig: Rig) -> None:
    rig.claim()
    rig.claim("13.srv")
    job, other = rig.run_job(COUNT), rig.run_job(COUNT, id="13.srv")
    until(lambda: len(rig.host.seen("launched")) >= 2, "both jobs")
    rig.host.orders(j12="stop", j13="stop")
    rig.host.orders(j12="run", j13="stop")
    rig.mom("release", job={"id": "12.srv", "run": 1})
    rig.mom("release", job={"id": "13.srv", "run": 1})
    until(lambda: state(other.pid) in ("", "Z"), "the end of one that was released later, and is stopped")
    assert state(job.pid) == "R"


def test_an_order_with_an_unknown_owner_touches_nothing_and_reports_it(rig: Rig) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: without root only our own user can be the owner")
    job = rig.run_job(COUNT)
    row = rig.host.orders(deadline_s=0.3, j12="stop")["jobs"][0]
    assert row["processes"] >= 1, "and one more if not all processes of the machine were read in that time"
    assert row["stopped"] == 0
    assert state(job.pid) == "R"
    rig.mom("jobs", jobs=[{**rig.job(), "substate": 42}])
    until(lambda: state(job.pid) == "T", "the stop, once MoM has named the owner")


def test_the_newest_of_two_orders_counts(rig: Rig) -> None:
    rig.claim()
    job = rig.run_job(COUNT)
    rig.host.await_op("launched")
    rig.host.order("stop")
    rig.host.order("run")
    rig.host.order("stop")
    assert state(job.pid) == "T"


def test_a_repeated_request_gets_the_same_answer_and_is_done_once(rig: Rig) -> None:
    rig.claim()
    first = rig.host.orders(j12="stop")
    line = rig.host.line(type="request", id=first["id"], session=rig.host.session, op="orders", orders=[], deadline_s=1)
    rig.host.raw(line)
    assert rig.host.answer(first["id"]) == first


# Law 1


def test_a_recycled_pid_is_never_hit() -> None:
    from node_daemon.agent.signals import Signaller

    signaller = Signaller()
    victim = subprocess.Popen(["sleep", "600"])
    try:
        start = start_time(victim.pid)
        for pidfd in {signaller.pidfd, False}:
            signaller.pidfd = signaller.groups = pidfd
            assert not signaller.send(victim.pid, start - 1, signal.SIGKILL)
            assert not signaller.send_group(victim.pid, start - 1, signal.SIGKILL)
            assert victim.poll() is None
            assert signaller.send(victim.pid, start, signal.SIGSTOP)
        until(lambda: state(victim.pid) == "T", "the stop")
    finally:
        victim.kill()
        victim.wait()
    assert not signaller.send(victim.pid, start, signal.SIGKILL)


# The cgroup


def freezers() -> list[str]:
    """Places where this machine lets us make a cgroup with a freezer."""
    tops = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
    return [t for t in tops if os.access(t, os.W_OK) and (Path(t, "cgroup.procs").exists())]


@pytest.mark.skipif(os.geteuid() != 0 or not freezers(), reason="no cgroup may be made here")
@pytest.mark.parametrize("top", freezers())
def test_a_jobs_cgroup_reveals_processes_that_nothing_else_reveals(top: str) -> None:
    """A clean orphan in its own session is known only by PBS's job cgroup. Afterwards nothing is frozen."""
    parent = Path(top, f"magrathea-test-{os.getpid()}")
    cgroup = parent / "jobid" / "12.srv"
    cgroup.mkdir(parents=True)
    (cgroup / "nested").mkdir()
    try:
        with running(job_cgroups=[f"{parent}/jobid/{{job}}"]) as rig:
            rig.claim()
            jobs = [rig.run_job(COUNT, id=None) for _ in range(4)]
            for number, job in enumerate(jobs):
                (cgroup / "nested" / "cgroup.procs" if number % 2 else cgroup / "cgroup.procs").write_text(str(job.pid))
            outside = rig.run_job(COUNT, id=None)
            row = rig.host.order("stop")
            assert (row["processes"], row["stopped"]) == (4, 4)
            assert {state(job.pid) for job in jobs} == {"T"}
            assert state(outside.pid) == "R"
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (cgroup / name).exists():
                    assert (cgroup / name).read_text().strip() == word
            for job in jobs:
                job.send_signal(signal.SIGCONT)  # PBS's own resume works on them
            rig.host.order("run")
            assert {state(job.pid) for job in jobs} == {"R"}
            rig.host.order("stop")
            assert rig.agent is not None
            rig.kill()
            for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
                if (cgroup / name).exists():
                    (cgroup / name).write_text(word)  # as a killed agent may leave it
            rig.start()
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (cgroup / name).exists():
                    assert (cgroup / name).read_text().strip() == word
            for job in jobs:
                job.kill()
                job.wait()
    finally:
        for path in (cgroup / "nested", cgroup, cgroup.parent, parent):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
