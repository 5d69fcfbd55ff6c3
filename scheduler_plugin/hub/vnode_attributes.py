"""The attributes that PBS's vnodes should show, and how they differ from what they do show.

Rule 1: functions of what hosts reported and of what PBS has; no clock, no I/O.
Rule 2: the hub sets these attributes and no others. Of a vnode's state it sets only `offline`, only for a frozen or
sleeping domain, with a comment that begins with OURS, and later clears it. An admin's own `offline` stays.
Rule 3: if a host's lease runs out, its vnodes become `unknown` and accept nothing; everything else stays as published.
A domain that slept then is still `asleep`: nothing but its host can have woken it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from magrathea.core.model import JobClass, Kind, Mode, State
from magrathea.messages import DomainReport, Snapshot
from magrathea.pbs_text.amounts import size_bytes, whole_number
from magrathea.pbs_text.words import words
from magrathea.text import one_line
from scheduler_plugin.pbs.base import Attributes, Vnode

from .bindings import Bindings
from .ownership import Ledger
from .sleepers import Sleeper
from .transfers import Transfers

STATE = "resources_available.magrathea"
ACCEPTS = "resources_available.magrathea_accepts"
RANK = "resources_available.magrathea_rank"
HOST = "resources_available.magrathea_host"
SIBLINGS = "resources_available.magrathea_siblings"
HOST_NCPUS = "resources_available.magrathea_host_ncpus"
NCPUS = "resources_available.ncpus"
MEM = "resources_available.mem"
PRIORITY = "Priority"

OFFLINE = "offline"
"""Not a PBS attribute: the hub's comment on a vnode that it keeps offline; empty for others."""
OURS = "magrathea: "
"""Prefix of that comment. It tells the hub's `offline` from an admin's."""
SOMEBODYS = "somebody's"
"""Stands for an `offline` that somebody else has set. The hub leaves it and its comment alone."""

UNSET = ""

NONE = "none"
"""Stands for an empty string_array, which PBS cannot hold."""

ALL_CLASSES = ",".join(JobClass)

COSMETIC = frozenset({STATE, RANK, PRIORITY, OFFLINE})
"""These attributes alone decide no placement, so they are published last if the budget is short."""

LOST = {STATE: State.UNKNOWN.value, ACCEPTS: NONE}
"""What a managed vnode shows while its host is silent."""

ON_ITS_WAY = {ACCEPTS: NONE}
"""What a vnode is set to while its domain moves and no host reports it. All else stays as published."""
NO_TRANSFERS = Transfers(Ledger(), {})

_ARRAYS = frozenset({ACCEPTS, SIBLINGS})
_RANKS = (-1024, 1023)  # limits of a vnode's Priority


@dataclass(frozen=True, slots=True)
class Published:
    """`wanted`: attributes by vnode, for vnodes that PBS has. `alerts`: what an admin should fix, a sentence each."""

    wanted: dict[str, Attributes]
    alerts: tuple[str, ...]


def owners(vnodes: Mapping[str, Vnode], hosts: Mapping[str, Snapshot], bindings: Bindings) -> dict[str, str]:
    """The host of each managed vnode: the one that PBS has on record, otherwise the first (by name) that reports it.

    If PBS has another host on record than the one that the vnode is bound to, the record is out of date.
    """
    on_record = ((name, vnode.attributes.get(HOST, "")) for name, vnode in vnodes.items())
    found = {
        name: host if bindings.permit(host, name) else bindings.bound(name) or host for name, host in on_record if host
    }
    for host in sorted(hosts):
        for name in reported(hosts[host], bindings):
            found.setdefault(name, host)
    return found


def reported(snapshot: Snapshot, bindings: Bindings) -> Iterator[str]:
    """The vnodes that a host reports and may own. Services have no vnode in PBS."""
    for domain in snapshot.domains:
        if domain.kind is not Kind.SERVICE and bindings.permit(snapshot.host, domain.vnode):
            yield domain.vnode


def of_host(
    snapshot: Snapshot,
    live: bool,
    vnodes: Mapping[str, Vnode],
    owner: Mapping[str, str],
    bindings: Bindings,
    transfers: Transfers = NO_TRANSFERS,
    *,
    set_priority: bool = True,
) -> Published:
    """What the vnodes of one host should show."""
    wanted: dict[str, Attributes] = {}
    alerts = []
    workers = [domain for domain in snapshot.domains if domain.kind is not Kind.SERVICE]
    host = snapshot.host
    own = frozenset(d.vnode for d in workers if not _refusal(d, host, vnodes, owner, bindings))
    own |= transfers.siblings(host) & vnodes.keys()
    for domain in workers:
        if why := _refusal(domain, host, vnodes, owner, bindings):
            if not transfers.expects(host, domain.vnode):  # it comes, and the hub has not been told that it is there
                alerts.append(why)
        elif not live:
            wanted[domain.vnode] = LOST
        elif not transfers.has_left(host, domain.vnode):
            attributes = attributes_of(snapshot, domain, own, set_priority=set_priority)
            wanted[domain.vnode] = {**attributes, OFFLINE: offline_of(snapshot, domain)}
    for name in transfers.of(host):
        if owner.get(name) == host and name in vnodes:
            wanted[name] = {**wanted.get(name, {}), **ON_ITS_WAY}
    return Published(wanted, tuple(alerts))


