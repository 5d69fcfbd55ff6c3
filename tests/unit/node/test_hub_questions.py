"""The daemon's questions to its hubs: has PBS given a job to a vnode?"""

from __future__ import annotations

import asyncio
import tempfile
from types import SimpleNamespace
from typing import cast

from magrathea.core.model import Amount, JobKey
from magrathea.messages import GivenAsked, GivenTold, Heartbeat, Resend, encode
from magrathea_lab.waiting import BOUND_S, eventually
from node_daemon.claims.pbs_says import PbsSays
from node_daemon.daemon import Daemon

from .test_hub_client import BEAT, DaemonsEnd, HubsEnd, run

KEY = JobKey("7.srv", 1)
NEW_BEAT = encode(Heartbeat(sender="hub", boot_id="b", revision=0, version="0.1.0"))
SHORT_S = 0.05
"""For answers that never come."""


async def found(hub: HubsEnd, host: DaemonsEnd, beat: bytes = NEW_BEAT) -> None:
    await hub.hear()
    await hub.say(beat)
    await host.until_told("found")


async def answer(hub: HubsEnd, given: bool | None) -> GivenAsked:
    asked = await hub.hear(GivenAsked)
    assert isinstance(asked, GivenAsked)
    await hub.say(encode(GivenTold(id=asked.id, given=given)))
    return asked


def test_a_hub_is_asked_and_its_answer_counts() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await found(hub, host)
        for given in (True, False, None):
            asking = asyncio.create_task(host.client.given(KEY, "v7", BOUND_S))
            asked = await answer(hub, given)
            assert (asked.sender, asked.job, asked.run, asked.vnode) == ("h1", "7.srv", 1, "v7")
            assert (await asking).given is given
        assert not host.client.too_old_to_ask

    run(test)


def test_what_pbs_has_given_there_is_passed_on() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await found(hub, host)
        for cpus, expected in ((3, Amount(3, 100)), (None, None)):
            asking = asyncio.create_task(host.client.given(KEY, "v7", BOUND_S, claim=False))
            asked = await hub.hear(GivenAsked)
            assert isinstance(asked, GivenAsked) and not asked.claim
            await hub.say(encode(GivenTold(id=asked.id, given=True, cpus=cpus, memory_mib=100)))
            assert await asking == PbsSays(True, expected)

    run(test)


def test_a_hub_that_does_not_answer_leaves_it_unknown() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await found(hub, host)
        assert (await host.client.given(KEY, "v7", SHORT_S)).given is None
        asked = await hub.hear(GivenAsked)
        assert isinstance(asked, GivenAsked)
        asking = asyncio.create_task(host.client.given(JobKey("8.srv", 1), "v7", BOUND_S))
        await hub.say(encode(GivenTold(id=asked.id, given=True)))  # too late, and about another job
        await answer(hub, False)
        assert (await asking).given is False

    run(test)


def test_a_hub_is_asked_before_its_first_heartbeat_too() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await found(hub, host, encode(Resend()))
        asking = asyncio.create_task(host.client.given(KEY, "v7", BOUND_S))
        await answer(hub, True)
        assert (await asking).given is True

    run(test)


def test_without_a_hub_it_is_unknown() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        assert (await host.client.given(KEY, "v7", BOUND_S)).given is None
        assert not host.client.too_old_to_ask, "nobody knows yet what it can"

    run(test)


def test_a_hub_of_the_release_before_is_not_asked_and_the_daemon_knows() -> None:
    async def test(hub: HubsEnd, host: DaemonsEnd) -> None:
        await found(hub, host, BEAT)
        assert host.client.too_old_to_ask
        assert (await host.client.given(KEY, "v7", BOUND_S)).given is None
        await hub.say(NEW_BEAT)
        await eventually(lambda: not host.client.too_old_to_ask, "the upgraded hub is known")

    run(test)


def test_if_all_hubs_are_too_old_a_claim_is_believed_and_about_other_jobs_nothing_is_known() -> None:
    """Else each listed job would count as one that PBS has given, also when an upgraded hub could be asked."""
    daemon = cast(Daemon, SimpleNamespace(hub=SimpleNamespace(too_old_to_ask=True)))
    for claim, given in ((True, True), (False, None)):
        assert asyncio.run(Daemon.given(daemon, "n1", KEY, 1.0, claim=claim)) == PbsSays(given)


def test_of_several_hubs_one_that_knows_the_job_is_enough_and_a_no_needs_them_all() -> None:
    async def test() -> None:
        with tempfile.TemporaryDirectory() as folder:
            endpoints = [f"ipc://{folder}/{n}" for n in (1, 2)]
            hubs = [HubsEnd(endpoint) for endpoint in endpoints]
            host = DaemonsEnd(endpoints)
            host.client.start()
            try:
                for hub in hubs:
                    await found(hub, host)
                await eventually(lambda: all(hub.version for hub in host.client._hubs), "both can be asked")
                for first, second, known in ((False, True, True), (False, False, False), (False, None, None)):
                    asking = asyncio.create_task(host.client.given(KEY, "v7", BOUND_S))
                    await answer(hubs[0], first)
                    await answer(hubs[1], second)
                    assert (await asking).given is known
            finally:
                await host.client.close()
                for hub in hubs:
                    hub.close()

    asyncio.run(test())
