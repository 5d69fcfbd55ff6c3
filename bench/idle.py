"""What an idle host costs: resident memory and CPU of the daemon and of an agent, with two domains and one waiting job.

Memory is the largest resident set seen, with shared libraries. CPU is user and system time over the whole span, as a
share of one core.
"""

from __future__ import annotations

import argparse
import sys
import time

import psutil

from magrathea_lab.rigs.local_host import one_host
from magrathea_lab.waiting import until

from .figure import Figure, as_json, below, table

SECONDS, QUICK_SECONDS = 300.0, 30.0
SETTLE_S = 3.0
"""Wait after the start, until connections are made and the first reports are sent."""
DAEMON_MB, AGENT_MB, CPU_PERCENT = 45.0, 15.0, 0.2
MB = 1_000_000


def measure(seconds: float) -> list[Figure]:
    with one_host() as host:
        # One running job that sleeps: the agent has a process to look at, the daemon has nothing to do.
        host.claim("n1", host.job, "preemptible")
        host.start_processes(2)
        until(lambda: host.status().domains[0].jobs[0].confirmed, "the job's launch to be seen")
        time.sleep(SETTLE_S)
        processes = {"daemon": psutil.Process(host.daemon.pid), "agent": psutil.Process(host.agents["n1"].pid)}
        before = {name: _cpu_s(process) for name, process in processes.items()}
        began = time.monotonic()
        peak = dict.fromkeys(processes, 0)
        while (elapsed := time.monotonic() - began) < seconds:
            for name, process in processes.items():
                peak[name] = max(peak[name], process.memory_info().rss)
            time.sleep(min(5.0, max(0.01, seconds - elapsed)))
        elapsed = time.monotonic() - began
        percent = {name: 100 * (_cpu_s(process) - before[name]) / elapsed for name, process in processes.items()}
    note = f"over {elapsed:.0f} s"
    limits = {"daemon": DAEMON_MB, "agent": AGENT_MB}
    return [
        *(below(f"memory of the {n}, resident, idle", round(peak[n] / MB, 1), "MB", limits[n], note) for n in limits),
        *(below(f"CPU of the {n}, idle", round(percent[n], 3), "% of a core", CPU_PERCENT, note) for n in limits),
    ]


def _cpu_s(process: psutil.Process) -> float:
    """User and system time in seconds, to the nanosecond (clock_getcpuclockid(3)), not in ticks of 10 ms."""
    return time.clock_gettime((~process.pid << 3) | 2)


def figures(quick: bool) -> list[Figure]:
    return measure(QUICK_SECONDS if quick else SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="default: %(default)g")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} seconds")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    found = measure(QUICK_SECONDS if options.quick else options.seconds)
    print(as_json(found) if options.json else table(found))
    return 1 if any(f.met is False for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())
