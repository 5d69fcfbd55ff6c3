"""Magrathea's hook for vnodes, server event periodic: makes the server forget suspended jobs in its database, too.

The server keeps in its database which jobs are admin-suspended on a vnode (`maintenance_jobs`), but never takes the
last one out (it saves an attribute only if it has a value). When it starts again, a vnode with a name there of a job
that it still knows, be it as history, is in maintenance for good. Only the server itself may set that attribute, and
what a periodic hook sets counts as set by it. So for each vnode that the hub asks for, in two runs:

  first   the attribute gets a name that is no job's, which goes to the database and is dropped at the next start
  second  it is emptied, which stays in memory: only so the state `maintenance` ends with the next job's resume

The hub says in which of these a vnode may be in maintenance ("free": in neither; "ours": all that is suspended there
is the hub's own, then in the second; "stuck": nothing is suspended there, then in both).

Files beside the hub's heartbeat: `.forget` is the hub's, `.forgotten` this hook's answer; both JSON by vnode.
The server's own Python runs this as root, in a process of its own; 3.6 or later; standard library only.
"""

import json
import os

import pbs

NOBODY = "none"  # no job's id: those have a number and a dot
MAX_BYTES = 4 * 1024 * 1024
IN_MAINTENANCE = 0x20000  # INUSE_MAINTENANCE of pbs_nodes.h; older releases do not name it in this module
NAMED, EMPTIED = 1, 2


def load(path):
    """A file's JSON; {} where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def save(path, content):
    """The folder is the hub's: whatever lies there under these names is replaced, never followed."""
    new = path + ".new"
    if os.path.lexists(new):
        os.unlink(new)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
        json.dump(content, file)
    os.rename(new, path)


def is_ours(vnode):
    try:
        return str(vnode.resources_available["magrathea_siblings"]) not in ("", "None")
    except (KeyError, AttributeError, pbs.UnsetResourceNameError):
        return False


def empty(vnode):
    """Set to nothing. PBS's module notes it for the server, and then complains that it has no text to show."""
    try:
        vnode.maintenance_jobs = ""
    except AssertionError:
        pbs.logmsg(pbs.EVENT_DEBUG3, "magrathea: maintenance_jobs of %s is emptied" % vnode.name)


def step(vnode, number, when, before):
    """What is done of the hub's request after this run: [its number, phase]. `before`: the same of the run before."""
    maintenance = int(vnode.state or 0) & IN_MAINTENANCE
    if before == [number, EMPTIED]:
        return before
    if before == [number, NAMED]:
        if maintenance and when == "free":
            return before
        empty(vnode)
        return [number, EMPTIED]
    if maintenance and when != "stuck":
        return None
    vnode.maintenance_jobs = NOBODY
    return [number, NAMED]


def main():
    event = pbs.event()
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        heartbeat = json.load(file)["heartbeat"]
    asked, before = load(heartbeat + ".forget"), load(heartbeat + ".forgotten")
    for name, (number, phase) in before.items():
        if phase == NAMED and asked.get(name, [0])[0] != number:
            # a former hub's request, which would leave the vnode in maintenance if it stayed half done: first that
            asked[name] = [number, asked[name][1] if name in asked else "free"]
    now = {}
    for name, (number, when) in asked.items():
        vnode = event.vnode_list.get(name)
        if vnode is None or not is_ours(vnode):
            continue
        after = step(vnode, int(number), str(when), before.get(name))
        if after is not None:
            now[name] = after
    if now != before:
        save(heartbeat + ".forgotten", now)
    # Said aloud: this process has inherited the answer of the server's last event. Were that a rejection, it would
    # write to the database over the server's own connection, and the server would wait for its answer for ever.
    event.accept()


main()
