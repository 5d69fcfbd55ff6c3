"""Real guests (QEMU, emulated without acceleration): a switch without memory, the start of a job, and what a preempted
domain costs and how fast it answers.

A measurement from inside a guest includes the way there: a virtio-serial port and a small Python program under
emulation. The same way without Magrathea is measured in the same run and shown beside it. The answers of the agent to
its daemon are measured on the host: this script takes the daemon's place at its socket and uses its channel.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magrathea_lab.guests import needs
from magrathea_lab.guests.private_libvirtd import QEMU_USER
from node_daemon.guest_channel.channel import GuestChannel, qemu_user
from node_daemon.guest_channel.messages import AnyRequest, Hello

from .figure import Figure, at_most, below, missing, percentile, run

if TYPE_CHECKING:
    from magrathea_lab.rigs.guest import Guest, Job
    from magrathea_lab.rigs.guest_host import Machine

ROUNDS, QUICK_ROUNDS = 60, 10
SWITCH_P50_MS, SWITCH_P99_MS = 30.0, 150.0
START_S = 0.15
"""The original Magrathea of 2007 took 1.2 s for its part of a job's start."""
LOOK_S, QUICK_LOOK_S = 20.0, 5.0
PINGS, QUICK_PINGS = 100, 20
NOW_AND_THEN_S = 0.2
"""Mean time between two questions of a daemon that asks now and then; it varies by half."""
ANSWER_S = 20.0
SETTLED_S = 6.0
"""Wait after a stop or a greeting: for some seconds after each event the agent looks at all of /proc."""
CALM_S = 30.0
"""After this time the agent looks after a stop less often (agent/sweeper.py, CALM_AFTER_S)."""
CAP_PERCENT = 5
AGENT_P99_S, MOM_P99_S = 0.1, 2.0
PROCESSES = 10
LIST_S = 15.0
"""Between two lists of MoM, as in a cluster. One list keeps an emulated guest with a cap of 5 % busy for 0.5 s."""


def times(count: int, work: Callable[[], object]) -> list[float]:
    """Seconds of each of `count` calls."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def victim(machine: Machine) -> Job:
    """A job of ten processes in n1 that the daemon may stop."""
    from magrathea_lab.rigs.guest import Job

    script = f"for i in $(seq {PROCESSES - 1}); do sleep 3600 & done; wait"
    job = machine["n1"].qsub(Job("1.srv", "preemptible", script))
    machine.until(lambda: len(machine["n1"].states(job)) >= PROCESSES, "all processes of the job", 20)
    machine.until_state("p1", "occupied-would-preempt")
    return job


def switches(machine: Machine, count: int) -> tuple[list[float], dict[str, list[float]]]:
    """Milliseconds from claim to answer and of its parts, from the daemon's log. Checks that the job stopped."""
    from magrathea_lab.rigs.guest import Job

    job = victim(machine)
    for i in range(count):
        high = Job(f"{i}.high", "priority")
        answer = machine["p1"].claim(high)
        if not answer.get("ok"):
            raise RuntimeError(f"the claim was refused: {answer}")
        states = machine["n1"].states(job)
        if set(states) != {"T"}:
            raise RuntimeError(f"the answer came while processes of the job were in states {states}")
        machine["p1"].ask_agent({"op": "release", "job": {"id": high.id, "run": high.run}})
        machine["p1"].port.ask("forget", job=high.described())
        machine.until_states("n1", job, "RSD")
        machine.until_state("p1", "occupied-would-preempt")
    log = machine.log.read_text(errors="replace")
    whole = [float(ms) for ms in re.findall(r"claim of \S+\.high \(run \d+\) granted after ([\d.]+) ms", log)]
    parts = {
        "the agent's stop": [float(ms) for ms in re.findall(r"n1: stop .* after ([\d.]+) ms", log)],
        "CPU": [float(ms) for ms in re.findall(r"n1: cpu .* after ([\d.]+) ms", log)],
    }
    machine["n1"].qdel(job)
    return whole, parts


def starts(machine: Machine, count: int) -> tuple[list[float], list[float]]:
    """Seconds of claim and preparation of a job in an idle domain, and of as many empty questions."""
    from magrathea_lab.rigs.guest import Job

    with_us, without = [], []
    for i in range(count):
        job = Job(f"{i}.start", "preemptible")

        def begin(job: Job = job) -> None:
            if not machine["n1"].claim(job).get("ok") or not machine["n1"].port.ask("prepared", job=job.described()):
                raise RuntimeError("a claim in an idle domain was refused")

        without += times(1, lambda: (machine["n1"].port.ask("ping"), machine["n1"].port.ask("ping")))
        with_us += times(1, begin)
        machine["n1"].ask_agent({"op": "release", "job": {"id": job.id, "run": job.run}})
        machine["n1"].port.ask("forget", job=job.described())
        machine.until_state("n1", "free")
    return with_us, without


def cpu_percent(guest: Guest, seconds: float) -> float:
    """The guest's use of one core, measured over `seconds`."""
    began, before = time.monotonic(), guest.cpu_seconds()
    time.sleep(seconds)
    return 100 * (guest.cpu_seconds() - before) / (time.monotonic() - began)


def answers(guest: Guest, count: int) -> tuple[list[float], list[float]]:
    """Seconds until the agent has answered, and until a new process, like one of MoM, has. Both by the stand-in."""
    return times(count, lambda: guest.ask_agent({"op": "ping"})), times(count, lambda: guest.sh("true"))


class _Daemon:
    """A daemon as a guest's agent needs it: it is connected, and accepts whatever the agent sends."""

    def __init__(self) -> None:
        self.greeted = asyncio.Event()

    def connected(self, domain: str, hello: Hello) -> None:
        self.greeted.set()

    def lost(self, domain: str) -> None:
        self.greeted.clear()

    async def request(self, domain: str, request: AnyRequest) -> dict[str, Any]:
        return {"ok": True}


