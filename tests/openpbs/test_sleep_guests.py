"""A real guest with MoM, agent and a job in it is saved to disk for longer than `node_fail_requeue`, and comes back."""

from __future__ import annotations

import logging
import time

import libvirt

from magrathea_lab.clusters.guest_openpbs import Fleet
from magrathea_lab.scenarios.scenarios import require, wait, wait_domain, wait_state

from .test_guests import (
    FAIL_REQUEUE_S,
    MOVED_S,
    checks,
    ends_right,
    run_of,
    submit,
    wait_running,
    walltime_s,
)
from .test_guests import cluster as cluster
from .test_guests import fleet as fleet

__all__ = ["cluster", "fleet"]

log = logging.getLogger(__name__)

DAY_S = 86400


def is_running(fleet: Fleet, domain: str) -> bool:
    """False also while its image is read."""
    guest = fleet.guest(domain)
    return guest.up and guest.domain.info()[0] == libvirt.VIR_DOMAIN_RUNNING


def is_down(fleet: Fleet, domain: str) -> bool:
    return "down" in fleet.vnodes()[domain].state


def clock_error_s(fleet: Fleet, domain: str) -> float:
    return abs(float(fleet.guest(domain).sh("date +%s")) - time.time())


def lives_a_day_ago(fleet: Fleet, domain: str) -> None:
    """Set the guest's clock back by a day, as if a sleep that begins now took a day. MoM starts anew by that clock."""
    guest = fleet.guest(domain)
    guest.sh(f"date -s @$(($(date +%s) - {DAY_S}))")
    ended = {f"/proc/{pid}/comm" for pid in guest.kill("pbs_mom")}
    moms = "grep -ls pbs_mom /proc/[0-9]*/comm || true"
    wait(fleet, "MoM has started anew", lambda: set(guest.sh(moms).split()) - ended, MOVED_S)
    wait(fleet, f"{domain} is free", lambda: fleet.vnodes()[domain].state == {"free"}, MOVED_S)


def test_a_job_sleeps_in_its_guests_image_and_goes_on_in_the_same_run_although_the_clock_jumps_a_day(
    fleet: Fleet,
) -> None:
    lives_a_day_ago(fleet, "n1")
    fleet.pbs.qmgr(f"set server node_fail_requeue={FAIL_REQUEUE_S}")
    job = submit(fleet, "low", "n1", "-l", "walltime=600")
    wait_state(fleet, job, "R", MOVED_S)
    began = time.monotonic()
    wait_running(fleet, "n1", job)
    run = run_of(fleet, job)  # the first one may have been refused, because the agent had just connected
    fleet.ask("h1", op="domain", domain="n1", do="freeze", with_jobs=True, reason="a new disk")
    wait_state(fleet, job, "S", MOVED_S)
    suspended_at = time.monotonic()
    wait_domain(fleet, "n1", "asleep")
    wait(fleet, "PBS misses n1", lambda: is_down(fleet, "n1"))
    since = time.monotonic()
    wait(fleet, "node_fail_requeue is over", lambda: time.monotonic() > since + 2 * FAIL_REQUEUE_S)
    view = fleet.jobs()[job]
    require(fleet, view.state == "S" and view.comment.startswith("asleep on h1 in n1 "), f"{view} sleeps")
    require(fleet, not fleet.guest("n1").up, "n1 is in its image")

    fleet.ask("h1", op="domain", domain="n1", do="defrost")
    wait(fleet, "n1 is restored", lambda: is_running(fleet, "n1"), MOVED_S)
    restored_at = time.monotonic()
    wait(fleet, "PBS has its MoM again", lambda: not is_down(fleet, "n1"), MOVED_S)
    usable_s = time.monotonic() - restored_at
    ended = "n1: MoM connects to PBS again"
    wait(fleet, "its agent has ended MoM's connections", lambda: ended in fleet.log("noded-h1"), MOVED_S)
    wait_state(fleet, job, "R", MOVED_S)
    away_s = time.monotonic() - suspended_at
    wait(fleet, "its clock is set", lambda: clock_error_s(fleet, "n1") < DAY_S / 100, MOVED_S)
    checks(fleet, "n1", job, 2)
    ends_right(fleet, "n1", job, run=run)
    awake_s = time.monotonic() - began - away_s
    used_s = walltime_s(fleet, job)
    figures = usable_s, used_s, awake_s, away_s
    log.info("down for %.1f s after the restore; walltime %d s; %.1f s awake, %.1f s away", *figures)
    require(fleet, used_s <= awake_s + 3, f"walltime {used_s} s, but it was awake for {awake_s:.1f} s")
    wait_domain(fleet, "n1", "free")
