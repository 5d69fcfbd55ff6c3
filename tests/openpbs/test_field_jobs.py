"""Jobs as users have them: launchers, statistics packages, set-uid helpers. None escapes, and none dies."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.clusters.openpbs import USER, OpenPbsCluster
from magrathea_lab.fleet import EXCLUSIVE
from magrathea_lab.scenarios.scenarios import (
    LONG,
    STILL_S,
    wait,
    wait_all_free,
    wait_running,
    wait_state,
    wait_stoppable,
)
from magrathea_lab.work import PAUSE_S
from scheduler_plugin.setup.hook_texts import hook_text

from .conftest import EAGER
from .jobs import all_go_on, all_stand_still, command, configured, end, home, pbs, preempt, refused, site_hook, submit
from .test_limits import limits

HELPER = Path(__file__).with_name("other_uid_child.c")


@pytest.fixture
def helper() -> Iterator[Path]:
    """A set-uid program: where the cluster's own files are, set-uid bits may have no effect."""
    if shutil.which("cc") is None:
        pytest.skip("a set-uid program needs a C compiler")
    with tempfile.TemporaryDirectory(prefix="magrathea-helper-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        program = Path(name) / "other_uid_child"
        subprocess.run(["cc", "-o", program, HELPER], check=True)
        program.chmod(0o4755)
        yield program


def test_a_child_under_another_user_in_a_session_of_its_own_is_stopped_with_its_job(
    fleet: OpenPbsCluster, helper: Path
) -> None:
    """With a living parent, and as an orphan; PBS's own signals reach neither."""
    counts = fleet.directory / "counts"
    counts.mkdir(exist_ok=True)
    counts.chmod(0o777)
    runs = f'{helper} /usr/bin/setsid /usr/bin/python3 -S "{fleet.directory}/work.py" {LONG} {PAUSE_S}'
    with fleet.only(EXCLUSIVE):
        lines = [f'{runs} "{counts}/child" &', f'( ( {runs} "{counts}/orphan" & ) & )']
        low = submit(fleet, "low", "\n".join([*lines, command(fleet, LONG)]))
        wait_running(fleet, low)
        files = [counts / "child", counts / "orphan", home(fleet) / f"{low}.count"]
        wait(fleet, "all of them compute", lambda: all(f.exists() and f.read_text().strip() for f in files))
        owners = {file.stat().st_uid for file in files[:2]}
        assert owners == {65533}
        high = preempt(fleet, low)
        before = all_stand_still(fleet, files)
        end(fleet, high)
        all_go_on(fleet, files, before)
        wait_state(fleet, low, "R")
        high = preempt(fleet, low)
        fleet.delete(low)
        wait_state(fleet, low, "F")
        wait(fleet, "the end of what PBS does not find", lambda: not running_as(fleet, 65533))
        end(fleet, high)
        wait_all_free(fleet, EXCLUSIVE)


def running_as(fleet: OpenPbsCluster, uid: int) -> list[int]:
    """Processes of this user that work for this cluster."""
    mark = str(fleet.directory).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == uid and mark in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue  # it has just gone
    return found


FORWARDS = """exec python3 -S -c '
import os, signal, subprocess, sys
rank = subprocess.Popen(["sleep", "100000"])
signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(rank.pid, number))
open(os.environ["HOME"] + "/" + os.environ["PBS_JOBID"] + ".ready", "w").close()
sys.exit(rank.wait())
'
"""
"""Like a launcher of parallel jobs: it passes SIGUSR1 on to a rank that has no handler for it."""
QUITS = """exec python3 -S -c '
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(0))
open(os.environ["HOME"] + "/" + os.environ["PBS_JOBID"] + ".ready", "w").close()
while True:
    time.sleep(0.2)
'
"""
"""Like a statistics package or a workflow engine: SIGUSR1 means save and quit."""


def ready(fleet: OpenPbsCluster, script: str, *argv: str) -> str:
    """A job in n4 that is ready for signals."""
    low = submit(fleet, "low", script, "-l", "select=1:ncpus=1:host=n4", *argv)
    wait(fleet, f"{low} is ready", (home(fleet) / f"{low}.ready").exists)
    return low


def test_nobody_gets_a_signal_that_he_has_not_asked_for(fleet: OpenPbsCluster) -> None:
    with fleet.only(EAGER), limits(fleet, EAGER, longest_warning_s=60.0):
        lows = [ready(fleet, script) for script in (FORWARDS, QUITS)]
        high = preempt(fleet, *lows, domain="n4", by="p4")
        end(fleet, high)
        for low in lows:
            wait_state(fleet, low, "R")
        time.sleep(STILL_S)  # a signal that waited behind the stop would have ended them
        assert [fleet.jobs()[low].state for low in lows] == ["R", "R"]
        for low in lows:
            end(fleet, low)
        wait_all_free(fleet, EAGER)


WARNED = """
trap 'date +%s.%N >> "$HOME/$PBS_JOBID.shell"' USR1
python3 -S -c '
import os, signal, time
home = os.environ["HOME"] + "/" + os.environ["PBS_JOBID"]
def told(*_):
    with open(home + ".child", "a") as file:
        print(time.time(), file=file)
signal.signal(signal.SIGUSR1, told)
open(home + ".ready", "w").close()
while True:
    with open(home + ".new", "w") as file:
        file.write("%f" % time.time())
    os.replace(home + ".new", home + ".seen")
    time.sleep(0.02)
' &
while :; do wait; done
"""
ASKS = {
    "all of the job": (["-v", "MAGRATHEA_SIGNAL=USR1"], {"shell", "child"}),
    "its shell": (["-v", "MAGRATHEA_SIGNAL=B:USR1@1"], {"shell"}),
    "a resource": (["-l", "stop_signal=B:SIGUSR1"], {"shell"}),
    "nobody": ([], set()),
    "a wrong text of the queue": (["-l", "stop_signal=KILL"], set()),
}


def have_resource(fleet: OpenPbsCluster) -> None:
    """The site's own resource for warnings, known to PBS and to n4's MoM."""
    if "stop_signal" not in pbs(fleet, "qmgr", "-c", "list resource").stdout:
        fleet.pbs.qmgr("create resource stop_signal type=string,flag=m")
    known = fleet.pbs.pbs_home("n4") / "mom_priv/hooks/resourcedef"
    wait(fleet, "n4's MoM knows it", lambda: known.exists() and "stop_signal" in known.read_text())


@pytest.mark.parametrize("kind", ASKS)
def test_a_job_is_warned_as_it_has_asked_for_and_has_its_time_before_it_is_stopped(
    fleet: OpenPbsCluster, kind: str
) -> None:
    argv, expected = ASKS[kind]
    have_resource(fleet)
    with fleet.only(EAGER):
        low = ready(fleet, WARNED, *argv)
        high = preempt(fleet, low, domain="n4", by="p4")
        files = {part: home(fleet) / f"{low}.{part}" for part in ("shell", "child")}
        told = {part for part, file in files.items() if file.exists()}
        assert told == expected
        seen = float((home(fleet) / f"{low}.seen").read_text())
        for part in told:
            (at,) = (float(line) for line in files[part].read_text().splitlines())
            assert seen - at >= 0.8  # a step may be missing at either end
        time.sleep(STILL_S)
        assert float((home(fleet) / f"{low}.seen").read_text()) == seen
        end(fleet, high)
        wait_state(fleet, low, "R")
        end(fleet, low)
        wait_all_free(fleet, EAGER)


def test_with_the_prologue_hook_a_warning_lasts_for_seconds_and_the_preempting_job_waits(
    fleet: OpenPbsCluster,
) -> None:
    """Its claim is granted meanwhile: a claim has two seconds."""
    moms = ("n4", "p4")
    prologue = site_hook(fleet, "magrathea_prologue", "execjob_prologue", hook_text("magrathea_mom"), *moms)
    with fleet.only(EAGER), limits(fleet, EAGER, longest_warning_s=60.0), prologue:
        low = ready(fleet, WARNED, "-v", "MAGRATHEA_SIGNAL=B:USR1@5")
        wait_stoppable(fleet, "n4")
        first = f'date +%s.%N > "$HOME/$PBS_JOBID.first"; exec {command(fleet, LONG)}'
        high = submit(fleet, "high", first, "-l", "select=1:ncpus=1:host=p4")
        wait_running(fleet, high)
        wait_state(fleet, low, "S")
        (at,) = (float(line) for line in (home(fleet) / f"{low}.shell").read_text().splitlines())
        seen = float((home(fleet) / f"{low}.seen").read_text())
        assert seen - at >= 4.5  # a step may be missing at either end
        assert float((home(fleet) / f"{high}.first").read_text()) >= seen
        assert fleet.jobs()[high].run_version == 1, "no start was refused"
        end(fleet, high)
        wait_state(fleet, low, "R")
        end(fleet, low)
        wait_all_free(fleet, EAGER)


def test_a_wrong_text_is_refused_at_once_and_the_user_is_told_why(fleet: OpenPbsCluster) -> None:
    said = refused(fleet, "qsub", "-q", "low", "-v", "MAGRATHEA_SIGNAL=B:KILL@30", "--", "/bin/true", user=USER)
    assert "warning-unclear" in said and "'KILL' is none of" in said


def test_a_queue_asks_for_a_warning_of_its_jobs(fleet: OpenPbsCluster) -> None:
    have_resource(fleet)
    default = "queue low resources_default.stop_signal"
    with fleet.only(EAGER), configured(fleet, f"set {default}=USR1", f"unset {default}"):
        low = ready(fleet, WARNED)
        high = preempt(fleet, low, domain="n4", by="p4")
        assert (home(fleet) / f"{low}.child").exists()
        end(fleet, high)
        wait_state(fleet, low, "R")
        end(fleet, low)
        wait_all_free(fleet, EAGER)
