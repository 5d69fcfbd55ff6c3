"""What libvirt's figures mean to the driver, also for hypervisors that are not available here."""

from __future__ import annotations

from typing import Any

import pytest

from node_daemon.hypervisor.libvirt.translation import (
    CRASHED,
    PAUSED,
    PM_SUSPENDED,
    RUNNING,
    SHUT_OFF,
    How,
    cpu_control,
    error_code,
    has_balloon,
    is_paused,
    is_up,
)

QEMU = {"cpu_shares": 1024, "vcpu_period": 100000, "vcpu_quota": -1, "global_period": 100000, "global_quota": -1}
OLD_QEMU = {"cpu_shares": 1024, "vcpu_period": 100000, "vcpu_quota": -1}
LXC = {"cpu_shares": 1024, "vcpu_period": 100000, "vcpu_quota": -1}
XEN = {"weight": 256, "cap": 0}
XEN_CREDIT2 = {"weight": 256}
SHARES = {"cpu_shares": 1024}
KINDS: dict[str, tuple[str, dict[str, int], How]] = {
    "qemu": ("QEMU", QEMU, How.QUOTA),
    "qemu-old": ("QEMU", OLD_QEMU, How.QUOTA_PER_VCPU),
    "lxc": ("LXC", LXC, How.QUOTA),
    "xen": ("Xen", XEN, How.CAP),
    "xen-credit2": ("Xen", XEN_CREDIT2, How.WEIGHT),
    "shares": ("QEMU", SHARES, How.WEIGHT),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("percent", [None, 10, 25, 50, 100, 200])
def test_set_values_are_read_back_as_promised(kind: str, vcpus: int, percent: int | None) -> None:
    name, parameters, how = KINDS[kind]
    control = cpu_control(name, parameters)
    assert control is not None
    assert control.how is how
    after = {**parameters, **control.parameters(percent, vcpus)}
    assert control.percent(after, vcpus) == control.nearest(percent)
    if how is not How.WEIGHT:
        assert control.nearest(percent) == percent


@pytest.mark.parametrize(
    ("percent", "period_us", "quota_us"),
    [(2, 100_000, 2_000), (5, 50_000, 2_500), (7, 35_715, 2_500), (10, 25_000, 2_500), (50, 20_000, 10_000)],
)
def test_a_period_is_short_but_an_answer_fits_its_quota(percent: int, period_us: int, quota_us: int) -> None:
    control = cpu_control("QEMU", QEMU)
    assert control is not None
    assert control.parameters(percent, 4) == {"global_period": period_us, "global_quota": quota_us}
    assert control.percent({**QEMU, **control.parameters(percent, 4)}, 4) == percent


def test_a_small_share_of_many_virtual_cpus_is_no_less_than_the_kernel_takes() -> None:
    control = cpu_control("QEMU", OLD_QEMU)
    assert control is not None
    assert control.parameters(1, 8) == {"vcpu_period": 1_000_000, "vcpu_quota": 1_250}


OWN: dict[str, dict[str, int]] = {
    "qemu": {"global_period": 100_000, "global_quota": 400_000, "vcpu_period": 100_000, "vcpu_quota": 50_000},
    "qemu-old": {"vcpu_period": 100_000, "vcpu_quota": 50_000},
    "lxc": {"vcpu_period": 100_000, "vcpu_quota": 200_000},
    "xen": {"cap": 200},
    "xen-credit2": {"weight": 512},
    "shares": {"cpu_shares": 8192},
}
"""What a site has set itself in a domain of four virtual CPUs."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_site_has_set_itself_is_a_ceiling_that_no_cap_comes_back_to(kind: str) -> None:
    name, parameters, how = KINDS[kind]
    own = {**parameters, **OWN[kind]}
    control = cpu_control(name, own)
    assert control is not None
    assert control.percent(own, 4, own) is None, "nobody has capped it but the site"
    capped = {**own, **control.parameters(10, 4, own)}
    assert control.percent(capped, 4, own) == 10
    assert {**capped, **control.parameters(None, 4, own)} == own
    if how is not How.WEIGHT:
        assert {**own, **control.parameters(1000, 4, own)} == own, "a cap above it does not raise it"
        assert control.percent({**own, **control.parameters(None, 4)}, 4, own) is None


def test_a_weight_never_starves_a_domain() -> None:
    control = cpu_control("Xen", XEN_CREDIT2)
    assert control is not None
    assert control.parameters(1, 1) == {"weight": 26}
    assert control.nearest(1) == 10


def test_the_largest_quota_means_none() -> None:
    control = cpu_control("QEMU", QEMU)
    assert control is not None
    for unlimited in (-1, 0, 17_592_186_044_415, 18_446_744_073_709_551):
        assert control.percent({**QEMU, "global_quota": unlimited}, 2) is None


def test_a_scheduler_without_any_of_it_cannot_cap() -> None:
    assert cpu_control("Test", {}) is None


def test_only_pauses_that_somebody_must_end_count() -> None:
    assert is_paused(PAUSED, 1)  # by a user
    assert is_paused(PAUSED, 5)  # because of a disk error
    assert is_paused(PM_SUSPENDED, 0)
    assert not is_paused(PAUSED, 3)  # while it is saved
    assert not is_paused(RUNNING, 1)
    assert [is_up(state) for state in (RUNNING, PAUSED, SHUT_OFF, CRASHED)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("kind", "devices", "has"),
    [
        ("QEMU", "<memballoon model='virtio'/>", True),
        ("QEMU", "<memballoon model='none'/>", False),
        ("QEMU", "", False),
        ("LXC", "", True),
        ("Xen", "", True),
    ],
)
def test_memory_moves_if_there_is_a_balloon(kind: str, devices: str, has: Any) -> None:
    assert has_balloon(kind, f"<domain><devices>{devices}</devices></domain>") is has


@pytest.mark.parametrize(
    ("number", "origin", "code"), [(1, 7, "lost"), (38, 7, "lost"), (1, 10, "failed"), (55, 10, "domain-down")]
)
def test_a_libvirtd_that_dies_during_a_call_is_lost_not_a_failure_of_the_call(
    number: int, origin: int, code: str
) -> None:
    assert error_code(number, origin) == code
