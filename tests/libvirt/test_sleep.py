"""Real guests are put to sleep with their jobs and come back with them, whatever is killed, full or damaged meanwhile.

The hub is a stand-in that books what the host wants stopped (rigs/hub_rig.py). With a real PBS: tests/openpbs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from magrathea_lab.rigs.guest import Job
from magrathea_lab.rigs.guest_host import Machine
from magrathea_lab.rigs.hub_rig import HubThread

from .test_life import clock_error_s, killed_after, order, status, told

COUNTS = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
FOLDER = "/var/lib/libvirt/qemu/save"
"""Where libvirtd writes images, in its own mount namespace."""
HALF_BYTES = 1 << 20
"""An image that has grown so far is being written."""
DAY_S = 86400


def low(id: str = "1.srv", cls: str = "preemptible") -> Job:
    return Job(id, cls, script=COUNTS)


def count(m: Machine, name: str, job: Job) -> int:
    """How far the job has counted."""
    lines = str(m[name].jobs()[job.id]["output"]).split()
    return int(lines[-1]) if lines else 0


def counts_on(m: Machine, name: str, job: Job) -> None:
    before = count(m, name, job)
    m.until(lambda: count(m, name, job) > before, f"{job.id} counts on from {before}")


def running_job(m: Machine, name: str, job: Job) -> Job:
    m[name].qsub(job)
    counts_on(m, name, job)
    return job


def sleep(m: Machine, name: str = "n1") -> str:
    answer = m.ask(op="domain", do="freeze", domain=name, with_jobs=True, reason="new memory")
    assert answer["ok"], answer
    return " ".join(answer["said"])


def asleep(m: Machine, name: str = "n1") -> None:
    sleep(m, name)
    m.until_state(name, "asleep")


def back(m: Machine, name: str, *jobs: Job) -> None:
    """The domain comes back, and its jobs go on."""
    order(m, "defrost", name)
    is_back(m, name, *jobs)


def is_back(m: Machine, name: str, *jobs: Job) -> None:
    m.until(lambda: m.state(name) not in ("asleep", "booting"), f"{name} is back")
    m[name].wait()
    for job in jobs:
        counts_on(m, name, job)


def image(m: Machine, name: str = "n1") -> Path:
    return m.hypervisor.libvirtd.folder / "lib/qemu/save" / f"{m[name].libvirt_name}.save"


def in_libvirtd(m: Machine, *command: str) -> None:
    """Run a command in libvirtd's mount namespace."""
    pid = m.hypervisor.libvirtd.processes("libvirtd", "-f")[0]
    subprocess.run(["nsenter", "-t", str(pid), "-m", "--", *command], check=True)


@contextmanager
def disk(m: Machine, mib: int) -> Iterator[Path]:
    """A disk of this size in the place of images; yields the folder as seen from here."""
    pid = m.hypervisor.libvirtd.processes("libvirtd", "-f")[0]
    in_libvirtd(m, "mount", "-t", "tmpfs", "-o", f"size={mib}m", "images", FOLDER)
    try:
        yield Path(f"/proc/{pid}/root{FOLDER}")
    finally:
        in_libvirtd(m, "umount", FOLDER)


