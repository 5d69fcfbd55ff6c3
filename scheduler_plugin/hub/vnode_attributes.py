"""The attributes that PBS's vnodes should show, and how they differ from what they do show.

Rule 1: functions of what hosts reported and of what PBS has; no clock, no I/O.
Rule 2: the hub sets these attributes and no others. Of a vnode's state it sets only `offline`, only for a frozen
domain, with a comment that begins with OURS, and takes it off again. An admin's own `offline` stands.
Rule 3: if a host's lease runs out, its vnodes become `unknown` and accept nothing; all else stays as published.
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
"""No attribute of PBS: the comment with which the hub keeps a vnode offline; empty if it does not."""
OURS = "magrathea: "
"""How that comment begins, and no admin's."""
SOMEBODYS = "somebody's"
"""A vnode that somebody else has put offline: it is left so, and its comment, too."""

UNSET = ""

NONE = "none"
"""In a string_array: no element. PBS cannot hold an empty one."""

ALL_CLASSES = ",".join(JobClass)

COSMETIC = frozenset({STATE, RANK, PRIORITY, OFFLINE})
"""These alone decide no placement, so they come last when the budget is short."""

LOST = {STATE: State.UNKNOWN.value, ACCEPTS: NONE}
"""Of a managed vnode whose host is not heard."""

_ARRAYS = frozenset({ACCEPTS, SIBLINGS})
_RANKS = (-1024, 1023)  # limits of a vnode's Priority


@dataclass(frozen=True, slots=True)
class Published:
    """`wanted`: attributes by vnode, of vnodes that PBS has. `alerts`: what an admin should fix, a sentence each."""

    wanted: dict[str, Attributes]
    alerts: tuple[str, ...]


def owners(vnodes: Mapping[str, Vnode], hosts: Mapping[str, Snapshot], bindings: Bindings) -> dict[str, str]:
    """Which host each managed vnode belongs to: what PBS has on record, else the first (by name) that reports it.

    A record of another host than the one that a vnode is bound to is out of date.
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
    """The vnodes that a host speaks of and may own. Services have none in PBS."""
    for domain in snapshot.domains:
        if domain.kind is not Kind.SERVICE and bindings.permit(snapshot.host, domain.vnode):
            yield domain.vnode


def of_host(
    snapshot: Snapshot,
    live: bool,
    vnodes: Mapping[str, Vnode],
    owner: Mapping[str, str],
    bindings: Bindings,
    *,
    set_priority: bool = True,
) -> Published:
    """What the vnodes of one host should show."""
    wanted: dict[str, Attributes] = {}
    alerts = []
    workers = [domain for domain in snapshot.domains if domain.kind is not Kind.SERVICE]
    own = frozenset(d.vnode for d in workers if not _refusal(d, snapshot.host, vnodes, owner, bindings))
    for domain in workers:
        if why := _refusal(domain, snapshot.host, vnodes, owner, bindings):
            alerts.append(why)
        else:
            attributes = attributes_of(snapshot, domain, own, set_priority=set_priority)
            wanted[domain.vnode] = {**attributes, OFFLINE: offline_of(snapshot, domain)} if live else LOST
    return Published(wanted, tuple(alerts))


def of_nobody(
    vnodes: Mapping[str, Vnode],
    owner: Mapping[str, str],
    hosts: Mapping[str, Snapshot],
    bindings: Bindings,
    *,
    grace: bool,
) -> Published:
    """What the vnodes that no heard host reports should show.

    `grace`: the hub has just started, and a host that was not heard yet may still come.
    """
    seen = {v for name, host in hosts.items() for v in reported(host, bindings) if owner.get(v) == name}
    wanted: dict[str, Attributes] = {}
    alerts = []
    for name in vnodes:
        if name not in owner:
            wanted[name] = {ACCEPTS: ALL_CLASSES}
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
    """Why a host's domain is not published; empty if it is."""
    name = domain.vnode
    if not bindings.permit(host, name):
        return f"host {host} reports vnode {name}, for which it is not enrolled; ignored"
    if name not in vnodes:
        return f"host {host} reports vnode {name}, which PBS does not have; create it, or correct the host's file"
    if owner[name] != host:
        return f"host {host} reports vnode {name}, which belongs to host {owner[name]}; ignored"
    return ""


def attributes_of(
    snapshot: Snapshot, domain: DomainReport, own: frozenset[str], *, set_priority: bool = True
) -> Attributes:
    """All that is published of a domain whose host is heard. `own`: the vnodes that are the host's."""
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
        HOST_NCPUS: UNSET,  # which says to the runjob hook: exclusive
    }
    if set_priority:
        found[PRIORITY] = str(rank)
    if snapshot.mode is Mode.COUNTED:
        found[HOST_NCPUS] = str(max(0, snapshot.cpus - snapshot.services_cpus))
    return found


def offline_of(snapshot: Snapshot, domain: DomainReport) -> str:
    """Why its vnode is to be offline; empty if it is not. A frozen domain's MoM is silent, and PBS calls that down."""
    if domain.state is not State.FROZEN:
        return ""
    how = f"`magrathea domain defrost {one_line(domain.name, 100)}` on {snapshot.host} brings it back"
    return f"{OURS}{one_line(domain.why, 200)}; {how}"


def shown(vnode: Vnode) -> dict[str, str]:
    """What a vnode shows, `OFFLINE` among it."""
    comment = vnode.attributes.get("comment", "")
    mine = comment if comment.startswith(OURS) else SOMEBODYS
    return {**vnode.attributes, OFFLINE: mine if "offline" in vnode.state else ""}


def differences(wanted: Attributes, have: Attributes) -> dict[str, str]:
    """Those of `wanted` that a vnode does not show yet; values are compared by meaning (2gb is 2048mb)."""
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
    """An amount; None for what an admin has set, and is none."""
    try:
        return amount(text.strip())
    except ValueError:
        return None


def opens(changes: Attributes, have: Attributes) -> bool:
    """Whether a job may start after these changes that could not before: then the scheduler is to be woken."""
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
