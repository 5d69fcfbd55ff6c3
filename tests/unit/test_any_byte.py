"""Whatever sites and users write into PBS, into files and into arguments: each command ends with its own exit code.

PBS's programs are stand-ins here, which print what a real PBS does for such jobs, queues and resources.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from magrathea import client
from magrathea.cli.main import cli
from magrathea.messages import encode
from magrathea_lab.waiting import BOUND_S
from node_daemon.journal import salvage
from node_daemon.setup import give_back
from scheduler_plugin.pbs import libpbs
from scheduler_plugin.setup import pbs_commands
from scheduler_plugin.setup.sched_config import InstallError
from tests.fakes.control_socket import PREEMPTION, answering

JOB = (
    rb"""Job Id: 21.srv
    Job_Name = a'b"c\d;e&f|g*[h](i){j}~#$%^,k
    Job_Owner = EXAMPLE\j@rgen@login.example
    job_state = Q
    queue = 007
    comment = J\xfcrgen's "job"	is 1e5	\x1b[2Jnull
    Account_Name = \xff\xfe
    Resource_List.select = 1:ncpus=2:note='it is "quoted" + x=y':flavour="a:b"
    schedselect = 1:ncpus=2:note='it is "quoted" + x=y':flavour="a:b":magrathea_accepts=protected
    Variable_List = PBS_O_HOME=/home/j,CONTACT=J\xfcrgen,LINE=one\\ntwo,
	QUEUE = high,X=

""".replace(rb"\xfc", b"\xfc")
    .replace(rb"\xff\xfe", b"\xff\xfe")
    .replace(rb"\x1b", b"\x1b")
)
LISTS = b"""Resource note
    type = string
    flag = h

Queue 007
    queue_type = Execution
    comment = J\xfcrgen

Queue null
    queue_type = Route
    route_destinations = 007

Server srv
    server_state = Active
    comment = \xff "quoted"
    operators = EXAMPLE\\j@rgen@login.example,ad\xfcmin@*

Sched default
    comment = \xff