def pings(made: Machine, name: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds until the guest's agent has answered its daemon: asked now and then, and one question after another.

    The real daemon has ended; caps and standing orders stay without it.
    """

    async def ask() -> tuple[list[float], list[float]]:
        daemon = _Daemon()
        path = made.hypervisor.run_dir / "guest" / f"{name}.sock"
        channel = GuestChannel("h1", name, path, daemon, qemu_user(QEMU_USER))
        await channel.start()
        try:
            async with asyncio.timeout(ANSWER_S):
                await daemon.greeted.wait()
            await asyncio.sleep(SETTLED_S)
            return await answered(channel, NOW_AND_THEN_S), await answered(channel, 0.0)
        finally:
            await channel.close()

    async def answered(channel: GuestChannel, pause_s: float) -> list[float]:
        found = []
        for _ in range(count):
            began = time.perf_counter()
            await channel.request("ping", ANSWER_S)
            found.append(time.perf_counter() - began)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
        return found

    return asyncio.run(ask())


def figures(quick: bool) -> list[Figure]:
    if (why_not := needs.missing()) is not None:
        return [missing("real guests", "", "", why_not)]
    from magrathea_lab.rigs import guest_host as rig
    from magrathea_lab.rigs.guest_host import Hypervisor, Size, machine

    count, look_s = (QUICK_ROUNDS, QUICK_LOOK_S) if quick else (ROUNDS, LOOK_S)
    with Hypervisor({"n1": Size(), "p1": Size()}) as hypervisor:
        with machine(hypervisor) as made:
            whole, parts = switches(made, count)
            with_us, without = starts(made, count)
        rig.LIST_S = LIST_S
        with machine(hypervisor, extra=f"preempted_cpu_percent = {CAP_PERCENT}") as made:
            found = _preempted(made, count, QUICK_PINGS if quick else PINGS, look_s)
    part_s = statistics.median(with_us) - statistics.median(without)
    note = f"{count} rounds, {PROCESSES} processes stopped, no memory moved"
    return [
        at_most("guests: claim to answer, p50", round(percentile(whole, 50), 1), "ms", SWITCH_P50_MS, note),
        at_most("guests: claim to answer, p99", round(percentile(whole, 99), 1), "ms", SWITCH_P99_MS, note),
        *(Figure(f"  part: {name}, p50", round(percentile(ms, 50), 1), "ms") for name, ms in parts.items() if ms),
        at_most("guests: Magrathea's part of a job's start, median", round(part_s, 3), "s", START_S, f"{count} rounds"),
        Figure("  claim and preparation as the guest sees them", round(statistics.median(with_us), 3), "s"),
        Figure("  two questions that ask nothing", round(statistics.median(without), 3), "s"),
        *found,
    ]


def _preempted(made: Machine, count: int, questions: int, look_s: float) -> list[Figure]:
    """CPU and answers of a preempted domain: with its job stopped, then also beside a busy stray process."""
    from magrathea_lab.rigs.guest import Job

    idle = cpu_percent(made["n1"], look_s)
    job = victim(made)
    made["p1"].qsub(Job("2.srv", "priority"))
    made.until_states("n1", job, "T")
    made.until(lambda: made.report("n1").cpu_percent == CAP_PERCENT, "n1 capped", 10)
    time.sleep(SETTLED_S)
    at_first = cpu_percent(made["n1"], look_s)
    time.sleep(max(0.0, CALM_S - look_s))
    stopped = cpu_percent(made["n1"], look_s)
    agent, mom = answers(made["n1"], count)
    made["n1"].sh("setsid sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! >/run/stray")
    hungry = cpu_percent(made["n1"], look_s)
    agent_hungry, mom_hungry = answers(made["n1"], count)
    made.stop_daemon(signal.SIGKILL)
    hungry_apart, hungry_row = pings(made, "n1", questions)
    made["n1"].sh("kill -9 $(cat /run/stray)")
    apart, in_a_row = pings(made, "n1", questions)
    asked = f"{questions} questions of its daemon"
    note = f"cap {CAP_PERCENT} % of one core, {look_s:g} s"
    return [
        at_most("preempted domain, its job stopped: CPU", round(stopped, 2), "%", round(idle, 2), note),
        Figure("  in the first half minute of the stop", round(at_first, 2), "%"),
        Figure("  the same guest idle, without any job", round(idle, 2), "%"),
        at_most("preempted domain with a busy stray process: CPU", round(hungry, 2), "%", CAP_PERCENT, note),
        below("preempted domain: the agent answers, p99", round(percentile(apart, 99), 3), "s", AGENT_P99_S, asked),
        Figure("  asked one after another, p99", round(percentile(in_a_row, 99), 3), "s", note="the cap sets the rate"),
        below("  beside the stray process, p99", round(percentile(hungry_apart, 99), 3), "s", AGENT_P99_S, asked),
        Figure("  beside the stray process, one after another, p99", round(percentile(hungry_row, 99), 3), "s"),
        Figure(
            "  through MoM's stand-in, p99", round(percentile(agent, 99), 3), "s", note="a Python program under the cap"
        ),
        Figure("  through MoM's stand-in, beside the stray process, p99", round(percentile(agent_hungry, 99), 3), "s"),
        below("preempted domain: MoM starts a process, p99", round(percentile(mom, 99), 3), "s", MOM_P99_S),
        below("  MoM, beside the stray process, p99", round(percentile(mom_hungry, 99), 3), "s", MOM_P99_S),
    ]


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
