"""What the `runjob` hook takes of the PBS server's only thread at the start of a job on a counted host.

A real server with one MoM, which has all vnodes of the host: the hook reads only what the server knows, and the hub's
file about the host. Measured is the CPU time of the server's thread inside the hook, by the hook itself, in its own
interpreter: first without that file, then with it.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from pathlib import Path

from magrathea import files
from magrathea.pbs_text.host_loads import load_path
from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs
from scheduler_plugin.setup.hook_texts import hook_text
from scheduler_plugin.setup.install import FLAG, RESOURCES

from .figure import Figure, at_most, missing, progress, run

DOMAINS = (2, 8, 32)
"""The first vnodes of the one MoM become a host of so many domains, one size after another."""
JOBS = 200
"""On all vnodes together."""
STARTS, QUICK_STARTS = 20, 5
GOAL_MS = 1.0
HOST, HOST_CPUS = "h1", 10_000

CLOCK = """
_began = time.thread_time()
try:
    main()
finally:
    pbs.logmsg(pbs.EVENT_ERROR, "took %.4f ms" % ((time.thread_time() - _began) * 1e3))
"""


def name(domains: int) -> str:
    return f"runjob hook, a job that preempts nobody, counted host of {domains} domains, {JOBS} jobs"


def name_without_file(domains: int) -> str:
    return f"the same with {domains} domains, without the hub's file"


def timed_hook() -> str:
    text = hook_text("magrathea_server").rstrip()
    return text.removesuffix("main()") + CLOCK


def vnodes(pbs: PrivateOpenPbs, names: list[str]) -> None:
    """Give each vnode what the hub publishes for a domain of a counted host with these domains."""
    for one in names:
        siblings = ",".join(other for other in names if other != one)
        published = {
            "magrathea": "free",
            "magrathea_accepts": "preemptible,protected",
            "magrathea_rank": "500",
            "magrathea_host": HOST,
            "magrathea_siblings": siblings,
            "magrathea_host_ncpus": str(HOST_CPUS),
            "ncpus": str(HOST_CPUS),
            "mem": "64gb",
        }
        lines = [f"set node {one} resources_available.{key}='{value}'" for key, value in published.items()]
        pbs.qmgr("\n".join([*lines, f"set node {one} Priority=500"]))


def prepare(pbs: PrivateOpenPbs, names: list[str]) -> None:
    lines = [f"create resource {key} type={kind},flag={FLAG}" for key, kind in RESOURCES.items()]
    lines += ["set server default_chunk.magrathea_accepts=protected", "set server scheduling=False"]
    lines += [f"create node {one} Mom=n1" for one in names[1:]]
    pbs.qmgr("\n".join(lines))
    vnodes(pbs, names)


def submit(pbs: PrivateOpenPbs, count: int) -> list[str]:
    qsub = "qsub -l select=1:ncpus=1:mem=1mb -o /dev/null -e /dev/null -- /bin/sleep 10000"
    return pbs.run(HEAD, ["sh", "-c", f"for i in $(seq {count}); do {qsub}; done"], user="alice").stdout.split()


def start(pbs: PrivateOpenPbs, job: str, vnode: str) -> None:
    pbs.run(HEAD, ["qrun", "-a", "-H", f"({vnode}:ncpus=1)", job])


def hook(pbs: PrivateOpenPbs) -> None:
    script, config = pbs.base / "hook.py", pbs.base / "hook.json"
    script.write_text(timed_hook(), encoding="utf-8")
    heartbeat(pbs).touch()
    config.write_text(json.dumps({"heartbeat": str(heartbeat(pbs)), "heartbeat_max_age_s": 1e9}), encoding="utf-8")
    pbs.qmgr(
        "create hook timed\nset hook timed event=runjob\n"
        f"import hook timed application/x-config default {config}\n"
        f"import hook timed application/x-python default {script}"
    )


def heartbeat(pbs: PrivateOpenPbs) -> Path:
    return pbs.base / "heartbeat"


def load_file(pbs: PrivateOpenPbs) -> Path:
    path = load_path(str(heartbeat(pbs)), HOST)
    assert path is not None
    return Path(path)


def write_load(pbs: PrivateOpenPbs, domains: list[str]) -> None:
    """The hub's file about the host, right after a comparison with PBS."""
    there = {name: vnode.get("jobs", []) for name, vnode in pbs.vnodes().items()}
    vnodes = {one: {place.partition("/")[0]: (1, 1) for place in there[one]} for one in domains}
    load_file(pbs).parent.mkdir(exist_ok=True)
    files.replace(load_file(pbs), json.dumps({"compared": time.monotonic(), "vnodes": vnodes}).encode(), 0o644)


def timed_starts(pbs: PrivateOpenPbs, jobs: list[str], domains: list[str]) -> list[float]:
    """What the hook took for each of these starts, in ms."""
    before = len(measured_ms(pbs))
    for number, job in enumerate(jobs):
        start(pbs, job, domains[number % len(domains)])
    took = measured_ms(pbs)[before:]
    if len(took) != len(jobs):
        raise RuntimeError(f"{len(jobs)} starts, but the hook ran {len(took)} times")
    return took


def measured_ms(pbs: PrivateOpenPbs) -> list[float]:
    logs = sorted((pbs.pbs_home(HEAD) / "server_logs").iterdir())
    return [float(ms) for log in logs for ms in re.findall(r"took ([\d.]+) ms", log.read_text(errors="replace"))]


def figures(quick: bool) -> list[Figure]:
    if why := openpbs_needs.missing():
        return [missing(name(domains), "ms", f"<= {GOAL_MS:g}", why) for domains in DOMAINS]
    starts = QUICK_STARTS if quick else STARTS
    names = ["n1", *(f"x{number}" for number in range(1, max(DOMAINS)))]
    found = []
    with PrivateOpenPbs(["n1"], on_disk=True) as pbs:
        progress(f"{JOBS} jobs on {len(names)} vnodes")
        prepare(pbs, names)
        waiting = submit(pbs, JOBS + 2 * starts * len(DOMAINS))
        for number in range(JOBS):
            start(pbs, waiting.pop(), names[number % len(names)])
        hook(pbs)
        for domains in DOMAINS:
            host = names[:domains]
            vnodes(pbs, host)
            load_file(pbs).unlink(missing_ok=True)
            without = timed_starts(pbs, [waiting.pop() for _ in range(starts)], host)
            write_load(pbs, host)
            took = timed_starts(pbs, [waiting.pop() for _ in range(starts)], host)
            ratio = statistics.median(took) / statistics.median(without)
            note = f"median of {starts}; at most {max(took):.2f}; {ratio:.2f} of the time without the file"
            found.append(at_most(name(domains), statistics.median(took), "ms", GOAL_MS, note))
            note = f"at most {max(without):.2f}"
            found.append(Figure(name_without_file(domains), statistics.median(without), "ms", note=note))
    return found


if __name__ == "__main__":
    sys.exit(run(figures, __doc__))
