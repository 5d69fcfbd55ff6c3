"""Memory between two real guests, beside a plain balloon in the same run: an idle guest's, and a stopped job's.

The plain balloon is what an admin has without Magrathea. The job's processes are stopped by hand and the balloon's
target is set, first out of n1, then into p1. On the way back it is the other way round, and the processes continue.
Both ways are timed until p1 has its memory, and back until the job has touched every page of its memory again. Swap is
a disk of the guest: as fast as the host's memory, or limited to 150 operations a second, like a spinning disk.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from magrathea_lab.guests import needs

from .figure import Figure, at_most, below, missing, percentile, progress, run
from .guests import LIST_S

if TYPE_CHECKING:
    from magrathea_lab.rigs.guest import Guest, Job
    from magrathea_lab.rigs.guest_host import Hypervisor, Machine

BIG_MIB, FLOOR_MIB, HELD_MIB = 2048, 512, 1024
STEP_MIB = 256
SLOW_IOPS = 150
LOOK_S = 1.0
"""Time between two looks at what the job has touched."""
ASK_S = 0.1
"""Time between two questions of a job's prologue whether its memory is there."""
PAUSE_S = 0.2
"""Pause of the job between two passes over its memory."""
LIMIT_S = 240.0
"""A rival that takes longer is given up. Its figure is then a lower bound, and the note says so."""
IDLE_RATIO, IDLE_S = 1.5, 2.6
"""The original Magrathea of 2007 took 2.6 s for the memory of an idle domain."""
FAST_OUT, SLOW_OUT, FAST_BACK, SLOW_BACK = 1.1, 10.0, 2.0, 10.0
PREEMPTIONS, QUICK_PREEMPTIONS = 100, 10
SMALL_MIB, SMALL_FLOOR_MIB = 448, 160
SHARES = (50, 60, 70, 80, 90, 95)
"""Shares of its guest's memory that a job holds, in per cent."""

LOW = "1.srv"
OUTPUT = f"/var/spool/{LOW}.out"
"""Where the stand-in for MoM writes the output of the job `LOW` in n1."""

TOUCH = """exec python3 -S -E -c '
import os, time
size, mib = {mib}, 1 << 20
held = bytearray(size * mib)
for n in range(size):
    held[n * mib : (n + 1) * mib] = os.urandom(mib)
n = 0
while True:
    sum(held[::4096])
    n += 1
    print("touched", n, time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
    time.sleep({pause})
'"""
"""A job that holds `mib` MiB and touches every page of it again and again."""


@dataclass(frozen=True, slots=True)
class Way:
    """One preemption. `out_s`: until p1 had its memory. `back_s`: from its job's end until n1's job had touched all of
    its own memory. Each is LIMIT_S if it was given up. `usable_mib`: what n1 had left in between. `answer_s`: how long
    the stand-in for MoM took to answer; None: more than 10 s."""

    out_s: float
    back_s: float
    usable_mib: int | None
    answer_s: float | None


def has_mib(guest: Guest) -> int:
    """The guest's memory, from QEMU itself: `info` may be a second old."""
    return int(guest.domain.memoryStats()["actual"]) // 1024


