"""What a claim counts, with any name of a vnode, any size and any chunk that PBS takes; and refusals by sisters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs

from .hook_rig import MOMS, Rig


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with PrivateOpenPbs(list(MOMS)) as pbs:
        yield Rig(pbs)


@pytest.mark.parametrize("name", ["n1", "N1", "n1-ib", "N1.cluster.example", "address"])
def test_a_vnode_may_have_any_name_that_leads_to_its_mom(rig: Rig, name: str) -> None:
    name = rig.address if name == "address" else name
    rig.named(name)
    alone = rig.run("-l", f"select=1:ncpus=3:mem=5mb:vnode={name}")
    assert {mom: (job["cpus"], job["memory_mib"]) for mom, job in alone.items()} == {"n1": (3, 5)}
    first = rig.run("-l", f"select=1:ncpus=3:vnode={name}+1:ncpus=1:vnode=n2")
    assert {mom: (job["cpus"], job.get("sister", False)) for mom, job in first.items()} == {
        "n1": (3, False), "n2": (1, True)
    }  # fmt: skip
    second = rig.run("-l", f"select=1:ncpus=1:vnode=n2+1:ncpus=3:vnode={name}")
    assert {mom: (job["cpus"], job.get("sister", False)) for mom, job in second.items()} == {
        "n1": (3, True), "n2": (1, False)
    }  # fmt: skip


@pytest.mark.parametrize(
    "select", ["1:ncpus=0:vnode=n2", "1:ncpus=0:mem=10mb:vnode=n2", "1:ncpus=2:vnode=n1+1:ncpus=0:vnode=n2"]
)
def test_a_chunk_without_cpus_claims_none(rig: Rig, select: str) -> None:
    rig.named("n1")
    assert rig.run("-l", f"select={select}")["n2"]["cpus"] == 0


SIZES = {
    "100m": 100, "100mb": 100, "100M": 100, "100Mb": 100, "1g": 1024, "1GB": 1024, "2048k": 2, "2048KB": 2,
    "1048576": 1, "1048577b": 2, "131072w": 1, "1mw": 8, "1KW": 1, "1gw": 8192, "0": 0, "0b": 0,
}  # fmt: skip


def test_every_size_that_an_administrator_may_write(rig: Rig) -> None:
    """`qrun -H` gives MoM the administrator's own text; the scheduler writes kb only."""
    rig.named("n1")
    with rig.pbs.stopped_scheduling():
        for size, mib in SIZES.items():
            job = rig.pbs.qsub("alice", "-l", "select=1:ncpus=1", script="exit 0")
            rig.pbs.run(HEAD, ["qrun", "-H", f"(n2:ncpus=1:mem={size})", job])
            rig.pbs.wait_job(job, "F")
            assert rig.claims(job)["n2"]["memory_mib"] == mib, size


PLACE = "(n1:ncpus=1)+(n2:ncpus=1)"
MORE_THAN_PBS_TOLERATES = 25


@pytest.mark.parametrize("refusing", ["n1", "n2"])
def test_a_job_on_two_hosts_may_be_refused_by_either_any_number_of_times(rig: Rig, refusing: str) -> None:
    """n1 is its first. What the hook of the other sets on the job, n1's MoM overwrites."""
    rig.named("n1")
    with rig.pbs.stopped_scheduling():
        job = rig.pbs.qsub("alice", "-l", "select=2:ncpus=1", script="exit 0")
        rig.refuse(refusing, refuses=True)
        for _ in range(MORE_THAN_PBS_TOLERATES):
            rig.pbs.wait_job(job, "Q")
            rig.pbs.run(HEAD, ["qrun", "-H", PLACE, job], check=False)
        rig.pbs.wait_job(job, "Q")
        rig.refuse(refusing, refuses=False)
        rig.pbs.run(HEAD, ["qrun", "-H", PLACE, job])
        done = rig.pbs.wait_job(job, "F")
    assert (done["Exit_status"], done["run_count"]) == (0, 1)