@contextmanager
def once_half_written(path: Callable[[], Path], act: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `act` as soon as the image has begun to grow. Yields an event that is set then."""
    over, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            with suppress(OSError):
                if path().stat().st_size >= HALF_BYTES:
                    act()
                    done.set()
                    return

    watcher = threading.Thread(target=watch, name="image", daemon=True)
    watcher.start()
    try:
        yield done
    finally:
        over.set()
        watcher.join()


def test_a_domain_sleeps_with_jobs_of_every_class_and_they_go_on_although_the_clock_jumps_a_day(
    machine: Machine,
) -> None:
    m = machine
    jobs = [running_job(m, "n1", low()), running_job(m, "n1", low("2.srv", "protected"))]
    pids = m["n1"].sh("pgrep -u alice sh | sort").split()
    m["n1"].sh(f"date -s @$(($(date +%s) - {DAY_S}))")  # as if the sleep took a day
    assert "to be put to sleep: new memory" in sleep(m)
    m.until_state("n1", "asleep")
    assert not m["n1"].up and image(m).exists()
    assert [j.id for j in m.report("n1").jobs] == ["1.srv", "2.srv"]
    assert m.report("n1").sleep.reason == "new memory" and "new memory" in told(m, "n1")
    assert m.report("n1").accepts == []

    favoured = running_job(m, "p1", low("3.srv", "priority"))
    order(m, "defrost", "n1")
    m.until(lambda: "waits for p1" in told(m, "n1"), "what it waits for")
    assert m.report("n1").sleep.wakes and m.state("n1") == "asleep"
    counts_on(m, "p1", favoured)
    m["p1"].qdel(favoured)

    back(m, "n1", *jobs)
    assert clock_error_s(m["n1"]) < DAY_S / 1000, "it was set"
    assert set(pids) <= set(m["n1"].sh("pgrep -u alice sh | sort").split()), "the very same processes"
    assert [(j.id, j.run, j.preemptions) for j in m.report("n1").jobs] == [("1.srv", 1, 1), ("2.srv", 1, 1)]
    m["n1"].qdel(jobs[1])
    m["n1"].qdel(jobs[0])


def test_the_jobs_stand_still_until_pbs_resumes_them(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    asleep(m)
    m.hub.close()
    m.until(lambda: not m.status()["hub_connected"], "no hub")
    order(m, "defrost", "n1")
    m.until(lambda: status_of(m, "n1")["agent"], "n1 is back")
    m["n1"].wait()
    before = count(m, "n1", job)
    assert m["n1"].ask_agent({"op": "ping"})  # the agent works
    assert m["n1"].all_stopped(job) and count(m, "n1", job) == before
    assert m.ask(op="domain", do="freeze", domain="n1", with_jobs=True)["code"] == "hub-lost"
    m.hub = HubThread(f"ipc://{m.folder}/hub.ipc")
    m.hub.start()
    counts_on(m, "n1", job)


def status_of(m: Machine, name: str) -> dict[str, object]:
    return next(dict(d) for d in m.status()["domains"] if d["name"] == name)


def test_a_sleep_is_given_up_before_pbs_knows_and_the_jobs_go_on(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    m.hub.close()
    m.hub = HubThread(f"ipc://{m.folder}/hub.ipc", books=False)
    m.hub.start()
    m.until(lambda: m.hub.last is not None and m.status()["hub_connected"], "another hub, which books nothing")
    sleep(m)
    m.until_states("n1", job, "T")
    assert m.state("n1") == "draining"
    assert m.ask(op="undrain", domain="n1")["ok"]
    counts_on(m, "n1", job)
    assert m["n1"].up and not image(m).exists()


def test_without_room_for_the_image_nobody_is_stopped(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    with disk(m, 100):
        answer = m.ask(op="domain", do="freeze", domain="n1", with_jobs=True)
        assert answer["code"] == "no-space"
        assert FOLDER in answer["text"] and " 320 MiB" in answer["text"] and "100 MiB left" in answer["text"]
        assert m.report("n1").jobs[0].preemptions == 0
        counts_on(m, "n1", job)
    asleep(m)
    back(m, "n1", job)


def test_a_disk_that_fills_up_in_the_midst_of_the_save_costs_nothing(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    with disk(m, 400) as folder:

        def fill() -> None:
            with (folder / "other").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 20)):
                    pass

        with once_half_written(lambda: folder / image(m).name, fill) as full:
            sleep(m)
            m.until(full.is_set, "the disk is full")
        m.until(lambda: "could not be saved and goes on" in m.log.read_text(), "it is said")
        counts_on(m, "n1", job)
        assert m["n1"].up and not list(folder.glob("*.save")), "no half image"
        assert [(j.id, j.run) for j in m.report("n1").jobs] == [("1.srv", 1)]
    asleep(m)
    back(m, "n1", job)


def failed_restores(m: Machine) -> int:
    return m.log.read_text().count("ERROR n1: its restore failed")


def test_a_truncated_or_damaged_image_is_reported_kept_and_can_be_restored_when_it_is_whole_again(
    machine: Machine,
) -> None:
    m = machine
    job = running_job(m, "n1", low())
    asleep(m)
    path = image(m)
    whole = path.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "nothing": b"",
        "not finished": b"LibvirtQemudPart" + whole[16:],
        "truncated": whole[:middle],
        "overwritten": whole[:middle] + os.urandom(1 << 16) + whole[middle + (1 << 16) :],
    }
    for what, content in damaged.items():
        path.write_bytes(content)
        before = failed_restores(m)
        order(m, "defrost", "n1")
        m.until(lambda before=before: failed_restores(m) > before, f"{what}: it is said")  # type: ignore[misc]
        m.until(lambda: m.state("n1") == "asleep" and "image is kept" in told(m, "n1"), f"{what}: it sleeps on")
        assert path.read_bytes() == content and not m["n1"].up, what
        assert [j.id for j in m.report("n1").jobs] == ["1.srv"], what
    path.write_bytes(whole)
    back(m, "n1", job)


def test_an_image_that_is_gone_is_reported_and_its_jobs_are_released(machine: Machine) -> None:
    m = machine
    running_job(m, "n1", low())
    asleep(m)
    m["n1"].domain.managedSaveRemove()
    order(m, "defrost", "n1")
    m.until_state("n1", "down")
    assert "image" in told(m, "n1") and m.report("n1").jobs == []
    order(m, "boot", "n1")
    m.until_state("n1", "free")


def kill_qemu(m: Machine) -> Callable[[], None]:
    return lambda: os.kill(m.hypervisor.libvirtd.qemu(m["n1"].libvirt_name), signal.SIGKILL)


def test_power_lost_in_the_midst_of_a_save_is_no_sleep_and_half_an_image_is_never_started_from(
    machine: Machine,
) -> None:
    m = machine
    running_job(m, "n1", low())
    with once_half_written(lambda: image(m), kill_qemu(m)) as cut:
        sleep(m)
        m.until(cut.is_set, "power is lost")
    m.until_state("n1", "down")
    assert m.report("n1").jobs == [], "they are gone; the hub requeues those that may be"
    order(m, "boot", "n1")
    m.until_state("n1", "free")
    assert not image(m).exists()


def test_a_libvirtd_killed_in_the_midst_of_a_save_saves_again(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    libvirtd = m.hypervisor.libvirtd
    with once_half_written(lambda: image(m), libvirtd.kill_libvirtd) as killed:
        sleep(m)
        m.until(killed.is_set, "libvirtd is killed")
    libvirtd.start_libvirtd()
    m.until_state("n1", "asleep")
    back(m, "n1", job)


def while_restoring(m: Machine, act: Callable[[], None]) -> None:
    """Ask for n1, and call `act` when its QEMU is there but has not read its whole image."""
    over, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if m.hypervisor.libvirtd.processes("qemu-system", f"guest={m['n1'].libvirt_name},"):
                with suppress(ProcessLookupError):
                    act()
                done.set()
                return

    watcher = threading.Thread(target=watch, name="restore", daemon=True)
    watcher.start()
    try:
        order(m, "defrost", "n1")
        m.until(done.is_set, "it is being restored")
    finally:
        over.set()
        watcher.join()


def test_power_lost_in_the_midst_of_a_restore_keeps_the_image_and_it_can_be_tried_again(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    asleep(m)
    while_restoring(m, kill_qemu(m))
    m.until(lambda: "its restore failed" in told(m, "n1"), "it is said")
    assert m.state("n1") == "asleep" and image(m).exists()
    back(m, "n1", job)


def test_a_libvirtd_killed_in_the_midst_of_a_restore_restores_again(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    asleep(m)
    while_restoring(m, m.hypervisor.libvirtd.kill_libvirtd)
    m.hypervisor.libvirtd.start_libvirtd()
    m.until(lambda: m.state("n1") != "booting", "it is up or asleep")
    (back if m.state("n1") == "asleep" else is_back)(m, "n1", job)


SLEEP = ("commit SleepRequested", "commit BooksReported", "save n1", "commit FreezeEnded")
WAKE = ("commit DefrostRequested", "boot n1", "register n1", "commit DomainStarted")


def test_a_daemon_killed_at_any_step_of_falling_asleep_and_waking_continues(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    for asleep_after, woken_after in zip(SLEEP, WAKE, strict=True):
        killed_after(m, asleep_after, "freeze", "n1", with_jobs=True)
        m.until(lambda: status(m, "n1") == "asleep", f"killed after {asleep_after}: n1 sleeps")
        killed_after(m, woken_after, "defrost", "n1")
        m.until(lambda: status(m, "n1") == "running-preemptible", f"killed after {woken_after}: n1 is back")
        m["n1"].wait()
        counts_on(m, "n1", job)
    assert [(j.id, j.run, j.preemptions) for j in m.report("n1").jobs] == [("1.srv", 1, len(SLEEP))]


def test_an_admins_start_of_a_sleeping_domain_wakes_it(machine: Machine) -> None:
    m = machine
    job = running_job(m, "n1", low())
    asleep(m)
    m["n1"].domain.create()
    m.until(lambda: m.state("n1") == "running-preemptible", "n1 is back")
    m["n1"].wait()
    counts_on(m, "n1", job)


def test_a_sleeping_domain_that_has_no_jobs_comes_back_too(machine: Machine) -> None:
    asleep(machine, "p1")
    order(machine, "defrost", "p1")
    machine.until_state("p1", "free")
