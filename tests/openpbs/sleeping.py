"""A cluster on OpenPBS whose domains can be saved to disk with their jobs (sleeping_noded.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magrathea_lab import fleet
from magrathea_lab.cluster import JobView
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD, HOST, MachineProcess, PrivateOpenPbs
from magrathea_lab.fleet import DomainSpec, HostSpec
from magrathea_lab.rigs.guest_host import ask
from magrathea_lab.waiting import BOUND_S

from . import sleeping_noded

KEEPALIVE = "1,5,2,2,10000"
"""With these, PBS's daemons notice after 9 s that the other end has vanished; normally after 60 s. On, idle, interval,
probes, ms."""
ONE = HostSpec("h1", "exclusive", 4, (DomainSpec("n1", "normal", 4),))
TWO = HostSpec("h2", "exclusive", 2, (DomainSpec("n2", "normal", 2),))


class WatchfulOpenPbs(PrivateOpenPbs):
    def _habitat(self, name: str) -> None:
        super()._habitat(name)
        with (self.pbs_home(name) / "pbs_environment").open("a", encoding="ascii") as file:
            file.write(f"PBS_TCP_KEEPALIVE={KEEPALIVE}\n")


class SleepingCluster(OpenPbsCluster):
    def __init__(self) -> None:
        names = [domain.name for _, domain in fleet.domains_of((ONE, TWO))]
        super().__init__((ONE, TWO), pbs=WatchfulOpenPbs(names))

    def start_part(self, name: str) -> MachineProcess:
        kind, _, of = name.partition("-")
        if kind == "noded":
            machine = HOST
            argv = [sys.executable, "-m", sleeping_noded.__name__, "--config", f"{self.directory}/{of}/noded.toml"]
        elif kind == "agent":
            machine = of
            command = f"{sys.executable} -m node_daemon.agent --config /etc/magrathea/agent.json"
            argv = ["sh", "-c", f"{command}; exit $?"]  # no exec: see sleeping_noded.py
        else:
            return super().start_part(name)
        self.parts[name] = self.pbs.spawn(machine, name, argv, env=self.environment)
        return self.parts[name]

    def wait_free(self, hosts: Iterable[HostSpec] = ()) -> None:
        """Also until all agents are connected: a job that comes before is sent back for some seconds."""
        super().wait_free(hosts)
        for host, domain in fleet.domains_of(tuple(hosts) or self.hosts):
            self.pbs.wait(lambda h=host.name, d=domain.name: self.reported(h, d)["agent"], f"agent of {domain.name}")  # type: ignore[misc]

    def jobs(self) -> Mapping[str, JobView]:
        """Also the subjobs of arrays."""
        return {id: self._view(id, job) for id, job in self.pbs.jobs("-t").items()}

    def ask(self, host: str, **message: Any) -> dict[str, Any]:
        """Send an operation over the control socket of a host's node daemon; it must be granted."""
        answer = ask(self.directory / host / "run/control.sock", message)
        assert answer["ok"], answer
        return answer

    def host_of(self, domain: str) -> str:
        return next(host.name for host, spec in fleet.domains_of(self.hosts) if spec.name == domain)

    def freeze(self, domain: str, reason: str = "a new disk") -> None:
        """Ask for the domain's sleep, and wait until it is saved with its jobs."""
        self.ask(self.host_of(domain), op="domain", domain=domain, do="freeze", with_jobs=True, reason=reason)
        self.pbs.wait(lambda: self.is_saved(domain), f"{domain} sleeps")

    def defrost(self, domain: str) -> None:
        self.ask(self.host_of(domain), op="domain", domain=domain, do="defrost")

    def _marker(self, domain: str) -> Path:
        return sleeping_noded.marker(self.directory / "m" / domain / "pid")

    def is_saved(self, domain: str) -> bool:
        return self._marker(domain).exists()

    def lose_image(self, domain: str) -> None:
        """The machine's processes end, and nothing is left of it."""
        self.pbs.kill_machine(domain)
        self._marker(domain).unlink()

    def reported(self, host: str, domain: str) -> dict[str, Any]:
        """The domain as its host's daemon reports it."""
        domains = ask(self.directory / host / "run/control.sock", {"op": "status"})["domains"]
        return next(found for found in domains if found["name"] == domain)

    def command(self, *argv: str, user: str = "root") -> tuple[int, str]:
        """Run one of PBS's commands on the server's machine; its exit code and error message."""
        done = self.pbs.run(HEAD, argv, user=user, check=False, timeout=BOUND_S)
        return done.returncode, done.stderr.strip()

    def restore(self) -> None:
        """Wake all that sleeps before all else: a stopped MoM ends no job."""
        for name in self.pbs.moms:
            if self.is_saved(name):
                self.defrost(name)
        self.pbs.wait(lambda: not any(map(self.is_saved, self.pbs.moms)), "all machines are awake")
        super().restore()
