"""A move's progress from libvirt's figures (node_daemon/hypervisor/libvirt/moving/copying.py)."""

from __future__ import annotations

from magrathea.core.passes import Help
from node_daemon.hypervisor.libvirt.moving.copying import Copying

MIB = 2**20


def job(iteration: int, sent: int, left: int, **more: int) -> dict[str, object]:
    """libvirt's figures of a job; sizes in MiB."""
    return {
        "memory_iteration": iteration,
        "memory_processed": sent * MIB,
        "memory_remaining": left * MIB,
        **{name: value * MIB for name, value in more.items()},
    }


def helps(copying: Copying, *jobs: dict[str, object]) -> list[Help]:
    return [copying.take(one, float(at)).help for at, one in enumerate(jobs)]


def test_a_quiet_guest_needs_no_help() -> None:
    assert (
        helps(Copying(0), job(0, 0, 0), job(1, 10, 390), job(1, 300, 90), job(2, 320, 20), job(3, 340, 1))
        == [Help.NONE] * 5
    )


def test_empty_pages_do_not_count_as_work_of_the_first_pass() -> None:
    # 4096 MiB of memory, 100 of them used, and all rewritten: the first pass has left as much as it has sent
    assert helps(Copying(0), job(1, 0, 4096), job(1, 50, 1000), job(2, 100, 100))[-1] is Help.STOP_JOBS


def test_a_writer_is_stopped_after_the_first_pass_that_does_not_shrink_and_then_the_copy_ends() -> None:
    copying = Copying(0)
    assert helps(copying, job(1, 0, 400), job(2, 400, 100), job(2, 450, 50)) == [Help.NONE] * 3
    assert helps(copying, job(3, 500, 100)) == [Help.STOP_JOBS]
    copying.stopped()
    assert helps(copying, job(4, 600, 90), job(5, 690, 1)) == [Help.STOP_JOBS] * 2


def test_a_guest_that_writes_on_is_paused() -> None:
    copying = Copying(0)
    helps(copying, job(1, 0, 400), job(2, 400, 100), job(3, 500, 100))
    copying.stopped()
    assert helps(copying, job(4, 600, 100), job(5, 700, 100)) == [Help.STOP_JOBS, Help.PAUSE_DOMAIN]


def test_a_paused_guest_needs_no_help() -> None:
    copying = Copying(0)
    assert [copying.take(job(at, at * 100, 100), float(at), False).help for at in range(5)] == [Help.NONE] * 5


def test_what_was_sent_before_the_first_look_belongs_to_the_first_pass() -> None:
    assert helps(Copying(0), job(1, 390, 10), job(2, 400, 100)) == [Help.NONE] * 2


def test_passes_that_nobody_saw_do_no_harm() -> None:
    assert helps(Copying(0), job(1, 0, 400), job(4, 460, 10)) == [Help.NONE] * 2


def test_a_disk_is_copied_in_passes_of_what_was_left() -> None:
    copying = Copying(0)

    def disk(sent: int, left: int) -> dict[str, object]:
        return job(0, 0, 0, disk_processed=sent, disk_remaining=left)

    assert helps(copying, disk(0, 1000), disk(500, 700), disk(1000, 400)) == [Help.NONE] * 3
    assert helps(copying, disk(1300, 390), disk(1400, 390)) == [Help.NONE, Help.STOP_JOBS]


def test_speed_size_and_idleness_are_reported() -> None:
    copying = Copying(10.0)
    copying.take(job(1, 0, 400), 10.0)
    progress = copying.take(
        {**job(1, 100, 300, disk_remaining=50), "memory_dirty_rate": 256, "memory_page_size": 4096}, 12.0
    )
    assert (progress.seconds, progress.sent_bytes, progress.left_bytes) == (2.0, 100 * MIB, 350 * MIB)
    assert (progress.sent_bytes_per_s, progress.written_bytes_per_s, progress.passes) == (50 * MIB, MIB, 1)
    assert copying.idle_s(15.0) == 3.0


def test_figures_that_are_none_count_as_nothing() -> None:
    progress = Copying(0).take({"memory_processed": "many", "memory_remaining": -1, "memory_iteration": None}, 1.0)
    assert (progress.sent_bytes, progress.left_bytes, progress.passes) == (0, 0, 0)
