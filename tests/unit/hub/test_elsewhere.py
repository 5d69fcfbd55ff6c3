"""Which preempted domains should go on at another host: the rule, one reason a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from magrathea.core.model import Kind, Mode, State
from magrathea.core.moves import Ownership, Transfer
from magrathea.messages import DomainReport, JobReport
from scheduler_plugin.hub.configuration import ElsewhereTable
from scheduler_plugin.hub.elsewhere import MOST_OF_A_HOST, ElsewhereVerdict, HostNow, verdicts
from tests.fakes.reports import NOW, asleep, domain, report, snapshot, stopped

TABLE = ElsewhereTable(after_s=60, rest_s=600)
WAITED_S = 300.0
SINCE = NOW - WAITED_S


class Past:
    """Former moves, as a test wants them."""

    def __init__(self, cost_s: float = 10.0, rests: str = "", refused: Sequence[str] = ()) -> None:
        self._cost_s, self._rests, self._refused = cost_s, rests, refused

    def rests(self, domain: str, rest_s: float, now: float) -> str:
        return self._rests

    def refused(self, domain: str, host: str, now: float) -> str:
        return "refused lately" if host in self._refused else ""

    def cost_s(self, source: str, target: str, mib: int) -> float:
        return self._cost_s + (1 if target == "h3" else 0)


def preempted(name: str = "n1", *jobs: JobReport, **more: object) -> DomainReport:
    made = domain(name, jobs or [stopped(since=SINCE)], state=State.PREEMPTED, accepts=[])
    return msgspec.structs.replace(made, **more)


def here(*domains: DomainReport, name: str = "h1", **more: object) -> HostNow:
    found = snapshot(*(domains or (preempted(),)), host=name)
    return HostNow(msgspec.structs.replace(found, **more), NOW)


def there(*domains: DomainReport, name: str = "h2", welcome: str = "h1", **more: object) -> HostNow:
    return replace(here(*(domains or (domain("m1"),)), name=name, **more), welcome=frozenset(welcome.split()))


def owned(name: str = "n1", owner: str = "h1") -> Ownership:
    return Ownership(name, 1, owner, 1)


def judged(
    *hosts: HostNow, past: Past | None = None, records: Sequence[Ownership] = (), table: ElsewhereTable = TABLE
) -> list[ElsewhereVerdict]:
    books = {record.domain: record for record in (owned(), *records)}
    return verdicts(table, {host.name: host for host in hosts}, books, past or Past(), NOW)


def one(*hosts: HostNow, past: Past | None = None, records: Sequence[Ownership] = ()) -> ElsewhereVerdict:
    [verdict] = judged(*hosts, past=past, records=records)
    return verdict


def test_a_domain_preempted_for_long_goes_to_an_idle_host() -> None:
    verdict = one(here(), there())
    assert (verdict.domain, verdict.host, verdict.to, verdict.since) == ("n1", "h1", "h2", SINCE)
    assert "preempted for 300 s" in verdict.why and "takes 10.0 s" in verdict.why


def test_of_several_hosts_it_takes_the_one_where_the_move_is_cheapest() -> None:
    assert one(here(), there(name="h3"), there(domain("k1"), name="h4")).to == "h4"


def test_domains_that_are_not_preempted_are_not_judged() -> None:
    running = domain("n1", [report()], state=State.RUNNING_PREEMPTIBLE)
    priority = preempted("p1", kind=Kind.PRIORITY)
    by_pbs = domain("n1", [report()], state=State.PREEMPTED)
    assert judged(here(running, priority, by_pbs), there()) == []


@pytest.mark.parametrize(
    ("source", "why", "fix"),
    [
        (here(preempted("n1", stopped(since=NOW - 59))), "preempted for 59 s, and it may move after 60 s", False),
        (here(paused_since=NOW, paused="a test"), "h1 is paused", False),
        (replace(here(), follows=False), "too old", True),
        (here(preempted(vnode="node1")), "its vnode is node1", True),
        (here(preempted("n1", report(stopped_since=SINCE))), "about to go on", False),
        (here(preempted("n1", report(stop=True, stopped_since=SINCE, held_elsewhere=True))), "another host", False),
        (here(preempted("n1", report(stop=True, stopped_since=SINCE, requeue=True))), "requeued", False),
        (here(preempted(sleep=asleep().sleep)), "put to sleep", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_domain_stays_because_of(source: HostNow, why: str, fix: bool) -> None:
    verdict = one(source, there())
    assert verdict.to == "" and why in verdict.why
    assert bool(verdict.fix) is fix


def test_a_domain_that_the_books_do_not_have_as_its_hosts_stays() -> None:
    assert one(here(), there(), records=[owned(owner="h2")]).fix
    moving = replace(owned(), transfer=Transfer(2, "h1", "h2"))
    assert one(here(), there(), records=[moving]).why == "it is on its way"


def test_a_domain_that_has_moved_lately_rests() -> None:
    verdict = one(here(), there(), past=Past(rests="it moved 5 s ago"))
    assert (verdict.to, verdict.why) == ("", "it moved 5 s ago")


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (there(domain("m1", [report("8.srv")])), "it runs jobs"),
        (there(domain("m1", state=State.BOOTING)), "m1 boots"),
        (there(domain("m1", state=State.FAULT)), "m1 is in fault"),
        (there(domain("m1", state=State.UNKNOWN)), "m1 is unknown"),
        (there(domain("m1", state=State.FROZEN)), "m1 is frozen"),
        (there(preempted("m1", stopped("8.srv", since=NOW))), "m1 is preempted itself"),
        (there(asleep("m1")), "m1 sleeps there"),
        (there(domain("m1", state=State.OCCUPIED)), "kept for a priority job"),
        (there(paused_since=NOW), "it is paused"),
        (there(cpus=0), "1 CPUs are needed, 0 are free"),
        (there(domain("m1", [report("8.srv")]), mode=Mode.COUNTED, cpus=4, services_cpus=3), "1 CPUs are needed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_host_takes_nobody_if(target: HostNow, why: str) -> None:
    verdict, *_ = judged(here(), target)
    assert (verdict.domain, verdict.to) == ("n1", "") and why in verdict.why


def test_memory_of_jobs_must_fit_beside_those_that_run_there() -> None:
    big = msgspec.structs.replace(stopped(since=SINCE), memory_mib=3000)
    other = msgspec.structs.replace(report("8.srv"), memory_mib=2000)
    counted = there(domain("m1", [other]), mode=Mode.COUNTED)
    assert "3000 MiB are needed for jobs, 2096 are free" in one(here(preempted("n1", big)), counted).why


def test_a_counted_host_takes_a_domain_beside_jobs_that_leave_room() -> None:
    assert one(here(), there(domain("m1", [report("8.srv")]), mode=Mode.COUNTED)).to == "h2"


def test_without_a_host_that_takes_its_domains_it_stays_and_the_fix_is_named() -> None:
    for others in ([], [there(welcome="h9")]):
        verdict = one(here(), *others)
        assert (verdict.to, verdict.why) == ("", "no host takes domains from h1") and "[visitors]" in verdict.fix


def test_a_host_that_has_refused_is_passed_over() -> None:
    assert one(here(), there(), there(domain("k1"), name="h4"), past=Past(refused=["h2"])).to == "h4"
    assert "h2: refused lately" in one(here(), there(), past=Past(refused=["h2"])).why


@pytest.mark.parametrize(("cost_s", "moves"), [(299.0, True), (WAITED_S, False), (301.0, False)])
def test_a_move_that_is_too_dear_is_not_made(cost_s: float, moves: bool) -> None:
    verdict = one(here(), there(), past=Past(cost_s))
    assert bool(verdict.to) is moves
    assert moves or "which is not less" in verdict.why


@pytest.mark.parametrize(("ends_in_s", "moves"), [(math.inf, True), (11.0, True), (9.0, False)])
def test_what_is_gained_ends_with_the_walltime_of_the_priority_jobs(ends_in_s: float, moves: bool) -> None:
    verdict = one(replace(here(), ends_in_s=ends_in_s), there())
    assert bool(verdict.to) is moves
    assert ("by its walltime" in verdict.why) is (ends_in_s < WAITED_S)


def test_the_longest_preempted_goes_first_and_a_host_has_one_move_at_a_time() -> None:
    longer = preempted("n2", stopped("2.srv", since=SINCE - 5))
    books = [owned("n2")]
    first, second = judged(here(preempted(), longer), there(), there(domain("k1"), name="h4"), records=books)
    assert (first.domain, first.to) == ("n2", "h2")
    assert (second.domain, second.to) == ("n1", "") and "its turn comes later" in second.why


def test_two_domains_of_different_hosts_do_not_go_to_the_same_host() -> None:
    other = there(preempted("k1", stopped("2.srv", since=SINCE + 1)), name="h3", welcome="h1")
    found = judged(here(), other, there(welcome="h1 h3"), records=[owned("k1", "h3")])
    assert [(verdict.domain, verdict.to) for verdict in found] == [("n1", "h2"), ("k1", "")]


def test_hosts_that_move_a_domain_already_wait() -> None:
    moving = replace(owned("x1", "h2"), transfer=Transfer(2, "h2", "h9"))
    assert "on its way to or from it" in one(here(), there(), records=[moving]).why
    moving = replace(owned("x1", "h1"), transfer=Transfer(2, "h1", "h9"))
    assert "its turn comes later" in one(here(), there(), records=[moving]).why


def test_a_host_cannot_fill_the_list_with_domains_that_it_makes_up() -> None:
    many = [preempted(f"x{number}", stopped(f"{number}.srv", since=0.0)) for number in range(50)]
    found = judged(here(*many, name="h9"), here(), there())
    assert len(found) == MOST_OF_A_HOST + 1 and found[-1].to == "h2"


def test_the_clock_of_the_domains_own_host_counts() -> None:
    ahead = replace(here(preempted("n1", stopped(since=SINCE + 3600))), now=NOW + 3600)
    assert "preempted for 300 s" in one(ahead, there()).why
