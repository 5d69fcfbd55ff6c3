"""What a decision of the core leads to beside the facts: a line in the log, and the site's own scripts."""

from __future__ import annotations

import logging
from typing import Protocol, assert_never

from magrathea.core import events as ev
from magrathea.core.model import Host, JobKey
from magrathea.core.plan import Order, Orders, Step
from magrathea.logs import RationedLog

from .life.site_scripts import SiteScripts
from .switch.switch import Switch

log = logging.getLogger(__name__)
limited_log = RationedLog(log, burst=100, period_s=1.0)
"""Limited per domain: guests decide how often something about them is decided."""


class DaemonForDecisions(Protocol):
    """What this needs of the daemon."""

    switch: Switch
    site_scripts: SiteScripts

    @property
    def host(self) -> Host: ...


class Decided:
    """`preempted_by`: what each stopped job was preempted for."""

    def __init__(self, daemon: DaemonForDecisions, preempted_by: dict[tuple[str, JobKey], str]) -> None:
        self.preempted_by = preempted_by
        self._daemon = daemon

    def take(self, decision: ev.Decision) -> None:
        """Log the decision, and run the site's scripts that belong to it."""
        match decision:
            case ev.Accepted(domain=domain, key=key):
                victims = f", preempting {', '.join(decision.victims)}" if decision.victims else ""
                text = f"{domain}: {key or 'request'} accepted{victims}"
            case ev.Refused(domain=domain, key=key):
                text = f"{domain}: {key or ''} refused ({decision.code}): {decision.text}"
            case ev.Noted(domain=domain, key=key):
                text = f"{domain}: {key or ''} {decision.what} {decision.text}"
            case _:
                assert_never(decision)
        limited_log.say(domain, text, level=logging.INFO)
        if isinstance(decision, ev.Noted) and decision.key is not None:
            self._noted_of_job(decision, domain, decision.key)

    def _noted_of_job(self, note: ev.Noted, domain: str, key: JobKey) -> None:
        if note.what is ev.Note.PREEMPTED:
            self.preempted_by[domain, key] = note.text
            self._run_scripts("before-preempt", domain, key)
            return
        if note.what is ev.Note.CONTINUED:
            self._run_scripts("after-activate", domain, key)
        found = self._daemon.host.domain(domain)
        if note.what is ev.Note.CONTINUED or found is None or found.job(key) is None:
            self.preempted_by.pop((domain, key), None)
            self._daemon.switch.forget(domain, key)

    # Beside a switch

    def step_begins(self, step: Step) -> None:
        if isinstance(step, Orders) and step.order is not Order.STOP:
            for key in step.keys:
                self._run_scripts("before-activate", step.domain, key)

    def step_done(self, step: Step) -> None:
        if isinstance(step, Orders) and step.order is Order.STOP:
            for key in step.keys:
                self._run_scripts("after-preempt", step.domain, key)

    def _run_scripts(self, name: str, domain: str, key: JobKey) -> None:
        by = self.preempted_by.get((domain, key), "")
        self._daemon.site_scripts.begin(name, domain, job=key.id, run=str(key.run), by=by)
