"""Real guests for the session: a private libvirtd with a normal domain n1 and a priority domain p1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from magrathea_lab.guests.debian import Disk
    from magrathea_lab.rigs.guest_host import Hypervisor, Machine

    from .containers import Containers


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """A private libvirtd with two small guests that are up. `machine` cleans up after each test."""
    from magrathea_lab.rigs.guest_host import Hypervisor, Size

    small = Size(memory_mib=256, zram_mib=128)
    with Hypervisor({"n1": small, "p1": small}) as made:
        yield made


@pytest.fixture(scope="session")
def debian_disk() -> Disk:
    """The disk of a whole Debian with systemd. If none can be made here, the tests are skipped with the reason."""
    from magrathea_lab.guests import debian
    from magrathea_lab.guests.image import NoImage

    if (why := debian.missing()) is not None:
        pytest.skip(why)
    try:
        return debian.build()
    except NoImage as error:
        pytest.skip(f"no Debian could be made of packages: {error}")


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Iterator[Machine]:
    """Both guests under a real node daemon (exclusive), with connected agents and without jobs."""
    from magrathea_lab.rigs.guest_host import machine as context

    with context(hypervisor) as made:
        yield made


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    """The same with two LXC containers. If this machine cannot start any, the tests are skipped with libvirt's
    reason."""
    import libvirt

    from magrathea_lab.rigs.guest_host import Size

    from .containers import PYTHON, Containers

    if not PYTHON.exists():
        pytest.skip(f"containers run the agent by the host's {PYTHON}, which is missing")
    made = Containers({"n1": Size(memory_mib=256), "p1": Size(memory_mib=256)})
    try:
        try:
            made.start()
        except libvirt.libvirtError as error:
            pytest.skip(f"this machine does not let libvirt start a container: {error}")
        yield made
    finally:
        made.close()


@pytest.fixture(params=["qemu", "lxc"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """As `machine`, for tests that must pass in virtual machines and in containers."""
    from magrathea_lab.rigs.guest_host import machine as context

    with context(request.getfixturevalue("hypervisor" if request.param == "qemu" else "containers")) as made:
        yield made
