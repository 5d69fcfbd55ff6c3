"""Compares the installation with what it should be, and warns about site settings that conflict with Magrathea.

Rule 1: pure. An item is wrong exactly if `install.changes` would change something of it, or refuses because of it. So
`check` and `install` never disagree.
Rule 2: a warning is about the site's own settings; install never changes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from magrathea.pbs_text.words import is_true, words

from . import kept_resources
from .install import RESOURCES, SITE_HOOKS_LAST, changes, conflicts, targets
from .sched_config import InstallError
from .setup_model import InstallOptions, Present

OK, MISSING, DIFFERENT, WARNING = "ok", "missing", "different", "warning"
FIX = "magrathea pbs install"
LEAST_REQUEUE_S = 60
"""The rest of a domain's memory that is copied while it is paused takes some seconds for each GiB on a slow network."""


@dataclass(frozen=True, slots=True)
class Item:
    """`status`: one of the words above. `text`: what was found; empty for ok. `fix`: what to do."""

    name: str
    status: str
    text: str = ""
    fix: str = ""


def check(now: Present, options: InstallOptions, unfinished: str = "") -> list[Item]:
    """Every item, in the order of the installation, then the warnings. `unfinished`: see records.Record."""
    in_the_way = dict(conflicts(now, options))
    try:
        todo = changes(now, options)
    except InstallError:  # `conflicts` reports it item by item; compare the rest without the items that conflict
        todo = []
    again = "run it again as it was, or magrathea pbs uninstall"
    items = [Item("install", DIFFERENT, unfinished, again)] if unfinished else []
    for target in dict.fromkeys([*targets(now, options), *in_the_way]):
        mine = [change for change in todo if change.target == target]
        if target in in_the_way:
            items.append(Item(target, DIFFERENT, in_the_way[target], "fix that, then " + FIX))
        elif mine:
            status = MISSING if mine[0].missing else DIFFERENT
            gone = mine[0].qmgr.startswith("create queue ")
            fix = f"{FIX}; or, if it is not wanted any more, magrathea pbs uninstall --{target}"
            items.append(Item(target, status, "; ".join(change.text for change in mine), fix if gone else FIX))
        else:
            items.append(Item(target, OK))
    if in_the_way:  # nothing else could be compared
        items = [item for item in items if item.status != OK]
    return items + list(warnings(now, options))


def warnings(now: Present, options: InstallOptions) -> Iterator[Item]:
    """Settings of the site with which Magrathea works badly or not at all."""
    yield from _own_preemption(now)
    for name, sched in now.scheds.items():
        if sched.get("job_run_wait") == "execjob_hook":
            yield Item(
                f"sched {name}",
                WARNING,
                "job_run_wait = execjob_hook: the scheduler waits for each claim, and a claim may have to stop jobs",
                f"qmgr -c 'set sched {name} job_run_wait = runjob_hook'",
            )
        if name != "default":
            yield Item(
                f"sched {name}",
                WARNING,
                f"install does not change this scheduler's file in {sched.get('sched_priv', 'its sched_priv')}",
                f"add to its resources: line: {', '.join(RESOURCES)}",
            )
    yield from _many_vnodes(now, options)
    yield from (Item(kept_resources.TARGET, WARNING, *told) for told in kept_resources.warnings(now, options))
    yield from _orders(now)
    yield from _early_requeue(now)
    if not re.search(r"(?m)^[ \t]*node_sort_key[ \t]*:.*(sort_priority|magrathea_rank)", now.sched_config):
        yield Item(
            "sched_config",
            WARNING,
            "node_sort_key names neither sort_priority nor magrathea_rank: more jobs must be stopped",
            'put node_sort_key: "magrathea_rank HIGH" before the others, and HUP the scheduler',
        )
    for name in options.vnodes:
        if "Priority" in now.vnodes.get(name, {}) and name not in now.managed:
            yield Item(
                f"node {name}",
                WARNING,
                f"it has a Priority of the site's own ({now.vnodes[name]['Priority']}), which the hub would replace",
                "set_priority = false in [pbs] of hub.toml, and node_sort_key by magrathea_rank",
            )


def _own_preemption(now: Present) -> Iterator[Item]:
    """Warn if PBS's own preemption would suspend and resume jobs without Magrathea's knowledge."""
    for name, sched in now.scheds.items():
        threshold = int(sched.get("preempt_queue_prio", "150"))
        if "S" not in re.sub(r"[^SCRD]", "", sched.get("preempt_order", "")):
            continue
        for queue, have in now.queues.items():
            if have.get("Priority", "0").lstrip("-").isdigit() and int(have.get("Priority", "0")) >= threshold:
                yield Item(
                    f"queue {queue}",
                    WARNING,
                    f"its Priority {have['Priority']} is {threshold} or more, so PBS itself preempts for it, and"
                    f" preempt_order = {sched['preempt_order']} has S: PBS would suspend jobs without Magrathea",
                    f"qmgr -c 'set queue {queue} Priority = {threshold - 1}', or preempt_order without S",
                )
        levels = set(words(sched.get("preempt_prio", "")))
        if others := sorted(levels - {"express_queue", "normal_jobs"}):
            yield Item(
                f"sched {name}",
                WARNING,
                f"preempt_order = {sched['preempt_order']} has S, and preempt_prio has {', '.join(others)}: PBS itself"
                " would suspend jobs without Magrathea's knowledge",
                f"qmgr -c 'set sched {name} preempt_order = CR'",
            )


def _many_vnodes(now: Present, options: InstallOptions) -> Iterator[Item]:
    moms: dict[tuple[str, str], list[str]] = {}
    for name, have in now.vnodes.items():
        if "Mom" in have:
            moms.setdefault((have["Mom"], have.get("Port", "")), []).append(name)
    ours = {*options.vnodes, *now.managed}
    for (mom, _), names in moms.items():
        if len(names) > 1 and (ours & set(names) or not ours):
            yield Item(
                f"MoM {mom}",
                WARNING,
                f"it has {len(names)} vnodes ({', '.join(names[:4])}), so it cannot be managed",
                "one vnode for each MoM: remove its vnode definition file (pbs_mom -s), vnode_per_numa_node false",
            )


def _early_requeue(now: Present) -> Iterator[Item]:
    """Warn if PBS takes a domain's jobs away while it only stands still: at the end of a move, or after a restore."""
    text = now.server.get("node_fail_requeue", "").strip()
    if text.isdigit() and 0 < int(text) < LEAST_REQUEUE_S:
        yield Item(
            "server node_fail_requeue",
            WARNING,
            f"node_fail_requeue = {text}: a domain that moves to another host may stand still for longer, and PBS then "
            "requeues the jobs that run in it",
            "qmgr -c 'set server node_fail_requeue = 310', which is PBS's default",
        )


def _orders(now: Present) -> Iterator[Item]:
    """Warn about hooks that run after ours: if one refuses a job, our claim remains until it expires."""
    for name, have in {**now.hooks, **now.pbs_hooks}.items():
        if name.startswith("magrathea_") or not is_true(have.get("enabled", "False")):
            continue
        events = set(words(have.get("event", "")))
        order = int(have.get("order", "1"))
        if order >= int(SITE_HOOKS_LAST) and events & {"execjob_begin", "runjob"}:
            yield Item(
                f"hook {name}",
                WARNING,
                f"its order {order} is not before ours ({SITE_HOOKS_LAST}): jobs that it refuses have a claim already",
                f"qmgr -c 'set hook {name} order = {int(SITE_HOOKS_LAST) - 1}'",
            )
