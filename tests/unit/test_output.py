"""Full, closed and narrow outputs: each program does its work to the end, and its exit code tells that the result is
lost. Each program runs as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from magrathea.output import LOST
from magrathea_lab.waiting import BOUND_S
from tests.fakes.control_socket import PREEMPTION, answering
from tests.tables import crossed

PROGRAMS = {
    "magrathea": "magrathea.cli",
    "magrathea-noded": "node_daemon.main",
    "magrathea-hub": "scheduler_plugin.hub.main",
    "magrathea-agent": "node_daemon.agent",
}
programs = pytest.mark.parametrize("program", PROGRAMS)


def programs_with(name: str, values: Sequence[object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("program", name), crossed(list(PROGRAMS), values))


def ended(
    program: str, *arguments: str | bytes, shell: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The program after its end. `shell`: redirections, as in a shell."""
    command = [sys.executable, "-m", PROGRAMS[program], *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", *command],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=BOUND_S,
        env={**os.environ, **environment},
    )


@programs_with("word", ["--version", "-h", "--help"])
def test_help_and_version(program: str, word: str) -> None:
    done = ended(program, word)
    assert (done.returncode, done.stderr) == (0, b"")
    if word == "--version":
        assert done.stdout.split()[-1][:1].isdigit()
    else:
        assert b"xit codes: " in done.stdout and b"74" in done.stdout


@pytest.mark.long
@programs_with("shell", ["> /dev/full", ">&-", ">&- 2>&-", ">&- <&-"])
def test_an_output_that_is_full_or_closed_is_told_in_a_line(program: str, shell: str) -> None:
    done = ended(program, "--help", shell=shell)
    assert done.returncode == LOST
    lines = done.stderr.decode().splitlines()
    assert len(lines) == (0 if "2>&-" in shell else 1)
    assert all(line.startswith(program) and "output cannot be written" in line for line in lines)


@programs_with("shell", ["> /dev/full 2> /dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_mistake_keeps_its_exit_code_if_nothing_can_be_printed(program: str, shell: str) -> None:
    assert ended(program, "--no-such-option", shell=shell).returncode == 2


@programs_with("arguments", [[b"--\xff"], [b"\xff"], [b"--config", b"/tmp/\xff"]])
def test_arguments_that_are_not_utf_8_are_wrong_usage(program: str, arguments: list[bytes]) -> None:
    done = ended(program, *arguments)
    assert done.returncode == 2 and done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["drain"], ["history"], ["domain", "boot"], ["clear"]], ids=" ".join)
def test_a_request_that_is_not_utf_8_is_wrong_usage(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "c.sock"
    with answering(path, b'{"ok":true}\n') as questions:
        done = ended("magrathea", *words, b"n\xff", "--socket", str(path))
    assert done.returncode == 2 and not any(questions)
    assert done.stderr == b"magrathea: an argument is not UTF-8; write it in UTF-8\n"


@programs
def test_a_working_directory_that_is_gone(program: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = (
        f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {sys.executable} -P -m {PROGRAMS[program]} --version"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, timeout=BOUND_S, env={**os.environ, "PYTHONPATH": root}
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("main", "code", "told"),
    [
        ("open('/no' + chr(27) + 'where')", LOST, "x: [Errno 2] No such file or directory: '/no\\x1bwhere'\n"),
        ("(_ for _ in ()).throw(KeyboardInterrupt())", 130, ""),
        ("sys.exit(3)", 3, ""),
        ("print('\\udcff') or 4", 4, ""),
        ("None", 0, ""),
    ],
)
def test_what_no_command_expects_ends_it_in_a_line(main: str, code: int, told: str) -> None:
    program = f"import sys; from magrathea.output import run; run('x', lambda: {main})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND_S)
    assert (done.returncode, done.stderr) == (code, told)


@pytest.mark.parametrize("descriptor", [0, 1, 2])
@pytest.mark.parametrize(
    "prepare",
    [
        "from magrathea.output import _prepare; _prepare('x')",
        "from node_daemon.agent import own_process as o; o.keep_standard_descriptors()",
    ],
    ids=["programs", "agent"],
)
def test_no_file_of_a_daemon_gets_the_number_of_a_standard_stream(prepare: str, descriptor: int) -> None:
    program = f"import os; {prepare}; found = os.open('/dev/zero', os.O_RDONLY); os._exit(found)"
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {descriptor}>&-', "sh", sys.executable, "-c", program], timeout=BOUND_S
    )
    assert done.returncode > 2


@pytest.fixture
def status(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`magrathea status` against a daemon whose answer has an arrow."""

    def status(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
        from magrathea.messages import encode

        path = tmp_path / "c.sock"
        with answering(path, encode(PREEMPTION) + b"\n"):
            return ended("magrathea", "status", "--socket", str(path), *arguments, shell=shell, **environment)

    return status


def test_letters_that_the_output_does_not_have_are_escaped(
    status: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    done = status(PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and b"all \\u2192 10 %" in done.stdout


@pytest.mark.parametrize(("shell", "told"), [("> /dev/full", 1), ("| true", 0)])
def test_a_watch_ends_with_its_reader(
    status: Callable[..., subprocess.CompletedProcess[bytes]], shell: str, told: int
) -> None:
    done = status("--watch", "0.1", shell=shell)
    assert len(done.stderr.splitlines()) == told and b"Traceback" not in done.stderr