"""
NODES = b"""Node n1
    state = free
    comment = \xfc\x1b[2J
    resources_available.note = "a, \xff"
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pbs.conf of a PBS with such a job, such queues and such texts."""
    programs = tmp_path / "exec" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("job", JOB), ("lists", LISTS), ("nodes", NODES)):
        (tmp_path / name).write_bytes(text)
    (programs / "qstat").write_text(f"#!/bin/sh\ncat {tmp_path}/job\n")
    lists = f"read line; case $line in *node*) cat {tmp_path}/nodes ;; *) cat {tmp_path}/lists ;; esac"
    (programs / "qmgr").write_text(f"#!/bin/sh\n{lists}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    home = tmp_path / "home"
    (home / "sched_priv").mkdir(parents=True)
    (home / "server_priv").mkdir()
    (home / "sched_priv/sched_config").write_bytes(b'# J\xfcrgen\nresources: "ncpus, mem"\n')
    conf = tmp_path / "pbs.conf"
    conf.write_bytes(f"# \udcff\nPBS_EXEC={tmp_path}/exec\nPBS_HOME={home}\n".encode(errors="surrogateescape"))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return conf


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "c.sock"
    with answering(path, encode(PREEMPTION) + b"\n"):
        yield str(path)


def magrathea(*words: str) -> Result:
    """The command's result; it must end with an exit code, and what it prints must be encodable."""
    result = CliRunner().invoke(cli, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    result.output.encode(errors="backslashreplace")
    return result


@pytest.mark.parametrize("form", ["table", "json", "plain"])
def test_pbs_check_and_doctor(conf: Path, form: str) -> None:
    assert magrathea("pbs", "check", "--conf", str(conf), "--format", form).exit_code == 2
    assert magrathea("doctor", "--part", "server", "--pbs", str(conf), "--format", form).exit_code == 2


def test_installing_and_uninstalling(conf: Path) -> None:
    done = magrathea("pbs", "install", "--vnode", "n1", "--dry-run", "--conf", str(conf))
    assert done.exit_code == 0 and "changes would be made" in done.stdout
    assert magrathea("pbs", "uninstall", "--dry-run", "--conf", str(conf)).exit_code == 0


@pytest.mark.parametrize("form", ["table", "json", "plain"])
def test_explain(conf: Path, daemon: str, form: str) -> None:
    done = magrathea("explain", "21", "--socket", daemon, "--format", form)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    if form == "json":
        assert '"queue": "007"' in done.stdout


def test_the_owner_of_a_job_is_looked_up_whatever_he_is_called(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getpwnam(name: str) -> object:
        asked.append(name)
        raise ValueError("embedded null byte")

    monkeypatch.setattr("pwd.getpwnam", getpwnam)
    assert give_back.owners(["21.srv"])[0] == {}
    assert asked == ["EXAMPLE\\j@rgen"]


@pytest.mark.parametrize("word", ["\udcff", "/x/\udcff", "-\udcff"])
@pytest.mark.parametrize("command", ["explain", "preview -q", "keys enrol", "give-back", "pbs check --conf"])
def test_arguments_of_any_bytes(conf: Path, daemon: str, command: str, word: str) -> None:
    more = ["--socket", daemon] if command in ("explain", "preview -q") else []
    done = magrathea(*command.split(), word, *more)
    assert done.exit_code in (1, 2, 3) and done.stderr


def test_an_argument_that_is_too_long_for_a_program_is_an_error_of_the_command(conf: Path) -> None:
    place = pbs_commands.find_pbs(conf)
    for word in ("x" * 10_000_000, "a\x00b"):
        with pytest.raises(InstallError, match="cannot be run"):
            pbs_commands.run(place, ["qstat", word])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: None], ids=["pipe", "directory", "nothing"])
def test_a_journal_that_is_no_file_is_told_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "journal.sqlite"
    make(path)
    assert salvage(path) is None
    done = magrathea("history", "--journal", str(path))
    assert done.exit_code == 1 and str(path) in done.stderr


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="it becomes another user")
def test_folders_that_are_closed_to_the_user(tmp_path: Path) -> None:
    """A user of the machine, while the daemon is down: its files are root's."""
    (tmp_path / "closed").mkdir(mode=0o700)
    inside = tmp_path / "closed" / "file"
    inside.touch()
    program = f"""if True:
        import codecs, os, sys
        from pathlib import Path
        from click.testing import CliRunner
        from magrathea import client, history
        import magrathea.cli.login
        from magrathea.cli.main import cli
        client.DEFAULT_SOCKET = client.HUB_SOCKET = history.DEFAULT_FILE = Path({str(inside)!r})
        os.environ["MAGRATHEA_AGENT_CONF"] = {str(inside)!r}
        commands = ["status", "hosts", "history", "doctor --hub F --noded F --agent F --pbs F", "keys --dir F list"]
        for command in commands:  # so that everything is imported: this user may not read Python's folders either
            CliRunner().invoke(cli, command.replace("F", {str(inside)!r}).split())
        codecs.lookup("unicode_escape")
        os.setuid(65534)
        for command in commands:
            result = CliRunner().invoke(cli, command.replace("F", {str(inside)!r}).split())
            assert isinstance(result.exception, SystemExit), (command, result.exception)
            print(command.split()[0], result.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND_S)
    assert done.stdout.split() == ["status", "3", "hosts", "3", "history", "3", "doctor", "2", "keys", "1"], done.stderr


def test_keys_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = magrathea("keys", "--dir", str(tmp_path / "none"), "list")
    assert done.exit_code == 1 and "keys init" in done.stderr


def test_names_of_any_bytes_from_the_library() -> None:
    value = libpbs._Attribute(None, b"Resource\xff", b"r\xfc", b"J\xfcrgen", 0)
    assert libpbs._attributes(ctypes.pointer(value)) == {"Resource\ufffd.r\ufffd": "J\ufffdrgen"}


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert salvage(Path("journal.sqlite")) is None
    for words in (["history", "--journal", "j"], ["doctor", "--noded", "n"], ["keys", "--dir", "k", "init"]):
        assert magrathea(*words).exit_code in (1, 2, 3)
    with pytest.raises(client.Unreachable):
        client.status(Path("c.sock"))
