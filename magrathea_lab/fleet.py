"""The layout of a small cluster of Magrathea: hosts, domains, and every part's own configuration file.

The stand-in (standin.py) and OpenPBS (openpbs.py) share it. Nothing is started here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""The packages' parent directory, for PYTHONPATH of all parts: they start from a clone that is not installed."""


@dataclass(frozen=True)
class DomainSpec:
    """A domain to start. `kind`: normal or priority. `cpus`: its upper limit."""

    name: str
    kind: str
    cpus: int


@dataclass(frozen=True)
class HostSpec:
    """A host to start. `mode`: exclusive or counted. Its CPUs are only numbers; this machine may have fewer."""

    name: str
    mode: str
    cpus: int
    domains: tuple[DomainSpec, ...]
    memory_mib: int = 4096
    limits: Mapping[str, float] = field(default_factory=dict)


EXCLUSIVE = HostSpec(
    "h1",
    "exclusive",
    2,
    (DomainSpec("n1", "normal", 2), DomainSpec("p1", "priority", 2), DomainSpec("p2", "priority", 2)),
)
COUNTED = HostSpec(
    "h2",
    "counted",
    4,
    (DomainSpec("n2", "normal", 2), DomainSpec("n3", "normal", 2), DomainSpec("p3", "priority", 4)),
)
ANOTHER = HostSpec("h3", "exclusive", 2, (DomainSpec("n4", "normal", 2), DomainSpec("p4", "priority", 2)))
BOTH = (EXCLUSIVE, COUNTED)

SHORT_LIMITS = {"min_run_s": 1.0, "young_s": 20.0, "claim_s": 30.0, "agent_silent_s": 10.0}
"""Time limits for demo and tests, where jobs last seconds. The defaults are made for jobs that last hours."""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value)  # strings, numbers and lists of them look the same in JSON and TOML


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """`{"host": {"name": "h1"}}` as TOML."""
    parts = [
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        for name, values in tables.items()
    ]
    return "\n".join(parts)


PATHS = {"run_dir": "run", "state_dir": "state", "scripts": "scripts"}
"""A node daemon's directories, relative to its host's directory."""


def noded_toml(host: HostSpec, directory: Path, hub: str, pid_files: Mapping[str, Path]) -> str:
    """Configuration of a host's node daemon that keeps all its files in `directory`. `hub`: the hub's endpoint."""
    domains = {
        f"domain.{d.name}": {"kind": d.kind, "cpus": d.cpus, "local.pid_file": str(pid_files[d.name])}
        for d in host.domains
    }
    return toml(
        {
            "host": {
                "name": host.name,
                "mode": host.mode,
                "cpus": host.cpus,
                "memory_mib": host.memory_mib,
                "reserve_mib": 0,
                "driver": "local",
            },
            "limits": {**SHORT_LIMITS, **host.limits, "allow_short_min_run": True},
            "hub": {"endpoints": [hub]},
            "paths": {name: str(directory / part) for name, part in PATHS.items()},
            **domains,
        }
    )


def agent_json(directory: Path, channel: Path) -> str:
    """Configuration of a domain's agent that keeps all its files in `directory`. The MoM hook reads the same file."""
    return json.dumps(
        {
            "socket": str(directory / "agent.sock"),
            "channel": f"unix:{channel}",
            "state": str(directory / "agent-state.json"),
            "scripts": str(directory / "scripts"),
        }
    )


def hook_json(heartbeat: Path) -> str:
    """Configuration of the server hook."""
    return json.dumps({"heartbeat": str(heartbeat), "heartbeat_max_age_s": 30})


def domains_of(hosts: Sequence[HostSpec]) -> list[tuple[HostSpec, DomainSpec]]:
    return [(host, domain) for host in hosts for domain in host.domains]
