"""How far each domain of an evacuation is, by the facts, and what becomes of it when the host is taken back; in words
for people."""

from __future__ import annotations

from magrathea.core import migration
from magrathea.core.evacuation import DecidedFate, Fate
from magrathea.core.model import Domain, Kind, Lifecycle, SleepCause
from magrathea.core.sleeping import why_awake
from magrathea.evacuation_reports import EvacuationStage, LeaverReport

from .needs import DaemonForEvacuation
from .records import EvacuationRecord, Leaver

WAITING, GOING, OVER = EvacuationStage.WAITING, EvacuationStage.GOING, EvacuationStage.OVER


def drain_reason(record: EvacuationRecord) -> str:
    """The reason of the drains and sleeps of this evacuation. By it they are known when the host is taken back."""
    return f"its host is evacuated: {record.reason}"


def planned(daemon: DaemonForEvacuation, decided: DecidedFate) -> LeaverReport:
    """What would become of a domain."""
    leaver = Leaver(domain=decided.domain, fate=decided.fate, to=decided.to, why=decided.why[:4096])
    return _reported(daemon, leaver, WAITING, "")


def report(daemon: DaemonForEvacuation, leaver: Leaver, waits: str) -> LeaverReport:
    """`waits`: why the turn of the domain has not come."""
    stage, text = _stage(daemon, leaver)
    return _reported(daemon, leaver, stage, f"{text}; {waits}" if waits and stage is WAITING else text)


def _reported(daemon: DaemonForEvacuation, leaver: Leaver, stage: EvacuationStage, text: str) -> LeaverReport:
    domain, read = daemon.host.domain(leaver.domain), daemon.switch.readings.of(leaver.domain)
    mib = (read.memory_mib if read is not None and read.up else None) or (domain.memory_mib if domain else 0)
    return LeaverReport(
        name=leaver.domain,
        fate=leaver.fate,
        stage=stage,
        to=leaver.to,
        why=leaver.why,
        text=text[:4096],
        mib=mib,
        jobs=len(domain.jobs) if domain else 0,
        up=read is not None and read.up,
    )


def _stage(daemon: DaemonForEvacuation, leaver: Leaver) -> tuple[EvacuationStage, str]:
    place, name = daemon.place, leaver.domain
    domain = place.host.domain(name)
    if (leaving := place.moves.leaving_of(name)) is not None:
        travel = daemon.move_requests.travels().get(name)
        return GOING, travel.text if travel is not None else f"on its way to {leaving.to}"
    if domain is None:
        host = owner(daemon, name)
        return OVER, f"it is at {host}" if host else "it is not here any more"
    if domain.kind is Kind.SERVICE:
        return _service(daemon, leaver)
    if migration.refusal(place, name) is not None:
        return GOING, "it is just arriving"
    if domain.asleep or domain.frozen:
        return OVER, "it sleeps on disk"
    if domain.lifecycle is Lifecycle.DOWN:
        return OVER, "it is down"
    if domain.sleep is not None:
        return GOING, why_awake(place.host, domain) or "it is being saved"
    return _awake(leaver, domain)


def _awake(leaver: Leaver, domain: Domain) -> tuple[EvacuationStage, str]:
    if domain.lifecycle is Lifecycle.BOOTING:
        return WAITING, "it boots"
    if leaver.fate is Fate.MOVE:
        return WAITING, f"waits for its turn to move to {leaver.to}"
    if leaver.fate is Fate.SLEEP:
        return WAITING, "waits for its turn to be put to sleep"
    if leaver.fate is Fate.LEAVE:
        return WAITING, "it has come up; it is decided anew what becomes of it"
    jobs = ", ".join(job.key.id for job in domain.jobs)
    return (GOING, f"it finishes {jobs}") if jobs else (OVER, "it has no jobs, and takes none")


def _service(daemon: DaemonForEvacuation, leaver: Leaver) -> tuple[EvacuationStage, str]:
    read = daemon.switch.readings.of(leaver.domain)
    if leaver.fate is not Fate.SLEEP:
        return OVER, leaver.why
    if read is not None and not read.up and read.saved:
        return OVER, "it sleeps on disk"
    if read is None or not read.up:
        return OVER, "it is down"
    return WAITING, "is saved after all others"


def owner(daemon: DaemonForEvacuation, name: str) -> str:
    """The other host that has the domain, by the hub's books; empty if none."""
    record = daemon.place.moves.record(name)
    return record.owner if record is not None and record.owner != daemon.place.name else ""


def farewell(daemon: DaemonForEvacuation, record: EvacuationRecord, leaver: Leaver) -> str:
    """What becomes of the domain when the host is taken back."""
    name, here = leaver.domain, daemon.host.name
    host, domain = owner(daemon, name), daemon.host.domain(name)
    if daemon.place.moves.leaving_of(name) is not None:
        return f"{name} is called back, if it has not left yet"
    if domain is None and host:
        if name in daemon.configuration.domain:
            return f"{name} is at {host} and stays there; to bring it back, on {host}: {migrate(name, here)}"
        return f"{name}, which was a visitor here, is at {host}; its home is elsewhere, so it does not come back"
    if domain is None:
        return f"{name} is not here any more"
    if domain.kind is Kind.SERVICE:
        return f"{name} is brought back" if leaver.fate is Fate.SLEEP else f"{name} was left as it is"
    if domain.away or domain.falls_asleep:
        mine = domain.sleep is not None and domain.sleep.cause is SleepCause.EVACUATION
        return f"{name} is brought back" if mine else f"{name} sleeps on: the evacuation has not put it to sleep"
    if domain.draining and domain.draining != drain_reason(record):
        return f"{name} drains on ({domain.draining}); `magrathea undrain {name}` ends that"
    return f"{name} takes jobs again" if domain.lifecycle is not Lifecycle.DOWN else f"{name} is down"


def migrate(name: str, to: str) -> str:
    return f"`magrathea domain migrate {name} --to {to}`"
