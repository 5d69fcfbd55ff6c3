"""A machine with a real systemd shuts down and boots: its unit magrathea-sleep puts the domains to sleep in time. The
daemon of the next boot brings them back.

A whole Debian 12 reboots once, and each test looks at what it told on its console. The domains are files
(reboot_guest/driver.py). A save takes longer than systemd lets the unit stop if nobody prolongs that, and longer than
`time_s`: so there is time for one of two.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from magrathea_lab.guests import debian

from .reboot_guest.driver import TAKES_S
from .test_systemd import PYTHON, UNITS, environment

GUEST = Path(__file__).parent / "reboot_guest"
LONGEST_S = 840.0
"""Two boots, and one save; on an idle machine three minutes."""

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != PYTHON, reason="node daemon and hub need the guest's own Python"
)


def content(folder: Path) -> Path:
    """What the guest gets. The daemon has a driver of its own, which needs no libvirt."""
    shutil.copytree(GUEST, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("noded", "sleep"):
        shutil.copy(UNITS / f"magrathea-{name}.service", folder / "units")
    environment(folder / "opt")
    [library] = (folder / "opt" / "lib").glob("*/site-packages")
    driver = library / "node_daemon" / "hypervisor" / "libvirt" / "driver.py"
    shutil.move(folder / "driver.py", driver)
    for compiled in driver.parent.glob("__pycache__/driver.*"):
        compiled.unlink()  # the real one's, which is used unchecked
    (library / "libvirt.py").touch()  # the daemon looks whether the binding is installed
    return folder


@pytest.fixture(scope="module")
def console(debian_disk: debian.Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("debian")
    guest = debian.boot(debian_disk, folder, content(folder / "content"), mib=256, reboots=True)
    try:
        guest.wait(LONGEST_S)
    finally:
        guest.kill()
        guest.wait()
        text = (folder / "console").read_text(errors="replace").replace("\r", "")
    yield text


def section(console: str, name: str) -> str:
    found = re.search(rf"^== {name}\n(.*?)(?=^== |\Z)", console, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section {name} in:\n{console[-3000:]}"
    return found[1]


def test_a_restart_of_the_unit_puts_nobody_to_sleep(console: str) -> None:
    assert "the machine does not shut down; the domains stay awake" in section(console, "restart")
    assert "2 domains to put to sleep, about 2 s; 20 s are left" in section(console, "plan")


def test_the_unit_puts_domains_to_sleep_before_what_they_need_is_stopped(console: str) -> None:
    said = section(console, "shutdown")
    asleep = re.search(r"n1: asleep after ([0-9.]+) s", said)
    assert asleep and float(asleep[1]) >= TAKES_S, said
    for name in ("libvirt-guests", "libvirtd", "noded"):
        assert f"{name} stops" not in said[: asleep.start()] and f"{name} stops" in said, name


def test_what_does_not_fit_into_the_time_is_left_and_said(console: str) -> None:
    said = section(console, "shutdown")
    assert "n2: not asleep: the time was over before its save could begin" in said
    assert "n2: is saved now" not in said


def test_the_next_boot_brings_back_who_was_saved(console: str) -> None:
    said = section(console, "woken")
    assert "up: n1.up\n" in said, said
    assert "the machine has booted: what sleeps since its shutdown is brought back" in said
