"""`magrathea demo`: jobs that compute, priority jobs that push them aside, and the proof that nothing was lost.

Everything of Magrathea is real (hub, node daemons, agents, hook files, processes that are really stopped); PBS is
stood in (standin.py), or real with `--pbs openpbs` (openpbs.py). With `--driver libvirt` the domains are virtual
machines, and another story is told (guest_story.py).
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from ..cluster import Cluster, Failed
from ..work import result

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from .watch import Watch, Watched

LOW_STEPS, HIGH_STEPS = 320, 120
LOW_JOBS = (("low-1", 1), ("low-2", 1), ("low-3", 2), ("low-4", 1), ("low-5", 1))
PATIENCE_S = 40.0
"""For each chapter; the longest takes 15 s on two idle cores."""
CHAPTER_S = 2.0
"""So that people can see what has changed."""
WIDTH = 110
BAR = 16

INTRODUCTION = (
    "[bold]Magrathea: virtual machines, preemption and PBS working as one[/bold]\n\n"
    'A computing cluster takes jobs into queues and runs them on machines. Here are two machines ("hosts"), each '
    'divided into "domains" (virtual machines on a real cluster, groups of processes in this demo). The batch system, '
    "PBS, believes that every domain is a machine of its own. Ordinary jobs (queue [green]low[/green]) run in normal "
    "domains: n1, n2, n3. Jobs that cannot wait (queue [magenta]high[/magenta]) run in priority domains: p1, p2, p3. "
    "When a high job comes and a host is full, Magrathea stops low jobs beside it, gives their CPUs to the high job, "
    "and lets them go on afterwards as if nothing had happened.\n"
)

MEANINGS = (
    "\n[dim]free: may start a job. running-preemptible: its jobs may be pushed aside. occupied: a sibling has the "
    "host. occupied-would-preempt: a high job may start here and push low jobs aside. "
    "preempted: its jobs are stopped.[/dim]"
)

STYLES = {"free": "dim", "preempted": "yellow", "running-priority": "bold magenta", "running-preemptible": "green"}


class DemoCluster(Cluster, Protocol):
    """What the demo needs beyond a scenario."""

    @property
    def directory(self) -> Path: ...

    def start(self, progress: Callable[[str], None]) -> None: ...

    def close(self) -> None: ...

    def log(self, part: str) -> str: ...


class Story(Protocol):
    """What is shown of a cluster. `meanings`: what people need to read its table."""

    introduction: str
    meanings: str

    def table(self, watch: Watch) -> Table: ...

    def looked(self, watch: Watch, screen: Screen) -> None:
        """After each look."""

    def tell(self, watch: Watch, screen: Screen) -> None:
        """The chapters. Raises scenarios.Failed."""

    def closing(self, cluster: DemoCluster, screen: Screen) -> None:
        """What is worth knowing of the parts, once all has gone well."""


class Screen:
    """Sentences, one after the other; on a terminal a live table stands below them."""

    def __init__(self, plain: bool, story: Story) -> None:
        from rich.console import Console

        terminal = sys.stdout.isatty() and not plain
        self.console: Console = Console(highlight=False) if terminal else Console(width=WIDTH, highlight=False)
        self._live: Live | None = None
        self.story = story
        self._terminal = terminal
        self._begun = time.monotonic()

    def say(self, text: RenderableType = "") -> None:
        self.console.print(text)

    def chapter(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]{text}[/bold cyan]")

    def event(self, text: str) -> None:
        self.console.print(f"  [dim]{time.monotonic() - self._begun:5.1f} s[/dim]  {text}")

    def show(self, watch: Watch) -> None:
        """The cluster as it is now, where no live table shows it."""
        if self._live is None:
            self.say(self.story.table(watch))

    def draw(self, watch: Watch) -> None:
        self.story.looked(watch, self)
        if self._live is not None:
            self._live.update(self.story.table(watch))

    @contextmanager
    def live(self) -> Iterator[None]:
        if not self._terminal:
            yield
            return
        from rich.live import Live

        with Live(console=self.console, refresh_per_second=8, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None


def columns(*names: str, gap: int = 4) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, gap - gap // 2, 0, gap // 2), header_style="bold")
    for column in names:
        made.add_column(column, no_wrap=True)
    return made


def bar(job: Watched) -> str:
    done = BAR * job.counter // job.steps
    colour = "yellow" if job.stopped else "magenta" if job.queue == "high" else "green"
    word = "stopped" if job.stopped else ""
    return f"{job.name} [{colour}]{'█' * done}{'░' * (BAR - done)}[/{colour}] {job.counter}/{job.steps} {word}"


class ProcessStory:
    """Of groups of processes, and of OpenPBS's cluster: two hosts, whose CPUs go where they are needed."""

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

    def looked(self, watch: Watch, screen: Screen) -> None:
        """The table shows it all."""

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

        screen.chapter("5. The high jobs end, everything is given back, the low jobs go on where they stood.")
        highs = [first, second, third]
        watch.until(
            "the high jobs end and the low jobs go on",
            lambda: all(job.state == "F" for job in highs) and not any(job.stopped for job in lows),
            PATIENCE_S,
        )
        screen.chapter("6. Once more, to the same jobs; then all are let run to their end.")
        watch.until(
            "low jobs may be pushed aside again",
            lambda: (
                any(watch.vnodes[name].magrathea == "running-preemptible" for name in normal)
                or all(job.state == "F" for job in lows)
            ),  # on a very slow machine
            PATIENCE_S,
        )
        high_runs(watch, "high-4", 2)
        watch.until("all jobs end", lambda: all(job.state == "F" for job in watch.jobs.values()), PATIENCE_S)
        watch.until(
            "all domains are free again", lambda: all(v.magrathea == "free" for v in watch.vnodes.values()), PATIENCE_S
        )

    def closing(self, cluster: DemoCluster, screen: Screen) -> None:
        """The last line says it all."""


