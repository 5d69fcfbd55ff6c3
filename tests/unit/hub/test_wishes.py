"""The hub's wishes: who is told, how often, and whose answers count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from magrathea.core.model import JobClass, Kind, Mode, State
from magrathea.core.moves import Ownership, Transfer
from magrathea.core.refusals import RefusalCode
from magrathea.messages import Message
from magrathea.move_messages import MoveWished, RoomTold, WishRefused
from scheduler_plugin.hub.configuration import ElsewhereTable, HubConfiguration, HubTable
from scheduler_plugin.hub.job_wishes import Heard
from scheduler_plugin.hub.rooms import Rooms
from scheduler_plugin.hub.wishes import Wishes
from tests.fakes.reports import NOW, domain, job, report, snapshot, stopped

WELCOME = {"h2": frozenset({"h1"})}


class Site:
    """n1 is preempted at h1 since 300 s by a job of p1, and h2 is idle."""

    def __init__(self, folder: Path, table: ElsewhereTable, ahead_s: float = 0.0) -> None:
        high = msgspec.structs.replace(report("9.srv"), cls=JobClass.PRIORITY)
        low = domain("n1", [stopped(since=NOW + ahead_s - 300)], state=State.PREEMPTED, accepts=[])
        p1 = domain("p1", [high], kind=Kind.PRIORITY, state=State.RUNNING_PRIORITY)
        hosts = {
            "h1": Heard(snapshot(low, p1, host="h1"), True, NOW),
            "h2": Heard(snapshot(domain("m1"), host="h2"), True, NOW),
        }
        self.reading: dict[str, Any] = {}
        farm = SimpleNamespace(
            hosts=hosts,
            ahead_s=lambda host: ahead_s if host == "h1" else 0.0,
            placements=SimpleNamespace(reading=self.reading),
        )
        self.farm = cast("Any", farm)
        self.records = {"n1": Ownership("n1", 1, "h1", 1)}
        self.sent: list[tuple[str, Message]] = []
        configuration = HubConfiguration(hub=HubTable(state_dir=str(folder)), elsewhere=table)
        self.rooms = Rooms(lambda host: host in hosts and hosts[host].live)
        self.wishes = Wishes.of(configuration, self.farm, self.rooms, self.records, self._send, lambda: NOW)
        for host in hosts:
            self.wishes.knows(host, wishes=True)

    def _send(self, host: str, message: Message) -> bool:
        self.sent.append((host, message))
        return True

    def look(self) -> list[tuple[str, str]]:
        """Whom the hub tells what now."""
        self.sent.clear()
        self.wishes.look(WELCOME)
        assert all(isinstance(message, MoveWished) for _, message in self.sent)
        return [(host, message.to) for host, message in self.sent if isinstance(message, MoveWished)]

    def why(self) -> str:
        [view] = self.wishes.views
        return view.text

    def refused(self, sender: str = "h1", number: int = 1, to: str = "h2", name: str = "n1") -> bool:
        no = WishRefused(sender=sender, domain=name, number=number, to=to, code=RefusalCode.PAUSED, text="not now")
        return self.wishes.refused(sender, no)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, ElsewhereTable(after_s=60))


def test_the_owner_is_told_again_as_long_as_the_rule_wants_it(site: Site) -> None:
    assert site.look() == site.look() == [("h1", "h2")]
    site.farm.hosts["h2"] = Heard(site.farm.hosts["h2"].snapshot, False, NOW)
    assert site.look() == [] and "no host takes domains from h1" in site.why()


def test_what_a_host_says_of_its_room_counts(site: Site) -> None:
    room = RoomTold(sender="h2", mode=Mode.EXCLUSIVE, cpus=4, mib=4096, whole_cpus=4, welcome=["h1"])
    site.rooms.said("h2", room)
    assert site.look() == [("h1", "h2")]
    site.rooms.said("h2", msgspec.structs.replace(room, closed="it is being evacuated"))
    assert site.look() == [] and "h2: it is being evacuated" in site.why()
    site.rooms.said("h2", msgspec.structs.replace(room, whole_cpus=0))
    assert site.look() == [] and "h2 has 0 for domains that take jobs" in site.why()


def test_without_a_configuration_nobody_is_told_anything(tmp_path: Path) -> None:
    site = Site(tmp_path, ElsewhereTable())
    assert site.look() == [] and site.wishes.views == []


def test_a_host_that_does_not_know_wishes_gets_none(site: Site) -> None:
    site.wishes.knows("h1", wishes=False)
    assert site.look() == [] and "too old" in site.why()


def test_a_refusal_counts_if_it_is_the_owners_about_the_wish_that_stands(site: Site) -> None:
    assert not site.refused(), "nothing was wished for yet"
    site.look()
    assert not site.refused(sender="h2") and not site.refused(number=2)
    assert not site.refused(to="h3") and not site.refused(name="m1")
    assert site.look() == [("h1", "h2")]
    assert site.refused()
    assert site.look() == [] and "h2: refused lately (h1: not now)" in site.why()


def test_the_hosts_own_clock_and_the_walltime_of_its_priority_jobs_count(tmp_path: Path) -> None:
    site = Site(tmp_path, ElsewhereTable(after_s=60), ahead_s=5000.0)
    assert site.look() == [("h1", "h2")] and "preempted for 300 s" in site.why()
    site.reading["9.srv"] = job("9.srv", walltime_s=101, started_at=NOW - 100)
    assert site.look() == [] and "by its walltime" in site.why()
    site.reading["9.srv"] = job("9.srv", walltime_s=None)
    assert site.look() == [("h1", "h2")]


def test_a_granted_move_carries_the_reason_of_the_wish_and_no_other(site: Site) -> None:
    site.look()
    to_h2 = Ownership("n1", 1, "h1", 2, Transfer(2, "h1", "h2"))
    assert "preempted for 300 s" in site.wishes.why("n1", to_h2)
    assert site.wishes.why("n1", Ownership("n1", 1, "h1", 2, Transfer(2, "h1", "h3"))) == ""
    assert site.wishes.why("n1", None) == ""
