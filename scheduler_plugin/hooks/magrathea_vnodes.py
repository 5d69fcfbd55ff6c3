"""Magrathea's hook for vnodes, server event periodic: removes suspended jobs from the server's database when they end.

The server stores in its database which jobs are admin-suspended on a vnode (`maintenance_jobs`). It never removes
the last one, because it saves an attribute only if it has a value. After a restart of the server the vnode then stays
in maintenance for good, if the server still knows a job with that name, even as history. Only the server itself may set
that attribute, and what a periodic hook sets counts as set by it. So for each vnode that the hub asks for, in two runs:

  first   set the attribute to a name that no job has; it is saved, and dropped at the server's next start
  second  empty the attribute in memory: otherwise the state `maintenance` would not end with the next job's resume

The hub's request names the runs in which the vnode may be in maintenance:
  "free"   in neither
  "ours"   in the second: every job suspended there is the hub's own
  "stuck"  in both: no job is suspended there

Files beside the hub's heartbeat: the hub writes `.forget`, this hook answers in `.forgotten`; both are JSON by vnode.
The server's own Python runs this as root, in a process of its own; 3.6 or later; standard library only.
"""

import json
import os
import stat

import pbs

NOBODY = "none"  # never a job's id: those have a number and a dot
MAX_BYTES = 4 * 1024 * 1024
IN_MAINTENANCE = 0x20000  # INUSE_MAINTENANCE of pbs_nodes.h; older releases do not have it in this module
NAMED, EMPTIED = 1, 2


def load(path):
    """What can be read of a file: by vnode, a whole number and one thing more. {} if there is no such file.

    The folder is the hub's. Whatever lies there under this name, a link or a pipe too, costs only what it holds.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            found = json.loads(file.read(MAX_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        pbs.logmsg(pbs.EVENT_ERROR, "magrathea: %s cannot be read: %s" % (path, error))
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, list) and len(row) == 2 and type(row[0]) is int}


def save(path, content):
    """Write the file. The folder is the hub's, so any file or link of that name is replaced, never followed."""
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
    """Set the attribute to nothing. PBS's module records that for the server, and then raises because it has no
    text."""
    try:
        vnode.maintenance_jobs = ""
    except AssertionError:
        pbs.logmsg(pbs.EVENT_DEBUG3, "magrathea: maintenance_jobs of %s is emptied" % vnode.name)


def step(vnode, number, when, before):
    """[number of the hub's request, phase] after this run. `before`: the same after the previous run."""
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


def work(event):
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        heartbeat = json.load(file)["heartbeat"]
    asked, before = load(heartbeat + ".forget"), load(heartbeat + ".forgotten")
    for name, (number, phase) in before.items():
        if phase == NAMED and asked.get(name, [0])[0] != number:
            # a former hub's request, half done, would leave the vnode in maintenance: finish it first
            asked[name] = [number, asked[name][1] if name in asked else "free"]
    now = {}
    for name, (number, when) in asked.items():
        vnode = event.vnode_list.get(name)
        if vnode is None or not is_ours(vnode):
            continue
        after = step(vnode, number, str(when), before.get(name))
        if after is not None:
            now[name] = after
    if now != before:
        save(heartbeat + ".forgotten", now)


def main():
    event = pbs.event()
    try:
        work(event)
    except Exception as error:  # noqa: BLE001
        pbs.logmsg(pbs.EVENT_ERROR, "magrathea: hook magrathea_vnodes failed: %r" % error)
    # Accept explicitly, also after an error: this process has inherited the outcome of the server's last event. If that
    # was a rejection, PBS would write to the database over the server's own connection, and the server would wait for
    # the answer for ever.
    event.accept()


main()
