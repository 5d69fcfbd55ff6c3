"""libvirt's own test hypervisor, with what it lacks: other schedulers, and calls that hang or fail."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon.hypervisor.libvirt import connection as libvirt_connection

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python binding is missing: pip install magrathea[libvirt]")

URI = "test:///default"
KIB = 1024
"""KiB in a MiB."""


def xml(name: str, memory_mib: int = 1024, vcpus: int = 2, *, balloon: bool = True) -> str:
    devices = "<devices><memballoon model='virtio'/></devices>" if balloon else ""
    return f"""<domain type='test'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>{vcpus}</vcpu>
      <os><type>hvm</type></os>{devices}</domain>"""


@contextlib.contextmanager
def only_domains(*xmls: str) -> Iterator[Any]:
    """A connection to libvirt's test hypervisor, which all connections of this process share; exactly these domains
    run."""
    made = libvirt.open(URI)
    _empty(made)
    for one in xmls:
        made.defineXML(one).create()
    try:
        yield made
    finally:
        _empty(made)
        made.close()


def _empty(connection: Any) -> None:
    for domain in connection.listAllDomains():
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


class FakeLibvirt:
    """libvirt itself, except for questions about its domains' CPU: these are Xen's, or `scheduler` answers them."""

    def __init__(self, kind: str, scheduler: dict[str, int], *names: str) -> None:
        self.kind = kind
        self.schedulers = {name: dict(scheduler) for name in names}
        self.defined = {name: dict(scheduler) for name in names}
        """The same in the domains' definitions."""
        self.hung = threading.Event()
        """If set, changes of m1's memory hang until `free`."""
        self.free = threading.Event()
        self.set: list[int] = []
        self.fails: dict[str, int] = {}
        """"domain.call" -> the number of the error with which the call fails."""
        self.raised: Counter[str] = Counter()
        """How often each call has failed so."""
        self.listing = threading.Event()
        """If clear, listing the domains blocks."""
        self.listing.set()
        self.ids: dict[str, int] = {}
        self.plugged: dict[str, str] = {}
        """XML of devices that domains have in addition."""
        self.held_mib: dict[str, int] = {}
        """What a domain's QEMU holds of the host's memory whatever its balloon takes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(libvirt, name)

    def open(self, uri: str) -> Any:
        return FakeLibvirtConnection(self, libvirt.open(uri))


class FakeLibvirtConnection:
    def __init__(self, fake: FakeLibvirt, real: Any) -> None:
        self._fake, self._real = fake, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def getType(self) -> str:
        return self._fake.kind

    def listAllDomains(self, flags: int) -> list[Any]:
        assert self._fake.listing.wait(BOUND_S)
        return [FakeLibvirtDomain(self._fake, one) for one in self._real.listAllDomains(flags)]

    def lookupByName(self, name: str) -> Any:
        return FakeLibvirtDomain(self._fake, self._real.lookupByName(name))


class FakeLibvirtDomain:
    def __init__(self, fake: FakeLibvirt, real: Any) -> None:
        self._fake, self._real = fake, real

    def __getattr__(self, name: str) -> Any:
        if number := self._fake.fails.get(call := f"{self._real.name()}.{name}"):
            self._fake.raised[call] += 1
            raise failure(number)
        return getattr(self._real, name)

    def XMLDesc(self, flags: int) -> str:
        plugged = self._fake.plugged.get(self._real.name(), "")
        return str(self._real.XMLDesc(flags)).replace("</devices>", f"{plugged}</devices>")

    def memoryStats(self) -> dict[str, int]:
        kib = self._real.info()[2]
        return {"actual": kib, "rss": self._fake.held_mib.get(self._real.name(), kib // KIB) * KIB}

    def ID(self) -> int:
        return self._fake.ids.get(self._real.name(), int(self._real.ID()))

    def schedulerParametersFlags(self, flags: int) -> dict[str, int]:
        word = "live" if flags == libvirt.VIR_DOMAIN_AFFECT_LIVE else "config"
        if number := self._fake.fails.get(f"{self._real.name()}.{word}"):
            raise failure(number)
        return (self._fake.schedulers if word == "live" else self._fake.defined)[self._real.name()]

    def setSchedulerParametersFlags(self, parameters: dict[str, int], flags: int) -> None:
        self._fake.schedulers[self._real.name()].update(parameters)

    def setMemoryFlags(self, kib: int, flags: int) -> None:
        if self._fake.hung.is_set() and self._real.name() == "m1":
            assert self._fake.free.wait(BOUND_S)
        self._fake.set.append(kib // KIB)
        self._real.setMemoryFlags(kib, flags)


def failure(number: int) -> Exception:
    """libvirt's error with that number."""
    error: Exception = libvirt.libvirtError(f"error {number}, as the test wants")
    error.err = (number, 0, "", 2, "", "", "", 0, 0)  # type: ignore[attr-defined]
    return error


def faked(monkeypatch: pytest.MonkeyPatch, kind: str, scheduler: dict[str, int], *names: str) -> FakeLibvirt:
    """Drivers use it as libvirt until the end of the test. `names`: its domains, by default m1 and m2."""
    fake = FakeLibvirt(kind, scheduler, *(names or ("m1", "m2")))
    real = libvirt_connection.binding
    monkeypatch.setattr(libvirt_connection, "binding", lambda: (real(), fake)[1])
    return fake
