"""The hub alone with a real server: real jobs and vnodes, and a host that the test plays."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from magrathea.core.model import JobClass, Kind, Mode
from magrathea.messages import BadMessage, Books, DomainReport, JobReport, decode_to_host, encode
from magrathea.pbs_text.amounts import duration_s
from magrathea_lab.clusters.private_openpbs import HEAD, MachineProcess, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from tests.fakes.reports import domain, report, snapshot

ROOT = Path(__file__).parents[2]

RESOURCES = "".join(
    f"create resource {name} type={type},flag=h\n"
    for name, type in (
        ("magrathea", "string"),
        ("magrathea_accepts", "string_array"),
        ("magrathea_siblings", "string_array"),
        ("magrathea_host", "string"),
        ("magrathea_rank", "long"),
        ("magrathea_host_ncpus", "long"),
    )
)


class Site:
    """A cluster with a hub, and a host `h1` with the domains n1 and p1 that reports what a test wants."""

    def __init__(self, cluster: PrivateOpenPbs) -> None:
        self.cluster = cluster
        self.endpoint = f"ipc://{cluster.base}/hub.ipc"
        self.config = cluster.base / "hub.toml"
        self.config.write_text(
            f'[hub]\nlisten = ["{self.endpoint}"]\nstate_dir = "{cluster.base}/hub"\n'
            f'control_socket = "{cluster.base}/hub-control.sock"\n'
            f'heartbeat_file = "{cluster.base}/heartbeat"\n[pbs]\ncompare_s = 2\ncall_deadline_s = 10\n'
        )
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, b"h1")
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)
        self.revision = 0
        self.domains: tuple[DomainReport, ...] = ()
        self.booked: set[str] = set()
        self.hub: MachineProcess | None = None

    def start_hub(self) -> None:
        argv = [sys.executable, "-m", "scheduler_plugin.hub.main", "--config", str(self.config)]
        self.hub = self.cluster.spawn(HEAD, "hub", argv, env={"PYTHONPATH": str(ROOT)})

    def close(self) -> None:
        if self.hub is not None:
            self.hub.kill(signal.SIGTERM)
        self.socket.close(linger=0)
        self.context.term()

    def says(self, *jobs: JobReport, mode: Mode = Mode.EXCLUSIVE, **more: Any) -> None:
        """Send the host's snapshot: n1 has these jobs."""
        self.domains = (domain("n1", jobs, **more), domain("p1", kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY]))
        self.mode = mode
        self.speak()

    def speak(self) -> None:
        self.revision += 1
        made = snapshot(*self.domains, revision=self.revision, at=time.time(), mode=self.mode)
        self.socket.send(encode(made))

    def until(self, condition: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
        """Repeat the last report, and read the hub's answers, until the condition is true."""
        spoken = time.monotonic()

        def so() -> object:
            nonlocal spoken
            if time.monotonic() - spoken > 1:
                self.speak()
                spoken = time.monotonic()
            while self.socket.poll(10):
                self._hear(self.socket.recv())
            return condition()

        try:
            self.cluster.wait(so, what, bound_s)
        except BaseException:
            assert self.hub is not None
            sys.stderr.write(self.hub.log.read_text()[-8000:])
            raise

    def _hear(self, data: bytes) -> None:
        try:
            message = decode_to_host(data)
        except BadMessage as error:
            raise AssertionError("the hub sent what is no message") from error
        if isinstance(message, Books):
            self.booked = {entry.id for entry in message.jobs if entry.booked}

    def until_booked(self, *jobs: str) -> None:
        self.until(lambda: self.booked == {*jobs}, f"books that name {jobs}")

    def until_compared(self) -> None:
        """Wait until the hub has compared everything with PBS: until it has corrected a mistake made now."""
        self.cluster.qmgr("set node n1 resources_available.magrathea=mistake")
        self.until(lambda: self.resources("n1").get("magrathea") != "mistake", "the hub's comparison")

    def job(self, id: str) -> dict[str, Any]:
        return self.cluster.job(id)

    def resources(self, vnode: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.vnode(vnode).get("resources_available", {})
        return found

    def stopped(self, id: str) -> JobReport:
        return report(id, stop=True, stopped_since=time.time(), booked=id in self.booked)

    def given_back(self, id: str) -> JobReport:
        return report(id, ready=True, stopped_since=time.time(), booked=True)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with PrivateOpenPbs(["n1", "p1", "x1"]) as cluster:
        cluster.qmgr(RESOURCES)
        made = Site(cluster)
        try:
            made.start_hub()
            made.says()
            made.until(lambda: made.resources("n1").get("magrathea_host") == "h1", "the first publication")
            yield made
        finally:
            made.close()


@pytest.fixture
def job(site: Site) -> Iterator[str]:
    id = site.cluster.qsub("alice", "-l", "select=1:ncpus=1:vnode=n1", "-l", "walltime=500", script="sleep 1000")
    site.cluster.wait_job(id, "R")
    yield id
    site.cluster.run(HEAD, ["qdel", "-W", "force", id], check=False)
    site.says()
    site.until_booked()


def test_the_attributes_of_vnodes(site: Site) -> None:
    site.says(mode=Mode.COUNTED)
    site.until(lambda: site.resources("n1").get("magrathea_host_ncpus") == 4, "publication")
    shown = site.resources("n1")
    assert (shown["magrathea"], shown["magrathea_siblings"], shown["ncpus"]) == ("free", "p1", 4)
    assert set(shown["magrathea_accepts"].split(",")) == {"preemptible", "protected"}
    assert shown["mem"] == "2048mb"
    assert set(site.resources("x1")["magrathea_accepts"].split(",")) == {"priority", "preemptible", "protected"}
    site.says()
    site.until(lambda: "magrathea_host_ncpus" not in site.resources("n1"), "its end with the mode")


def test_a_new_vnode_that_nobody_manages_takes_every_class(site: Site) -> None:
    site.cluster.qmgr("create node head")
    try:
        wanted = {"priority", "preemptible", "protected"}
        site.until(lambda: set(site.resources("head").get("magrathea_accepts", "").split(",")) == wanted, "all classes")
    finally:
        site.cluster.qmgr("delete node head")


def test_an_admins_mistake_is_corrected_and_his_offline_stays(site: Site) -> None:
    site.cluster.run(HEAD, ["pbsnodes", "-o", "n1"])
    site.cluster.qmgr("set node n1 resources_available.magrathea_accepts=priority")
    site.until(lambda: "protected" in site.resources("n1")["magrathea_accepts"], "the repair")
    assert site.cluster.vnode("n1")["state"] == "offline"
    site.cluster.run(HEAD, ["pbsnodes", "-r", "n1"])


def test_a_job_is_suspended_with_a_comment_and_resumed_with_its_old_one(site: Site, job: str) -> None:
    before = site.job(job)["comment"]
    site.says(site.stopped(job))
    site.until_booked(job)
    assert site.job(job)["job_state"] == "S"
    site.until(lambda: site.job(job)["comment"].startswith("preempted by 9.srv on h1 since"), "the comment")
    site.says(site.given_back(job))
    site.until_booked()
    assert site.job(job)["job_state"] == "R"
    site.until(lambda: site.job(job)["comment"] == before, "the old comment")


def test_a_job_that_has_just_started_is_suspended_as_soon_as_its_mom_lets_it(site: Site) -> None:
    id = site.cluster.qsub("alice", "-l", "select=1:ncpus=1:vnode=n1", script="sleep 1000")
    site.says(report(id, stop=True))  # before PBS has started it at all
    site.until_booked(id)
    assert site.job(id)["job_state"] == "S"
    site.cluster.run(HEAD, ["qdel", "-W", "force", id])
    site.says()
    site.until_booked()


def test_walltime_lost_while_the_hub_was_away_is_given_back(site: Site, job: str) -> None:
    assert site.hub is not None
    site.hub.kill()
    since = time.time()
    time.sleep(3)  # the host has stopped the job, and its walltime runs
    site.start_hub()
    site.says(report(job, stop=True, stopped_since=since))
    site.until_booked(job)
    site.until(lambda: site.job(job)["Resource_List"]["walltime"] != "00:08:20", "the walltime")
    assert 503 <= duration_s(site.job(job)["Resource_List"]["walltime"]) <= 500 + time.time() - since + 1


def test_a_hub_killed_in_mid_preemption_is_followed_by_one_that_resumes(site: Site, job: str) -> None:
    site.says(site.stopped(job))
    site.until_booked(job)
    assert site.hub is not None
    site.hub.kill()
    site.start_hub()
    site.says(site.given_back(job))
    site.until(lambda: site.job(job)["job_state"] == "R", "the resume")


def test_an_admins_own_suspend_is_never_undone(site: Site, job: str) -> None:
    site.cluster.wait(
        lambda: site.cluster.run(HEAD, ["qsig", "-s", "admin-suspend", job], check=False).returncode == 0, "suspend"
    )
    site.says(site.stopped(job))
    site.until_compared()
    site.says(report(job, ready=True, stopped_since=time.time()))
    for _ in range(2):
        site.until_compared()
    assert site.job(job)["job_state"] == "S"
    site.says()


def test_an_admins_resume_of_a_preempted_job_is_met_by_a_new_suspend(site: Site, job: str) -> None:
    site.says(site.stopped(job))
    site.until_booked(job)
    site.cluster.run(HEAD, ["qsig", "-s", "admin-resume", job])
    assert site.job(job)["job_state"] == "R"
    site.until(lambda: site.job(job)["job_state"] == "S", "the new suspend")


def test_a_job_stopped_longer_than_the_limit_is_requeued(site: Site, job: str) -> None:
    site.says(site.stopped(job))
    site.until_booked(job)
    site.says(report(job, stop=True, requeue=True, stopped_since=time.time(), booked=True))
    site.until(lambda: site.job(job).get("run_count") == 2, "its second run")


def test_a_resume_that_a_hook_forbids_is_done_once_it_allows_it(site: Site, job: str) -> None:
    """The failed admin-resume removes PBS's flag: then only a plain resume works."""
    veto = "import pbs\npbs.event().reject('not now')\n"
    (site.cluster.base / "veto.py").write_text(veto)
    site.cluster.qmgr(
        "create hook veto\nset hook veto event = execjob_preresume\n"
        f"import hook veto application/x-python default {site.cluster.base}/veto.py\n"
    )
    try:
        site.says(site.stopped(job))
        site.until_booked(job)
        site.cluster.wait((site.cluster.pbs_home("n1") / "mom_priv/hooks/veto.PY").exists, "the hook on its MoM")
        site.says(site.given_back(job))
        assert site.hub is not None
        log = site.hub.log
        site.until(lambda: "Resume plain=True" in log.read_text(), "a plain resume")
        assert site.job(job)["job_state"] == "S"
        assert site.booked == {job}
    finally:
        site.cluster.qmgr("delete hook veto")
    site.until_booked()
    assert site.job(job)["job_state"] == "R"
