"""Magrathea's hook for the server. Event runjob: refuses jobs that may not start although the published states allow
it. Events queuejob, modifyjob, movejob: refuses a select that names a class, or that can be read in two ways.

*runjob.* The scheduler decides by what the hub has published; between two publications jobs start and end. So this hook
checks the jobs that the server itself has now on the chosen vnodes and on their siblings (the other domains of the same
host). It is the only place outside the core that repeats a rule:

  exclusive host  refuse if a sibling has a job, unless this job is of class priority and all of the sibling's jobs are
                  preemptible; also refuse chunks in two domains of the host
  counted host    refuse if the CPUs of this job and of the host's jobs (for a priority job: only jobs that are not
                  preemptible) exceed the host's
  both            refuse a job without a class, one that would preempt while the hub does not answer, and for some
                  seconds a subjob, or a job on several hosts, that its MoM has just sent back

*queuejob, modifyjob, movejob.* The class is the queue's: PBS adds it to each chunk that names none. PBS forbids users
our resources at qsub, but accepts them in the select of a qalter. It also writes values anew without the quotes that
they need, and then reads resources in them.

Rule 1: a vnode without `magrathea_siblings` is not ours. It is accepted at once, and an error there stops nobody. On a
vnode of ours an error refuses the job.
Rule 2: the hook runs in the server's only thread. Measured: 0.5 ms for each job that it looks at, 0.1 ms for each
vnode. So it stops at the first conflict, takes the server's own sums for CPUs, and looks at jobs only if they decide.
Rule 3: suspended jobs are not in a vnode's list, so this hook does not see them; the node daemon refuses the claim.

The server's own Python runs this, 3.6 or later; standard library only.
"""

import json
import os
import sys
import time

import pbs

from magrathea.pbs_text.amounts import whole_number
from magrathea.pbs_text.placement import placed
from magrathea.pbs_text.select import examined, job_class
from magrathea.pbs_text.words import job_ids, words

DEFAULT_HEARTBEAT_MAX_AGE_S = 30.0
MAX_WHY = 400
AGAIN_S = 4.0  # less than the shortest wait of another refused job; for a subjob twice as long each time
AGAIN_MOST_S = 64.0
MEMORY = "magrathea_server_memory"

# The product's table of codes is in magrathea/core/refusals.py; a test compares the two.
CODES = (
    "hub-lost", "two-domains", "host-busy", "too-big", "no-cpus", "no-class", "own-class", "select-unclear",
    "sent-back",
)  # fmt: skip
HUB_LOST, TWO_DOMAINS, HOST_BUSY, TOO_BIG, NO_CPUS, NO_CLASS, OWN_CLASS, SELECT_UNCLEAR, SENT_BACK = CODES


class MayNotStart(Exception):
    """The job may not start now; code and text become its comment."""

    def __init__(self, code, text):
        super().__init__("%s: %s" % (code, text))


def cpus_by_vnode(exec_vnode):
    """CPUs of each vnode of an exec_vnode."""
    cpus = {}
    for chunk in placed(str(exec_vnode)):
        for vnode, resources in chunk:
            asked = sum(whole_number(value) for name, value in resources if name == "ncpus")
            cpus[vnode] = cpus.get(vnode, 0) + asked
    return cpus


def unset(text):
    return text is None or str(text) in ("", "None")


def value_of(vnode, name):
    """A resource of a vnode as text; None if it is unset or unknown to this server."""
    try:
        value = vnode.resources_available[name]
    except (KeyError, AttributeError, pbs.UnsetResourceNameError):
        return None
    return None if unset(value) else str(value)


def assigned_cpus(vnode):
    """CPUs that the server has given to the running jobs of a vnode; it keeps this sum itself."""
    value = None if vnode is None else vnode.resources_assigned["ncpus"]
    return 0 if unset(value) else int(str(value))


def jobs_on(server, vnode, seen):
    """Yields the server's jobs on a vnode, except those in `seen`; adds them to `seen`."""
    if vnode is None or unset(vnode.jobs):
        return
    for id in job_ids(str(vnode.jobs)):
        if id in seen:
            continue
        seen.add(id)
        job = server.job(id)
        if job is not None:
            yield job


def hub_silent_s():
    """How long the hub has not answered, in seconds, if that is too long; None if the hub works."""
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        config = json.load(file)
    try:
        age_s = time.time() - os.stat(config["heartbeat"]).st_mtime
    except FileNotFoundError:
        return float("inf")
    return age_s if age_s > config.get("heartbeat_max_age_s", DEFAULT_HEARTBEAT_MAX_AGE_S) else None


def may_preempt(vnode, victim):
    """Raises MayNotStart if no hub can book a preemption in PBS."""
    silent_s = hub_silent_s()
    if silent_s is not None:
        since = "was never there" if silent_s == float("inf") else "has been silent for %d s" % silent_s
        raise MayNotStart(
            HUB_LOST,
            "to start on %s it would preempt %s, and magrathea-hub %s; start it on the server's machine"
            % (vnode, victim, since),
        )


def check_exclusive(server, job, cls, name, siblings, wanted):
    seen = {str(job.id)}
    for sibling in siblings:
        if sibling in wanted:
            raise MayNotStart(TWO_DOMAINS, "%s and %s are domains of one host and never run together" % (name, sibling))
        for other in jobs_on(server, server.vnode(sibling), seen):
            theirs = job_class(str(other.schedselect))
            if cls != "priority" or theirs != "preemptible":
                where = "%s, on the host of %s," % (sibling, name)
                raise MayNotStart(HOST_BUSY, "%s has job %s of class %s" % (where, other.id, theirs))
            may_preempt(name, other.id)


