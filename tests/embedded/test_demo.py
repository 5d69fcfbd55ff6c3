"""`magrathea demo` as people run it: in its own process, with and without root, to its end and interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from magrathea_lab.fleet import ROOT
from magrathea_lab.waiting import BOUND_S, until

from ..signals import interruptible

DEMO = ["-m", "magrathea_lab.demo.demo"]
LAST_LINE = re.compile(
    r"demo: ok preempted=(\d+) resumed=(\d+) lost=0 switch_ms_p50=([\d.]+) switch_ms_p99=([\d.]+)", re.ASCII
)
LONGEST_S = 800.0
"""Alone it takes one minute. If a chapter does not end, the demo itself reports it."""
NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]


PACKAGES = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]


def start(
    directory: Path, prefix: Sequence[str] = (), *options: str, python: str = sys.executable
) -> subprocess.Popen[str]:
    """Start the demo, with its temporary files in `directory`, which also identifies its processes."""
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(directory), "LANG": "C.UTF-8"}
    environment["PYTHONPATH"] = os.pathsep.join(PACKAGES)
    return subprocess.Popen(
        [*prefix, python, *DEMO, *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=directory,
        preexec_fn=interruptible,
    )  # fmt: skip


def left_behind(directory: Path) -> list[str]:
    """Command lines of processes that belong to a demo in `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={directory}".encode() in path.read_bytes().split(b"\0") or os.fsencode(directory) in (
                path.with_name("cmdline").read_bytes()
            ):
                found.append(path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # another user's process, or gone
    return found


def require_ok(demo: subprocess.Popen[str], directory: Path) -> None:
    output, _ = demo.communicate(timeout=LONGEST_S)
    assert demo.returncode == 0, output
    last = LAST_LINE.fullmatch(output.splitlines()[-1])
    assert last, output
    preempted, resumed = int(last[1]), int(last[2])
    assert preempted == resumed >= 3, output
    assert float(last[3]) <= float(last[4])
    assert left_behind(directory) == []
    assert list(directory.iterdir()) == []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that every user may write to, with a short name, since sockets are made in it."""
    made = Path("/tmp") / f"mgdemo-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    made.mkdir()
    made.chmod(0o777)
    return made


def test_demo_ends_with_its_line_and_leaves_nothing_behind(directory: Path) -> None:
    try:
        require_ok(start(directory), directory)
    finally:
        shutil.rmtree(directory)


def python_for_nobody() -> str | None:
    """An interpreter of this version that the user nobody can run; root's may be in root's home."""
    again = "import os, sys, zmq, msgspec; os.execv(sys.executable, [sys.executable, '-c', 'import zmq, msgspec'])"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        argv = [*AS_NOBODY, candidate, "-c", again]
        if Path(candidate).exists() and subprocess.run(argv, capture_output=True, env=environment).returncode == 0:
            return candidate
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="this whole run is without root, so the test above has shown it")
def test_demo_without_root(directory: Path) -> None:
    python = python_for_nobody()
    if python is None:
        pytest.skip(f"no other user can run {sys.executable}, and there is no other Python of its version")
    try:
        require_ok(start(directory, AS_NOBODY, python=python), directory)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_demo_leaves_no_process_behind(directory: Path, number: signal.Signals) -> None:
    demo = start(directory)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "low-1: starts" in line:
                break
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=BOUND_S)
        if number is not signal.SIGKILL:
            assert demo.returncode == 1
            assert output.splitlines()[-1] == "demo: FAILED interrupted"
        until(lambda: not left_behind(directory), lambda: f"its processes end; {left_behind(directory)}")
        until(lambda: not list(directory.iterdir()), lambda: f"its files go; {list(directory.iterdir())}")
    finally:
        demo.kill()
        shutil.rmtree(directory, ignore_errors=True)


def test_openpbs_is_requested_but_cannot_run(directory: Path) -> None:
    """Without root or without OpenPBS, the demo reports at once which is missing."""
    prefix = AS_NOBODY if os.geteuid() == 0 else []
    try:
        output, _ = (demo := start(directory, prefix, "--pbs", "openpbs")).communicate(timeout=BOUND_S)
        assert demo.returncode == 1
        assert re.search(r"^demo: FAILED .*(needs root|is not installed)", output, re.MULTILINE), output
    finally:
        shutil.rmtree(directory)


def test_a_demo_that_cannot_work_shows_the_failed_parts_own_message() -> None:
    """In a directory with a name that is too long for a socket no part can listen."""
    directory = Path("/tmp") / f"mgdemo-{os.getpid()}-{'x' * 100}"
    directory.mkdir()
    try:
        output, _ = (demo := start(directory)).communicate(timeout=BOUND_S)
        assert demo.returncode == 1
        assert output.splitlines()[-1] == "demo: FAILED the cluster does not start: server ended at once"
        assert "AF_UNIX path too long" in output
        assert left_behind(directory) == []
    finally:
        shutil.rmtree(directory)
