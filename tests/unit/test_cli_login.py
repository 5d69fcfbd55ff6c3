"""`hosts`, `status`, `explain`, `preview` on a login node: neither hub nor daemon, only PBS's own commands.

The texts of pbsnodes and qstat are those of a real server; tests/openpbs/test_login_node.py asks one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from magrathea import client
from magrathea.cli import login, main, sources

VNODES = """\
n1
     Mom = n1
     ntype = PBS
     state = job-busy
     jobs = 12.srv/0, 13.srv/0
     resources_available.magrathea = running-preemptible
     resources_available.magrathea_accepts = preemptible,protected
     resources_available.magrathea_host = host1
     resources_available.magrathea_siblings = p1
     resources_available.mem = 4096mb
     resources_available.ncpus = 4
     resources_assigned.ncpus = 2

p1
     Mom = p1
     state = free
     resources_available.magrathea = occupied-would-preempt
     resources_available.magrathea_accepts = priority
     resources_available.magrathea_host = host1
     resources_available.magrathea_siblings = n1
     resources_available.mem = 4gb
     resources_available.ncpus = 4
     resources_assigned.ncpus = 0

n2
     Mom = n2
     state = free
     resources_available.magrathea = free
     resources_available.magrathea_accepts = preemptible,protected
     resources_available.magrathea_host = host2
     resources_available.magrathea_siblings = p2
     resources_available.ncpus = 4

p2
     Mom = p2
     state = offline
     resources_available.magrathea = free
     resources_available.magrathea_accepts = priority
     resources_available.magrathea_host = host2
     resources_available.magrathea_siblings = n2
     resources_available.ncpus = 4

plain
     Mom = plain
     state = free
     resources_available.magrathea_accepts = priority,preemptible,protected
     resources_available.ncpus = 4
"""
UNKNOWN = VNODES.replace("magrathea = running-preemptible", "magrathea = unknown").replace(
    "magrathea = occupied-would-preempt", "magrathea = unknown"
)
RUNNING = (
    "    job_state = R\n    exec_vnode = (n1:ncpus=1)\n    schedselect = 1:ncpus=1:magrathea_accepts=preemptible\n"
)
STOPPED = RUNNING.replace("= R", "= S") + "    comment = Magrathea: stopped for 13.srv since 12:00\n"
WAITING = "    job_state = Q\n    schedselect = 1:ncpus=2:magrathea_accepts=priority\n    comment = Not Running: wait\n"


class Site:
    """PBS's commands, as programs on PATH that print what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prints(self, program: str, text: str, code: int = 0) -> None:
        (self.folder / f"{program}.out").write_text(text)
        (self.folder / program).write_text(f"#!/bin/sh\ncat {self.folder}/{program}.out\nexit {code}\n")
        (self.folder / program).chmod(0o755)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for variable in (client.SOCKET_VARIABLE, client.HUB_VARIABLE, "MAGRATHEA_AGENT_CONF"):
        monkeypatch.delenv(variable, raising=False)
    for module, name in ((client, "DEFAULT_SOCKET"), (client, "HUB_SOCKET")):
        monkeypatch.setattr(module, name, tmp_path / "no.sock")
    monkeypatch.setattr(sources, "NODED_CONFIGURATION", tmp_path / "noded.toml")
    monkeypatch.setattr(sources, "HUB_CONFIGURATION", tmp_path / "hub.toml")
    monkeypatch.setattr("magrathea.cli.status._agent_here", lambda: False)
    monkeypatch.setattr("magrathea.qstat.FOLDER", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    site = Site(tmp_path)
    site.prints("pbsnodes", VNODES)
    site.prints("qstat", "Queue: high\n    default_chunk.magrathea_accepts = priority\n")
    return site


def magrathea(*words: str) -> Result:
    return CliRunner().invoke(main.cli, list(words))


@pytest.mark.usefixtures("site")
def test_hosts_are_counted_by_what_pbs_shows() -> None:
    result = magrathea("hosts", "--format", "plain")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "host\tlive\t2\thost[1-2]",
            "domain\tfree\t2\tn2,p2",
            "domain\toccupied-would-preempt\t1\tp1",
            "domain\trunning-preemptible\t1\tn1",
        ],
    )
    assert login.SOURCE in magrathea("hosts").stdout


def test_a_host_of_which_the_hub_hears_nothing_is_silent(site: Site) -> None:
    site.prints("pbsnodes", UNKNOWN)
    result = magrathea("hosts", "--format", "json")
    assert result.exit_code == 1
    assert {(row["what"], row["state"]) for row in json.loads(result.stdout)} >= {("host", "silent"), ("host", "live")}


