"""What the demo proves at its end: each job's work is complete and correct. Also how long the switches took."""

from __future__ import annotations

import re

from ..work import result
from .screen import PATIENCE_S, DemoCluster, Screen, columns
from .watch import Watch


def proof(watch: Watch, screen: Screen) -> list[str]:
    """Print what each job did; return a sentence for each fault found."""
    watch.until("the jobs' output", lambda: _all_outputs(watch), PATIENCE_S)
    screen.chapter("What happened")
    table = columns("JOB", "DOMAIN", "BEGAN AFTER", "STOOD STILL AT STEP", "FOR", "THEN WENT ON TO", "RESULT")
    wrong = []
    for job in watch.jobs.values():
        flaws = [f for f in (job.flaw(), *(stop.flaw() for stop in job.stops)) if f]
        wrong += [f"{job.name} {flaw}" for flaw in flaws]
        waited = f"{job.first_step - job.submitted:.2f} s" if job.first_step is not None else "never"
        steps = ", ".join(str(stop.at_step) for stop in job.stops) or "-"
        seconds = ", ".join(f"{stop.seconds:.1f} s" for stop in job.stops) or "-"
        verdict = "[red]WRONG[/red]" if flaws else "right"
        table.add_row(job.name, job.domain, waited, steps, seconds, f"{job.counter} of {job.steps}", verdict)
    screen.say(table)
    if not wrong:
        low, high = (result(next(j.steps for j in watch.jobs.values() if j.queue == q)) for q in ("low", "high"))
        memory = " jobs that held memory found each byte unchanged;" if watch.holding else ""
        screen.say(
            f"\n[dim]Right: a low job printed {low}, a high one {high}, as a sieve confirms;{memory} none was "
            "started twice, and no counter moved while its job was preempted.[/dim]"
        )
    return wrong


def _all_outputs(watch: Watch) -> bool:
    watch.collect_outputs()
    return all("longest pause" in job.output for job in watch.jobs.values() if job.state == "F")


def switch_times_ms(cluster: DemoCluster) -> list[float]:
    """Milliseconds from claim to answer of every claim that preempted a job, read from the node daemons' logs."""
    found: list[float] = []
    for host in cluster.hosts:
        text = cluster.log(f"noded-{host.name}")
        preempting = set(re.findall(r": (\S+) \(run \d+\) accepted, preempting ", text))
        answered = re.findall(r"claim of (\S+) \(run \d+\) granted after ([\d.]+) ms", text)
        found += [float(ms) for id, ms in answered if id in preempting]
    return found


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile; with few values the 99th is the largest."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * int(percent) // 100) - 1)]
