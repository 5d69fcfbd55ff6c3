"""What every hub must send to a host (magrathea/messages.py): the real hub, and its replacement in rigs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from magrathea.core.moves import Says, Word
from magrathea.core.refusals import RefusalCode
from magrathea.messages import Heartbeat, Resend, ToHost, knows_moves
from magrathea.move_messages import MoveRefused, Ownerships

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


async def _says(host: FakeHost, word: Word, right: Callable[[ToHost], bool]) -> None:
    """Say the word again and again, as hosts do, until the hub answers what is right."""
    answered = False

    def heard(message: ToHost) -> bool:
        nonlocal answered
        answered = answered or right(message)
        return answered or isinstance(message, Heartbeat)

    while not answered:
        await host.speaks(word)
        await host.beats()
        await host.hears(heard)


async def a_host_that_says_that_it_owns_a_domain_is_told_its_record(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1"))
    beat = await host.hears(lambda message: isinstance(message, Heartbeat))
    assert isinstance(beat, Heartbeat) and knows_moves(beat.version)

    def told(message: ToHost) -> bool:
        records = message.records if isinstance(message, Ownerships) else []
        return [(r.domain, r.number, r.owner, r.transfer) for r in records] == [("n1", 1, "h1", None)]

    await _says(host, Word("n1", 0, Says.OWNS), told)


async def a_move_to_a_host_that_takes_no_domains_from_there_is_refused(site: HubSite) -> None:
    host = site.host()
    await host.says(domain("n1"))
    await _says(host, Word("n1", 0, Says.OWNS), lambda message: isinstance(message, Ownerships))

    def refused(message: ToHost) -> bool:
        codes = (RefusalCode.NO_VISITORS, RefusalCode.BUSY)  # the real hub waits whether h2 will say what it takes
        return isinstance(message, MoveRefused) and message.domain == "n1" and message.code in codes

    await _says(host, Word("n1", 1, Says.ASKS, "h2"), refused)


Case = Callable[[HubSite], Awaitable[None]]

CASES: tuple[Case, ...] = (
    a_host_that_it_does_not_know_is_asked_for_everything,
    a_first_snapshot_is_answered_by_books_that_know_it,
    it_sends_heartbeats_unasked,
    jobs_to_be_stopped_are_booked_until_they_are_given_back,
    only_an_invalid_message_itself_is_lost,
    a_host_that_reconnects_is_answered_on_its_new_connection,
    a_host_that_says_that_it_owns_a_domain_is_told_its_record,
    a_move_to_a_host_that_takes_no_domains_from_there_is_refused,
)
