"""Installs and uninstalls that fail half way, and queues that come out again, on a real OpenPBS without a hub.

One step is refused. The same steps fail one by one on a fake in tests/unit/test_install_steps.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs

from .test_install import INSTALL, _pbs, magrathea, own_files, pbs, picture, well

__all__ = ["_pbs", "pbs"]

QMGR = """#!/bin/sh
commands=$(cat)
printf '%s\\n' "$commands" | grep -v '^{refused}' | {exec_dir}/bin/qmgr "$@" || exit
if printf '%s\\n' "$commands" | grep -q '^{refused}'; then echo 'qmgr: refused' >&2; exit 1; fi
"""


def refusing(pbs: PrivateOpenPbs, refused: str) -> tuple[str, str]:
    """The option --conf of a PBS whose qmgr refuses commands that begin so. All else it does for real."""
    conf = dict(line.split("=", 1) for line in pbs.run(HEAD, ["cat", "/etc/pbs.conf"]).stdout.split())
    place = Path(pbs.base) / "refusing"
    shutil.rmtree(place, ignore_errors=True)
    (place / "bin").mkdir(parents=True)
    for program in ("qstat", "qalter", "qdel", "qsig"):
        (place / "bin" / program).symlink_to(f"{conf['PBS_EXEC']}/bin/{program}")
    (place / "bin/qmgr").write_text(QMGR.format(refused=refused, exec_dir=conf["PBS_EXEC"]))
    (place / "bin/qmgr").chmod(0o755)
    (place / "pbs.conf").write_text("".join(f"{key}={value}\n" for key, value in {**conf, "PBS_EXEC": place}.items()))
    return "--conf", str(place / "pbs.conf")


@pytest.mark.parametrize("name", ["007", "priority", "R1", "a-name-of-sixteen"])
def test_a_queue_that_qmgr_cannot_name_leaves_no_trace(pbs: PrivateOpenPbs, name: str) -> None:
    before = picture(pbs)
    refused = magrathea(pbs, *INSTALL, "--preemptible", name)
    assert refused.returncode == 1 and "its name" in refused.stderr
    assert picture(pbs) == before and own_files(pbs) == []
    well(magrathea(pbs, *INSTALL))
    well(magrathea(pbs, "check"))


@pytest.mark.parametrize("name", ["a-b_9", "R12x"])
def test_a_queue_with_an_odd_name_that_qmgr_takes_works(pbs: PrivateOpenPbs, name: str) -> None:
    before = picture(pbs)
    well(magrathea(pbs, "install", "--preemptible", name))
    well(magrathea(pbs, "check"))
    well(magrathea(pbs, "uninstall"))
    assert picture(pbs) == before


@pytest.mark.parametrize(
    "refused",
    [
        "create resource magrathea_rank",
        "import hook magrathea_mom",
        "set hook magrathea_server event",
        "set node n1 resv_enable",
        "create queue low",
        "set queue high default_chunk",
        "set server restrict",
    ],
)
def test_an_install_that_is_refused_half_way_tells_and_works_later(pbs: PrivateOpenPbs, refused: str) -> None:
    before = picture(pbs)
    failed = magrathea(pbs, *INSTALL, "--keep-consumables", *refusing(pbs, refused))
    assert failed.returncode == 1 and "refused" in failed.stderr, failed.stdout
    checked = well(magrathea(pbs, "check", "--format", "plain"), 2)
    assert "different\tinstall\tthe last install has failed" in checked
    well(magrathea(pbs, *INSTALL))
    well(magrathea(pbs, "check"))
    well(magrathea(pbs, "uninstall"))
    assert picture(pbs) == before


def test_a_queue_that_is_refused_stands_in_nobodys_way(pbs: PrivateOpenPbs) -> None:
    conf = refusing(pbs, "create queue low")
    assert magrathea(pbs, "install", "--preemptible", "low", *conf).returncode == 1
    well(magrathea(pbs, "install", "--priority", "high", *conf))
    well(magrathea(pbs, "check"))
    well(magrathea(pbs, "uninstall"))
    assert own_files(pbs) == []


@pytest.mark.parametrize("refused", ["delete queue high", "delete hook magrathea_mom"])
def test_an_uninstall_that_is_refused_half_way_tells_and_works_later(pbs: PrivateOpenPbs, refused: str) -> None:
    before = picture(pbs)
    well(magrathea(pbs, *INSTALL))
    left = magrathea(pbs, "uninstall", *refusing(pbs, refused))
    assert left.returncode == 3 and "left: " in left.stderr and own_files(pbs)
    assert magrathea(pbs, "check").returncode == 2
    well(magrathea(pbs, "uninstall"))
    assert picture(pbs) == before and own_files(pbs) == []


def test_one_queue_comes_out_again_with_its_jobs(pbs: PrivateOpenPbs) -> None:
    before = picture(pbs)
    well(magrathea(pbs, *INSTALL))
    with pbs.stopped_scheduling():
        job = pbs.qsub("alice", "-q", "low", script="true")
        left = magrathea(pbs, "uninstall", "--queue", "low")
        assert left.returncode == 3 and job in left.stderr
        assert str(pbs.job(job)["schedselect"]).endswith("magrathea_accepts=protected")
        well(magrathea(pbs, "check"))
        pbs.run(HEAD, ["qdel", job])
        well(magrathea(pbs, "uninstall", "--queue", "low"))
        assert "create queue low" not in pbs.qmgr("print server")
        well(magrathea(pbs, "check"))
    well(magrathea(pbs, "uninstall", "--delete-history"))
    assert picture(pbs) == before


def test_a_queue_that_somebody_deleted_is_made_anew_or_taken_out(pbs: PrivateOpenPbs) -> None:
    well(magrathea(pbs, *INSTALL))
    for command in (("install",), ("uninstall", "--queue", "low")):
        pbs.qmgr("delete queue low")
        assert "missing\tqueue low" in well(magrathea(pbs, "check", "--format", "plain"), 2)
        well(magrathea(pbs, *command))
        well(magrathea(pbs, "check"))
