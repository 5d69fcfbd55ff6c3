"""The files of an arriving domain on this host (libvirt/moving/arriving.py); the other host is not trusted."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from node_daemon.hypervisor.libvirt.moving.arriving import CannotMake, clear, lacking, paths, prepare
from node_daemon.hypervisor.moving import CopiedDisk, Departure, Premises

MIB = 2**20


@pytest.fixture
def here(tmp_path: Path) -> Premises:
    """This host: /there of the other one is `tmp_path` here."""
    for name in ("disks", "run", "log"):
        (tmp_path / name).mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "base.img").write_bytes(bytes(MIB))
    folders = (str(tmp_path / "disks"),), (str(tmp_path / "images"),)
    return Premises(str(tmp_path / "run" / "n1.sock"), *folders, {"/there/": str(tmp_path)})


def arriving(*disks: CopiedDisk) -> Departure:
    return Departure("n1", "u", "/elsewhere/n1.sock", disks, ("/there/images/base.img",), ("/there/log/n1",))


RAW = CopiedDisk("vda", "/there/disks/n1.img", "raw", 3 * MIB)


def test_paths_are_renamed_by_folder_and_the_channel_is_this_hosts(here: Premises, tmp_path: Path) -> None:
    found = paths(arriving(RAW), here)
    assert found == {
        "/there/images/base.img": f"{tmp_path}/images/base.img",
        "/there/log/n1": f"{tmp_path}/log/n1",
        "/there/disks/n1.img": f"{tmp_path}/disks/n1.img",
        "/elsewhere/n1.sock": here.channel,
    }
    inner = replace(here, renamed={**here.renamed, "/there/disks": "/fast"})
    assert paths(arriving(RAW), inner)["/there/disks/n1.img"] == "/fast/n1.img"


def test_empty_disks_and_the_channels_file_are_made_and_cleared(here: Premises, tmp_path: Path) -> None:
    assert list(lacking(arriving(RAW), here)) == []
    arrival = prepare(arriving(RAW), here)
    assert (tmp_path / "disks" / "n1.img").stat().st_size == 3 * MIB
    assert Path(here.channel).exists()
    clear(arrival)
    assert not Path(here.channel).exists()
    assert list((tmp_path / "disks").iterdir()) == []


def test_a_socket_on_which_the_daemon_listens_stays(here: Premises) -> None:
    Path(here.channel).touch()
    clear(prepare(arriving(), here))
    assert Path(here.channel).exists()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img (qemu-utils) is missing")
def test_an_overlay_is_made_above_this_hosts_image(here: Premises, tmp_path: Path) -> None:
    overlay = CopiedDisk("vda", "/there/disks/n1.qcow2", "qcow2", 5 * MIB, "/there/images/base.img", "raw")
    arrival = prepare(arriving(overlay), here)
    command = ["qemu-img", "info", "--output=json", arrival.made[0]]
    info = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert (info["virtual-size"], info["backing-filename"]) == (5 * MIB, f"{tmp_path}/images/base.img")
    assert info["backing-filename-format"] == "raw"


def test_a_disk_that_cannot_be_made_leaves_nothing(here: Premises, tmp_path: Path) -> None:
    broken = CopiedDisk("vdb", "/there/disks/n2.qcow2", "qcow2", MIB, "/there/nothing", "qcow2")
    with pytest.raises(CannotMake):
        prepare(arriving(RAW, broken), here)
    assert list((tmp_path / "disks").iterdir()) == []


def test_what_is_missing_here_is_named(here: Premises) -> None:
    departure = replace(
        arriving(), needs=("/there/kernel",), writes=("/there/nowhere/n1",), bridges=("no-such-bridge", "../net")
    )
    found = list(lacking(departure, replace(here, channel="/nowhere/n1.sock")))
    assert len(found) == 5
    for word in ("/kernel", "/nowhere is", "/nowhere of the guest channel", "no-such-bridge", "../net"):
        assert any(word in sentence for sentence in found), word


@pytest.mark.parametrize(
    "path",
    [
        "/etc/cron.d/x",
        "/there/disks/../base2.img",
        "/there/disks/link/x",
        "relative",
        "/there/disks/",
        "/there/disks/..",
        "",
    ],
)
def test_no_disk_is_made_elsewhere(here: Premises, tmp_path: Path, path: str) -> None:
    (tmp_path / "disks" / "link").symlink_to(tmp_path / "log")
    (reason,) = lacking(arriving(replace(RAW, path=path)), here)
    assert "folders for disks" in reason


def test_no_file_is_overwritten_nor_a_link_followed(here: Premises, tmp_path: Path) -> None:
    target = tmp_path / "disks" / "n1.img"
    for make in (lambda: target.write_text("mine"), lambda: target.symlink_to(tmp_path / "new")):
        make()
        assert "exists here" in next(lacking(arriving(RAW), here))
        with pytest.raises(FileExistsError):
            prepare(arriving(RAW), here)
        target.unlink()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "disk",
    [
        replace(RAW, format="luks"),
        replace(RAW, size_bytes=0),
        replace(RAW, target="vda,x"),
        replace(RAW, format="qcow2", backing="/there/images/base.img", backing_format="vmdk"),
        replace(RAW, format="qcow2", backing="/etc/passwd", backing_format="raw"),
        replace(RAW, format="qcow2", backing="/there/images/none.img", backing_format="raw"),
        replace(RAW, format="qcow2", backing="nbd://elsewhere/x", backing_format="raw"),
        replace(RAW, format="qcow2", backing='json:{"driver":"nbd"}', backing_format="raw"),
    ],
)
def test_a_disk_that_makes_no_sense_is_refused(here: Premises, disk: CopiedDisk) -> None:
    assert len(list(lacking(arriving(disk), here))) == 1