def of_nobody(
    vnodes: Mapping[str, Vnode],
    owner: Mapping[str, str],
    hosts: Mapping[str, Snapshot],
    bindings: Bindings,
    transfers: Transfers = NO_TRANSFERS,
    *,
    grace: bool,
) -> Published:
    """What vnodes should show if no host that is heard reports them.

    `grace`: the hub has just started, and silent hosts may still report.
    """
    seen = {v for name, host in hosts.items() for v in reported(host, bindings) if owner.get(v) == name}
    wanted: dict[str, Attributes] = {}
    alerts = []
    for name in vnodes:
        if name not in owner:
            wanted[name] = {ACCEPTS: ALL_CLASSES, OFFLINE: ""}  # it may have been given up while its domain slept
        elif owner[name] in hosts and name not in seen and name in transfers:
            wanted[name] = ON_ITS_WAY
        elif owner[name] in hosts and name not in seen:
            wanted[name] = LOST
            alerts.append(
                f"vnode {name} belongs to host {owner[name]}, which does not report it; to give it up: "
                f"qmgr -c 'unset node {name} {HOST}'"
            )
        elif owner[name] not in hosts and not grace:
            wanted[name] = LOST
    return Published(wanted, tuple(alerts))


def _refusal(
    domain: DomainReport,
    host: str,
    vnodes: Mapping[str, Vnode],
    owner: Mapping[str, str],
    bindings: Bindings,
) -> str:
    """Why the hub does not publish this domain of a host; empty if it does."""
    name = domain.vnode
    if not bindings.permit(host, name):
        return f"host {host} reports vnode {name}, for which it is not enrolled; ignored"
    if name not in vnodes:
        return f"host {host} reports vnode {name}, which PBS does not have; create it, or correct the host's file"
    if name not in owner:
        return f"host {host} reports vnode {name}, which was given up while the host was silent; not taken back yet"
    if owner[name] != host:
        return f"host {host} reports vnode {name}, which belongs to host {owner[name]}; ignored"
    return ""


def attributes_of(
    snapshot: Snapshot, domain: DomainReport, own: frozenset[str], *, set_priority: bool = True
) -> Attributes:
    """All attributes published for a domain while its host is heard. `own`: the host's vnodes."""
    rank = max(_RANKS[0], min(_RANKS[1], domain.rank))
    siblings = own - {domain.vnode}
    found = {
        STATE: domain.state.value,
        ACCEPTS: ",".join(cls.value for cls in domain.accepts) or NONE,
        RANK: str(domain.rank),
        NCPUS: str(domain.ncpus),
        MEM: f"{domain.mem_mib}mb",
        HOST: snapshot.host,
        SIBLINGS: ",".join(sorted(siblings)) or NONE,
        HOST_NCPUS: UNSET,  # unset tells the runjob hook that the host is exclusive
    }
    if set_priority:
        found[PRIORITY] = str(rank)
    if snapshot.mode is Mode.COUNTED:
        found[HOST_NCPUS] = str(max(0, snapshot.cpus - snapshot.services_cpus))
    return found


def offline_of(snapshot: Snapshot, domain: DomainReport) -> str:
    """Why the vnode must be offline; empty if it need not. Without it PBS would call a frozen domain's vnode down."""
    if domain.state is not State.FROZEN:
        return ""
    how = f"`magrathea domain defrost {one_line(domain.name, 100)}` on {snapshot.host} brings it back"
    return f"{OURS}{one_line(domain.why, 200)}; {how}"


def of_sleeper(wanted: Attributes, sleeper: Sleeper) -> Attributes:
    """What the vnode of a sleeping domain shows. `wanted`: what it would show otherwise."""
    offline = f"{OURS}{sleeper.sentence}; {sleeper.return_}"
    state = State.ASLEEP.value if wanted in (LOST, ON_ITS_WAY) else wanted[STATE]
    return {**wanted, STATE: state, OFFLINE: offline}


def shown(vnode: Vnode) -> dict[str, str]:
    """What a vnode shows, including `OFFLINE`."""
    comment = vnode.attributes.get("comment", "")
    mine = comment if comment.startswith(OURS) else SOMEBODYS
    return {**vnode.attributes, OFFLINE: mine if "offline" in vnode.state else ""}


def differences(wanted: Attributes, have: Attributes) -> dict[str, str]:
    """The part of `wanted` that a vnode does not show yet. Values are compared by meaning (2gb is 2048mb)."""
    return {name: value for name, value in wanted.items() if not same(name, value, have.get(name))}


def same(attribute: str, wanted: str, have: str | None) -> bool:
    if attribute == OFFLINE:
        return have in (wanted, SOMEBODYS)
    if not have:  # PBS does not show a Priority of 0
        return wanted == UNSET or (attribute == PRIORITY and wanted == "0")
    if attribute in _ARRAYS:
        return set(words(wanted)) == set(words(have))
    if attribute == MEM:
        return _read(size_bytes, wanted) == _read(size_bytes, have)
    return wanted.strip() == have.strip()


def _read(amount: Callable[[str], int], text: str) -> int | None:
    """The amount; None if the text is not one (an admin may have set anything)."""
    try:
        return amount(text.strip())
    except ValueError:
        return None


def opens(changes: Attributes, have: Attributes) -> bool:
    """True if a job may start after these changes that could not start before. Then the scheduler should be woken."""
    accepted = set(words(have.get(ACCEPTS, "")))
    after = set(words(changes[ACCEPTS])) if ACCEPTS in changes else accepted
    if (after - accepted) - {NONE}:
        return True
    if not after - {NONE}:
        return False
    return any(_grows(name, changes[name], have.get(name, "")) for name in (NCPUS, MEM) if name in changes)


def _grows(attribute: str, after: str, before: str) -> bool:
    amount = size_bytes if attribute == MEM else whole_number
    new, old = _read(amount, after), _read(amount, before)
    return new is not None and (old is None or new > old)