def high_runs(watch: Watch, name: str, cpus: int) -> Watched:
    return runs(watch, watch.submit("high", name, HIGH_STEPS, cpus))


def runs(watch: Watch, job: Watched, patience_s: float = PATIENCE_S) -> Watched:
    """The job as soon as it has done a step, and has been seen for a while."""
    watch.until(f"{job.name} runs", lambda: job.counter > 0, patience_s)
    watch.look_for(CHAPTER_S)
    return job


def proof(watch: Watch, screen: Screen) -> list[str]:
    """Show for each job what it did; what is wrong with any of them, a sentence each."""
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
        memory = " those that held memory found each byte of it as it was;" if watch.holding else ""
        screen.say(
            f"\n[dim]Right: a low job printed {low}, a high one {high}, as a sieve finds them, too;{memory} none was "
            "started twice, and no counter moved while its job was preempted.[/dim]"
        )
    return wrong


def _all_outputs(watch: Watch) -> bool:
    watch.collect_outputs()
    return all("longest pause" in job.output for job in watch.jobs.values() if job.state == "F")


def switch_times_ms(cluster: DemoCluster) -> list[float]:
    """From claim to answer in the node daemon, of every claim that preempted somebody; from the daemons' logs."""
    found: list[float] = []
    for host in cluster.hosts:
        text = cluster.log(f"noded-{host.name}")
        preempting = set(re.findall(r": (\S+) \(run \d+\) accepted, preempting ", text))
        answered = re.findall(r"claim of (\S+) \(run \d+\) granted after ([\d.]+) ms", text)
        found += [float(ms) for id, ms in answered if id in preempting]
    return found