def test_status_shows_each_managed_vnode(site: Site) -> None:
    result = magrathea("status", "--format", "plain")
    assert result.exit_code == 0
    first = "host1\tn1\trunning-preemptible\tpreemptible,protected\t2\t12.srv,13.srv\tjob-busy"
    assert result.stdout.splitlines()[0] == first
    assert len(result.stdout.splitlines()) == 4, "not the vnode that nobody manages"
    assert {row["host"] for row in json.loads(magrathea("status", "host2", "--format", "json").stdout)} == {"host2"}
    assert magrathea("status", "nowhere").exit_code == 2
    site.prints("pbsnodes", UNKNOWN)
    assert magrathea("status").exit_code == 1


def test_a_stopped_job_is_explained_by_its_comment(site: Site) -> None:
    site.prints("qstat", f"Job Id: 12.srv\n{STOPPED}")
    result = magrathea("explain", "12")
    assert result.exit_code == 0
    said = "12.srv: state S, class preemptible, in n1; PBS: Magrathea: stopped for 13.srv since 12:00"
    assert result.stdout.splitlines()[0] == said
    [row] = json.loads(magrathea("explain", "12", "--format", "json").stdout)
    assert (row["host"], row["vnode"], row["job"]["state"]) == ("host1", "n1", "stopped")
    assert magrathea("explain", "12", "--format", "plain").stdout == "host1\tn1\tn1\tpreemptible\tstopped\t-\t-\n"


def test_a_waiting_job_is_explained_by_what_each_vnode_takes(site: Site) -> None:
    site.prints("qstat", f"Job Id: 30.srv\n{WAITING}")
    result = magrathea("explain", "30")
    assert result.exit_code == 0, result.output
    assert "30.srv: state Q, class priority, on no host; PBS: Not Running: wait" in result.stdout
    assert "it fits now; it would preempt 12.srv, 13.srv" in result.stdout
    assert "PBS shows offline" in result.stdout


def test_a_job_that_pbs_does_not_know_has_its_exit_code(site: Site) -> None:
    site.prints("qstat", "qstat: Unknown Job Id 99.srv", code=153)
    assert magrathea("explain", "99").exit_code == 1


@pytest.mark.parametrize(
    ("select", "code", "sentence"),
    [
        ("select=1:ncpus=4", 0, "it fits now; it would preempt 12.srv, 13.srv"),
        ("select=1:ncpus=5", 1, "it does not fit now: 0 of 1 chunks"),
        ("select=1:ncpus=1:mem=5gb", 1, "it does not fit now: 0 of 1 chunks"),
        ("select=2:ncpus=2", 0, "it fits now, all 2 chunks of it; it would preempt 12.srv, 13.srv"),
        ("select=2:ncpus=3", 1, "it does not fit now: 1 of 2 chunks"),
    ],
)
@pytest.mark.usefixtures("site")
def test_a_preview_answers_by_what_is_published(select: str, code: int, sentence: str) -> None:
    result = magrathea("preview", "-q", "high", "-l", select)
    assert (result.exit_code, sentence in result.stdout) == (code, True), result.output


@pytest.mark.parametrize("command", [["explain", "12"], ["preview", "-q", "high"]])
@pytest.mark.parametrize("missing", ["qstat", "pbsnodes"])
def test_a_pbs_that_cannot_be_asked_has_one_exit_code_whichever_program_misses_it(
    site: Site, missing: str, command: list[str]
) -> None:
    if command[0] == "explain":
        site.prints("qstat", WAITING)
    (site.folder / missing).unlink()
    assert magrathea(*command).exit_code == sources.NOT_REACHABLE
    (site.folder / missing).write_text("#!/bin/sh\necho 'cannot connect to server head (errno=111)' >&2\nexit 1\n")
    (site.folder / missing).chmod(0o755)
    assert magrathea(*command).exit_code == sources.NOT_REACHABLE


@pytest.mark.parametrize(
    "command", [["hosts"], ["status"], ["explain", "12"], ["preview", "-q", "high"], ["drain", "n1"]]
)
def test_nobody_is_told_to_start_a_daemon_here(site: Site, command: list[str]) -> None:
    for program in ("qstat", "pbsnodes"):
        (site.folder / program).unlink()
    result = magrathea(*command)
    assert result.exit_code != 0
    assert "systemctl" not in result.output
    assert result.stderr.startswith(f"magrathea {command[0]}: ")


@pytest.mark.usefixtures("site")
def test_a_machine_that_should_have_a_daemon_is_still_told_to_start_it(tmp_path: Path) -> None:
    (tmp_path / "noded.toml").write_text("")
    assert "systemctl start magrathea-noded" in magrathea("hosts", "--socket", str(tmp_path / "none")).stderr
    assert magrathea("hosts").exit_code == 3


@pytest.mark.usefixtures("site")
def test_an_option_names_who_is_asked_whatever_is_here(tmp_path: Path) -> None:
    assert "the hub does not answer" in magrathea("status", "--hub", str(tmp_path / "none")).stderr
