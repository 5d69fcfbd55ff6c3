"""`magrathea give-back` continues the processes that the journal has as stopped, and no others, without a daemon."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea import qstat
from magrathea.core.model import Domain, Host, Job, JobClass, JobKey, Kind, Mode, StoppedBy
from magrathea_lab.waiting import until
from node_daemon.journal import open_journal
from node_daemon.setup.give_back import ContinuedProcesses, command, give_back
from tests.fakes.control_socket import answering

SERVER = f"s{os.getpid()}"
"""Unique for this run: `give-back` searches all processes of the machine, and another run may have some."""
OURS, OTHER = f"12.{SERVER}", f"99.{SERVER}"
JOB = Job(JobKey(OURS, 1), JobClass.PREEMPTIBLE, 1, 0, 0.0, 0.0, stopped_since=1.0, stopper=StoppedBy.US, booked=True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    host = Host("h1", Mode.EXCLUSIVE, 1, 64, (Domain("n1", Kind.NORMAL, 1, jobs=(JOB,)),))
    journal = open_journal(tmp_path / "journal.sqlite")
    journal.commit(host, None, ())
    journal.close()
    path = tmp_path / "noded.toml"
    paths = f'[paths]\nrun_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n'
    text = f'[host]\nname = "h1"\nmode = "exclusive"\n{paths}[domain.n1]\nkind = "normal"\n'
    path.write_text(text + f'local.pid_file = "{tmp_path}/n1.pid"\n', encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def no_pbs(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(id: str) -> tuple[str, dict[str, object]]:
        raise qstat.NoQstat("cannot connect to server")

    monkeypatch.setattr(qstat, "job", silent)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def wait_for(pid: int, stopped: bool) -> None:
    until(lambda: (state(pid) == "T") is stopped, lambda: f"process {pid} is {state(pid)}")


@pytest.fixture
def processes() -> Iterator[dict[str, int]]:
    """A stopped process of each of two jobs."""
    code = "import sys, time; print(flush=True); time.sleep(60)"
    started = {
        id: subprocess.Popen([sys.executable, "-c", code], env={"PBS_JOBID": id}, stdout=subprocess.PIPE)
        for id in (OURS, OTHER)
    }
    try:
        for process in started.values():
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(process.pid, stopped=True)
        yield {id: process.pid for id, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
            process.communicate()


def test_only_jobs_that_the_journal_has_as_stopped_continue(config: Path, processes: dict[str, int]) -> None:
    result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert f"{OURS} in n1: 1 processes continued" in result.output
    assert f"qsig -s admin-resume {OURS}" in result.output
    wait_for(processes[OURS], stopped=False)
    assert state(processes[OTHER]) == "T"


def test_there_is_output_for_programs_and_scripts_too(config: Path, processes: dict[str, int]) -> None:
    result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config), "--format", "json"])
    (row,) = json.loads(result.stdout)
    assert row == {"domain": "n1", "job": OURS, "continued": 1, "failed": 0, "strange": 0, "booked": True}
    again = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config), "--format", "plain"])
    assert again.stdout == f"n1\t{OURS}\t0\t0\t0\tyes\n"


def test_it_asks_first(config: Path, processes: dict[str, int]) -> None:
    result = CliRunner().invoke(command, ["h1", "--config", str(config)], input="n\n")
    assert result.exit_code == 1
    assert state(processes[OURS]) == "T"


def test_another_hosts_name_is_wrong_usage(config: Path) -> None:
    assert CliRunner().invoke(command, ["h2", "--yes", "--config", str(config)]).exit_code == 2


def test_a_job_without_processes_is_no_error() -> None:
    assert give_back([JOB.key.id + ".none"], {})[JOB.key.id + ".none"] == ContinuedProcesses()


def owned_by(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(qstat, "job", lambda id: (id, {"Job_Owner": f"{name}@login"}))


def test_the_owners_processes_continue(
    config: Path, processes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(monkeypatch, pwd.getpwuid(os.getuid()).pw_name)
    result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config)])
    assert f"{OURS} in n1: 1 processes continued\n" in result.output
    wait_for(processes[OURS], stopped=False)


def test_another_users_process_with_the_jobs_id_is_not_touched(
    config: Path, processes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(monkeypatch, "nobody")
    result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert f"{OURS} in n1: 0 processes continued, 1 of other users not touched" in result.output
    assert state(processes[OURS]) == "T"


def test_without_the_owner_from_pbs_processes_of_all_users_are_continued_and_that_is_reported(
    config: Path, processes: dict[str, int]
) -> None:
    result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config)])
    assert "cannot connect to server; stopped processes of all users" in result.stderr
    wait_for(processes[OURS], stopped=False)


def test_while_the_daemon_runs_it_is_refused_with_the_fix(config: Path, processes: dict[str, int]) -> None:
    with answering(config.with_name("control.sock"), b'{"ok":true}\n') as questions:
        result = CliRunner().invoke(command, ["h1", "--yes", "--config", str(config)])
    assert result.exit_code == 1
    assert b'"ping"' in questions[0]
    assert "`systemctl stop magrathea-noded` first" in result.stderr
    assert state(processes[OURS]) == "T"
