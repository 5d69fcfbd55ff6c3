"""Jobs of domains that sleep on disk: what the books do with them, and what PBS shows (hub/sleepers.py, books.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from magrathea.core.model import JobKey, State
from magrathea.messages import DomainReport, JobReport
from scheduler_plugin.hub import ledger
from scheduler_plugin.hub.books import Requeue, Resume, SetComment, Suspend
from scheduler_plugin.hub.farm import LEASE_S
from scheduler_plugin.hub.sleepers import MOST_LOOKED_AT, SETTLED_S, WAKING_S
from scheduler_plugin.hub.vnode_attributes import ACCEPTS, OFFLINE, STATE
from scheduler_plugin.pbs.base import Code, PbsError
from tests.fakes.pbs import FakePbs
from tests.fakes.reports import NOW, asleep, domain, given_back, job, report, snapshot, stopped

from .simulated_hub import SimHub

KEY = JobKey("1.srv", 1)
DAY_S = 86400.0
FAIL_REQUEUE_S = 10


@pytest.fixture
def pbs() -> FakePbs:
    pbs = FakePbs("n1", "p1", "n2")
    pbs.put(job())
    pbs.fail_requeue_s = FAIL_REQUEUE_S
    return pbs


def held(id: str = "1.srv", run: int = 1) -> JobReport:
    """A job in a sleeping domain, or in one that is to sleep: stopped and booked."""
    return stopped(id, run, booked=True)


@pytest.fixture
def hub(pbs: FakePbs) -> SimHub:
    """A hub with a job that sleeps in n1, whose MoM PBS has missed already."""
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [stopped()], state=State.DRAINING))
    hub.settle(1)
    falls_asleep(hub)
    return hub


def preempting(pbs: FakePbs) -> SimHub:
    """A hub with a job that is stopped in n1, and suspended in PBS."""
    hub = SimHub(pbs)
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    return hub


def preempting_on_two_hosts(pbs: FakePbs) -> SimHub:
    """The same with a job that has a second part, in n2 of the host h2."""
    pbs.put(job(vnodes=("n1", "n2")))
    hub = SimHub(pbs)
    hub.says("h2", domain("n2", [report()]))
    hub.says("h1", domain("n1", [stopped()]))
    hub.settle(1)
    return hub


def falls_asleep(hub: SimHub) -> None:
    hub.says("h1", asleep("n1", [held()]))
    hub.pbs.put_vnode("n1", "down")
    hub.after(70)


def wakes(hub: SimHub, *jobs: JobReport) -> None:
    """The domain is up again, and its agent answers. PBS shows its MoM as down until the test says otherwise."""
    hub.says("h1", domain("n1", jobs, state=State.PREEMPTED if jobs else State.FREE))


def mom_is_back(hub: SimHub) -> None:
    hub.pbs.put_vnode("n1", "free")


def alerts(hub: SimHub) -> list[str]:
    return [note for note in hub.notes if note.startswith("ALERT")]


def untouched(hub: SimHub) -> bool:
    """True if the hub has asked nothing about the job of PBS but its suspension and comments."""
    return hub.state() == "S" and not alerts(hub) and {type(done) for done in hub.done} <= {Suspend, SetComment}


class TestWhileItSleeps:
    @pytest.mark.long
    def test_a_job_sleeps_for_days_whatever_node_fail_requeue_says(self, hub: SimHub) -> None:
        hub.after(3 * DAY_S)
        assert untouched(hub)

    @pytest.mark.long
    def test_also_while_its_host_is_off(self, hub: SimHub) -> None:
        hub.farm.leases(hub.at + LEASE_S + 1)
        assert not hub.farm.hosts["h1"].live
        hub.after(3 * DAY_S)
        assert untouched(hub)

    @pytest.mark.long
    @pytest.mark.parametrize("host", ["heard", "off"])
    def test_also_for_a_hub_that_was_started_anew(self, hub: SimHub, host: str, tmp_path: Path) -> None:
        ledger.save(tmp_path, hub.farm.entries.kept)
        new = SimHub(hub.pbs, ledger.load(tmp_path), hub.at + DAY_S)
        if host == "heard":
            new.says("h1", asleep("n1", [held()]))
        new.after(3 * DAY_S)
        assert untouched(new)
        wakes(new, given_back())
        mom_is_back(new)
        new.after(60)
        assert new.state() == "R" and new.farm.entries.kept.sleepers == ()

    def test_mom_is_asked_for_nothing(self, hub: SimHub, pbs: FakePbs) -> None:
        """An admin's resume fails and takes the flag away. A suspension that is not booked is not tried."""
        pbs.lose_flag("1.srv")
        pbs.change("1.srv", state="R", substate=42)
        before = pbs.count("admin_suspend")
        hub.after(DAY_S)
        assert pbs.count("admin_suspend") == before

    def test_a_requeue_that_another_host_wants_waits(self, pbs: FakePbs) -> None:
        """Its part there has been stopped for longer than that host's limit, because of the sleep."""
        hub = preempting_on_two_hosts(pbs)
        hub.says("h1", asleep("n1", [held()]))
        hub.says("h2", domain("n2", [report(stop=True, requeue=True, stopped_since=NOW, booked=True)]))
        hub.after(DAY_S)
        assert untouched(hub)

    @pytest.mark.parametrize("how", ["deleted", "requeued"])
    def test_a_job_that_pbs_no_longer_has_there_leaves_the_books(self, hub: SimHub, pbs: FakePbs, how: str) -> None:
        if how == "deleted":
            pbs.end("1.srv")
        else:
            pbs.change("1.srv", state="Q", substate=10, vnodes=())
        hub.after(120)
        assert hub.books() == [] and not any(entry.booked for entry in hub.farm.entries.values())
        hub.says("h1", asleep("n1"))  # the daemon has asked PBS, and has released it
        hub.after(120)
        assert hub.farm.entries == {}

    def test_the_next_run_elsewhere_is_left_alone(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.put(job(run=2, vnodes=("n2",)))
        before = list(hub.done)
        hub.says("h2", domain("n2", [report(run=2)]))
        hub.after(600)
        wakes(hub)
        mom_is_back(hub)
        hub.after(600)
        assert hub.state() == "R" and hub.done == before

    def test_a_second_part_that_is_awake_stands_still_until_the_sleeper_is_back(self, pbs: FakePbs) -> None:
        hub = preempting_on_two_hosts(pbs)
        falls_asleep(hub)
        assert hub.books("h2") == [("1.srv", True, True)]
        hub.says("h2", domain("n2", [given_back()]))
        hub.after(DAY_S)
        assert untouched(hub)
        wakes(hub, given_back())
        mom_is_back(hub)
        hub.after(60)
        assert hub.state() == "R"

    @pytest.mark.long
    def test_both_parts_sleep_and_the_job_goes_on_with_the_last_one(self, pbs: FakePbs) -> None:
        hub = preempting_on_two_hosts(pbs)
        falls_asleep(hub)
        hub.says("h2", asleep("n2", [held()]))
        hub.after(DAY_S)
        wakes(hub, given_back())
        mom_is_back(hub)
        hub.after(DAY_S)
        assert untouched(hub)
        hub.says("h2", domain("n2", [given_back()]))
        hub.after(60)
        assert hub.state() == "R"

    def test_a_subjob_sleeps_like_a_job(self, pbs: FakePbs) -> None:
        pbs.put(job("7[2].srv"))
        hub = SimHub(pbs)
        hub.says("h1", domain("n1", [stopped("7[2].srv")]))
        hub.settle(1)
        hub.says("h1", asleep("n1", [held("7[2].srv")]))
        pbs.put_vnode("n1", "down")
        hub.after(DAY_S)
        assert pbs.jobs["7[2].srv"].state == "S" and not alerts(hub)
        hub.says("h1", domain("n1", [given_back("7[2].srv")]))
        mom_is_back(hub)
        hub.after(60)
        assert pbs.jobs["7[2].srv"].state == "R"


class TestAWake:
    def test_the_job_continues_as_soon_as_pbs_has_its_mom_again(self, hub: SimHub) -> None:
        hub.after(DAY_S)
        wakes(hub, given_back())
        hub.after(8)
        assert hub.state() == "S"
        mom_is_back(hub)
        hub.after(3)
        assert hub.state() == "R" and Resume(KEY, plain=False) in hub.done

    def test_after_a_short_sleep_pbs_is_not_believed_at_once(self, pbs: FakePbs) -> None:
        """It has not noticed that MoM was away; a resume would fail, and take the suspension's flag away."""
        hub = preempting(pbs)
        hub.says("h1", asleep("n1", [held()]))
        hub.after(5)
        wakes(hub, given_back())
        hub.after(SETTLED_S - 1)
        assert hub.state() == "S"
        pbs.put_vnode("n1", "down")
        hub.after(5)
        assert hub.state() == "S"
        mom_is_back(hub)
        hub.after(3)
        assert hub.state() == "R"

    def test_a_mom_that_takes_long_is_not_missed_before_the_time(self, pbs: FakePbs) -> None:
        """One of the job's MoMs is there, so that a requeue would be possible."""
        hub = preempting_on_two_hosts(pbs)
        falls_asleep(hub)
        wakes(hub, given_back())
        hub.after(WAKING_S - 1)
        assert hub.state() == "S"
        hub.after(FAIL_REQUEUE_S + 62)
        assert hub.state() == "Q"

    def test_walltime_that_it_is_owed_is_given_back_however_long_mom_takes(self, hub: SimHub, pbs: FakePbs) -> None:
        """PBS passes a new limit on to MoM. Its turn has not come yet, so that no resume is waited for."""
        pbs.change("1.srv", walltime_s=3600)
        hub.farm.entries[KEY] = replace(hub.farm.entries[KEY], walltime_s=3605)
        hub.read()

        def has_no_mom(operation: str, subject: str) -> None:
            if operation == "set_walltime" and "down" in pbs.vnodes["n1"].state:
                raise PbsError(Code.NO_MOM, "no MoM", transient=True)

        pbs.breaks = has_no_mom
        wakes(hub, held())
        hub.after(WAKING_S - 1)
        mom_is_back(hub)
        hub.after(60)
        assert pbs.jobs["1.srv"].walltime_s == 3605 and not alerts(hub)

    @pytest.mark.long
    def test_a_restore_that_fails_is_no_wake(self, hub: SimHub) -> None:
        hub.says("h1", asleep("n1", [held()], state=State.BOOTING, wakes=True))
        hub.after(DAY_S)
        hub.says("h1", asleep("n1", [held()]))
        hub.after(DAY_S)
        assert untouched(hub)

    def test_only_some_vnodes_are_asked_about_at_once_and_they_take_turns(self) -> None:
        names = [f"n{number:02}" for number in range(MOST_LOOKED_AT + 8)]
        hub = SimHub(FakePbs(*names))
        hub.says("h1", *(asleep(name) for name in names))
        hub.says("h1", *(domain(name) for name in names))
        for name in names:
            hub.pbs.put_vnode(name, "down")
        hub.at += SETTLED_S
        first = hub.farm.look_at_waking(hub.at)
        assert first == names[:MOST_LOOKED_AT]
        hub.look_at_waking()
        assert hub.farm.look_at_waking(hub.at)[:8] == names[MOST_LOOKED_AT:]
        hub.at += WAKING_S
        assert hub.farm.look_at_waking(hub.at) == []

    def test_vnodes_that_pbs_does_not_have_take_no_turns(self, pbs: FakePbs) -> None:
        """A host can make up any number of them."""
        hub = SimHub(pbs)
        made_up = [f"x{number}" for number in range(MOST_LOOKED_AT)]
        hub.says("h1", asleep("n1", [held()]))
        hub.farm.snapshot(snapshot(*map(asleep, made_up), host="h2", revision=1), hub.at, hub.at)
        hub.farm.snapshot(snapshot(*map(domain, made_up), host="h2", revision=2), hub.at, hub.at)
        wakes(hub, given_back())
        assert hub.farm.look_at_waking(hub.at + SETTLED_S) == ["n1"]


class TestLostImage:
    """The domain goes down, and its jobs are released. Then the rule for jobs whose machine has gone holds."""

    def test_a_job_that_may_be_rerun_is_requeued_as_soon_as_its_guest_is_there(self, hub: SimHub) -> None:
        hub.says("h1", domain("n1", state=State.DOWN, accepts=[]))
        hub.after(600)
        assert hub.state() == "S" and len(alerts(hub)) == 1, "there is no MoM, and PBS would not start it again"
        mom_is_back(hub)
        hub.says("h1", domain("n1"))
        hub.after(180)
        assert hub.state() == "Q" and Requeue(KEY) in hub.done

    def test_one_that_may_not_be_is_reported_to_an_admin(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.change("1.srv", rerunnable=False)
        hub.says("h1", domain("n1", state=State.DOWN, accepts=[]))
        hub.after(600)
        mom_is_back(hub)
        hub.says("h1", domain("n1"))
        hub.after(600)
        assert hub.state() == "S" and len(alerts(hub)) == 1 and "not rerunnable" in alerts(hub)[0]


class TestComments:
    def test_the_jobs_comment_says_where_since_when_why_and_how_it_comes_back(self, hub: SimHub, pbs: FakePbs) -> None:
        text = pbs.jobs["1.srv"].comment
        for word in ("asleep on h1 in n1 since ", "a new disk", "`magrathea domain defrost n1`", "qdel -W force"):
            assert word in text
        assert hub.farm.entries[KEY].comment == job().comment, "to be restored later"

    def test_it_is_set_again_if_pbs_replaces_it(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.change("1.srv", comment="Job held by alice on Tue Dec  1")
        hub.after(61)
        assert pbs.jobs["1.srv"].comment.startswith("asleep on h1")
        count = pbs.count("set_comment")
        hub.after(600)
        assert pbs.count("set_comment") == count

    def test_it_changes_when_the_domain_is_asked_to_come_back(self, hub: SimHub, pbs: FakePbs) -> None:
        hub.says("h1", asleep("n1", [held()], wakes=True))
        hub.after(61)
        text = pbs.jobs["1.srv"].comment
        assert "comes back as soon as there is room" in text and "defrost" not in text
        count = pbs.count("set_comment")
        hub.after(600)
        assert pbs.count("set_comment") == count

    def test_a_comment_that_cannot_be_set_is_not_tried_all_the_time(self, hub: SimHub, pbs: FakePbs) -> None:
        pbs.change("1.srv", comment="")
        before = len(hub.done)

        def refuses(operation: str, subject: str) -> None:
            if operation == "set_comment":
                raise PbsError(Code.NO_PERMISSION, "no")

        pbs.breaks = refuses
        hub.after(600)
        assert len(hub.done) - before == 1

    def test_a_long_reason_leaves_room_for_the_way_back(self, pbs: FakePbs) -> None:
        hub = preempting(pbs)
        hub.says("h1", asleep("n1", [held()], reason="x" * 4000 + "\nsecond line"))
        hub.settle(1)
        text = pbs.jobs["1.srv"].comment
        assert len(text) <= 250 and "qdel -W force" in text and "\n" not in text

    def test_after_the_wake_a_job_that_must_wait_is_preempted_and_then_has_its_own_comment(
        self, hub: SimHub, pbs: FakePbs
    ) -> None:
        wakes(hub, held())
        mom_is_back(hub)
        hub.after(60)
        assert pbs.jobs["1.srv"].comment.startswith("preempted by ")
        wakes(hub, given_back())
        hub.after(60)
        assert hub.state() == "R" and pbs.jobs["1.srv"].comment == job().comment


class TestVnodes:
    def wanted(self, hub: SimHub) -> dict[str, str]:
        return dict(hub.farm.publication(hub.at)[0]["n1"])

    def test_a_sleepers_vnode_is_offline_with_the_reason_until_it_is_awake(self, hub: SimHub) -> None:
        shown = self.wanted(hub)
        assert (shown[STATE], shown[ACCEPTS]) == ("asleep", "none")
        assert shown[OFFLINE].startswith("magrathea: asleep on h1 in n1 since ")
        assert "a new disk" in shown[OFFLINE] and "`magrathea domain defrost n1`" in shown[OFFLINE]
        hub.says("h1", asleep("n1", [held()], wakes=True))
        assert "as soon as there is room" in self.wanted(hub)[OFFLINE]
        hub.says("h1", asleep("n1", [held()], state=State.BOOTING, wakes=True))
        assert self.wanted(hub)[STATE] == "booting" and self.wanted(hub)[OFFLINE]
        wakes(hub, held())
        assert self.wanted(hub)[OFFLINE] == "" and self.wanted(hub)[STATE] == "preempted"

    def test_a_sleeper_of_a_lost_host_is_still_shown_as_asleep(self, hub: SimHub) -> None:
        before = self.wanted(hub)[OFFLINE]
        hub.farm.leases(hub.at + LEASE_S + 1)
        assert self.wanted(hub) == {STATE: "asleep", ACCEPTS: "none", OFFLINE: before}

    def test_also_by_a_hub_that_has_never_heard_the_host(self, hub: SimHub) -> None:
        new = SimHub(hub.pbs, hub.farm.entries.kept, hub.at)
        new.at += LEASE_S + 1
        assert self.wanted(new)[STATE] == "asleep"

    def test_one_that_an_admin_takes_from_a_host_that_never_comes_back_is_no_longer_offline_by_us(
        self, hub: SimHub, pbs: FakePbs
    ) -> None:
        new = SimHub(pbs, hub.farm.entries.kept, hub.at)
        new.at += LEASE_S + 1
        assert self.wanted(new)[OFFLINE]
        pbs.connect().set_vnode("n1", {"resources_available.magrathea_host": ""})
        new.read()
        assert self.wanted(new) == {ACCEPTS: "priority,preemptible,protected", OFFLINE: ""}

    def test_a_sleep_that_is_only_wanted_changes_nothing(self, pbs: FakePbs) -> None:
        hub = SimHub(pbs)
        hub.says("h1", asleep("n1", [stopped()], state=State.DRAINING))
        assert self.wanted(hub)[OFFLINE] == ""
        assert hub.actions() == [Suspend(KEY)]

    def test_a_host_can_put_no_other_hosts_vnode_to_sleep(self, pbs: FakePbs) -> None:
        hub = SimHub(pbs)
        hub.says("h1", domain("n1", [report()]))
        hub.says("h2", asleep("n1", [held()]))
        assert self.wanted(hub)[STATE] == "free" and hub.farm.entries.kept.sleepers == ()
        hub.farm.leases(hub.at + LEASE_S + 1)
        assert self.wanted(hub)[STATE] == "unknown"

    def test_nor_one_that_pbs_has_on_record_for_another(self, pbs: FakePbs) -> None:
        """Its snapshot comes before the hub has read PBS's vnodes."""
        early = SimHub(pbs, read=False)
        early.farm.snapshot(snapshot(asleep("n1"), host="h2"), early.at, early.at)
        connection = pbs.connect()
        connection.set_vnode("n1", {"resources_available.magrathea_host": "h1"})
        early.read()
        assert early.farm.entries.kept.sleepers == ()

    @pytest.mark.parametrize("first", [asleep("n1"), domain("n1")], ids=["asleep", "awake"])
    def test_nor_take_one_out_of_the_books_before_the_hub_has_read_whose_it_is(
        self, hub: SimHub, pbs: FakePbs, first: DomainReport
    ) -> None:
        """After a restart of the hub another host speaks first, and the sleeper's own host is off."""
        pbs.connect().set_vnode("n1", {"resources_available.magrathea_host": "h1"})
        new = SimHub(pbs, hub.farm.entries.kept, hub.at, read=False)
        new.farm.snapshot(snapshot(first, host="h2"), new.at, new.at)
        new.read()
        assert new.farm.entries.kept.sleepers == hub.farm.entries.kept.sleepers

    def test_a_host_that_speaks_after_another_has_named_its_vnode_is_heard_all_the_same(self, pbs: FakePbs) -> None:
        pbs.connect().set_vnode("n1", {"resources_available.magrathea_host": "h1"})
        new = SimHub(pbs, read=False)
        new.farm.snapshot(snapshot(domain("n1"), host="h2"), new.at, new.at)
        new.farm.snapshot(snapshot(asleep("n1", [held()]), host="h1"), new.at, new.at)
        new.read()
        assert [sleeper.host for sleeper in new.farm.entries.kept.sleepers] == ["h1"]

    def test_a_vnode_that_is_deleted_in_pbs_is_forgotten_until_it_is_created_anew(
        self, hub: SimHub, pbs: FakePbs
    ) -> None:
        deleted = pbs.vnodes.pop("n1")
        hub.read()
        assert hub.farm.entries.kept.sleepers == ()
        pbs.vnodes["n1"] = deleted
        hub.read()
        assert self.wanted(hub)[STATE] == "asleep" and self.wanted(hub)[OFFLINE]
