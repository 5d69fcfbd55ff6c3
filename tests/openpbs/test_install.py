"""`magrathea pbs install | check | uninstall` and `magrathea doctor` on their own real server, without a hub.

The tests compare what PBS itself prints, and the bytes of its files, before and after.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from magrathea import places
from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from magrathea_lab.fleet import ROOT

PRINTED = ("print server", "print resource", "print node @default", "print hook", "print sched")
FILES = ("sched_priv/sched_config", "server_priv/resourcedef")
INSTALL = ("install", "--priority", "high", "--preemptible", "low", "--vnode", "n1")
RESOURCE = "resources_available.magrathea"


@pytest.fixture(scope="module")
def _pbs() -> Iterator[PrivateOpenPbs]:
    with PrivateOpenPbs(["n1"]) as cluster:
        yield cluster


@pytest.fixture
def pbs(_pbs: PrivateOpenPbs) -> Iterator[PrivateOpenPbs]:
    """A server with settings of a site, no jobs, and nothing of ours, before and after the test."""
    yield _pbs
    _pbs.qmgr("set server scheduling=True")
    for select, delete in (([], ["-W", "force"]), (["-x"], ["-x"])):
        if ids := _pbs.run(HEAD, ["qselect", *select]).stdout.split():
            _pbs.run(HEAD, ["qdel", *delete, *ids], check=False)
    if own_files(_pbs):
        magrathea(_pbs, "uninstall", "--delete-history")
    _pbs.wait_free("n1")


def magrathea(pbs: PrivateOpenPbs, *args: str, of: str = "pbs") -> subprocess.CompletedProcess[str]:
    """A command as an admin runs it on the server's machine."""
    argv = [sys.executable, "-c", "from magrathea.cli.main import main; main()", *([of] if of else []), *args]
    return pbs.run(HEAD, argv, env={"PYTHONPATH": str(ROOT)}, timeout=60, check=False)


