"""What descends from a job is the job's, whoever it runs as. Nothing else of those users is."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator

import pytest

from magrathea_lab.rigs.agent_rig import MARK, Rig, job_python, owner, running, state
from magrathea_lab.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="processes of another user need root")

OTHER = "games"
COOKIE = {"PBS_JOBCOOKIE": "6A5F0000000012340000ABCD00000001"}
JOB = r"""
import ctypes, os, sys, time
place, owner, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
system = ctypes.CDLL(None)
WORK = "import os,sys,time\nopen(sys.argv[1],'w').write(str(os.getpid()))\nwhile True: time.sleep(0.01)"

def program(env=None, to="it"):
    os.execve(sys.executable, [sys.executable, "-c", WORK, place + "/" + to], dict(os.environ) if env is None else env)

def become(uid):  # as a set-uid program does it
    os.seteuid(0)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)

def child(*do):
    pid = os.fork()
    if pid == 0:
        for one in do:
            one()
        while True:
            time.sleep(0.01)
    return pid

def orphan(*do):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        child(*do)
        os._exit(0)
    os.waitpid(pid, 0)

os.setgroups([])
os.setresuid(owner, owner, 0)
while not os.path.exists(place + "/go"):
    time.sleep(0.01)
WHAT
while True:
    time.sleep(0.01)
"""
"""It belongs to its owner. Its saved user is root, so that its children can do what set-uid programs do."""

KINDS = {
    "a session of its own": "child(os.setsid, lambda: become(other), lambda: program({}))",
    "root": "child(os.setsid, lambda: become(0), lambda: program({}))",
    "a grandchild": "child(os.setsid, lambda: become(other), lambda: child(os.setsid, lambda: program({})))",
    "two users": "child(os.setsid, lambda: become(0), lambda: child(os.setsid, lambda: become(other), program))",
    "an orphan with the environment": "orphan(os.setsid, lambda: become(other), program)",
    "a root orphan with the environment": "orphan(os.setsid, lambda: become(0), program)",
    "an orphan in the job's session": (
        "os.waitpid(os.fork() or (child(lambda: become(other), lambda: program({})) and os._exit(0)), 0)"
    ),
    "named like MoM": "child(os.setsid, lambda: become(other), lambda: system.prctl(15, b'pbs_mom'), "
    "lambda: open(place + '/it', 'w').write(str(os.getpid())))",
    "below a subreaper": "child(lambda: system.prctl(36, 1, 0, 0, 0), "
    "lambda: orphan(os.setsid, lambda: become(other), lambda: program({})))",
    "traced": "pid = child(os.setsid, lambda: become(other), lambda: program({}))\nos.seteuid(0)\n"
    "while not os.path.exists(place + '/it'): time.sleep(0.01)\n"
    "assert system.ptrace(0x4206, pid, None, None) == 0\nos.seteuid(owner)",
}
"""What a job does; each writes the pid of the process in question into the file `it`."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as found:
        yield found