def balloon(guest: Guest, mib: int, limit_s: float = LIMIT_S) -> None:
    """The plain balloon: set the target, wait until it is there. Raises AssertionError after `limit_s`."""
    import libvirt

    from magrathea_lab.waiting import until

    guest.domain.setMemoryFlags(mib * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    until(lambda: abs(has_mib(guest) - mib) <= 2, f"{guest.name} at {mib} MiB", limit_s)


def seconds(*works: Callable[[], object]) -> float:
    """How long the works took together, one after the other; LIMIT_S if one was given up."""
    began = time.monotonic()
    try:
        for work in works:
            work()
    except AssertionError:
        return LIMIT_S
    return time.monotonic() - began


def life(guest: Guest) -> tuple[int | None, float | None]:
    """Usable MiB of the guest, and seconds that its MoM needs for a new process."""
    from magrathea_lab.rigs.guest import GuestError

    try:
        began = time.monotonic()
        guest.sh("true", 10.0)
        memory = guest.memory()
        return memory["MemAvailable"] + memory["SwapCached"], time.monotonic() - began
    except GuestError:
        return None, None


def touched(guest: Guest) -> int:
    """How many passes over its memory the job has finished."""
    return int(guest.sh(f"tail -n 1 {OUTPUT} 2>/dev/null | cut -d' ' -f2").strip() or 0)


def touched_again(guest: Guest, before: int, began: float) -> float:
    """Seconds from `began` until the job has finished a whole pass, by its own clock; LIMIT_S if given up. The pass in
    which it was stopped does not count. Asks seldom, because asking takes the guest's CPU."""
    from magrathea_lab.rigs.guest import GuestError

    while time.monotonic() - began < LIMIT_S:
        time.sleep(LOOK_S)
        try:
            words = guest.sh(f"cat /proc/uptime; grep '^touched {before + 2} ' {OUTPUT} || true").split()
        except GuestError:
            continue
        if "touched" in words:
            return time.monotonic() - began - (float(words[0]) - float(words[-1]))
    return LIMIT_S


def settings(small: int) -> dict[str, object]:
    lines = f"floor_mib = {FLOOR_MIB}\n"
    return {
        "memory_mib": BIG_MIB + small,
        "extra": f"memory_step_mib = {STEP_MIB}\n",
        "domain": {"n1": f"{lines}swap_mib = {HELD_MIB + 512}\n", "p1": lines},
    }


def priority(made: Machine) -> tuple[Job, float]:
    """Start a priority job that needs all that n1 can give. Returns it and the seconds until it had its memory."""
    from magrathea_lab.rigs.guest import Job

    job = Job("2.srv", "priority", "sleep 3600", memory_mib=BIG_MIB - FLOOR_MIB)

    def begin() -> None:
        end = time.monotonic() + LIMIT_S
        while not made["p1"].claim(job).get("ok"):
            job.run += 1
            assert time.monotonic() < end
        while not made["p1"].port.ask("prepared", job=job.described()).get("ready"):
            assert time.monotonic() < end
            time.sleep(ASK_S)

    return job, seconds(begin)


def ours(hypervisor: Hypervisor) -> tuple[float, Way]:
    """With Magrathea: seconds for an idle domain's memory, and one preemption."""
    from magrathea_lab.rigs import guest_host as rig
    from magrathea_lab.rigs.guest import Job
    from magrathea_lab.rigs.guest_host import machine

    rig.LIST_S = LIST_S
    n1, p1 = hypervisor.guests["n1"], hypervisor.guests["p1"]
    balloon(p1, FLOOR_MIB)
    with machine(hypervisor, **settings(FLOOR_MIB)) as made:
        high, idle_s = priority(made)
        p1.start(high)
        p1.qdel(high)
    balloon(p1, FLOOR_MIB)
    balloon(n1, BIG_MIB)
    with machine(hypervisor, **settings(FLOOR_MIB)) as made:
        job = n1.qsub(Job(LOW, "preemptible", TOUCH.format(mib=HELD_MIB, pause=PAUSE_S)))
        made.until(lambda: touched(n1) >= 2, "the job's memory filled", LIMIT_S)
        made.until_state("p1", "occupied-would-preempt")
        high, out_s = priority(made)
        p1.start(high)
        made.until_states("n1", job, "T")
        made.until(lambda: made.report("n1").cpu_percent is not None, "n1 at rest, and capped", LIMIT_S)
        usable, answer = life(n1)
        before = touched(n1)
        began = time.monotonic()
        p1.qdel(high)
        back_s = touched_again(n1, before, began)
        n1.qdel(job)
    return idle_s, Way(out_s, back_s, usable, answer)


def plain(hypervisor: Hypervisor) -> tuple[float, Way]:
    """The same by the balloon alone, without a node daemon."""
    from magrathea_lab.rigs.guest import GuestError
    from magrathea_lab.waiting import until

    n1, p1 = hypervisor.guests["n1"], hypervisor.guests["p1"]
    balloon(p1, FLOOR_MIB)
    idle_s = seconds(lambda: balloon(n1, FLOOR_MIB), lambda: balloon(p1, BIG_MIB))
    balloon(p1, FLOOR_MIB)
    balloon(n1, BIG_MIB)
    n1.write("/tmp/job.sh", TOUCH.format(mib=HELD_MIB, pause=PAUSE_S).encode())
    n1.sh(f"setsid sh /tmp/job.sh >{OUTPUT} 2>&1 & echo $! >/run/job.pid")
    until(lambda: touched(n1) >= 2, "the job's memory filled", LIMIT_S)
    n1.sh("kill -STOP $(cat /run/job.pid)")
    before = touched(n1)
    out_s = seconds(lambda: balloon(n1, FLOOR_MIB), lambda: balloon(p1, BIG_MIB))
    usable, answer = life(n1)

    began = time.monotonic()
    seconds(lambda: balloon(p1, FLOOR_MIB), lambda: balloon(n1, BIG_MIB))
    while time.monotonic() - began < LIMIT_S:
        try:
            n1.sh("kill -CONT $(cat /run/job.pid)")
            break
        except GuestError:
            continue  # it answers late or never
    return idle_s, Way(out_s, touched_again(n1, before, began), usable, answer)


def hypervisor(iops: int, autodeflate: bool) -> Hypervisor:
    from magrathea_lab.rigs.guest_host import Hypervisor, Size

    n1 = Size(BIG_MIB, swap_mib=HELD_MIB + 512, swap_iops=iops, autodeflate=autodeflate)
    return Hypervisor({"n1": n1, "p1": Size(BIG_MIB)})


def pair(iops: int) -> tuple[tuple[float, Way], tuple[float, Way]]:
    """Magrathea and the plain balloon on the same guests, one after the other."""
    swap = f"swap of {iops} operations a second" if iops else "fast swap"
    progress(f"memory of an idle guest and of a stopped job, {swap}: with Magrathea")
    with hypervisor(iops, True) as made:
        us = ours(made)
    progress(f"the same with a plain balloon, given up after {LIMIT_S:g} s each")
    with hypervisor(iops, False) as made:
        them = plain(made)
    return us, them


def lost_jobs(count: int) -> tuple[int, int, list[float]]:
    """Preempt jobs that hold 50 to 95 % of n1. Returns how many, jobs lost or damaged, seconds until p1 had memory."""
    from magrathea_lab.rigs.guest import Job, holding
    from magrathea_lab.rigs.guest_host import Hypervisor, Size, machine

    done, lost, waits = 0, 0, []
    each = -(-count // len(SHARES))
    sizes = {"n1": Size(SMALL_MIB, swap_mib=512), "p1": Size(SMALL_MIB)}
    domain = {"n1": f"floor_mib = {SMALL_FLOOR_MIB}\nswap_mib = 512\n", "p1": f"floor_mib = {SMALL_FLOOR_MIB}\n"}
    with Hypervisor(sizes) as hypervisor:
        n1, p1 = hypervisor.guests["n1"], hypervisor.guests["p1"]
        total = n1.memory()["MemTotal"]
        balloon(p1, SMALL_FLOOR_MIB + 16)
        with machine(hypervisor, memory_mib=SMALL_MIB + SMALL_FLOOR_MIB + 16, domain=domain) as made:
            for share in SHARES:
                progress(f"{each} preemptions of a job that holds {share} % of its guest")
                job = n1.qsub(Job(f"{share}.srv", "preemptible", holding(total * share // 100)))
                made.until(partial(_output_has, n1, job, "round 1 "), "memory filled", LIMIT_S)
                for _ in range(min(each, count - done)):
                    made.until_state("p1", "occupied-would-preempt")
                    began = time.monotonic()
                    high = Job(f"{done}.high", "priority", "sleep 3600", memory_mib=200)
                    p1.qsub(high, LIMIT_S)
                    waits.append(time.monotonic() - began)
                    made.until_states("n1", job, "T")
                    p1.qdel(high)
                    made.until_states("n1", job, "RSD")
                    done += 1
                before = n1.jobs()[job.id]["output"].count("round")
                made.until(partial(_ended_or_on, n1, job, before), "another check of all its bytes", LIMIT_S)
                row = n1.jobs()[job.id]
                lost += row["code"] is not None or "BAD" in row["output"]
                n1.qdel(job)
        killed = n1.console().count("Killed process")
    return done, lost + killed, waits


def _output_has(guest: Guest, job: Job, word: str) -> bool:
    return word in guest.jobs()[job.id]["output"]


def _ended_or_on(guest: Guest, job: Job, rounds: int) -> bool:
    row = guest.jobs()[job.id]
    return row["code"] is not None or "BAD" in row["output"] or row["output"].count("round") >= rounds + 2


def figures(quick: bool) -> list[Figure]:
    if (why_not := needs.missing()) is not None:
        return [missing("memory of real guests", "", "", why_not)]
    (idle, fast), (idle_plain, fast_plain) = pair(0)
    found = [
        at_most("memory of an idle domain: with Magrathea / plain balloon", idle / idle_plain, "ratio", IDLE_RATIO),
        below(f"  with Magrathea, {BIG_MIB - FLOOR_MIB} MiB of a guest of {BIG_MIB}", round(idle, 2), "s", IDLE_S),
        Figure("  plain balloon", round(idle_plain, 2), "s"),
        at_most(
            "stopped job, fast swap, out: with Magrathea / plain", fast.out_s / fast_plain.out_s, "ratio", FAST_OUT
        ),
        _faster("stopped job, fast swap, back: plain / with Magrathea", fast_plain.back_s, fast.back_s, FAST_BACK),
        *_ways("fast swap", fast, fast_plain),
    ]
    if not quick:
        (_, slow), (_, slow_plain) = pair(SLOW_IOPS)
        found += [
            _faster("stopped job, slow swap, out: plain / with Magrathea", slow_plain.out_s, slow.out_s, SLOW_OUT),
            _faster("stopped job, slow swap, back: plain / with Magrathea", slow_plain.back_s, slow.back_s, SLOW_BACK),
            *_ways("slow swap", slow, slow_plain),
        ]
    count = QUICK_PREEMPTIONS if quick else PREEMPTIONS
    done, lost, waits = lost_jobs(count)
    note = f"{done} preemptions of jobs that hold {SHARES[0]} to {SHARES[-1]} % of their guest"
    found.append(Figure("jobs lost by memory pressure", lost, "jobs", "0", lost == 0 and done == count, note))
    found.append(Figure("  until the priority job had its memory, p50", round(percentile(waits, 50), 2), "s"))
    return found


def _faster(name: str, rival_s: float, ours_s: float, at_least: float) -> Figure:
    ratio = rival_s / ours_s
    note = "at least; the rival was given up" if rival_s >= LIMIT_S else ""
    return Figure(name, ratio, "ratio", f">= {at_least:g}", ratio >= at_least and ours_s < LIMIT_S, note)


def _ways(name: str, us: Way, them: Way) -> list[Figure]:
    lines = []
    for who, way in (("Magrathea", us), ("plain", them)):
        answer = "no answer in 10 s" if way.answer_s is None else f"MoM answers in {way.answer_s:.2f} s"
        left = "?" if way.usable_mib is None else f"{way.usable_mib}"
        lines.append(
            Figure(f"  {name}, {who}: out", round(way.out_s, 2), "s", note=f"then {left} MiB usable, {answer}")
        )
        lines.append(Figure(f"  {name}, {who}: back", round(way.back_s, 2), "s"))
    return lines


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
