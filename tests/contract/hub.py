"""What every hub must send to a host (magrathea/messages.py): the real hub, and its replacement in rigs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from magrathea.messages import Heartbeat, Resend

from ..fakes.host import FakeHost
from ..fakes.reports import domain, given_back, report, stopped


class HubSite(Protocol):
    """A hub that is up. Its PBS runs the jobs 1.srv and 2.srv on the vnode n1."""

    def host(self) -> FakeHost:
        """A new connection of the host h1, which has sent nothing yet."""


async def a_host_that_it_does_not_know_is_asked_for_everything(site: HubSite) -> None:
    host = site.host()
    host.revision = 5
    await host.beats()
    await host.hears(lambda message: isinstance(message, Resend))


async def a_first_snapshot_is_answered_by_books_that_know_it(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1"))
    assert (await host.hears_books()).acked_revision == 1


async def it_sends_heartbeats_unasked(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1"))
    for _ in range(2):
        await host.hears(lambda message: isinstance(message, Heartbeat))


async def jobs_to_be_stopped_are_booked_until_they_are_given_back(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1", [report("1.srv"), report("2.srv")]))
    await host.hears_books()
    await host.says(domain("n1", [stopped("1.srv"), report("2.srv")]))
    await host.hears_books("1.srv")
    await host.says(domain("n1", [stopped("1.srv"), stopped("2.srv")]))
    await host.hears_books("1.srv", "2.srv")
    await host.says(domain("n1", [given_back("1.srv"), stopped("2.srv")]))
    await host.hears_books("2.srv")


async def only_an_invalid_message_itself_is_lost(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1", [report("1.srv")]))
    await host.hears_books()
    await host.sends(b'{"type":"snapshot"')
    await host.sends(b"\xff" * 100)
    await host.says(domain("n1", [stopped("1.srv")]))
    await host.hears_books("1.srv")


async def a_host_that_reconnects_is_answered_on_its_new_connection(site: HubSite) -> None:
    first = site.host()
    await first.says(domain("n1", [stopped("1.srv")]))
    await first.hears_books("1.srv")
    first.close()
    second = site.host()
    second.revision = first.revision
    await second.says(domain("n1", [stopped("1.srv")]))
    await second.hears_books("1.srv")


Case = Callable[[HubSite], Awaitable[None]]

CASES: tuple[Case, ...] = (
    a_host_that_it_does_not_know_is_asked_for_everything,
    a_first_snapshot_is_answered_by_books_that_know_it,
    it_sends_heartbeats_unasked,
    jobs_to_be_stopped_are_booked_until_they_are_given_back,
    only_an_invalid_message_itself_is_lost,
    a_host_that_reconnects_is_answered_on_its_new_connection,
)