def check_counted(server, job, cls, name, siblings, wanted, host_cpus):
    domains = [name, *siblings]
    mine = sum(wanted.get(domain, 0) for domain in domains)
    if mine > host_cpus:
        raise MayNotStart(TOO_BIG, "its %d CPUs on the host of %s exceed the host's %d" % (mine, name, host_cpus))
    vnodes = [server.vnode(domain) for domain in domains]
    missing = mine + sum(assigned_cpus(vnode) for vnode in vnodes) - host_cpus
    if missing <= 0 or not mine:
        return
    stoppable = []
    seen = {str(job.id)}
    for vnode in vnodes if cls == "priority" else ():
        for other in jobs_on(server, vnode, seen):
            if job_class(str(other.schedselect)) == "preemptible":
                theirs = cpus_by_vnode(other.exec_vnode)
                missing -= sum(theirs.get(one, 0) for one in domains)
                stoppable.append(str(other.id))
            if missing <= 0:
                may_preempt(name, ", ".join(stoppable))
                return
    what = "its %d CPUs on the host of %s" % (mine, name)
    raise MayNotStart(NO_CPUS, "%s and those of jobs there exceed the host's %d" % (what, host_cpus))


def started_lately():
    """The runs that were let through lately, oldest first. By job id: run version, time, and wait after a refusal.

    The interpreter keeps it from one event to the next. When PBS starts a new interpreter it is lost, without harm.
    """
    memory = sys.modules.setdefault(MEMORY, type(sys)(MEMORY))
    if not hasattr(memory, "started"):
        memory.started = {}
    started, now = memory.started, time.monotonic()
    for id in list(started):
        if now - started[id][1] < 2 * AGAIN_MOST_S:
            break
        del started[id]
    return started


def wait_after_refusal(job, vnodes):
    """Raises MayNotStart if a MoM has just refused this job, and PBS would try it again at once, without end.

    Other refused jobs have a later execution time. A subjob cannot have one (magrathea_mom.py), and a job on several
    hosts has none if it was another hook that rejected it on a host of ours.
    """
    id = str(job.id)
    is_subjob = "[" in id
    if not is_subjob and len(vnodes) < 2:
        return
    run, now, wait_s = int(str(job.run_version or 0)), time.monotonic(), AGAIN_S
    started = started_lately()
    if id in started and started[id][0] < run:
        _, since, wait_s = started[id]
        if now - since < wait_s:
            where = ", ".join(sorted(vnodes))
            raise MayNotStart(SENT_BACK, "%s refused it a moment ago; tried again after %d s" % (where, wait_s))
        wait_s = min(2 * wait_s, AGAIN_MOST_S) if is_subjob else AGAIN_S
    started.pop(id, None)  # to keep the order
    started[id] = (run, now, wait_s)


def check(server, job, managed):
    """Raises MayNotStart. Adds vnodes of ours to `managed` as soon as they are recognised."""
    wanted = cpus_by_vnode(job.exec_vnode)
    cls = job_class(str(job.schedselect))
    done = set()
    for name in wanted:
        vnode = server.vnode(name)
        known = None if vnode is None else value_of(vnode, "magrathea_siblings")
        if known is None:
            continue
        managed.append(name)
        if cls is None:
            raise MayNotStart(
                NO_CLASS,
                "%s takes jobs of a class only, which the queue's or the server's"
                " default_chunk.magrathea_accepts gives; set it, then qmove the job to its queue" % name,
            )
        if name in done:
            continue  # already checked as a sibling, and with it the whole host
        siblings = [word for word in words(known) if word != "none"]
        host_cpus = value_of(vnode, "magrathea_host_ncpus")
        if host_cpus is None:
            check_exclusive(server, job, cls, name, siblings, wanted)
        else:
            check_counted(server, job, cls, name, siblings, wanted, int(host_cpus))
            done.update(siblings)
    if managed:
        wait_after_refusal(job, wanted)


def check_select(event):
    """Refuse a class in the select, and a select that can be read in two ways. Users choose a class by choosing a
    queue."""
    wanted = event.job.Resource_List
    asked = None if wanted is None else wanted["select"]
    if unset(asked):
        return
    names, why = examined(str(asked))
    if any(name.startswith("magrathea") for name in names):
        event.reject(
            "magrathea: %s: the select names a resource of Magrathea's; the class of a job is its queue's: leave it"
            " out, and choose the queue that is meant (qsub -q, qmove)" % OWN_CLASS
        )
    if why:
        why = why if len(why) <= MAX_WHY else why[: MAX_WHY // 2] + " ... " + why[-MAX_WHY // 2 :]
        event.reject("magrathea: %s: the select is not clear: %s" % (SELECT_UNCLEAR, why))


def main():
    event = pbs.event()
    if event.type != pbs.RUNJOB:
        check_select(event)
        return
    managed = []
    try:
        check(pbs.server(), event.job, managed)
    except MayNotStart as refusal:
        event.reject("magrathea: %s" % refusal)
    except Exception as error:  # noqa: BLE001  rule 1
        where = ", ".join(managed)
        pbs.logmsg(pbs.EVENT_ERROR, "magrathea: hook failed for %s on %s: %r" % (event.job.id, where or "-", error))
        if managed:
            event.reject("magrathea: hook failed on %s: %r" % (where, error))


main()
