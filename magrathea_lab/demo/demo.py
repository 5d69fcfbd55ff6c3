"""`magrathea demo`: jobs that compute, priority jobs that preempt them, and the proof that nothing was lost.

All parts of Magrathea are real: hub, node daemons, agents, hook files, and processes that are really stopped. PBS is
the stand-in (clusters/standin.py), or real with `--pbs openpbs` (clusters/openpbs.py). With `--driver libvirt` the
domains are virtual machines, and the demo shows guest_story.py.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import leftovers
from ..cluster import Failed
from .proof import percentile, proof, switch_times_ms
from .screen import DemoCluster, Screen, Story
from .watch import Watch


def make_story(driver: str) -> Story:
    if driver == "libvirt":
        from .guest_story import GuestStory

        return GuestStory()
    from .process_story import ProcessStory

    return ProcessStory()


def make_cluster(kind: str, driver: str) -> DemoCluster:
    """The cluster for these options, not started yet. Raises private_openpbs.NoOpenPbs, guest_story.NoGuests."""
    if driver == "libvirt":
        from .guest_story import make

        return make()
    if kind == "openpbs":
        from ..clusters.openpbs import OpenPbsCluster

        return OpenPbsCluster()
    from ..clusters.standin import StandInCluster

    return StandInCluster()


def kept(cluster: DemoCluster) -> Path:
    """Copy the cluster's configuration files, logs and journals to a directory that stays; return it."""
    place = Path(tempfile.mkdtemp(prefix="magrathea-kept-"))
    for pattern in ("*.toml", "*/*.toml", "*/*.json", "log/*", "*/state/*", "guests/*.console"):
        for file in cluster.directory.glob(pattern):
            target = place / file.relative_to(cluster.directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return place


def run(cluster: DemoCluster, screen: Screen) -> str:
    """Start the cluster and run the demo on it; return the last line to print. Errors of all parts pass through."""
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
        wrong.append("no node daemon reported how long a switch took")
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
    "--pbs", "kind", type=click.Choice(["standin", "openpbs"]), default="standin", show_default=True, help="Which PBS."
)
@click.option(
    "--driver",
    type=click.Choice(["local", "libvirt"]),
    default="local",
    show_default=True,
    help="What the domains are: groups of processes, or virtual machines (root).",
)
@click.option("--plain", is_flag=True, help="Print lines only, no live table (the default without a terminal).")
@click.option("--keep", is_flag=True, help="Keep the directory with all configuration files, logs and journals.")
def demo(kind: str, driver: str, plain: bool, keep: bool) -> None:
    """See it work: a small cluster, ordinary jobs, and priority jobs that push them aside.

    Takes about a minute and needs no root and no PBS: a small stand-in takes PBS's place. With --pbs openpbs it uses a
    real OpenPBS (needs root, and OpenPBS in /opt/pbs). With --driver libvirt the domains are two small virtual
    machines made of Debian's packages, and memory moves between them too (needs root, libvirt and QEMU).

    \b
    Examples:
      magrathea demo
      magrathea demo --plain --keep
      magrathea demo --pbs openpbs
      magrathea demo --driver libvirt

    \b
    The last line reports the results:
      demo: ok preempted=N resumed=N lost=0 switch_ms_p50=X switch_ms_p99=Y
      preempted   times that a job stood still for a priority job, each shown by its own counter
      resumed     times that a job continued afterwards
      lost        jobs that lost work or had to start again
      switch_ms   time from a preempting claim to the node daemon's answer: the other jobs stopped, CPU moved,
                  journal on disk; the median and the 99th percentile of this run
    or `demo: FAILED why`.

    Exit codes: 0 everything worked; 1 it failed or was interrupted; 2 wrong usage.
    """
    if (kind, driver) == ("openpbs", "libvirt"):
        raise click.UsageError("--driver libvirt shows virtual machines with the stand-in: leave --pbs out")
    screen = Screen(plain, make_story(driver))
    screen.say(screen.story.introduction)
    signal.signal(signal.SIGTERM, _interrupted)
    cluster: DemoCluster | None = None
    why = picture = line = ""
    try:
        for left in leftovers.clear():
            screen.say(f"cleared first: {left}")
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