def run(rig: Rig, what: str, env: dict[str, str] | None = None) -> int:
    """Start the job and let it do this after the agent has seen it. Returns the pid of `it`."""
    place = rig.directory / "shared"
    place.mkdir()
    place.chmod(0o777)
    uids = str(owner().pw_uid), str(pwd.getpwnam(OTHER).pw_uid)
    argv = [job_python(), "-c", JOB.replace("WHAT", what), str(place), *uids]
    rig.run_job(argv, uid=0, env=COOKIE if env is None else env)
    rig.host.await_op("launched")
    (place / "go").touch()
    until(lambda: (place / "it").exists() and (place / "it").read_text(), "the process in question")
    return int((place / "it").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_the_job_is_stopped_whoever_it_runs_as(rig: Rig, kind: str) -> None:
    rig.claim()
    pid = run(rig, KINDS[kind])
    row = rig.host.order("stop")
    until(lambda: state(pid) in "Tt", "the stop or a sweep after it")
    assert row["stopped"] == row["processes"]
    rig.host.order("run")
    assert kind == "traced" or state(pid) not in "Tt", "its tracer alone can continue a traced process"


def test_a_stopped_process_of_another_user_ends_with_the_job(rig: Rig) -> None:
    rig.claim()
    pid = run(rig, KINDS["an orphan with the environment"])
    rig.host.order("stop")
    until(lambda: state(pid) == "T", "the stop or a sweep after it")
    assert rig.mom("release", job={"id": "12.srv", "run": 1}) == {"ok": True}
    until(lambda: state(pid) in ("", "Z"), "the end of what was stopped")


def test_another_user_who_guesses_the_environment_of_a_job_gives_nobody_a_process(rig: Rig) -> None:
    """He knows the job's id, not its cookie."""
    rig.claim()
    mine = run(rig, "child(program)")
    other = pwd.getpwnam(OTHER).pw_uid
    guesses: list[dict[str, str]] = [{}, {"PBS_JOBCOOKIE": ""}, {"PBS_JOBCOOKIE": "6A5F"}, {"PBS_JOBCOOKIE": "0" * 32}]
    his = [rig.run_job("while :; do sleep 0.05; done", uid=other, env=env) for env in guesses]
    rig.host.order("stop")
    hidden = rig.run_job("while :; do sleep 0.05; done", uid=other, env=COOKIE).pid
    until(lambda: state(hidden) == "T", "a sweep after all of these were read")
    assert state(mine) == "T"
    assert not {state(one.pid) for one in his} & {"T", "t"}


MOM = """
import os, subprocess, sys, time
os.setsid()
hook = [sys.argv[2] + "/pbs_python", "-c", "import subprocess, sys\\nsubprocess.Popen(['sleep', '600'])\\n"
        "open(sys.argv[1], 'w').close()\\nwhile True: __import__('time').sleep(0.01)", sys.argv[1]]
subprocess.Popen(hook)
while True:
    time.sleep(0.01)
"""


def test_mom_and_what_its_hooks_start_in_the_jobs_session_stay_out(rig: Rig) -> None:
    """Before the job's shell begins, MoM's child leads the job's session. Its hooks and their programs are in it."""
    names = rig.directory / "names"
    names.mkdir()
    for name in ("pbs_mom", "pbs_python"):
        (names / name).symlink_to(os.path.realpath(sys.executable))
    there = rig.directory / "there"
    mom = subprocess.Popen(
        [names / "pbs_mom", "-c", MOM, str(there), str(names)],
        env={"PBS_JOBID": "12.srv", MARK: rig.directory.name, **os.environ, **COOKIE},
    )
    until(there.exists, "the hook")
    rig.claim()
    row = {**rig.job(), "substate": 42, "session_id": mom.pid}
    assert rig.mom("jobs", jobs=[row])["ok"]
    job = rig.run_job("while :; do :; done", env=COOKIE)
    rig.host.await_op("launched")
    assert rig.host.order("stop")["processes"] == 1
    assert state(job.pid) == "T"
    session = [pid for pid in rig.children() if os.getsid(pid) == mom.pid]
    assert len(session) == 3
    assert not {state(pid) for pid in session} & {"T", "t"}


ENDING_LEADER = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
if os.fork() == 0:
    open(sys.argv[1] + ".it", "w").write(str(os.getpid()))
    while True:
        time.sleep(0.01)
os._exit(0)
"""


def test_a_session_of_which_no_process_is_left_counts_for_no_other_user(rig: Rig) -> None:
    """Its number is free again. A daemon of root may get it: the process that begins its session ends at once."""
    rig.claim()
    job = rig.run_job("while :; do sleep 0.05; done")
    rig.host.await_op("launched")
    go = rig.directory / "go"
    leader = subprocess.Popen([sys.executable, "-c", ENDING_LEADER, str(go)], start_new_session=True)
    assert rig.mom("jobs", jobs=[{**rig.job(), "substate": 42, "session_id": leader.pid}])["ok"]
    go.touch()
    leader.wait()
    it = go.with_name("go.it")
    until(lambda: it.exists() and it.read_text(), "the process in question")
    rig.host.order("stop")
    assert state(job.pid) == "T"
    assert state(int(it.read_text())) not in "Tt"
    assert state(int(it.read_text()))
