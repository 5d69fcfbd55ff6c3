"""Real guests for the session: a private libvirtd with a normal domain n1 and a priority domain p1.

Where this machine lacks something the summary says in one line what; with MAGRATHEA_REQUIRE_LIBVIRT=1 such a run fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from magrathea_lab.guests import needs

if TYPE_CHECKING:
    from magrathea_lab.rigs.guest_host import Hypervisor, Machine

    from .containers import Containers

HERE = Path(__file__).parent
REQUIRED = os.environ.get("MAGRATHEA_REQUIRE_LIBVIRT") == "1"


WHY_NOT = needs.missing(("qemu", "lxc"))

_left_out = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where guests cannot be had, take these tests out of the run; the summary and the exit code speak of them."""
    global _left_out
    if WHY_NOT is None:
        return
    mine = [item for item in items if HERE in item.path.parents]
    _left_out = len(mine)
    items[:] = [item for item in items if HERE not in item.path.parents]
    config.hook.pytest_deselected(items=mine)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _left_out and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if REQUIRED else pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        line = f"tests/libvirt: {'FAILED' if REQUIRED else 'NOT RUN'}: {_left_out} tests: {WHY_NOT}"
        terminalreporter.write_line(line, red=REQUIRED, yellow=not REQUIRED)


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[Hypervisor]:
    """A private libvirtd with two small guests that are up; put in order after each test by `machine`."""
    from magrathea_lab.rigs.guest_host import Hypervisor, Size

    small = Size(memory_mib=256, zram_mib=128)
    with Hypervisor({"n1": small, "p1": small}) as made:
        yield made


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Iterator[Machine]:
    """Both guests under a real node daemon (exclusive), their agents connected, without jobs."""
    from magrathea_lab.rigs.guest_host import machine as context

    with context(hypervisor) as made:
        yield made


@pytest.fixture(scope="session")
def containers() -> Iterator[Containers]:
    """The same with two containers of LXC; the tests are skipped where this machine lets none start, with its words."""
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
    """As `machine`, for what must hold in virtual machines and in containers alike."""
    from magrathea_lab.rigs.guest_host import machine as context

    with context(request.getfixturevalue("hypervisor" if request.param == "qemu" else "containers")) as made:
        yield made