def well(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def picture(pbs: PrivateOpenPbs) -> dict[str, str | bytes]:
    """All that PBS prints about itself, and the bytes of its files."""
    said: dict[str, str | bytes] = {"printed": pbs.qmgr("\n".join(PRINTED))}
    for file in FILES:
        path = pbs.pbs_home(HEAD) / file
        said[file] = path.read_bytes() if path.exists() else b""
    return said


def schedselect(pbs: PrivateOpenPbs, job: str) -> str:
    return str(pbs.job(job)["schedselect"])


def own_files(pbs: PrivateOpenPbs) -> list[str]:
    home = pbs.pbs_home(HEAD)
    return sorted(
        str(path.relative_to(home)) for d in ("sched_priv", "server_priv") for path in home.glob(f"{d}/*magrathea*")
    )


def test_uninstall_leaves_no_trace_and_may_be_repeated(pbs: PrivateOpenPbs) -> None:
    before = picture(pbs)
    for _ in range(2):
        well(magrathea(pbs, *INSTALL))
        assert "nothing to change" in well(magrathea(pbs, "install")), "what was wished is remembered"
        checked = json.loads(well(magrathea(pbs, "check", "--format", "json")))
        assert {item["status"] for item in checked["items"]} == {"ok"} and checked["installed"]
        assert own_files(pbs) == ["sched_priv/sched_config.before-magrathea", "server_priv/magrathea-install.json"]
        well(magrathea(pbs, "uninstall"))
        assert picture(pbs) == before
        assert own_files(pbs) == []
    assert "nothing to change" in well(magrathea(pbs, "uninstall"))


def test_an_earlier_set_of_events_is_reported_and_taken_away(pbs: PrivateOpenPbs) -> None:
    """An earlier release had a hook at the end of each job, which cost the job a second."""
    well(magrathea(pbs, *INSTALL))
    pbs.qmgr("set hook magrathea_mom event += execjob_end")
    assert "execjob_end" in well(magrathea(pbs, "check"), 2)
    well(magrathea(pbs, "install"))
    assert "execjob_end" not in pbs.qmgr("list hook magrathea_mom")
    well(magrathea(pbs, "check"))


def test_a_dry_run_prints_every_change_and_makes_none(pbs: PrivateOpenPbs) -> None:
    before = picture(pbs)
    said = well(magrathea(pbs, *INSTALL, "--dry-run"))
    assert picture(pbs) == before and own_files(pbs) == []
    done = well(magrathea(pbs, *INSTALL))
    assert [line.removeprefix("would: ") for line in said.splitlines()][:-1] == done.splitlines()[:-1]
    installed = picture(pbs)
    assert "would: delete resource magrathea" in well(magrathea(pbs, "uninstall", "--dry-run"))
    assert picture(pbs) == installed


def test_settings_of_the_site_stay(pbs: PrivateOpenPbs) -> None:
    """Its hook, its queue with limits, its Priority, its words in sched_config, its scheduling=false."""
    config = pbs.pbs_home(HEAD) / "sched_priv/sched_config"
    shipped = config.read_bytes()
    config.write_bytes(
        shipped.replace(b'resources: "ncpus, mem,', b'resources: "ncpus,mem,  foo ,') + b"# \xe9 own\r\n"
    )
    pbs.qmgr(
        "create hook own\nset hook own event=runjob\nset hook own order=5\nset server scheduling=False\n"
        "create queue low queue_type=Execution,enabled=True,started=False,max_run=[u:PBS_GENERIC=3]\n"
        "set node n1 Priority=7\nset node n1 resv_enable=False\n"
    )
    before = picture(pbs)
    installed = magrathea(pbs, *INSTALL)
    assert "Priority" in installed.stderr, "it warns that the hub would use it"
    assert "max_run = [u:PBS_GENERIC=3]" in pbs.qmgr("print queue low") and "started = False" in pbs.qmgr(
        "print queue low"
    )
    assert "scheduling = False" in pbs.qmgr("print server") and "Priority = 7" in pbs.qmgr("print node n1")
    assert b'resources: "ncpus,mem,  foo , arch' in config.read_bytes()
    # what the hub does to its own vnodes, and only to these
    pbs.qmgr(f"set node n1 {RESOURCE}_host=h1\nset node n1 resources_available.mem=1gb\nset node n1 Priority=-3")
    well(magrathea(pbs, "uninstall"))
    assert picture(pbs) == before
    config.write_bytes(shipped)
    pbs.qmgr("delete hook own\ndelete queue low\nunset node n1 Priority\nset node n1 resv_enable=True")


def test_a_line_that_others_changed_meanwhile_keeps_their_change(pbs: PrivateOpenPbs) -> None:
    config = pbs.pbs_home(HEAD) / "sched_priv/sched_config"
    shipped = config.read_bytes()
    well(magrathea(pbs, *INSTALL))
    config.write_bytes(config.read_bytes().replace(b'resources: "ncpus,', b'resources: "foo, ncpus,') + b"# later\n")
    assert "is kept" in magrathea(pbs, "uninstall").stderr, "the backup"
    assert config.read_bytes() == shipped.replace(b'resources: "ncpus,', b'resources: "foo, ncpus,') + b"# later\n"
    config.write_bytes(shipped)
    config.with_name("sched_config.before-magrathea").unlink()


def test_it_refuses_a_file_that_it_cannot_parse_and_changes_nothing(pbs: PrivateOpenPbs) -> None:
    config = pbs.pbs_home(HEAD) / "sched_priv/sched_config"
    shipped = config.read_bytes()
    config.write_bytes(shipped.replace(b'resources: "ncpus, mem', b"resources: ncpus, mem"))
    pbs.qmgr("create resource magrathea_rank type=string\ncreate hook magrathea_mom")
    foreign = pbs.base / "foreign.py"
    foreign.write_text("import pbs\n")
    pbs.qmgr(f"import hook magrathea_mom application/x-python default {foreign}")
    before = picture(pbs)
    refused = magrathea(pbs, *INSTALL)
    assert refused.returncode == 1 and picture(pbs) == before and own_files(pbs) == []
    for word in ("resources: ncpus, mem", "magrathea_rank", "hook magrathea_mom exists and is not ours"):
        assert word in refused.stderr
    assert {"sched_config", "resource magrathea_rank", "hook magrathea_mom"} <= {
        line.split("\t")[1] for line in well(magrathea(pbs, "check", "--format", "plain"), 2).splitlines()
    }
    pbs.qmgr("delete resource magrathea_rank\ndelete hook magrathea_mom")
    config.write_bytes(shipped)


def test_waiting_jobs_get_their_class_and_keep_their_place(pbs: PrivateOpenPbs) -> None:
    with pbs.stopped_scheduling():
        pbs.qmgr("create queue low queue_type=Execution,enabled=True,started=True")
        asked = [["-q", "low"], [], ["-q", "low", "-J", "1-3"], ["-h", "-l", "nodes=1:ppn=2"]]
        jobs = [pbs.qsub("alice", *args, script="sleep 100") for args in asked]
        before = picture(pbs)
        place = [pbs.job(job)["queue_rank"] for job in jobs]
        selects = [schedselect(pbs, job) for job in jobs]
        well(magrathea(pbs, *INSTALL))
        for job, cls in zip(jobs, ("preemptible", "protected", "preemptible", "protected"), strict=True):
            assert schedselect(pbs, job).endswith(f":magrathea_accepts={cls}")
        assert [pbs.job(job)["queue_rank"] for job in jobs] == place
        well(magrathea(pbs, "check"))
    pbs.wait_job(jobs[0], "R")
    with pbs.stopped_scheduling():
        pbs.run(HEAD, ["qdel", "-W", "force", *jobs[:3]])
        later = pbs.qsub("alice", "-q", "low", script="sleep 100")
        well(magrathea(pbs, "uninstall"), 3)
        assert [schedselect(pbs, job) for job in (jobs[3], later)] == [selects[3], selects[0]]
        well(magrathea(pbs, "uninstall", "--delete-history"))
        pbs.wait_free("n1")
        assert picture(pbs) == before
    pbs.wait_job(later, "R")
    pbs.run(HEAD, ["qdel", "-W", "force", later])
    pbs.qmgr("delete queue low")


LATIN = "CONTACT=$(printf 'J\\374rgen') exec qsub {} -- /bin/sleep 100"
"""Submits a job whose environment has a byte that is not UTF-8."""


def test_bytes_of_a_user_that_are_not_utf_8_spoil_no_command(pbs: PrivateOpenPbs) -> None:
    job = pbs.run(HEAD, ["bash", "-c", LATIN.format("-v CONTACT")], user="alice").stdout.strip()
    assert "CONTACT=J\udcfcrgen" in pbs.run(HEAD, ["qstat", "-f", "-w", job]).stdout
    well(magrathea(pbs, *INSTALL))
    well(magrathea(pbs, "check"))
    for words in (["--format", "json"], []):
        assert job in well(magrathea(pbs, "explain", job, *words, of=""))
        checked = magrathea(pbs, "doctor", "--part", "server", *words, of="")
        assert checked.returncode == 2 and checked.stdout and not checked.stderr, "there is no hub"
    well(magrathea(pbs, "uninstall", "--dry-run"))


@pytest.mark.parametrize("arguments", ["-v CONTACT", "-V", "-q workq -V"])
def test_a_job_whose_variables_pbs_would_drop_is_refused_and_told_why(pbs: PrivateOpenPbs, arguments: str) -> None:
    well(magrathea(pbs, *INSTALL))
    before = pbs.jobs()
    refused = pbs.run(HEAD, ["bash", "-c", LATIN.format(arguments)], user="alice", check=False)
    assert refused.returncode != 0 and "variables-lost" in refused.stderr and "iconv" in refused.stderr
    assert pbs.jobs() == before
    job = pbs.qsub("alice", "-v", "CONTACT=Jürgen", script="true")
    assert "CONTACT=Jürgen" in pbs.run(HEAD, ["qstat", "-x", "-f", "-w", job]).stdout


def test_with_a_preempted_job_it_refuses_or_resumes_it_first(pbs: PrivateOpenPbs) -> None:
    before = picture(pbs)
    well(magrathea(pbs, *INSTALL))
    pbs.qmgr(f"set node n1 {RESOURCE}_host=h1")
    job = pbs.qsub("alice", "-q", "low", script="sleep 100")
    pbs.wait(lambda: pbs.job(job)["substate"] == 42, "the job's processes: before that PBS suspends nothing")
    pbs.run(HEAD, ["qsig", "-s", "admin-suspend", job])
    pbs.wait_job(job, "S")
    installed = picture(pbs)
    refused = magrathea(pbs, "uninstall")
    assert refused.returncode == 1 and job in refused.stderr and picture(pbs) == installed
    left = magrathea(pbs, "uninstall", "--resume-jobs")
    assert pbs.job(job)["job_state"] == "R" and pbs.vnode("n1")["state"] == "free"
    assert left.returncode == 3 and "queue low" in left.stderr and "resource magrathea_accepts" in left.stderr
    pbs.run(HEAD, ["qdel", "-W", "force", job])
    pbs.wait_job(job, "F")
    assert "--delete-history" in magrathea(pbs, "uninstall").stderr
    assert pbs.job(job), "history is deleted only where that is asked for"
    well(magrathea(pbs, "uninstall", "--delete-history"))
    pbs.wait_free("n1")
    assert picture(pbs) == before


def test_unmanaged_vnodes_keep_working_and_check_reports_new_ones(pbs: PrivateOpenPbs) -> None:
    well(magrathea(pbs, "install", "--priority", "high", "--preemptible", "low"))
    for job in [pbs.qsub("alice", "-q", queue, script="true") for queue in ("workq", "low", "high")]:
        pbs.wait_job(job, "F")
    pbs.qmgr("create node head")
    assert "missing\tnode head" in well(magrathea(pbs, "check", "--format", "plain"), 2)
    well(magrathea(pbs, "install"))
    well(magrathea(pbs, "check"))
    pbs.qmgr("delete node head")


def test_it_warns_of_conflicting_settings(pbs: PrivateOpenPbs) -> None:
    pbs.qmgr(
        "create queue express queue_type=Execution,Priority=150\nset sched job_run_wait=execjob_hook\n"
        "create node second Mom=n1\ncreate hook late\nset hook late event=execjob_begin\nset hook late order=1000"
    )
    warned = magrathea(pbs, *INSTALL).stderr
    assert "queue express" in warned and "preempt_order" in warned and "execjob_hook" in warned
    assert "MoM n1: it has 2 vnodes (n1, second)" in warned and "hook late: its order 1000" in warned
    well(magrathea(pbs, "check"), 1)
    assert "Priority = 150" in pbs.qmgr("print queue express") and "execjob_hook" in pbs.qmgr("print sched"), (
        "as they were"
    )
    pbs.qmgr("delete queue express\nset sched job_run_wait=runjob_hook\ndelete node second\ndelete hook late")


def test_a_running_hub_is_stopped_first(pbs: PrivateOpenPbs) -> None:
    well(magrathea(pbs, *INSTALL))
    beat = pbs.base / "m" / HEAD / places.HEARTBEAT.removeprefix("/")
    beat.parent.mkdir(exist_ok=True)
    beat.touch()
    seen = well(magrathea(pbs, "--part", "server", "--format", "plain", of="doctor"), 2)
    statuses = {line.split("\t")[2]: line.split("\t")[0] for line in seen.splitlines()}
    assert statuses["pbs"] == statuses["hook-magrathea_mom"] == statuses["sched_config"] == "ok"
    assert statuses["vnodes"] == "warn" and statuses["hub-configuration"] == "fail", "there is no hub.toml"
    assert "stop it first" in magrathea(pbs, "uninstall").stderr
    beat.unlink()
