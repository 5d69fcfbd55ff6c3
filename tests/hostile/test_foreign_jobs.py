"""A host with a valid key that reports other hosts' jobs: none is suspended, requeued, changed or given a comment."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from magrathea.core.model import Stage, State
from magrathea.messages import BookEntry, Books, JobReport, PartsAsked, PartsTold, RefusedClaim, ToHost, encode
from tests.embedded.real_hub import RealHub, run
from tests.fakes.host import FakeHost
from tests.fakes.reports import domain, job, report, snapshot, stopped

EVIL = "x\nERROR forged\x1b[2J\u202e\0" + "y" * 4000
LIES = {
    "stopped": stopped(),
    "booked": stopped(booked=True),
    "stopped since 1970": stopped(since=1.0),
    "stopped for a thousand years": stopped(since=2.0**36),
    "to be requeued": report(stop=True, requeue=True, stopped_since=1.0),
    "preempted by control characters": structs.replace(stopped(), preempted_by=EVIL),
    "waiting": structs.replace(report(), waits=EVIL),
}


async def preempts(hub: RealHub, host: FakeHost, id: str, vnode: str, *others: JobReport) -> list[BookEntry]:
    """Suspend and book a job of the host's own; by then the hub has handled everything that was sent before.

    Returns all entries of jobs that the host got until then.
    """
    told: list[BookEntry] = []

    def booked(message: ToHost) -> bool:
        jobs = message.jobs if isinstance(message, Books) else []
        told.extend(jobs)
        return any(entry.id == id and entry.booked for entry in jobs)

    hub.pbs.put(job(id, vnodes=(vnode,)))
    await host.says(domain(vnode, [stopped(id), *others]))
    await host.hears(booked)
    assert hub.pbs.jobs[id].state == "S"
    return told


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
@pytest.mark.parametrize("where", ["n1", "n2", "free"])
def test_a_foreign_job_stays_as_it_is_and_its_own_host_is_not_told_that_it_is_held(
    tmp_path: Path, lie: JobReport, where: str
) -> None:
    async def test(hub: RealHub) -> None:
        foreign = job(vnodes=("n2",), walltime_s=600)
        hub.pbs.put(foreign)
        hostile, owner = hub.host("h1", "n1"), hub.host("h2", "n2")
        hub.start()
        await owner.says(domain("n2", [report()]))
        await hostile.says(domain("n1"))
        await hub.until(lambda: hub.shown("n2", "resources_available.magrathea_host") == "h2", "both are heard")
        await hostile.says(domain("own", [lie], vnode=where))
        await hostile.says(domain("own", state=State.DOWN, vnode=where))
        await hostile.says(domain("own", [lie], vnode=where))
        told = await preempts(hub, hostile, "9.srv", "n1", lie)
        told += await preempts(hub, owner, "8.srv", "n2", report())
        assert hub.pbs.jobs["1.srv"] == foreign
        assert {operation for operation, subject in hub.pbs.calls if subject == "1.srv"} <= {"job"}
        assert all(entry.id != "1.srv" for entry in told)

    run(tmp_path, test, "n1", "n2", "free", tcp=True)


def test_a_refusal_of_a_job_that_was_never_sent_there_writes_no_comment(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        waiting = job(state="Q", vnodes=())
        hub.pbs.put(waiting)
        hostile = hub.host("h1", "n1")
        hub.start()
        await hostile.says(domain("n1"))
        await hub.until(lambda: hub.shown("n1", "resources_available.magrathea_host") == "h1", "it is heard")
        claim = RefusedClaim(id="1.srv", run=1, domain="n1", code="host-busy", text=EVIL, at=0)
        lie = structs.replace(snapshot(domain("n1"), host="h1", revision=2), refused=[claim])
        await hostile.sends(encode(lie))
        await hub.until(lambda: ("job", "1.srv") in hub.pbs.calls, "PBS was asked")
        hostile.revision = 2
        await preempts(hub, hostile, "9.srv", "n1")
        assert hub.pbs.jobs["1.srv"] == waiting and ("set_comment", "1.srv") not in hub.pbs.calls

    run(tmp_path, test, "n1", tcp=True)


def test_the_memory_of_another_hosts_domains_is_not_told_to_a_host_without_a_part_of_their_job(tmp_path: Path) -> None:
    async def test(hub: RealHub) -> None:
        hub.pbs.put(job(vnodes=("n2",)))
        hostile, owner = hub.host("h1", "n1"), hub.host("h2", "n2")
        hub.start()
        await owner.says(structs.replace(domain("n2", [report()]), lacks="n2 needs 1692 MiB and can have 768"))
        await hostile.says(domain("n1", [report()]))
        await hub.until(lambda: hub.shown("n2", "resources_available.magrathea_host") == "h2", "both are heard")
        await hostile.sends(encode(PartsAsked(sender="h1", id=1, job="1.srv", run=1, vnodes=["n2"])))
        answer = await hostile.hears(lambda message: isinstance(message, PartsTold))
        assert isinstance(answer, PartsTold)
        [part] = answer.parts
        assert part.stage is Stage.UNHEARD and "MiB" not in part.text

    run(tmp_path, test, "n1", "n2", tcp=True)
