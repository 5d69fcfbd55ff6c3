"""Whatever facts a guest causes: the hub's decoder takes the snapshot of its host, so that the host is not lost."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from magrathea.core import events as ev
from magrathea.core.machine import handle
from magrathea.core.model import Host, JobClass
from magrathea.messages import MOST_JOBS, RefusedClaim, decode_to_hub, encode
from node_daemon.agent.parts import MAX_JOBS
from node_daemon.guest_channel.messages import Claim, Jobs, Launched, Release, decode
from node_daemon.snapshot import Beside, fitting, snapshot
from node_daemon.switch.paging import Progress
from tests.unit.core.builders import get, host, key, listed

MOST = 2**40
"""Of a number in a guest's message."""
HEAD = {"type": "request", "id": 1, "session": "0" * 16}
number = st.one_of(st.sampled_from((-MOST, -1, 0, 1, 2, MOST - 1, MOST)), st.integers(-MOST, MOST))
named = st.fixed_dictionaries({"id": st.sampled_from(("1.srv", "2.srv", "3[4].srv")), "run": st.integers(0, 3)})
sized = {"cpus": number, "memory_mib": number, "rerunnable": st.booleans()}
claim = st.fixed_dictionaries(
    {"job": st.tuples(named, st.fixed_dictionaries({**sized, "class": st.sampled_from(JobClass)}))}
)
row = st.tuples(named, st.fixed_dictionaries({**sized, "substate": number}))
requests = st.one_of(
    st.tuples(st.just("claim"), claim),
    st.tuples(st.sampled_from(("release", "launched")), st.fixed_dictionaries({"job": st.tuples(named)})),
    st.tuples(st.just("jobs"), st.fixed_dictionaries({"jobs": st.lists(row, max_size=4)})),
)


def merged(value: object) -> object:
    """Tuples of dictionaries as one dictionary."""
    if isinstance(value, tuple):
        return {name: merged(found) for part in value for name, found in part.items()}
    if isinstance(value, list):
        return [merged(one) for one in value]
    return value


def event(now: float, domain: str, op: str, body: dict[str, object]) -> ev.Event:
    """The event that a guest's message becomes."""
    line = json.dumps({**HEAD, "op": op, **{name: merged(value) for name, value in body.items()}})
    match decode(line.encode()).message:
        case Claim(job=job):
            return ev.Claimed(now, domain, job.key, job.cls, job.cpus, job.memory_mib, job.rerunnable)
        case Release(job=job):
            return ev.Released(now, domain, job.key)
        case Launched(job=job):
            return ev.JobLaunched(now, domain, job.key)
        case Jobs(jobs=jobs):
            return ev.JobsReported(now, domain, tuple(job.reported() for job in jobs))
    raise AssertionError(line)


def reaches_the_hub(h: Host, beside: Beside) -> None:
    made = fitting(snapshot(h, beside))
    assert decode_to_hub(encode(made)) == made


@given(
    mode=st.sampled_from(("exclusive", "counted")),
    asked=st.lists(st.tuples(st.sampled_from(("n1", "n2", "p1")), requests), max_size=12),
    moved=st.tuples(number, number),
)
def test_the_hub_takes_the_snapshot(
    mode: str, asked: list[tuple[str, tuple[str, dict[str, object]]]], moved: tuple[int, int]
) -> None:
    h = host(mode, n1="normal", n2="normal", p1="priority")
    refused: list[RefusedClaim] = []
    for domain, (op, body) in asked:
        h, decisions = handle(h, event(h.now + 1, domain, op, body))
        refused += [
            RefusedClaim(id=d.key.id, run=d.key.run, domain=d.domain, code=d.code, text=d.text[:4096], at=h.now)
            for d in decisions
            if isinstance(d, ev.Refused) and d.key is not None
        ]
        for job in (job for d in h.domains for job in d.jobs):
            assert 0 <= job.cpus <= h.cpus and 0 <= job.memory_mib <= h.memory_mib
    moves = {"n1": Progress("fetches", MAX_JOBS * moved[0], MAX_JOBS * moved[1])}
    reaches_the_hub(h, Beside("boot", moves=moves, refused=tuple(refused)))


def test_a_listed_job_is_no_larger_than_its_host() -> None:
    h = host("counted", n1="normal", n2="normal")
    h = listed(h, "n1", ev.ReportedJob(key("1.srv"), MOST, MOST))
    [job] = get(h, "n1").jobs
    assert (job.cpus, job.memory_mib) == (h.cpus, h.memory_mib)


def test_a_host_with_more_jobs_than_a_message_takes_is_not_lost() -> None:
    h = host("exclusive", cpus=4096, n1="normal", n2="normal")
    h = listed(h, "n1", *(ev.ReportedJob(key(f"{n}.srv"), 0) for n in range(MAX_JOBS)))
    h, _ = handle(h, ev.Claimed(h.now, "n1", key("99999.srv"), JobClass.PROTECTED, 1))
    h = listed(h, "n1", *(ev.ReportedJob(key(f"{MAX_JOBS + n}.srv"), 0) for n in range(MAX_JOBS)))
    assert len(get(h, "n1").jobs) > MOST_JOBS
    made = fitting(snapshot(h, Beside("boot")))
    assert "jobs are not reported" in made.notes[-1]
    reaches_the_hub(h, Beside("boot"))
