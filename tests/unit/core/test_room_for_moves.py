"""What a host keeps for domains that move is given to nobody else: not to jobs, not to domains that come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import allocation, plan, shares, states
from magrathea.core import migration as mg
from magrathea.core import move_events as me
from magrathea.core.events import TimerFired
from magrathea.core.model import Amount, Coming, Host, JobClass, Lifecycle, State
from magrathea.core.moves import HostWithMoves, Where
from magrathea.core.refusals import Refusal, RefusalCode

from .builders import HIGH, PROTECTED, T, after, claim, defrost, get, host, run, stop
from .sleepers import put_to_sleep
from .test_moves import FROM_A, asked, do, expecting, granted, named, owned, parcel, told


def keeping(here: Host, cpus: int = 0, mib: int = 0, *, busy: bool = True) -> Host:
    return replace(here, coming=(Coming("m1", Amount(cpus, mib), busy),))


@pytest.mark.parametrize(
    ("cls", "cpus", "mib", "code"),
    [
        (PROTECTED, 3, 100, RefusalCode.CPUS),
        (PROTECTED, 2, 100, None),
        (PROTECTED, 1, 7_000, RefusalCode.MEMORY),
        (PROTECTED, 1, 6_000, None),
        (HIGH, 3, 100, RefusalCode.CPUS),
        (HIGH, 2, 6_000, None),
    ],
)
def test_a_job_gets_nothing_of_what_a_counted_host_keeps(
    cls: JobClass, cpus: int, mib: int, code: RefusalCode | None
) -> None:
    here = keeping(host("counted", n1="normal", p1="priority"), 6, 10_000)
    answer = claim(here, "p1" if cls is HIGH else "n1", "1", cls=cls, cpus=cpus, memory=mib)
    assert answer.code == (code or "accepted")
    assert code is None or "kept for m1" in answer.text


def test_nobody_is_preempted_for_what_is_kept() -> None:
    here = keeping(run(host("counted", n1="normal", p1="priority"), "n1", "1", cpus=2), 6)
    answer = allocation.verdict(here, here.domains[1], HIGH, Amount(3, 0))
    assert isinstance(answer, Refusal) and answer.code is RefusalCode.CPUS
    assert allocation.verdict(here, here.domains[1], HIGH, Amount(2, 0)) == ("n1",)


def test_an_exclusive_host_takes_no_jobs_while_a_domain_with_jobs_comes() -> None:
    here = host("exclusive", n1="normal", p1="priority")
    busy, empty = keeping(here, mib=1_000), keeping(here, mib=1_000, busy=False)
    for name, cls in (("n1", PROTECTED), ("p1", HIGH)):
        assert claim(busy, name, "1", cls=cls).code == RefusalCode.HOST_BUSY
    assert [states.state_of(busy, d) for d in busy.domains] == [State.OCCUPIED, State.OCCUPIED]
    assert claim(empty, "n1", "1", cls=PROTECTED, memory=15_000).ok
    assert claim(empty, "n1", "1", cls=PROTECTED, memory=15_001).code == RefusalCode.MEMORY


def test_idle_siblings_give_the_memory_that_a_domain_needs_which_comes() -> None:
    here = keeping(host("counted", n1="normal floor=500"), mib=8_000)
    actual = {"n1": plan.ActualDomain(memory_mib=12_000)}
    assert [step for step in plan.steps(here, actual) if isinstance(step, plan.SetMemory)]
    assert not plan.steps(replace(here, coming=()), actual)


def test_a_sleeping_domain_does_not_come_back_into_it() -> None:
    asleep = put_to_sleep(run(host("counted", n1="normal"), "n1", "1", cpus=4), "n1")
    assert get(defrost(asleep, "n1").host, "n1").waking
    kept = defrost(keeping(asleep, 6), "n1").host
    assert get(kept, "n1").in_line_to_wake
    assert get(after(replace(kept, coming=()), TimerFired(T)), "n1").waking


def test_from_its_first_facts_until_it_is_adopted_a_domain_that_comes_is_counted_once() -> None:
    source = run(named("a", n1="normal floor=300"), "n1", "1", cpus=5, memory=1_000)
    place = expecting(named("b", n2="normal"), source)
    assert shares.unused(place.host) == Amount(3, 16_000 - 1_300)
    place = do(do(place, parcel(source, final=True)), me.DomainFound(T, "n1", Where.RUNNING))
    assert place.host.coming == () and place.host.domain("n1")
    assert shares.unused(place.host) == Amount(3, 16_000 - 1_300)


def test_a_domain_of_its_name_that_is_down_has_its_floor_there_already() -> None:
    source = run(named("a", n1="normal floor=300"), "n1", "1", cpus=5)
    (own,) = named("b", n1="normal floor=200").domains
    target = replace(named("b", n2="normal"), domains=(replace(own, lifecycle=Lifecycle.DOWN),))
    (coming,) = expecting(target, source).host.coming
    assert coming.size == Amount(5, 100)


def test_a_service_that_comes_has_its_cpus_and_all_its_memory() -> None:
    source = named("a", n1="service cpus=2 memory=4000")
    assert [c.size for c in expecting(named("b", n2="normal"), source).host.coming] == [Amount(2, 4_000)]


def test_what_a_stopped_job_needs_to_go_on_is_not_kept_for_a_preempted_domain() -> None:
    """It comes preempted, and waits there for its turn, as it did here."""
    source = stop(run(named("a", n1="normal swap=4000"), "n1", "1", cpus=5, memory=1_000), "n1", "1")
    assert [c.size for c in expecting(named("b", n2="normal"), source).host.coming] == [Amount(0, 0)]


def test_the_source_keeps_the_room_of_a_domain_that_may_come_back() -> None:
    a = run(named("a", n1="normal", n2="normal"), "n1", "1", cpus=6)
    place = told(asked(owned(a)), granted(ready=True))
    place = do(do(place, me.CopyOver(T, "n1")), me.DomainFound(T, "n1", Where.LEFT))
    assert place.host.domain("n1") is None and place.host.coming == (Coming("n1", Amount(6, 0), True),)
    assert claim(place.host, "n2", "2", cls=PROTECTED, cpus=3).code == RefusalCode.CPUS
    back, _ = mg.handle(place, me.RecordsTold(T, (replace(granted(3, 9), transfer=None),)), FROM_A)
    assert back.host.coming == () and shares.unused(back.host).cpus == 2


def test_nothing_is_kept_without_moves() -> None:
    assert mg.handle(HostWithMoves(named("a", n1="normal")), me.Ticked(T))[0].host.coming == ()
