"""The real daemon with domains of a hypervisor in memory: what it orders, when, and how it handles failures."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from magrathea.core import events as ev
from magrathea.core.model import Job, JobClass, State
from node_daemon.life import life

from .life_scene import KEY, Scene, play


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", (0.01,))


def test_a_shutdown_waits_for_the_last_job_then_asks_the_agent() -> None:
    async def test(s: Scene) -> None:
        await s.job("n1")
        s.shutdown("n1")
        await asyncio.sleep(20)
        assert "power n1" not in s.world.calls
        s.release("n1")
        await s.until_state("n1", State.DOWN)
        assert s.world.asked("power n1") == 1 and not s.world.asked("destroy n1")
        assert "on request" in s.why("n1")

    play(test)


def test_the_hypervisor_asks_a_guest_to_power_off_if_its_agent_cannot() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].can = ()

    async def test(s: Scene) -> None:
        s.shutdown("n1")
        await s.until_state("n1", State.DOWN)
        assert s.world.asked("shutdown n1") == 1 and not s.world.asked("power n1")

    play(test, prepare=prepare)


@pytest.mark.parametrize("can", [("power",), ()])
@pytest.mark.parametrize("fails", [{}, {"shutdown": "failed"}])
def test_a_guest_that_does_not_turn_itself_off_is_ended(can: tuple[str, ...], fails: dict[str, str]) -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].heeds, s.world["n1"].can, s.world["n1"].fails = False, can, fails

    async def test(s: Scene) -> None:
        s.shutdown("n1")
        await s.until_state("n1", State.DOWN)
        assert s.world.asked("destroy n1") == 1

    play(test, end_s=0.2, prepare=prepare)


def test_ending_a_guest_is_tried_again_until_it_works() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].heeds, s.world["n1"].fails = False, {"destroy": "timeout"}

    async def test(s: Scene) -> None:
        s.shutdown("n1")
        await s.until(lambda: s.world.asked("destroy n1") >= 3, "tries")
        assert any("PowerOff of n1 fails" in note for note in s.daemon.life.notes())
        s.world["n1"].fails.clear()
        await s.until_state("n1", State.DOWN)
        await s.until(lambda: s.daemon.life.notes() == [], "nothing fails any more")

    play(test, end_s=0.05, prepare=prepare)


def test_a_reboot_goes_down_comes_up_and_registers() -> None:
    async def test(s: Scene) -> None:
        s.shutdown("n1", reboot=True)
        await s.until(lambda: s.world.asked("boot n1") == 1, "the boot")
        await s.until_state("n1", State.FREE)
        assert s.world.calls.index("power n1") < s.world.calls.index("boot n1")
        assert not {"clock n1", "reconnect n1"} & set(s.world.calls), "its clock never stood still"

    play(test)


def test_a_boot_without_an_agent_is_down_with_the_reason() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].up = s.world["n1"].registers = False

    async def test(s: Scene) -> None:
        s.boot("n1")
        await s.until_state("n1", State.BOOTING)
        await s.until_state("n1", State.DOWN)
        assert "did not register" in s.why("n1") and s.world["n1"].up
        await asyncio.sleep(600)
        assert s.state("n1") is State.DOWN, "and stays so"
        s.world["n1"].registers = True
        s.world.agent("n1")
        await s.until_state("n1", State.FREE)

    play(test, boot_s=0.3, prepare=prepare)


@pytest.mark.parametrize(("code", "tries"), [("failed", 1), ("not-permitted", 1), ("timeout", 2), ("lost", 2)])
def test_a_failed_boot_is_down_with_the_reason_and_tried_again_only_if_that_may_help(code: str, tries: int) -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].up, s.world["n1"].fails = False, {"boot": code}

    async def test(s: Scene) -> None:
        s.boot("n1")
        await s.until(lambda: s.world.asked("boot n1") >= tries, "tries")
        if tries == 1:
            await s.until_state("n1", State.DOWN)
            assert "could not be booted: boot n1 fails" in s.why("n1")
        else:
            assert s.state("n1") is State.BOOTING
            s.world["n1"].fails.clear()
            await s.until_state("n1", State.FREE)

    play(test, prepare=prepare)


def test_a_domain_that_goes_down_while_it_boots_is_not_booted_for_ever() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].up = s.world["n1"].registers = False

    async def test(s: Scene) -> None:
        s.boot("n1")
        await s.until(lambda: s.daemon.switch.readings.domains["n1"].up, "it runs")
        await asyncio.sleep(20)
        s.world.end("n1")
        await s.until_state("n1", State.DOWN)
        assert "while it booted" in s.why("n1") and s.world.asked("boot n1") == 1

    play(test, prepare=prepare)


def test_a_domain_that_others_start_boots_until_its_agent_registers() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].up = s.world["n1"].registers = False

    async def test(s: Scene) -> None:
        await s.until(lambda: "n1" in s.daemon.switch.readings.domains, "a look")
        await asyncio.sleep(20)
        s.world.start("n1")
        await s.until_state("n1", State.BOOTING)
        s.world["n1"].registers = True
        s.world.agent("n1")
        await s.until_state("n1", State.FREE)
        assert not s.world.asked("boot n1")

    play(test, prepare=prepare)


def test_a_freeze_saves_when_the_last_job_is_gone_and_a_defrost_sets_the_clock_and_wakes_mom() -> None:
    async def test(s: Scene) -> None:
        await s.job("p1", JobClass.PRIORITY)
        s.freeze("p1")
        await asyncio.sleep(20)
        assert s.state("p1") is State.RUNNING_PRIORITY or s.state("p1") is State.DRAINING
        assert not s.world.asked("save p1")
        s.release("p1")
        await s.until_state("p1", State.FROZEN)
        s.defrost("p1")
        await s.until_state("p1", State.FREE)
        await s.until(lambda: s.world.asked("reconnect p1") == 1, "MoM connects again")
        order = [s.world.calls.index(call) for call in ("save p1", "boot p1", "clock p1", "reconnect p1")]
        assert order == sorted(order)

    play(test)


def test_without_room_for_the_image_nothing_is_saved_and_the_domain_stays_up() -> None:
    async def test(s: Scene) -> None:
        s.world.image_room_mib = int(s.world["p1"].actual) - 1
        s.freeze("p1")
        await s.until(lambda: s.world.asked("save-needs p1") == 1, "the look at the disk")
        await s.until_state("p1", State.FREE)
        assert not s.world.asked("save p1")
        s.world.image_room_mib += 1
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)

    play(test)


def test_room_promised_to_another_domain_is_not_promised_twice() -> None:
    def prepare(s: Scene) -> None:
        s.world["p1"].fails = {"save": "timeout"}

    async def test(s: Scene) -> None:
        each = int(s.world["p1"].actual)
        s.world.image_room_mib = 2 * each - 1
        assert await s.daemon.saves.refusal("n1") is None
        s.freeze("p1")
        await s.until(lambda: s.world.asked("save p1") >= 1, "p1 is being saved")
        refusal = await s.daemon.saves.refusal("n1")
        assert refusal is not None and refusal.code == "no-space"
        assert f"{each} MiB for other domains" in refusal.text and "/images" in refusal.text
        s.world.image_room_mib = None
        assert await s.daemon.saves.refusal("n1") is None, "what is unknown forbids nothing"

    play(test, prepare=prepare)


def test_a_domain_with_a_device_that_cannot_be_saved_is_refused() -> None:
    async def test(s: Scene) -> None:
        s.world["p1"].obstacle = "it has a passed-through PCI device"
        refusal = await s.daemon.saves.refusal("p1")
        assert refusal is not None and refusal.code == "devices" and "PCI" in refusal.text
        s.world["p1"].fails = {"save-needs": "lost"}
        refusal = await s.daemon.saves.refusal("p1")
        assert refusal is not None and refusal.code == "lost"

    play(test)


def test_a_save_that_takes_too_long_is_waited_for() -> None:
    def prepare(s: Scene) -> None:
        s.world["p1"].fails = {"save": "timeout"}

    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until(lambda: s.world.asked("save p1") >= 3, "tries")
        assert s.domain("p1").saving, "it is not given up"
        s.world.end("p1", saved=True)  # the first try comes to its end
        await s.until_state("p1", State.FROZEN)

    play(test, prepare=prepare)


def test_half_an_image_is_none_and_is_reported() -> None:
    def prepare(s: Scene) -> None:
        s.world["p1"].fails = {"save": "timeout"}

    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until(lambda: s.world.asked("save p1") >= 1, "it is being saved")
        s.world["p1"].image_fault = "save image is incomplete"
        s.world.end("p1", saved=True)
        await s.until_state("p1", State.DOWN)
        assert "before it was saved completely" in s.why("p1") and "incomplete" in s.why("p1")

    play(test, prepare=prepare)


def test_an_image_that_is_damaged_is_never_started_from() -> None:
    """libvirt would start the domain anew, without a word, and delete the image."""

    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        s.world["p1"].image_fault = "failed to read qemu header"
        s.defrost("p1")
        await s.until(lambda: "image is kept" in s.why("p1"), "it is said")
        assert s.state("p1") is State.FROZEN and s.world["p1"].saved and not s.world.asked("boot p1")
        assert "failed to read qemu header" in s.why("p1")
        s.world["p1"].image_fault = ""
        s.defrost("p1")
        await s.until_state("p1", State.FREE)

    play(test)


def test_a_failed_freeze_leaves_the_domain_up_and_is_reported() -> None:
    def prepare(s: Scene) -> None:
        s.world["p1"].fails = {"save": "failed"}

    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until(lambda: s.world.asked("save p1") == 1, "the save")
        await s.until_state("p1", State.FREE)
        assert s.world.asked("save p1") == 1

    play(test, prepare=prepare)


@pytest.mark.parametrize("code", ["restore-failed", "failed"])
def test_a_failed_restore_keeps_the_image_is_reported_and_may_be_tried_again(code: str) -> None:
    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        s.world["p1"].fails = {"boot": code}
        s.defrost("p1")
        await s.until(lambda: "image is kept" in s.why("p1"), "it is said")
        assert s.state("p1") is State.FROZEN and s.world["p1"].saved
        assert "magrathea domain defrost p1" in s.why("p1")
        s.world["p1"].fails.clear()
        s.defrost("p1")
        await s.until_state("p1", State.FREE)

    play(test)


def test_an_image_that_is_gone_leaves_the_domain_simply_down() -> None:
    async def test(s: Scene) -> None:
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        s.world["p1"].saved = False
        s.world.tell("p1")
        await s.until_state("p1", State.DOWN)
        assert "image on disk is gone" in s.why("p1")

    play(test)


def test_a_restore_waits_until_the_borrowers_are_stopped() -> None:
    async def test(s: Scene) -> None:
        s.daemon.apply(ev.HubFound(s.daemon.now()))
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        now = s.daemon.now()
        host = s.daemon.host
        borrower = Job(KEY, JobClass.PREEMPTIBLE, 4, 0, now - 100, now - 100, confirmed=True, launched=True)
        s.daemon.facts.host = host.having(replace(s.domain("n1"), jobs=(borrower,)))
        s.defrost("p1")
        await s.until_state("p1", State.FREE, State.WOULD_PREEMPT)
        orders = [i for i, call in enumerate(s.world.calls) if call == "orders n1"]
        assert any(i < s.world.calls.index("boot p1") for i in orders)

    play(test, mode="counted")


def test_paused_by_others_and_going_on_are_facts() -> None:
    async def test(s: Scene) -> None:
        s.world["n1"].paused = True
        s.world.tell("n1")
        await s.until_state("n1", State.UNKNOWN)
        s.world["n1"].paused = False
        s.world.tell("n1")
        await s.until_state("n1", State.FREE)

    play(test)


def test_a_fall_and_a_rise_between_two_looks_is_a_new_life() -> None:
    async def test(s: Scene) -> None:
        await s.job("n1")
        s.world["n1"].registers = False
        s.world.end("n1")
        s.world.start("n1")
        await s.until_state("n1", State.BOOTING)
        assert s.domain("n1").jobs == ()

    play(test)


@pytest.mark.parametrize(
    "cut", ["power n1", "boot n1", "register n1", "commit ShutdownRequested", "commit DomainStopped"]
)
def test_a_daemon_that_ends_amid_a_reboot_continues_with_it_when_it_is_back(cut: str) -> None:
    async def test(s: Scene) -> None:
        reached = asyncio.Event()
        s.daemon.observe = lambda name: reached.set() if name == cut.replace("power ", "power-off ") else None
        s.shutdown("n1", reboot=True)
        await s.until(reached.is_set, cut)
        await s.restart()
        await s.until(lambda: s.world.asked("boot n1") and s.state("n1") is State.FREE, "rebooted")
        assert not s.world.asked("destroy n1")

    play(test)


@pytest.mark.parametrize("cut", ["save p1", "commit FreezeRequested", "commit FreezeEnded", "boot p1", "register p1"])
def test_a_daemon_that_ends_amid_a_freeze_or_a_defrost_continues_with_it_when_it_is_back(cut: str) -> None:
    async def test(s: Scene) -> None:
        reached = asyncio.Event()

        def observe(name: str) -> None:
            if name == cut:
                reached.set()

        s.daemon.observe = observe
        s.freeze("p1")
        if cut in ("boot p1", "register p1"):
            await s.until_state("p1", State.FROZEN)
            s.defrost("p1")
            await s.until(reached.is_set, cut)
            await s.restart()
        else:
            await s.until(reached.is_set, cut)
            await s.restart()
            await s.until_state("p1", State.FROZEN)
            s.defrost("p1")
        await s.until_state("p1", State.FREE)

    play(test)


def test_scripts_run_at_every_occasion_and_never_delay_anything() -> None:
    async def test(s: Scene) -> None:
        folder = s.folder / "scripts"
        folder.mkdir()
        for what in ("freeze", "defrost", "shutdown", "boot"):
            for when in ("before", "after"):
                script = folder / f"{when}-{what}"
                script.write_text(
                    f'#!/bin/sh\necho "$MAGRATHEA_OCCASION $MAGRATHEA_DOMAIN" >> {s.folder}/said\nexit 7\n'
                )
                script.chmod(0o755)
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)
        s.defrost("p1")
        await s.until_state("p1", State.FREE)
        s.shutdown("p1", reboot=True)
        said = s.folder / "said"
        await s.until(lambda: said.exists() and "after-boot p1" in said.read_text(), "the last of them")
        assert len(said.read_text().splitlines()) == 8
        expected = [f"script {o} p1" for o in ("before-freeze", "after-defrost", "before-shutdown", "after-boot")]

        def guest() -> list[str]:
            return [call for call in s.world.calls if call.startswith("script")]

        await s.until(lambda: guest() == expected, "the guest's scripts")

    play(test)


@pytest.mark.long
def test_a_script_that_hangs_costs_its_time_limit_only() -> None:
    async def test(s: Scene) -> None:
        (s.folder / "scripts").mkdir()
        script = s.folder / "scripts" / "before-freeze"
        script.write_text("#!/bin/sh\nexec sleep 600\n")
        script.chmod(0o755)
        s.freeze("p1")
        await s.until_state("p1", State.FROZEN)

    play(test)


def test_an_order_that_is_withdrawn_before_it_began_does_not_happen() -> None:
    async def test(s: Scene) -> None:
        (s.folder / "scripts").mkdir()
        script = s.folder / "scripts" / "before-shutdown"
        script.write_text(f"#!/bin/sh\ntouch {s.folder}/begun\nwhile [ ! -e {s.folder}/go ]; do sleep 0.01; done\n")
        script.chmod(0o755)
        s.shutdown("n1")
        await s.until((s.folder / "begun").exists, "the script")
        s.want(ev.DrainEnded(s.daemon.now(), "n1"))
        (s.folder / "go").touch()
        await asyncio.sleep(20)
        assert s.world["n1"].up and not s.world.asked("power n1")

    play(test)


def test_an_agent_that_connects_during_a_vain_shutdown_by_the_hypervisor_is_asked_too() -> None:
    def prepare(s: Scene) -> None:
        s.world["n1"].registers = s.world["n1"].heeds = False

    async def test(s: Scene) -> None:
        await s.until(lambda: "n1" in s.daemon.switch.readings.domains, "a look")
        s.shutdown("n1")
        await s.until(lambda: s.world.asked("shutdown n1") == 1, "the hypervisor asks")
        s.world["n1"].registers = s.world["n1"].heeds = True
        s.world.agent("n1")
        await s.until_state("n1", State.DOWN)
        assert s.world.asked("power n1") == 1 and not s.world.asked("destroy n1")

    play(test, prepare=prepare)


def test_a_daemon_that_has_ended_wakes_at_no_deadline() -> None:
    """Its journal is closed. What ends with it causes events, and the claim of the job a deadline."""

    async def test(s: Scene) -> None:
        await s.job("n1")
        ended, close = s.daemon, s.daemon.driver.close

        async def with_an_event() -> None:
            ended.apply(ev.TimerFired(ended.now()))
            await close()

        s.daemon.driver.close = with_an_event  # type: ignore[method-assign]
        await s.restart()
        host = ended.host
        await asyncio.sleep(100)
        assert ended.host == host

    play(test)
