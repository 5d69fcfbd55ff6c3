"""The screen that every story of the demo prints to, its tables, and what a story must provide."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..cluster import Cluster
from .watch import Watch, Watched

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

PATIENCE_S = 120.0
"""Bound of each chapter. The longest takes 15 s on two idle cores, but other work may run on them."""
CHAPTER_S = 2.0
"""A pause after each chapter, so that people can see what has changed."""
WIDTH = 110

STYLES = {"free": "dim", "preempted": "yellow", "running-priority": "bold magenta", "running-preemptible": "green"}


class DemoCluster(Cluster, Protocol):
    """What the demo needs of a cluster beyond what scenarios need."""

    @property
    def directory(self) -> Path: ...

    def start(self, progress: Callable[[str], None]) -> None: ...

    def close(self) -> None: ...

    def log(self, part: str) -> str: ...


class Story(Protocol):
    """What the demo shows of a cluster. `meanings`: the legend of its table."""

    introduction: str
    meanings: str

    def table(self, watch: Watch) -> Table: ...

    def after_look(self, watch: Watch, screen: Screen) -> None:
        """Called after each look at the cluster."""

    def tell(self, watch: Watch, screen: Screen) -> None:
        """Play the chapters. Raises scenarios.Failed."""

    def closing(self, cluster: DemoCluster, screen: Screen) -> None:
        """Print figures about the parts, at the end of a successful run."""


class Screen:
    """Prints sentences one after the other; on a terminal a live table stands below them."""

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
        """Print the cluster's table once, if there is no live table."""
        if self._live is None:
            self.say(self.story.table(watch))

    def draw(self, watch: Watch) -> None:
        self.story.after_look(watch, self)
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


def runs(watch: Watch, job: Watched, patience_s: float = PATIENCE_S) -> Watched:
    """Wait until the job has done a step and has been visible for a while; return it."""
    watch.until(f"{job.name} runs", lambda: job.counter > 0, patience_s)
    watch.look_for(CHAPTER_S)
    return job