def percentile(values: list[float], percent: float) -> float:
    """By nearest rank; of few values the 99th is the largest."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * int(percent) // 100) - 1)]


def make_story(driver: str) -> Story:
    if driver == "libvirt":
        from .guest_story import GuestStory

        return GuestStory()
    return ProcessStory()


def make_cluster(kind: str, driver: str) -> DemoCluster:
    """Raises private_openpbs.NoOpenPbs, guest_story.NoGuests."""
    if driver == "libvirt":
        from .guest_story import make

        return make()
    if kind == "openpbs":
        from ..clusters.openpbs import OpenPbsCluster

        return OpenPbsCluster()
    from ..clusters.standin import StandInCluster

    return StandInCluster()


def kept(cluster: DemoCluster) -> Path:
    """A copy of the cluster's configuration files, logs and journals, which stays."""
    place = Path(tempfile.mkdtemp(prefix="magrathea-kept-"))
    for pattern in ("*.toml", "*/*.toml", "*/*.json", "log/*", "*/state/*", "guests/*.console"):
        for file in cluster.directory.glob(pattern):
            target = place / file.relative_to(cluster.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return place


def run(cluster: DemoCluster, screen: Screen) -> str:
    """The demo on a cluster that is not up yet; its last line. Raises what any part of it raises."""
    from .watch import Watch

    cluster.start(lambda text: screen.event(f"starting {text}"))
    watch = Watch(cluster, screen.event, screen.draw)
    watch.look()
    screen.say()
    screen.show(watch)
    screen.say(screen.story.meanings)
    with screen.live():
        screen.story.tell(watch, screen)
    wrong = proof(watch, screen)
    stops = [stop for job in watch.jobs.values() for stop in job.stops]
    times = switch_times_ms(cluster)
    if not stops:
        wrong.append("nobody was preempted")
    elif not times:
        wrong.append("no node daemon says how long a switch took")
    if wrong:
        raise Failed("; ".join(wrong))
    screen.story.closing(cluster, screen)
    resumed = sum(stop.end is not None for stop in stops)
    p50, p99 = percentile(times, 50), percentile(times, 99)
    return f"preempted={len(stops)} resumed={resumed} lost=0 switch_ms_p50={p50:.1f} switch_ms_p99={p99:.1f}"


def _interrupted(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


@click.command(
    short_help="see it work: no root, no PBS needed", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--pbs", "kind", type=click.Choice(["standin", "openpbs"]), default="standin", show_default=True, help="Whose PBS."
)
@click.option(
    "--driver",
    type=click.Choice(["local", "libvirt"]),
    default="local",
    show_default=True,
    help="What the domains are: groups of processes, or virtual machines (root).",
)
@click.option("--plain", is_flag=True, help="Lines only, no live table (as where there is no terminal).")
@click.option("--keep", is_flag=True, help="Leave the directory with all configuration files, logs and journals.")
def demo(kind: str, driver: str, plain: bool, keep: bool) -> None:
    """See it work: a small cluster, ordinary jobs, and priority jobs that push them aside.

    Takes about a minute and needs no root and no PBS: a small stand-in takes PBS's place. With --pbs openpbs a real
    OpenPBS is used (needs root, and OpenPBS in /opt/pbs). With --driver libvirt the domains are two small virtual
    machines, made of Debian's packages, between which memory moves, too (needs root, libvirt and QEMU).

    \b
    Examples:
      magrathea demo
      magrathea demo --plain --keep
      magrathea demo --pbs openpbs
      magrathea demo --driver libvirt

    \b
    The last line says what was seen:
      demo: ok preempted=N resumed=N lost=0 switch_ms_p50=X switch_ms_p99=Y
      preempted   times that a job stood still for a priority job, each shown by its own counter
      resumed     times that it went on afterwards
      lost        jobs whose work was not all there in the end, or that had to start again
      switch_ms   from the claim of a priority job that preempts to the node daemon's answer: jobs beside it
                  stopped, CPU moved, journal on disk; the median and the 99th percentile of those of this run
    or `demo: FAILED why`.

    Exit codes: 0 all was seen; 1 it failed, or was interrupted; 2 wrong usage.
    """
    if (kind, driver) == ("openpbs", "libvirt"):
        raise click.UsageError("--driver libvirt shows virtual machines with the stand-in: leave --pbs out")
    screen = Screen(plain, make_story(driver))
    screen.say(screen.story.introduction)
    signal.signal(signal.SIGTERM, _interrupted)
    cluster: DemoCluster | None = None
    why = picture = line = ""
    try:
        cluster = make_cluster(kind, driver)
        line = run(cluster, screen)
    except KeyboardInterrupt:
        why = "interrupted"
    except Exception as error:  # noqa: BLE001  whatever it is, the parts' logs are shown, and all is taken down
        why = f"{error}" or repr(error)
        picture = cluster.picture() if cluster is not None else ""
    finally:
        if cluster is not None:
            if keep:
                screen.say(f"kept: {kept(cluster)}")
            cluster.close()
    if why:
        first, _, rest = why.partition("\n")
        screen.console.print(rest or picture, markup=False)
        click.echo(f"demo: FAILED {first}")
        sys.exit(1)
    click.echo(f"demo: ok {line}")


if __name__ == "__main__":
    demo()
