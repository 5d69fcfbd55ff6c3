"""`magrathea pbs install` and `uninstall` with a failure at each step: `check` tells, and the next try works."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result

from scheduler_plugin.setup import records
from scheduler_plugin.setup.sched_config import InstallError
from tests.fakes.qmgr import KILLED, LOST, REFUSED, FakeQmgr, Killed, magrathea
from tests.tables import crossed

INSTALL: tuple[str, ...] = ("install", "--priority", "high", "--preemptible", "low", "--vnode", "n1", "--memory-moves")
INSTALL += ("--keep-consumables", "--protect", "lic_a")
INSTALL_STEPS, UNINSTALL_STEPS = 50, 29
"""How many changes the commands make on the server below."""
HOWS = (REFUSED, LOST, KILLED)


def site(directory: Path) -> FakeQmgr:
    """A server with a queue, a licence and a waiting job of its own."""
    one = FakeQmgr(directory)
    one.objects["server"]["srv"] = {"default_queue": "workq", "resources_available.lic_a": "1"}
    one.objects["queue"]["low"] = {"queue_type": "Execution", "enabled": "True"}
    one.objects["queue"]["workq"] = {"queue_type": "Execution", "enabled": "True"}
    one.objects["resource"]["lic_a"] = {"type": "long", "flag": "q"}
    one.objects["node"] = {"n1": {"resv_enable": "True", "resources_available.ncpus": "4"}, "n2": {}}
    one.objects["sched"]["default"] = {"preempt_order": "SCR"}
    select = {"Resource_List.select": "1:ncpus=1", "schedselect": "1:ncpus=1"}
    one.jobs["7.srv"] = {"job_state": "Q", "queue": "low", **select}
    return one


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQmgr:
    one = site(tmp_path)
    return one.serving(monkeypatch)


def failing(server: FakeQmgr, at: int, how: str, *args: str) -> Result | None:
    """Run a command that fails at this step; None if it was killed there."""
    server.fail_at, server.how, server.steps = at, how, []
    try:
        done = magrathea(server, *args)
    except Killed:
        done = None
    finally:
        server.fail_at = None
    assert len(server.steps) > at, "there are fewer steps now: correct their number above"
    return done


def test_every_step_is_tried(server: FakeQmgr) -> None:
    magrathea(server, *INSTALL)
    assert len(server.steps) == INSTALL_STEPS, server.steps
    magrathea(server, "uninstall")
    assert len(server.steps) == INSTALL_STEPS + UNINSTALL_STEPS, server.steps


@pytest.mark.parametrize(("at", "how"), crossed(range(INSTALL_STEPS), HOWS))
def test_an_install_that_fails_at_any_step_is_reported_and_the_next_one_works(
    server: FakeQmgr, tmp_path: Path, at: int, how: str
) -> None:
    before = server.picture()
    done = failing(server, at, how, *INSTALL)
    about_a_job = server.steps[at].startswith("qalter")
    if done is not None:
        assert done.exit_code == 1 and server.steps[at] in done.output
    if not (about_a_job and how != KILLED):  # a job that gets no class leaves the installation whole
        assert "install" in {
            line.split("\t")[1] for line in magrathea(server, "check", "--format", "plain").output.splitlines()
        }
        assert magrathea(server, "check").exit_code == 2
    assert magrathea(server, *INSTALL).exit_code == 0
    checked = magrathea(server, "check")
    assert checked.exit_code == 0, checked.output
    assert "nothing to change" in magrathea(server, "install").output, "the wishes are remembered"
    assert magrathea(server, "uninstall").exit_code == 0
    assert server.picture() == before


@pytest.mark.parametrize(("at", "how"), crossed(range(INSTALL_STEPS), HOWS))
def test_an_install_that_fails_at_any_step_can_be_undone(server: FakeQmgr, at: int, how: str) -> None:
    before = server.picture()
    failing(server, at, how, *INSTALL)
    undone = magrathea(server, "uninstall")
    assert undone.exit_code == 0, undone.output
    assert server.picture() == before
    assert not (server.home / records.NAME).exists()


@pytest.mark.parametrize(("at", "how"), crossed(range(UNINSTALL_STEPS), HOWS))
def test_an_uninstall_that_fails_at_any_step_tells_and_the_next_one_works(server: FakeQmgr, at: int, how: str) -> None:
    before = server.picture()
    assert magrathea(server, *INSTALL).exit_code == 0
    installed = server.picture()
    done = failing(server, at, how, "uninstall")
    left = (server.home / records.NAME).exists()
    if done is not None:  # a step that only prepares the next one may fail without harm
        assert done.exit_code == (3 if left else 0) and ("left: " in done.output) == left, done.output
        assert left or server.picture() == before
    if left:
        assert magrathea(server, "check").exit_code == 2
    assert magrathea(server, "uninstall").exit_code == 0
    assert server.picture() == before
    assert magrathea(server, *INSTALL).exit_code == 0
    assert server.picture() == installed


@pytest.mark.parametrize("save", range(2))
def test_a_record_that_cannot_be_written_stops_the_install_with_its_reason(
    server: FakeQmgr, monkeypatch: pytest.MonkeyPatch, save: int
) -> None:
    before = server.picture()
    saves = []
    real = records.save

    def full(home: Path, record: records.Record) -> None:
        saves.append(record)
        if len(saves) - 1 == save:
            raise InstallError("No space left on device")
        real(home, record)

    monkeypatch.setattr(records, "save", full)
    refused = magrathea(server, *INSTALL)
    assert refused.exit_code == 1 and "No space left" in refused.output
    assert save or server.picture() == before, "nothing is changed before it is written down"
    assert magrathea(server, *INSTALL).exit_code == 0
    assert magrathea(server, "uninstall").exit_code == 0
    assert server.picture() == before
