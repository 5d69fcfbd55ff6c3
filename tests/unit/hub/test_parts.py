"""What the hub reports to a job's first host about the job's parts on other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from msgspec import structs

from magrathea.core.model import JobKey, Stage
from magrathea.messages import DomainReport, MemoryMove, PartsTold, UnreadyPart, decode_to_host, encode
from scheduler_plugin.hub.job_parts import MOST_TEXT, QUESTIONS_BURST, QUESTIONS_OWN_BURST
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import domain, job, report, stopped, vnode

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)


def part(name: str, lacks: str | None, *, run: int = 1, move: MemoryMove | None = None) -> DomainReport:
    return structs.replace(domain(name, [report(run=run)]), lacks=lacks, move=move)


def told(hub: SimHub, *vnodes: str) -> list[tuple[Stage, str]]:
    if hub.farm.parts.must_look("h1", KEY, hub.at):
        hub.farm.looked(KEY, hub.pbs.connect().job(KEY.id), hub.at)
    unready = hub.farm.parts.unready("h1", KEY, vnodes)
    assert decode_to_host(encode(PartsTold(id=1, parts=unready))) == PartsTold(id=1, parts=unready)
    return [(p.stage, p.text) for p in unready]


def several_hosts() -> SimHub:
    pbs = FakePbs("n1", "n2", "n3", "free")
    pbs.put(job(vnodes=("n1", "n2", "n3", "free")))
    hub = SimHub(pbs)
    for number in (1, 2, 3):
        hub.says(f"h{number}", part(f"n{number}", None))
    return hub


def test_parts_that_have_their_memory_are_not_named_nor_are_vnodes_that_nobody_manages() -> None:
    assert told(several_hosts(), "n1", "n2", "n3", "free") == []


def test_a_part_with_memory_on_its_way_is_named_with_its_progress() -> None:
    hub = several_hosts()
    hub.says("h2", part("n2", ""))
    assert told(hub, "n1", "n2", "n3") == [(Stage.COMING, "h2: n2")]
    hub.says("h2", part("n2", "", move=MemoryMove(what="takes", done_mib=10, of_mib=900)))
    assert told(hub, "n1", "n2", "n3") == [(Stage.COMING, "h2: n2 takes 10 of 900 MiB")]
    hub.says("h2", part("n2", None))
    assert told(hub, "n1", "n2", "n3") == []


def test_a_part_without_its_memory_is_named_with_its_numbers() -> None:
    hub = several_hosts()
    hub.says("h3", part("n3", "n3 needs 1692 MiB and can have 768"))
    assert told(hub, "n2", "n3") == [(Stage.SHORT, "h3: n3 needs 1692 MiB and can have 768")]


def test_a_host_knows_its_own_parts_better_than_the_hub() -> None:
    hub = several_hosts()
    hub.says("h1", part("n1", ""))
    assert told(hub, "n1", "n2") == []


def test_nothing_counts_as_ready_that_no_host_has_spoken_of() -> None:
    hub = several_hosts()
    hub.says("h2", part("n2", None, run=2))
    hub.says("h3", domain("n3"))
    assert [stage for stage, _ in told(hub, "n2", "n3")] == [Stage.UNHEARD] * 2
    hub.says("h2", part("n2", None))
    hub.at += 100
    hub.farm.leases(hub.at)
    [(stage, text)] = told(hub, "n2")
    assert stage is Stage.UNHEARD and "h2" in text


def test_a_new_hub_knows_nothing_before_it_has_read_pbs_and_has_snapshots() -> None:
    pbs = FakePbs("n1", "n2", "free")
    SimHub(pbs).says("h2", part("n2", None))  # registered by a hub that no longer exists
    pbs.put(job(vnodes=("n1", "n2", "free")))
    for host, name in (("h1", "n1"), ("h2", "n2")):
        pbs.connect().set_vnode(name, {"resources_available.magrathea_host": host})
    hub = SimHub(pbs, read=False)
    assert {stage for stage, _ in told(hub, "n2", "free")} == {Stage.UNHEARD}
    hub.read()
    assert [stage for stage, _ in told(hub, "n2", "free")] == [Stage.UNHEARD]
    hub.says("h2", part("n2", None))
    assert told(hub, "n2", "free") == []


def test_a_host_learns_nothing_about_a_job_that_pbs_has_not_given_to_it() -> None:
    hub = several_hosts()
    hub.says("h2", part("n2", "n2 needs 1692 MiB and can have 768"))
    for vnodes in (("n2",), ()):
        hub.pbs.change("1.srv", vnodes=vnodes)
        hub.read()
        [(stage, text)] = told(hub, "n2")
        assert stage is Stage.UNHEARD and "1692" not in text


def test_a_host_learns_nothing_about_vnodes_that_are_none_of_the_jobs() -> None:
    hub = several_hosts()
    hub.says("h3", part("n3", "n3 needs 1692 MiB and can have 768"))
    hub.pbs.change("1.srv", vnodes=("n1", "n2"))
    [(stage, text)] = told(hub, "n2", "n3")
    assert stage is Stage.UNHEARD and "1692" not in text


def test_questions_to_pbs_are_limited_for_each_host_separately() -> None:
    hub = several_hosts()
    asked = sum(hub.farm.parts.must_look("h1", JobKey(f"{n}.srv", 1), hub.at) for n in range(5000))
    assert asked == QUESTIONS_BURST
    assert hub.farm.parts.must_look("h2", JobKey("2.srv", 1), hub.at)


def test_a_host_of_an_older_version_counts_as_ready() -> None:
    hub = several_hosts()
    hub.says("h2", domain("n2", [report()]))
    assert told(hub, "n2") == []


def test_a_very_long_reason_fits_the_message() -> None:
    hub = several_hosts()
    hub.says("h2", part("n2", "x" * 4096))
    told(hub, "n2")
    [found] = hub.farm.parts.unready("h1", KEY, ["n2"])
    assert found == UnreadyPart(stage=Stage.SHORT, text=("h2: " + "x" * 4096)[:MOST_TEXT])


def test_a_guest_that_asks_all_the_time_leaves_questions_for_its_siblings() -> None:
    hub = several_hosts()
    pbs = hub.pbs
    pbs.vnodes["n4"] = vnode("n4")
    hub.read()
    hub.says("h1", domain("n1", [report("8.srv")]), domain("n4", [report("9.srv")]))
    for _ in range(5000):
        hub.farm.parts.must_look("h1", JobKey("8.srv", 1), hub.at)
    assert not hub.farm.parts.must_look("h1", JobKey("8.srv", 1), hub.at)
    asked = sum(hub.farm.parts.must_look("h1", JobKey("9.srv", 1), hub.at) for _ in range(100))
    assert asked == QUESTIONS_OWN_BURST


def test_questions_about_parts_use_up_no_share_of_stops() -> None:
    hub = several_hosts()
    for n in range(10_000):
        hub.farm.parts.must_look("h1", JobKey(f"{n}.srv", 1), hub.at)
    hub.pbs.put(job("7.srv", vnodes=("n1",)))
    hub.says("h1", domain("n1", [report(), stopped("7.srv")]))
    hub.settle(1)
    assert hub.state("7.srv") == "S"


class Counted(tuple[str, ...]):
    """Counts how often it is read from beginning to end."""

    reads = 0

    def __iter__(self) -> Iterator[str]:
        type(self).reads += 1
        return super().__iter__()

    def __contains__(self, name: object) -> bool:
        type(self).reads += 1
        return super().__contains__(name)


def test_the_vnodes_of_a_large_job_are_read_once_for_a_question_and_each_vnode_is_answered_once() -> None:
    pbs = FakePbs("n1", *(f"m{n}" for n in range(200)))
    pbs.put(replace(job(), vnodes=Counted(pbs.vnodes)))
    hub = SimHub(pbs)
    hub.says("h1", part("n1", None))
    hub.says("h2", *(structs.replace(part(f"m{n}", "short"), vnode=f"m{n}") for n in range(200)))
    Counted.reads = 0
    assert len(told(hub, *(f"m{n % 100}" for n in range(200)))) == 100
    assert len(told(hub, "m1")) == 1
    assert Counted.reads <= 2
