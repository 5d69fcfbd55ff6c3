"""`magrathea demo --driver libvirt` as people run it: to its end, interrupted, and with something missing.

It makes its own libvirtd and guests; these tests do not use the others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from magrathea_lab.demo.guest_story import parts_of
from magrathea_lab.waiting import BOUND_S, until

from ..embedded.test_demo import AS_NOBODY, LAST_LINE, left_behind, start


@dataclass
class Traces:
    """What a demo leaves if it does not clean up: its libvirtd's folder, and things with its domains' names."""

    folder: Path
    prefix: str

    def present(self) -> list[str]:
        found = [str(self.folder)] if self.folder.exists() else []
        found += [str(group) for group in Path("/sys/fs/cgroup").glob(f"**/*{self.prefix}*")]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            if self.prefix in line:
                found.append(line)
        return found


def traces(directory: Path) -> Traces:
    """The traces of the demo that runs in `directory`."""
    for line in left_behind(directory):
        if match := re.search(r"guests/libvirtd_keeper\.py (\S+) (\S+)", line):
            return Traces(Path(match[1]), match[2])
    raise AssertionError(f"no keeper of a libvirtd in {left_behind(directory)}")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "demo"
    made.mkdir(mode=0o777)
    return made


def test_demo_ends_with_its_line_and_leaves_nothing_behind(directory: Path) -> None:
    demo = start(directory, (), "--driver", "libvirt")
    lines: list[str] = []
    try:
        assert demo.stdout is not None
        known: Traces | None = None
        for line in demo.stdout:
            lines.append(line.rstrip("\n"))
            if known is None and "low-1: starts" in line:
                known = traces(directory)
        demo.wait(BOUND_S)
    finally:
        demo.kill()
    output = "\n".join(lines)
    assert demo.returncode == 0, output
    last = LAST_LINE.fullmatch(lines[-1])
    assert last, output
    assert int(last[1]) == int(last[2]) == 2, output
    assert re.search(r"memory \(MiB\): n1 \S+ +[12]\d\d ", output), "memory is seen to move"
    assert "CPU: n1 no cap -> 10 %" in output and "CPU: n1 10 % -> no cap" in output
    assert re.search(r"(by emulation|with hardware acceleration)", output)
    for part in ("claim to answer", "the agent stops the job in n1", "memory out of n1", "memory into p1"):
        assert re.search(rf"^ *{part} +\d", output, re.MULTILINE), output
    assert known is not None and known.present() == []
    assert left_behind(directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_demo_leaves_nothing_behind(directory: Path, number: signal.Signals) -> None:
    demo = start(directory, (), "--driver", "libvirt")
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "two virtual machines: n1" in line:
                break
        known = traces(directory)
        until(lambda: any("guest=" in line for line in known.present()), "a guest is there")
        demo.send_signal(number)
        output, _ = demo.communicate(timeout=BOUND_S)
        if number is not signal.SIGKILL:
            assert demo.returncode == 1
            assert output.splitlines()[-1] == "demo: FAILED interrupted"

        def left() -> list[str]:
            return [*known.present(), *left_behind(directory)]

        until(lambda: not left(), lambda: f"all of it goes; {left()}")
    finally:
        demo.kill()


def run(directory: Path, *command: str, path: str = os.environ["PATH"]) -> tuple[int, str]:
    environment = {"PATH": path, "TMPDIR": str(directory), "LANG": "C.UTF-8"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([*command], capture_output=True, text=True, env=environment, cwd=directory, timeout=BOUND_S)
    return done.returncode, done.stdout


DEMO = (sys.executable, "-m", "magrathea_lab.demo.demo", "--driver", "libvirt")


def test_packages_that_are_missing_are_named(directory: Path) -> None:
    code, output = run(directory, *DEMO, path=str(directory))
    assert code == 1
    assert re.match(
        r"demo: FAILED .*packages .*qemu-system-x86.* are missing .*apt-get install", output.splitlines()[-1]
    )


def test_without_root_it_shows_the_command(directory: Path) -> None:
    probe = subprocess.run([*AS_NOBODY, sys.executable, "-c", "import msgspec, libvirt"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip(f"no other user can run {sys.executable}")
    code, output = run(directory, *AS_NOBODY, *DEMO)
    assert code == 1
    assert re.match(r"demo: FAILED .*needs root.*magrathea demo --driver libvirt", output.splitlines()[-1])


def test_virtual_machines_and_openpbs_at_once_are_refused(directory: Path) -> None:
    assert run(directory, *DEMO, "--pbs", "openpbs")[0] == 2


LOG = """
10:00:00 INFO n1: claim of 1.s (run 1) granted after 0.9 ms
10:00:00 DEBUG n1: memory 384 MiB after 5.0 ms
10:00:01 INFO p1: 2.s (run 1) accepted, preempting n1
10:00:01 DEBUG n1: stop 1.s (run 1) after 18.7 ms
10:00:01 INFO p1: claim of 2.s (run 1) granted after 40.4 ms
10:00:07 DEBUG n1: cpu 10 % after 7.0 ms
10:00:07 DEBUG n1: memory 176 MiB after 6000.7 ms
10:00:08 DEBUG p1: memory 384 MiB after 7000.6 ms
10:00:12 INFO p1: 2.s (run 1) released
10:00:12 DEBUG n1: cpu without a cap after 6.5 ms
10:00:19 DEBUG n1: memory 384 MiB after 6600.0 ms
10:00:20 DEBUG n1: lift 1.s (run 1) after 1100.0 ms
10:00:20 DEBUG n1: run 1.s (run 1) after 97.0 ms
10:00:30 INFO p1: 3.s (run 1) accepted, preempting n1
10:00:30 DEBUG n1: stop 1.s (run 1) after 10.0 ms
"""


def test_the_parts_of_a_switch_and_of_its_end_are_distinguished() -> None:
    first, second = parts_of(LOG).values()
    assert first == {
        "  the agent stops the job in n1": 18.7,
        "claim to answer": 40.4,
        "CPU of n1 capped": 7.0,
        "memory out of n1": 6000.7,
        "memory into p1": 7000.6,
        "back: the cap of n1 taken off": 6.5,
        "back: memory into n1": 6600.0,
        "back: what was pushed out is fetched": 1100.0,
        "back: the agent continues the job": 97.0,
    }
    assert second == {"  the agent stops the job in n1": 10.0}
