"""`magrathea preview` says where the memory of preempted domains goes, and how long that takes."""

from __future__ import annotations

from magrathea.cli.farm import _rows
from magrathea.core.model import GiveWay, Host, JobClass, Limits
from magrathea.messages import Chunk
from magrathea.preview import outlook

from .core.builders import host, run


def told(h: Host, memory: int, measured: dict[GiveWay, float]) -> list[str]:
    """What the row of p1 says, for a priority job of that size."""

    def takes(road: GiveWay, domain: str, mib: int) -> float | None:
        return measured[road] * mib if road in measured else None

    found = outlook(h, {}, JobClass.PRIORITY, [Chunk(1, 8, memory)], takes=takes)
    return [row[-1] for row in _rows(found) if row[2] == "p1"]


def two_victims(way: GiveWay) -> Host:
    """n1 has no swap, n2 has."""
    n1, n2 = "normal cpus=4 floor=1000 disk", "normal cpus=4 floor=1000 swap=9000 disk"
    h = host("counted", limits=Limits(give_way=way), p1="priority floor=1000", n1=n1, n2=n2)
    return run(run(h, "n1", "1.srv", cpus=4, memory=6_000), "n2", "2.srv", cpus=4, memory=5_000)


def test_each_victim_has_its_road() -> None:
    both = two_victims(GiveWay.SWAP_THEN_DISK)
    assert told(both, 12_000, {GiveWay.DISK: 0.01, GiveWay.SWAP: 0.002}) == [
        "7000 MiB of n1 go to disk, with its domain (about 70 s), 5000 MiB of n2 go to its swap (about 10 s)"
    ]
    assert told(both, 1_000, {}) == ["5000 MiB of n2 go to its swap (not measured yet)"], "nobody needs what n1 has"
    assert "6000 MiB of n2 go to disk" in told(two_victims(GiveWay.DISK), 12_000, {})[0]


def test_as_shipped_all_go_to_swap_and_what_does_not_fit_is_refused() -> None:
    h = two_victims(GiveWay.SWAP)
    assert told(h, 1_000, {GiveWay.SWAP: 0.002}) == ["5000 MiB of n2 go to its swap (about 10 s)"]
    assert "left on h1 for class priority" in told(h, 12_000, {})[0]


def test_a_refusal_names_who_cannot_be_put_to_sleep() -> None:
    h = host("counted", limits=Limits(give_way=GiveWay.DISK), p1="priority", n2="normal")
    h = run(h, "n2", "2.srv", cpus=4, memory=5_000)
    assert "n2 is not put to sleep for it: the hypervisor has not said yet" in told(h, 12_990, {})[0]
