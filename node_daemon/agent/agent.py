"""The agent: all parts together."""

import os

from .cgroups import Cgroups
from .channel import Channel
from .configuration import Config
from .daemon_requests import DaemonRequests
from .ends import Ends
from .finder import Finder
from .log import log
from .loop import Loop
from .machine import Machine
from .mom_connections import MomConnections
from .mom_requests import MomRequests
from .mom_server import MomServer
from .pager import Pager
from .reports import REPORT_S, Reports
from .scripts import Scripts
from .signals import Signaller
from .state_file import StateFile
from .sweeper import Sweeper
from .table import Table
from .transports import PortTransport, UnixTransport
from .values import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Optional

    from .jobs import Job
    from .values import Key


class Agent:
    """All parts together."""

    def __init__(self, config: Config, loop: "Optional[Loop]" = None) -> None:
        self.config = config
        self.loop = loop or Loop()
        self.jobs: "Dict[Key, Job]" = {}
        self.signaller = Signaller()
        cgroups = Cgroups(config.job_cgroups)
        self.finder = Finder(cgroups, config.environment)
        self.sweeper = Sweeper(self.loop, self.jobs, self.finder, self.signaller)
        self.table = Table(self.jobs, self.sweeper, StateFile(config.state))
        self.scripts = Scripts(self.loop, config.scripts, config.script_time_limit_s)
        self.pager = Pager(self.loop, cgroups)
        is_guest = config.channel_kind == "port"
        self.machine = Machine(self.loop, is_guest, config.power_off)
        self.mom_connections = MomConnections(self.loop, is_guest)
        daemon = DaemonRequests(self.jobs, self.sweeper, self.pager, self.scripts, self.machine, self.mom_connections)
        transport = UnixTransport if config.channel_kind == "unix" else PortTransport
        self.channel = Channel(self.loop, transport(config.channel_path), self.can(), daemon.serve)
        self.reports = Reports(self.loop, self.channel, self.table, self.sweeper)
        self.ends = Ends(self.loop, self.jobs, self.sweeper, self.ended)
        mom = MomRequests(self.loop, self.channel, self.table, self.sweeper, self.reports, self.ends)
        self.mom = MomServer(self.loop, config.socket, mom.serve, self.finder.spare)
        self.sweeper.on_seen = self.reports.tell_launched
        self.sweeper.on_done = self.table.save
        self.sweeper.on_looked = self.ends.looked
        self.channel.on_ready = self.reports.greeted

    def can(self) -> "List[str]":
        words = ["long-warnings"] + (["pidfd"] if self.signaller.pidfd else [])
        if os.geteuid() == 0:
            words += ["all-users", "cgroup-freezer"]
        return words + self.pager.can() + self.machine.can() + self.mom_connections.can()

    def ended(self, job: "Job") -> None:
        """A job is over."""
        self.table.end(job)
        self.table.save()
        self.reports.tell_release(job.key)

    def start(self) -> None:
        """Raises Unusable."""
        try:
            os.makedirs(os.path.dirname(self.config.state), mode=0o755, exist_ok=True)
        except OSError as error:
            raise Unusable("%s: its directory cannot be created: %s" % (self.config.state, error.strerror)) from error
        self.mom.open()
        self.table.load()
        self.sweeper.resume_standing()
        self.channel.connect()
        self.loop.after(REPORT_S, self.reports.report_again)

    def stop(self) -> None:
        """End. Stopped jobs stay stopped: the daemon decides about them."""
        self.table.save()
        self.pager.stop()
        self.mom.close()
        self.channel.shut()
        standing = sum(job.order == "stop" for job in self.jobs.values())
        log.info("ending%s" % (", %d stopped jobs stay stopped" % standing if standing else ""))
