"""What `pbs install`, `check` and `uninstall` compare: PBS's present state, what is wished, and the steps between."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from magrathea import places

from ..pbs.base import Attributes

HOST = "resources_available.magrathea_host"


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """The administrator's options. Queues by class. `vnodes`: those that Magrathea will manage.

    `memory_moves`: the prologue hook waits for memory (costs 20 ms at each start of a job). `keep_consumables`,
    `released`, `protecting`: what stopped jobs keep, give back, and what protects a job (kept_resources.py).
    """

    priority: tuple[str, ...] = ()
    preemptible: tuple[str, ...] = ()
    vnodes: tuple[str, ...] = ()
    heartbeat: str = places.HEARTBEAT
    heartbeat_max_age_s: float = 30.0
    memory_moves: bool = False
    keep_consumables: bool = False
    released: tuple[str, ...] = ()
    protecting: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job's data about its class. `select`: its request; `schedselect`: the request with the
    defaults added. `keeps`: it has the resource of kept_resources.py."""

    id: str
    state: str
    queue: str
    select: str
    schedselect: str
    keeps: bool = False

    @property
    def array(self) -> str:
        """A subjob's array id, which PBS's commands need; other jobs' own id."""
        return re.sub(r"\[\d+\]", "[]", self.id)


@dataclass(frozen=True, slots=True)
class Present:
    """PBS's present state; every mapping by name. `contents`: by (hook, content type).

    `sched_config`: one character a byte (latin-1), so that no byte is lost. `jobs`: all that PBS knows, also finished
    ones.
    """

    resources: Mapping[str, Attributes] = field(default_factory=dict)
    hooks: Mapping[str, Attributes] = field(default_factory=dict)
    queues: Mapping[str, Attributes] = field(default_factory=dict)
    vnodes: Mapping[str, Attributes] = field(default_factory=dict)
    server: Attributes = field(default_factory=dict)
    contents: Mapping[tuple[str, str], str] = field(default_factory=dict)
    sched_config: str = ""
    scheds: Mapping[str, Attributes] = field(default_factory=dict)
    pbs_hooks: Mapping[str, Attributes] = field(default_factory=dict)
    jobs: tuple[SubmittedJob, ...] = ()

    @property
    def managed(self) -> list[str]:
        """Vnodes that the hub has registered."""
        return [name for name, attributes in self.vnodes.items() if HOST in attributes]


@dataclass(frozen=True, slots=True)
class SetupChange:
    """One step. `target`: the item that it fixes; `missing`: the item does not exist yet.

    `qmgr`: the command; in an import `{file}` stands for a file with `content`. If `command` is set, it is one of PBS's
    own programs instead. If neither is set, `content` is the whole new file of the scheduler's configuration.
    `about_job`: the step may fail without harm if the job has started or ended meanwhile.
    """

    text: str
    qmgr: str = ""
    content: str | None = None
    target: str = ""
    missing: bool = False
    command: tuple[str, ...] = ()
    about_job: str = ""
