"""What a domain is doing, for whoever takes domains away in some order: a reboot and an evacuation have one each."""

from __future__ import annotations

from enum import StrEnum

from .model import Domain, JobClass, Kind


class Occupation(StrEnum):
    """`PREEMPTED`: it has jobs, and none runs. `PREEMPTIBLE`, `PROTECTED`: of a normal domain, whether all its running
    jobs are preemptible."""

    SERVICE = "service"
    IDLE = "idle"
    PREEMPTED = "preempted"
    PRIORITY = "priority"
    PREEMPTIBLE = "preemptible"
    PROTECTED = "protected"


def occupation(domain: Domain) -> Occupation:
    if domain.kind is Kind.SERVICE:
        return Occupation.SERVICE
    if not domain.jobs:
        return Occupation.IDLE
    if not domain.running:
        return Occupation.PREEMPTED
    if domain.kind is Kind.PRIORITY:
        return Occupation.PRIORITY
    preemptible = all(job.cls is JobClass.PREEMPTIBLE for job in domain.running)
    return Occupation.PREEMPTIBLE if preemptible else Occupation.PROTECTED
