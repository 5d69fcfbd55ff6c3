"""`magrathea demo`: two hosts of three domains each, low jobs that fill them, high jobs that push some aside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .screen import PATIENCE_S, STYLES, DemoCluster, Screen, columns, runs
from .watch import Watch, Watched

if TYPE_CHECKING:
    from rich.table import Table

LOW_STEPS, HIGH_STEPS = 320, 120
LOW_JOBS = (("low-1", 1), ("low-2", 1), ("low-3", 2), ("low-4", 1), ("low-5", 1))
BAR = 16

INTRODUCTION = (
    "[bold]Magrathea: virtual machines, preemption and PBS working as one[/bold]\n\n"
    'A computing cluster takes jobs into queues and runs them on machines. Here are two machines ("hosts"), each '
    'divided into "domains" (virtual machines on a real cluster, groups of processes in this demo). The batch system, '
    "PBS, believes that every domain is a machine of its own. Ordinary jobs (queue [green]low[/green]) run in normal "
    "domains: n1, n2, n3. Jobs that cannot wait (queue [magenta]high[/magenta]) run in priority domains: p1, p2, p3. "
    "When a high job comes and a host is full, Magrathea stops low jobs beside it, gives their CPUs to the high job, "
    "and continues them afterwards as if nothing had happened.\n"
)

MEANINGS = (
    "\n[dim]free: may start a job. running-preemptible: its jobs may be pushed aside. occupied: a sibling has the "
    "host. occupied-would-preempt: a high job may start here and push low jobs aside. "
    "preempted: its jobs are stopped.[/dim]"
)


def bar(job: Watched) -> str:
    done = BAR * job.counter // job.steps
    colour = "yellow" if job.stopped else "magenta" if job.queue == "high" else "green"
    word = "stopped" if job.stopped else ""
    return f"{job.name} [{colour}]{'█' * done}{'░' * (BAR - done)}[/{colour}] {job.counter}/{job.steps} {word}"


class ProcessStory:
    """See screen.Story. For domains that are groups of processes, with the stand-in or with OpenPBS."""

    introduction = INTRODUCTION
    meanings = MEANINGS

    def table(self, watch: Watch) -> Table:
        """Hosts, domains, their states, and the jobs in them."""
        found = columns("HOST", "DOMAIN", "STATE", "JOBS")
        present = [job for job in watch.jobs.values() if job.state not in ("F", "?")]
        for host in watch.cluster.hosts:
            name = f"{host.name} ({host.mode}, {host.cpus} CPUs)"
            for domain in host.domains:
                state = watch.vnodes[domain.name].magrathea if domain.name in watch.vnodes else "?"
                style = STYLES.get(state, "default")
                here = [bar(job) for job in present if job.domain == domain.name and job.state in "RSE"]
                found.add_row(name, domain.name, f"[{style}]{state}[/{style}]", "\n".join(here))
                name = ""
        if waiting := [job.name for job in present if job.state in "QWH"]:
            found.add_row("", "", "[dim]waiting in PBS[/dim]", ", ".join(waiting))
        return found

    def after_look(self, watch: Watch, screen: Screen) -> None:
        """Nothing to print: the table shows everything."""

    def tell(self, watch: Watch, screen: Screen) -> None:
        lows = [watch.submit("low", name, LOW_STEPS, cpus) for name, cpus in LOW_JOBS]
        screen.chapter("1. Five low jobs, enough to fill both hosts. Each computes prime numbers and counts its steps.")
        normal = [domain.name for host in watch.cluster.hosts for domain in host.domains if domain.kind == "normal"]
        watch.until(
            "all low jobs run, and have run long enough to be pushed aside",
            lambda: (
                all(watch.vnodes[name].magrathea == "running-preemptible" for name in normal)
                and all(job.state == "R" and job.counter > 5 for job in lows)
            ),
            PATIENCE_S,
        )
        screen.show(watch)

        screen.chapter("2. `qsub -q high`: a job of 2 CPUs. Nothing is free, so it pushes low jobs aside.")
        first = high_runs(watch, "high-1", 2)
        screen.chapter("3. A second one. It pushes aside as few as possible.")
        second = high_runs(watch, "high-2", 2)
        screen.chapter("4. And a third, of 1 CPU.")
        third = high_runs(watch, "high-3", 1)
        screen.show(watch)

        screen.chapter("5. The high jobs end, everything is given back, the low jobs continue where they stopped.")
        highs = [first, second, third]
        watch.until(
            "the high jobs end and the low jobs go on",
            lambda: all(job.state == "F" for job in highs) and not any(job.stopped for job in lows),
            PATIENCE_S,
        )
        screen.chapter("6. Once more, with the same jobs; then all run to their end.")
        watch.until(
            "low jobs may be pushed aside again",
            lambda: (
                any(watch.vnodes[name].magrathea == "running-preemptible" for name in normal)
                or all(job.state == "F" for job in lows)
            ),  # this bound is for very slow machines
            PATIENCE_S,
        )
        high_runs(watch, "high-4", 2)
        watch.until("all jobs end", lambda: all(job.state == "F" for job in watch.jobs.values()), PATIENCE_S)
        watch.until(
            "all domains are free again", lambda: all(v.magrathea == "free" for v in watch.vnodes.values()), PATIENCE_S
        )

    def closing(self, cluster: DemoCluster, screen: Screen) -> None:
        """Nothing to print: the demo's last line has all figures."""


def high_runs(watch: Watch, name: str, cpus: int) -> Watched:
    return runs(watch, watch.submit("high", name, HIGH_STEPS, cpus))
