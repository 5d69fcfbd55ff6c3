"""What a stopped job gives back in PBS's books, what it keeps, and what protects it from being stopped. Pure.

A stop gives back CPUs and memory. It gives back no licence and no other consumable of server or queue: the job's
processes still hold them. If `restrict_res_to_release_on_suspend` is unset, OpenPBS (23.06) gives all of a suspended
job's consumables to others, and checks nothing when the job is resumed: then two jobs have one licence (seen). If it is
set, only what it names is given back (`set_resc_assigned` in svr_func.c). So it must name ncpus and mem, because a
stopped job must not count on its vnode, and nothing that a stopped job keeps.

Rule 1: the attribute is the site's. It is set only if the administrator asks for it, and `restored` brings the old
value back, unless somebody has set another one since.
Rule 2: whoever has a `protecting` resource is no victim. PBS's server tells MoM so through the job's resource KEEPS,
because MoM does not see the resources of server and queue (hooks/magrathea_server.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from magrathea.pbs_text.words import words

from .setup_model import InstallOptions, Present, SetupChange

ATTRIBUTE = "restrict_res_to_release_on_suspend"
TARGET = f"server {ATTRIBUTE}"
ALWAYS_RELEASED = ("ncpus", "mem")

KEEPS = "magrathea_keeps"
KEEPS_TYPE, KEEPS_FLAG = "string", "rm"
"""r: users cannot set it; m: MoM sees it. It is no resource of vnodes, else PBS would let no runjob hook set it."""

BUILT_IN = frozenset({"naccelerators", "accelerator_memory", "vmem"})
"""Resources of PBS's own that `list resource` does not show, and that may be named, too."""

WHY = "a stopped job then keeps its licences and all else that a stop does not give back"
UNCHECKED = "PBS does not check at the resume whether they are still free, so that two jobs may have one"


def value(options: InstallOptions) -> str:
    """The attribute's right value."""
    return ",".join(dict.fromkeys([*ALWAYS_RELEASED, *options.released]))


def conflicts(now: Present, options: InstallOptions) -> Iterator[tuple[str, str]]:
    """Resources of the options that PBS does not have, or that are named for both."""
    for option, names in (("--release", options.released), ("--protect", options.protecting)):
        for name in names:
            if (name not in now.resources and name not in BUILT_IN) or name.startswith("magrathea"):
                fix = "create it first (qmgr: create resource), or take it out: magrathea pbs uninstall --resource"
                yield f"resource {name}", f"{option} {name}: the site has no such resource; {fix} {name}"
    for name in sorted(set(options.released) & set(options.protecting)):
        text = "either --release (a stopped job gives it back) or --protect (a job that has it is not stopped)"
        yield f"resource {name}", f"resource {name}: {text}, not both"
    have = now.resources.get(KEEPS) if options.protecting else None
    if have is not None and (have.get("type"), have.get("flag")) != (KEEPS_TYPE, KEEPS_FLAG):
        text = f"resource {KEEPS} exists with type {have.get('type')}, flag {have.get('flag', 'none')};"
        yield f"resource {KEEPS}", f"{text} {KEEPS_TYPE}, {KEEPS_FLAG} is needed: delete it (qmgr: delete resource)"


def targets(options: InstallOptions) -> list[str]:
    return [*([f"resource {KEEPS}"] if options.protecting else []), *([TARGET] if options.keep_consumables else [])]


def changes(now: Present, options: InstallOptions) -> list[SetupChange]:
    """The steps to the wanted state."""
    found = []
    if options.protecting and KEEPS not in now.resources:
        command = f"create resource {KEEPS} type={KEEPS_TYPE},flag={KEEPS_FLAG}"
        found.append(SetupChange(command, command, target=f"resource {KEEPS}", missing=True))
    have, wanted = now.server.get(ATTRIBUTE), value(options)
    if options.keep_consumables and set(words(have or "")) != set(words(wanted)):
        command = f'set server {ATTRIBUTE} = "{wanted}"'
        was = f" (was {have})" if have else ""
        found.append(SetupChange(f"{command}{was}: {WHY}", command, target=TARGET, missing=not have))
    return found


def restored(now: Present, before: str | None, ours: str) -> list[SetupChange]:
    """The step back to the value from before; none if we never set it, or somebody has set another value since."""
    have = now.server.get(ATTRIBUTE, "")
    if before is None or set(words(have)) != set(words(ours)) or set(words(have)) == set(words(before)):
        return []
    command = f'set server {ATTRIBUTE} = "{before}"' if before else f"unset server {ATTRIBUTE}"
    return [SetupChange(f"{command} (was {have})", command, target=TARGET)]


def consumables(now: Present) -> list[str]:
    """Custom consumables that are counted beyond one vnode: of the server, of a queue, or shared by vnodes."""
    at = [now.server, *now.queues.values()]
    found = []
    for name, resource in now.resources.items():
        counted = set(resource.get("flag", "")) & set("qnf") and not name.startswith("magrathea")
        available = f"resources_available.{name}"
        shared = any(vnode.get(available, "").startswith("@") for vnode in now.vnodes.values())
        if counted and (shared or any(available in attributes for attributes in at)):
            found.append(name)
    return found


def warnings(now: Present, options: InstallOptions) -> Iterator[tuple[str, str]]:
    """(sentence, fix) about what PBS gives away while a job is stopped."""
    have = words(now.server.get(ATTRIBUTE, ""))
    names = consumables(now)
    if not have:
        if names and not options.keep_consumables:
            yield (
                f"it is unset, so PBS gives {_listed(names)} of a stopped job to others, and {UNCHECKED}",
                f"magrathea pbs install --keep-consumables sets {ATTRIBUTE} = {value(options)}: {WHY}",
            )
        return
    if lacking := [name for name in ALWAYS_RELEASED if name not in have]:
        yield (
            f"it lacks {_listed(lacking)}, so stopped jobs still count with them: jobs are refused on counted hosts",
            f"qmgr -c 'set server {ATTRIBUTE} += \"{','.join(lacking)}\"'",
        )
    if given := [name for name in names if name in have and name not in options.released]:
        yield (
            f"it names {_listed(given)}, so PBS gives that of a stopped job to others, and {UNCHECKED}",
            f"qmgr -c 'set server {ATTRIBUTE} -= {given[0]}'; or confirm it, if a stop really gives it back:"
            f" magrathea pbs install --keep-consumables --release {given[0]}",
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
