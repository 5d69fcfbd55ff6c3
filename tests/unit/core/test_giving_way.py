"""Preempted domains whose memory is needed, and has nowhere to go in their guests, are put to sleep (docs/rules.md,
"Giving way to disk").

The hosts here have 16,000 MiB and floors of 1,000. `low` runs in n1 with 10,000 MiB, and n1 has no swap.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from magrathea.core import shares, states
from magrathea.core.events import (
    Booking,
    DefrostRequested,
    DiskJudged,
    DrainEnded,
    FaultCleared,
    FreezeEnded,
    HubLost,
    JobsReported,
    MemoryReported,
    PauseEnded,
    PauseRequested,
    ReportedJob,
    SleepEnded,
    SleepRequested,
)
from magrathea.core.life import Boot, Save, Seen, learned
from magrathea.core.model import GiveWay, Host, Limits, SleepCause, State
from magrathea.core.plan import ActualDomain, SetMemory, desired, steps

from .builders import (
    PROTECTED,
    Answer,
    after,
    ask,
    books,
    claim,
    get,
    get_job,
    go_on,
    host,
    job_ids,
    key,
    later,
    launch,
    release,
    run,
    set_domain,
    state,
    stop,
    stopped,
    told,
    wanted,
)
from .sleepers import DOWN, SAVED, UP, both, next_step, sleep_request, why, woken

ways = pytest.mark.parametrize("way", [GiveWay.DISK, GiveWay.SWAP_THEN_DISK])
DISK = Limits(give_way=GiveWay.SWAP_THEN_DISK)
FLOOR = "floor=1000"


def a_host(mode: str = "exclusive", way: GiveWay = GiveWay.SWAP_THEN_DISK, n1: str = "disk") -> Host:
    """`low` has run in n1 for long."""
    h = host(mode, limits=Limits(give_way=way), n1=f"normal {FLOOR} {n1}", p1=f"priority {FLOOR}")
    return run(h, "n1", "low", memory=10_000)


def high(h: Host, memory: int = 8_000, cpus: int = 8, id: str = "high") -> Answer:
    return claim(h, "p1", id, cpus=cpus, memory=memory)


def booked(h: Host) -> Host:
    return books(h, *(Booking(j.key, booked=True) for d in h.domains for j in d.stopped))


def asleep(h: Host) -> Host:
    """The priority job is let in, and n1 sleeps for it."""
    return after(booked(launch(high(h).host, "p1", "high")), FreezeEnded(h.now, "n1"))


# Who gives way


@both
@ways
def test_a_victim_without_swap_is_put_to_sleep_and_comes_back_by_itself(mode: str, way: GiveWay) -> None:
    h = a_host(mode, way)
    answer = high(h)
    assert answer.ok and answer.victims == ("n1",) and told(answer.decisions, "gives-way") == ["n1"]
    h = answer.host
    assert get(h, "n1").gives_way and stopped(h) == {"low"} and state(h, "n1") is State.DRAINING
    assert why(h, "n1") == "to be put to sleep: p1 needs its memory; waits: low (run 1) is not suspended in PBS yet"
    assert next_step(h, "n1") is None
    h = booked(launch(h, "p1", "high"))
    assert next_step(h, "n1") is Save
    h = after(h, FreezeEnded(h.now, "n1"))
    assert state(h, "n1") is State.ASLEEP and get(h, "n1").in_line_to_wake
    assert "p1 needs its memory; it is to come back" in why(h, "n1")

    h = release(h, "p1", "high")
    assert state(h, "n1") is State.BOOTING and next_step(h, "n1", SAVED) is Boot
    h = woken(h, "n1")
    assert not wanted(h) and get(h, "n1").woken_at == h.now
    h = later(go_on(h, "n1", "low"), 10)
    assert state(h, "n1") is State.RUNNING_PREEMPTIBLE and get_job(h, "n1", "low").preemptions == 1


@both
def test_as_shipped_nobody_gives_way_to_disk(mode: str) -> None:
    answer = high(a_host(mode, GiveWay.SWAP))
    assert answer.code == "memory" and "sleep" not in answer.text
    fits = high(a_host(mode, GiveWay.SWAP), memory=4_000).host
    assert stopped(fits) == {"low"} and get(fits, "n1").sleep is None
    locked = after(fits, MemoryReported(fits.now, "n1", 12_000))
    assert get(locked, "n1").sleep is None


@both
def test_where_the_swap_suffices_it_is_used_first(mode: str) -> None:
    h = high(a_host(mode, n1="disk swap=10000")).host
    assert stopped(h) == {"low"} and get(h, "n1").sleep is None
    assert desired(h)["n1"].memory_mib == 1_000


@both
def test_to_disk_only_means_that_no_swap_counts(mode: str) -> None:
    h = high(a_host(mode, GiveWay.DISK, n1="disk swap=10000")).host
    assert get(h, "n1").gives_way
    assert desired(h)["n1"].memory_mib == 11_000, "nothing is pushed out meanwhile"


@both
def test_nobody_sleeps_whose_memory_nobody_needs(mode: str) -> None:
    h = high(a_host(mode, GiveWay.DISK), memory=3_000).host
    assert stopped(h) == {"low"} and get(h, "n1").sleep is None and state(h, "n1") is State.PREEMPTED


@both
def test_what_turns_out_to_be_locked_goes_to_disk(mode: str) -> None:
    h = high(a_host(mode, n1="disk swap=10000")).host
    h = after(h, MemoryReported(h.now, "n1", 9_000))
    assert get(h, "n1").gives_way, "its swap cannot take that"


def test_only_as_many_give_way_as_it_takes_and_none_if_all_together_do_not_suffice() -> None:
    normal = f"normal cpus=2 {FLOOR} disk"
    h = host("counted", cpus=6, limits=DISK, p1=f"priority {FLOOR}", n1=normal, n2=normal, n3=normal)
    for name, memory in (("n1", 1_000), ("n2", 4_000), ("n3", 5_000)):
        h = run(h, name, f"low-{name}", cpus=2, memory=memory)
    h = claim(h, "p1", "high", cpus=6, memory=5_500).host
    assert [d.name for d in h.domains if d.gives_way] == ["n2"], "the smallest that suffices"
    more = after(h, MemoryReported(h.now, "n3", 7_500))
    assert [d.name for d in more.domains if d.gives_way] == ["n2", "n3"], "and a second one when that no longer does"
    kept = set_domain(set_domain(h, "n1", disk_obstacle="a device"), "n3", disk_obstacle="a device")
    kept = after(kept, MemoryReported(h.now, "n3", 10_000))
    assert [d.name for d in kept.domains if d.gives_way] == ["n2"], "what has begun goes on; more would not suffice"


def test_mixed_roads_one_swaps_and_one_sleeps() -> None:
    h = host(
        "counted",
        limits=DISK,
        n1=f"normal cpus=4 {FLOOR} disk",
        n2=f"normal cpus=4 {FLOOR} disk swap=8000",
        p1=f"priority {FLOOR}",
    )
    h = run(run(h, "n1", "locked", cpus=4, memory=6_000), "n2", "swaps", cpus=4, memory=6_000)
    h = claim(h, "p1", "high", cpus=8, memory=12_000).host
    assert get(h, "n1").gives_way and get(h, "n2").sleep is None and stopped(h) == {"locked", "swaps"}
    assert desired(h)["n2"].memory_mib == 1_000


def test_jobs_stopped_earlier_give_way_to_a_later_priority_job_without_further_victims() -> None:
    h = host("counted", limits=DISK, n1=f"normal {FLOOR} disk", p1=f"priority {FLOOR}", p2=f"priority {FLOOR}")
    h = run(h, "n1", "low", cpus=8, memory=10_000)
    h = claim(h, "p1", "first", cpus=4, memory=1_000).host
    assert stopped(h) == {"low"} and get(h, "n1").sleep is None
    answer = claim(launch(h, "p1", "first"), "p2", "second", cpus=4, memory=6_000)
    assert answer.ok and answer.victims == () and get(answer.host, "n1").gives_way


def test_a_frozen_domain_that_comes_back_may_need_it_too() -> None:
    h = host("counted", limits=DISK, n1=f"normal {FLOOR} disk", p1=f"priority memory=8000 {FLOOR} frozen")
    h = run(h, "n1", "low", cpus=8, memory=10_000)
    h = ask(h, DefrostRequested(h.now, "p1", h.now + 300)).host
    assert stopped(h) == {"low"} and get(h, "n1").gives_way and "p1 needs its memory" in why(h, "n1")


# Who does not


@both
def test_devices_and_what_nobody_has_asked_about_count_as_today(mode: str) -> None:
    for obstacle in ("n1 cannot be saved to disk: a PCI device", "the hypervisor has not said yet whether"):
        h = after(a_host(mode), DiskJudged(1.0, "n1", obstacle))
        answer = high(h)
        assert answer.code == "memory" and f"n1 is not put to sleep for it: {obstacle}" in answer.text
    assert high(a_host(mode, n1="")).code == "memory", "unknown"


@both
def test_a_protected_job_never_sleeps_for_others(mode: str) -> None:
    h = run(a_host(mode), "n1", "kept", cls=PROTECTED, memory=10)
    assert high(h).code in ("host-busy", "cpus", "memory")
    h = high(a_host(mode)).host
    here = JobsReported(h.now, "n1", (ReportedJob(key("low")), ReportedJob(key("kept"), 1, 10)))
    h = after(h, here)
    assert get(h, "n1").sleep is None and stopped(h) == {"low"} and "kept" in job_ids(h, "n1")
    assert not wanted(h) & {"kept"}


@both
def test_on_a_paused_host_nobody_begins_or_ends_it(mode: str) -> None:
    falls = high(a_host(mode)).host
    h = after(falls, PauseRequested(falls.now, "a test"))
    h = release(h, "p1", "high")
    assert get(h, "n1").gives_way
    assert get(after(h, PauseEnded(h.now)), "n1").sleep is None


# Failures


@both
def test_a_failed_save_is_not_tried_again_until_somebody_clears_it(mode: str) -> None:
    h = booked(launch(high(a_host(mode)).host, "p1", "high"))
    h = after(h, FreezeEnded(h.now, "n1", "disk full"))
    n1 = get(h, "n1")
    assert n1.sleep is None and n1.woken_at is None and n1.stays_awake == "its save has failed: disk full"
    assert stopped(h) == {"low"} and state(h, "n1") is State.PREEMPTED
    assert "n1 is not put to sleep for it: its save has failed: disk full" in shares.disk_obstacles(h)
    h = release(h, "p1", "high")
    assert not wanted(h)
    h = later(go_on(h, "n1", "low"), 60)
    again = high(h, id="again")
    assert again.code == "memory" and "disk full" in again.text
    assert high(after(h, FaultCleared(h.now, "n1")), id="again").ok
    assert get(release(h, "n1", "low"), "n1").stays_awake == "", "other jobs, another try"


@both
def test_jobs_that_pbs_does_not_suspend_end_it_after_a_minute(mode: str) -> None:
    h = launch(high(a_host(mode)).host, "p1", "high")
    h = after(h, HubLost(h.now))
    assert get(later(h, 59), "n1").gives_way
    h = later(h, 61)
    assert get(h, "n1").sleep is None
    assert get(h, "n1").stays_awake.endswith("within 60 s: low (run 1) is not suspended in PBS yet")


@both
def test_a_disk_that_fills_up_while_it_is_saved_changes_nothing_by_itself(mode: str) -> None:
    h = booked(launch(high(a_host(mode)).host, "p1", "high"))
    h = after(h, DiskJudged(h.now, "n1", "no room"))
    assert get(h, "n1").gives_way and next_step(h, "n1") is Save


@both
def test_an_admin_may_keep_it_awake(mode: str) -> None:
    for event in (DrainEnded(1.0, "n1"), DefrostRequested(1.0, "n1", 1e9)):
        h = after(high(a_host(mode)).host, event)
        assert get(h, "n1").sleep is None and "somebody has kept it awake" in get(h, "n1").stays_awake
        h = after(booked(high(a_host(mode)).host), event)
        assert get(h, "n1").must_give_way and not get(h, "n1").gives_way, "it may be being saved just now"
        h = after(h, SleepEnded(h.now, "n1"))
        assert get(h, "n1").sleep is None and "kept it awake" in get(h, "n1").stays_awake


@both
def test_an_admins_own_sleep_replaces_it_and_stays(mode: str) -> None:
    h = ask(asleep(a_host(mode)), sleep_request("n1")).host
    assert not get(h, "n1").in_line_to_wake and get(release(h, "p1", "high"), "n1").asleep
    assert ask(a_host(mode), SleepRequested(1.0, "n1", "x", SleepCause.GIVE_WAY)).code == "bad-request"


# Ends and crashes


@both
def test_the_priority_job_ends_while_its_victim_falls_asleep(mode: str) -> None:
    h = release(high(a_host(mode)).host, "p1", "high")
    n1 = get(h, "n1")
    assert n1.sleep is None and n1.woken_at is None and n1.stays_awake == "" and not wanted(h)

    h = release(booked(launch(high(a_host(mode)).host, "p1", "high")), "p1", "high")
    assert get(h, "n1").must_give_way and wanted(h) == {"low"}, "it may be being saved just now"
    assert isinstance(learned(h, get(h, "n1"), UP), SleepEnded)
    awake = after(h, SleepEnded(h.now, "n1"))
    assert not wanted(awake) and get(awake, "n1").sleep is None
    saved = after(h, FreezeEnded(h.now, "n1"))
    assert state(saved, "n1") is State.BOOTING, "there is room: it comes back at once"


@both
def test_it_comes_back_when_the_next_priority_job_leaves_room(mode: str) -> None:
    h = asleep(a_host(mode))
    h = launch(claim(release_and_keep(h), "p1", "next", cpus=8, memory=8_000).host, "p1", "next")
    assert get(h, "n1").asleep and get(release(h, "p1", "next"), "n1").waking


def release_and_keep(h: Host) -> Host:
    """The priority job ends, but another one is there at the same moment."""
    p1 = get(h, "p1")
    return h.having(replace(p1, jobs=()))


@both
def test_while_it_sleeps_or_falls_asleep_others_get_no_small_jobs(mode: str) -> None:
    h = host(mode, limits=DISK, n1=f"normal {FLOOR} disk", n2=f"normal {FLOOR} disk", p1=f"priority {FLOOR}")
    h = run(h, "n1", "low", cpus=4, memory=10_000)
    h = claim(h, "p1", "high", cpus=8 if mode == "exclusive" else 5, memory=6_000).host
    for there in (h, after(booked(launch(h, "p1", "high")), FreezeEnded(h.now, "n1"))):
        assert not states.accepts(there, get(there, "n2"))


@both
def test_what_others_need_is_theirs_in_the_plan_while_it_is_not_free_yet(mode: str) -> None:
    h = high(a_host(mode)).host
    assert desired(h)["p1"].memory_mib == 9_000 and desired(h)["n1"].memory_mib == 11_000
    actual = {"n1": ActualDomain(memory_mib=11_000), "p1": ActualDomain(memory_mib=1_000)}
    assert SetMemory("p1", 9_000) in steps(h, actual)
    assert all(s.domain != "n1" for s in steps(h, actual) if isinstance(s, SetMemory)), "it is made no smaller"


@both
def test_a_reload_to_swap_ends_it_and_sleepers_come_back(mode: str) -> None:
    h = high(a_host(mode)).host
    h = replace(h, limits=Limits())
    assert get(later(h, 1), "n1").sleep is None
    h = replace(asleep(a_host(mode)), limits=Limits())
    assert get(release(h, "p1", "high"), "n1").waking


def test_a_domain_that_somebody_else_has_saved_meanwhile_sleeps_and_comes_back() -> None:
    h = booked(launch(high(a_host()).host, "p1", "high"))
    n1 = get(h, "n1")
    assert isinstance(learned(h, n1, replace(SAVED, was_up=True)), FreezeEnded)
    gone = learned(high(a_host()).host, get(high(a_host()).host, "n1"), Seen(up=False, was_up=True))
    assert gone is not None and type(gone).__name__ == "DomainStopped", "without an image it is down"
    assert next_step(h, "n1", DOWN) is None


def test_who_is_back_from_a_sleep_and_held_by_another_host_gives_way_like_others() -> None:
    """It has no place to keep, and is asleep again afterwards, not back."""
    h = stop(a_host("counted", GiveWay.DISK), "n1", "low", held_elsewhere=True)
    h = high(set_domain(h, "n1", woken_at=h.now), cpus=4).host
    n1 = get(h, "n1")
    assert n1.sleep is not None and n1.sleep.cause is SleepCause.GIVE_WAY and n1.woken_at is None
