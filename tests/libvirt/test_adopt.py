"""`magrathea host adopt` on a real QEMU: a domain without a channel gets one, its agent connects, and `--undo` restores
it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest
from click.testing import CliRunner, Result

from magrathea.cli.main import cli
from magrathea_lab.guests.private_libvirtd import QEMU_USER
from magrathea_lab.rigs.guest_host import Hypervisor, ask
from magrathea_lab.waiting import BOUND_S, until

SERVICES = ("--kind", "{0}n1=service", "--kind", "{0}p1=service")
"""The other tests' guests count as services here."""


def without_magrathea(xml: str, name: str) -> str:
    """A domain of an administrator who has never heard of Magrathea: no channel, libvirt's default balloon."""
    top = ElementTree.fromstring(xml)
    devices = top.find("devices")
    assert devices is not None
    for uuid in top.findall("uuid"):
        top.remove(uuid)
    for element in (*devices.findall("channel"), *devices.findall("memballoon")):
        devices.remove(element)
    ElementTree.SubElement(devices, "memballoon", {"model": "virtio"})
    for named in top.findall("name"):
        named.text = name
    serial = devices.find("serial/source")
    if serial is not None:
        serial.set("path", serial.get("path", "") + f".{name}")
    return ElementTree.tostring(top, encoding="unicode")


@pytest.fixture
def stranger(hypervisor: Hypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The domain `a1`, defined and down."""
    monkeypatch.setattr("node_daemon.setup.adopt_cli.STATE", tmp_path / "state")
    name = hypervisor.libvirtd.prefix + "a1"
    xml = hypervisor.guests["n1"].domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain = hypervisor.connect().defineXML(without_magrathea(xml, name))
    yield domain
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()
    domain.undefine()


def run(hypervisor: Hypervisor, config: Path, *words: str) -> Result:
    services = [word.format(hypervisor.libvirtd.prefix) for word in SERVICES] if "--undo" not in words else []
    line = ("host", "adopt", "--uri", hypervisor.uri, "--config", str(config), *services, *words)
    return CliRunner().invoke(cli, line)


@contextlib.contextmanager
def noded(config: Path) -> Iterator[None]:
    with (config.parent / "noded.log").open("ab") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "node_daemon.main", "--config", str(config)], stdout=log, stderr=log
        )
    try:
        yield
    finally:
        daemon.terminate()
        try:
            daemon.wait(BOUND_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(BOUND_S)


def test_a_domain_is_adopted_boots_connects_and_is_restored(
    hypervisor: Hypervisor, stranger: Any, tmp_path: Path
) -> None:
    folder = hypervisor.folder / "adopt"  # a folder that QEMU's user can reach
    folder.mkdir(mode=0o711)
    config = folder / "noded.toml"
    config.write_text(f"""
[host]
name = "h1"
mode = "exclusive"
cpus = 8
driver = "libvirt"
uri = "{hypervisor.uri}"
qemu_user = "{QEMU_USER}"
[paths]
run_dir = "{folder}/run"
state_dir = "{folder}/state"
scripts = ""
[domain.a1]
kind = "normal"
libvirt.name = "{stranger.name()}"
""")
    before = stranger.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    done = run(hypervisor, config, "--apply")
    assert done.exit_code == 0, done.output
    assert f"{stranger.name()}: defined" in done.output
    after = ElementTree.fromstring(stranger.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    balloon = after.find("devices/memballoon")
    assert balloon is not None and balloon.get("autodeflate") == balloon.get("freePageReporting") == "on"
    assert "nothing to change" in run(hypervisor, config).output, "reading it back gives the same host"

    def status() -> dict[str, Any]:
        with contextlib.suppress(OSError):
            answer = ask(folder / "run" / "control.sock", {"op": "status"})
            return next(d for d in answer["domains"] if d["name"] == "a1")
        return {}

    with noded(config):
        until(lambda: status().get("state") == "down", lambda: (folder / "noded.log").read_text()[-3000:])
        stranger.create()
        until(lambda: status().get("agent"), lambda: (folder / "noded.log").read_text()[-3000:])
        assert status()["state"] == "free"
        assert status()["memory_mib"] == stranger.info()[2] // 1024

    done = run(hypervisor, config, "--undo")
    assert done.exit_code == 0, done.output
    assert stranger.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == before, "byte for byte"
