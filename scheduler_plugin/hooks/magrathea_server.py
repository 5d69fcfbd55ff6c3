"""Magrathea's hook for the server. Event runjob: refuses jobs that may not start although the published states allow
it. Events queuejob, modifyjob, movejob, resvsub: refuses a select that names a class, or that can be read in two ways.
queuejob also refuses a job with a wrong variable of ours, or whose variables PBS would drop.

*runjob.* The scheduler decides by what the hub has published; between two publications jobs start and end. So this hook
checks the jobs that the server itself has now on the chosen vnodes and on their siblings (the other domains of the same
host). It is the only place outside the core that repeats a rule:

  exclusive host  refuse if a sibling has a job, unless this job is of class priority and all of the sibling's jobs are
                  preemptible; also refuse chunks in two domains of the host
  counted host    refuse if the CPUs of this job and of the host's jobs (for a priority job: only jobs that are not
                  preemptible) exceed the host's
  both            refuse a job whose class is not its queue's, one in a reservation that is not for maintenance, one
                  that would preempt while the hub does not answer, and for some seconds a job on several hosts that
                  its MoM has just sent back

*queuejob, modifyjob, movejob, resvsub.* The class is the queue's: PBS adds it to each chunk that names none. PBS
forbids users our resources at qsub, but accepts them in the select of a qalter. It also writes values anew without the
quotes that they need, and then reads resources in them. These events do not see everything: PBS runs no modifyjob hook
for pbs_asyalterjob, and other hooks may run later. So runjob compares the final class with the queue's.

*resvsub.* A reservation made from a running job (pbs_rsub --job) ignores the vnode's resv_enable, and moves the job to
the reservation's queue, where its class would be the server's default. On our vnodes it is refused.

Rule 1: a vnode without `magrathea_siblings` is not ours. It is accepted at once, and an error there stops nobody. On a
vnode of ours an error refuses the job.
Rule 2: the hook runs in the server's only thread. Measured: 0.5 ms for each job that it looks at, 0.1 ms for each
vnode. So it stops at the first conflict, takes the server's own sums for CPUs, and looks at jobs only if they decide.
On a counted host it asks for no sum that the hub's file about the host replaces (`cpus_at_most`). From that file it
concludes only that a job fits: what the file shows, and what the hook has let through and the file does not show yet,
is never less than the server's own sum. If that is too much, it reads the server's sums of all vnodes.
Rule 3: PBS's scheduler tries a refused subjob again at once, and looks at no other job until it is let through or the
cycle is over (seen; run_job in fifo.cpp: the array stays runnable). So no subjob is refused here. One that has to wait
is sent on, and the node daemon refuses its claim. For one that could never start, a mark in its environment tells MoM's
hook to refuse it until PBS holds the array. If PBS gives the hook no environment, the mark is the output's path.
Rule 4: suspended jobs are not in a vnode's list, so this hook does not see them; the node daemon refuses the claim.

The server's own Python runs this, 3.6 or later; standard library only.
"""

import json
import os
import stat
import sys
import time

import pbs

from magrathea.pbs_text.host_loads import MOST_LOAD_BYTES, load_path
from magrathea.pbs_text.placement import cpus_by_vnode, vnodes_of
from magrathea.pbs_text.select import CLASS_RESOURCE, classes_in, examined, job_class, resource_names
from magrathea.pbs_text.stop_signals import SIGNALS, read_signal
from magrathea.pbs_text.words import is_some, is_subjob, job_ids, words

DEFAULT_HEARTBEAT_MAX_AGE_S = 30.0
MAX_WHY = 400
AGAIN_S = 4.0  # less than the shortest wait of another refused job
MEMORY = "magrathea_server_memory"
MOST_STARTS = 10000  # remembered of one host until the hub's next comparison with PBS (a minute)
KEPT_S = 900.0  # a start is remembered so long, on hosts of every kind; a comparison before that is of no use
UNSEEN_S = 5.0  # a start is not remembered once the hub has compared so much later

# The product's table of codes is in magrathea/core/refusals.py; a test compares the two.
CODES = (
    "hub-lost", "two-domains", "host-busy", "too-big", "no-cpus", "no-class", "class-differs", "no-reservation",
    "own-class", "select-unclear", "sent-back", "warning-unclear", "variables-lost",
)  # fmt: skip
HUB_LOST, TWO_DOMAINS, HOST_BUSY, TOO_BIG, NO_CPUS, NO_CLASS, CLASS_DIFFERS, NO_RESERVATION, *_OTHERS = CODES
OWN_CLASS, SELECT_UNCLEAR, SENT_BACK, WARNING_UNCLEAR, VARIABLES_LOST = _OTHERS

PASSING = frozenset({HUB_LOST, HOST_BUSY, NO_CPUS})  # reasons that go away without anybody changing the job
# Reasons that stay until somebody changes the job, its queue or the host. It is tried again ever later.
UNTIL_FIXED = frozenset({TWO_DOMAINS, TOO_BIG, NO_CLASS, CLASS_DIFFERS, NO_RESERVATION})
FIRST_LATER_S, MOST_LATER_S = 5, 600
MOST_TRIED = 10000  # jobs whose refusals are counted
SIGNAL = "MAGRATHEA_SIGNAL"
REFUSED = "MAGRATHEA_REFUSED"  # variable of a subjob that MoM's hook refuses
UNMARKED_OUTPUT = "/magrathea-refused"  # output of such a subjob if no hook can set its variables

KEEPS, NOTHING = "magrathea_keeps", "none"  # a resource of the job, for MoM's hook; users cannot set it
MAINTENANCE_RESERVATION = "M"  # first letter of the ids of those that only operators make (pbs_rsub --hosts)


class MayNotStart(Exception):
    """The job may not start now; code and text become its comment."""

    def __init__(self, code, text):
        super().__init__("%s: %s" % (code, text))
        self.code = code


def unset(text):
    return text is None or str(text) in ("", "None")


def resource(resources, name):
    """A resource of a list such as resources_available, as text; None if it is unset or unknown to this server."""
    if resources is None:
        return None
    try:
        value = resources[name]
    except (KeyError, AttributeError, pbs.UnsetResourceNameError):
        return None
    return None if unset(value) else str(value)


def value_of(vnode, name):
    return resource(vnode.resources_available, name)


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


def configuration():
    with open(pbs.hook_config_filename, encoding="utf-8") as file:
        return json.load(file)


def hub_silent_s(config):
    """How long the hub has not answered, in seconds, if that is too long; None if the hub works."""
    try:
        age_s = time.time() - os.stat(config["heartbeat"]).st_mtime
    except FileNotFoundError:
        return float("inf")
    return age_s if age_s > config.get("heartbeat_max_age_s", DEFAULT_HEARTBEAT_MAX_AGE_S) else None


def may_preempt(vnode, victim):
    """Raises MayNotStart if no hub can book a preemption in PBS."""
    silent_s = hub_silent_s(configuration())
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


def memory():
    """What the interpreter keeps from one event to the next. When PBS starts a new interpreter it is lost.

    `starts`: by host and job id, starts that were let through: time, run version, CPUs by vnode. `complete_since`:
    all later starts are there. `started`: see started_lately. `tried`: by job id, how often it was refused for a reason
    in UNTIL_FIXED.
    """
    kept = sys.modules.setdefault(MEMORY, type(sys)(MEMORY))
    if not hasattr(kept, "starts"):
        kept.starts, kept.complete_since = {}, time.monotonic()
    if not hasattr(kept, "started"):
        kept.started = {}
    if not hasattr(kept, "tried"):
        kept.tried = {}
    return kept


def remember(job, wanted, ours):
    """Remember that a job is let through. `ours`: see recognise."""
    kept, now, started = memory(), time.monotonic(), set()
    kept.tried.pop(str(job.id), None)
    for name, (vnode, _) in ours.items():
        host = value_of(vnode, "magrathea_host")
        starts = kept.starts.setdefault(host, {})
        if len(starts) >= MOST_STARTS:
            starts.clear()
            kept.complete_since = now
        if host not in started:
            started.add(host)
            starts.pop(str(job.id), None)  # to keep the order
            while starts and now - starts[next(iter(starts))][0] > KEPT_S:
                del starts[next(iter(starts))]
            starts[str(job.id)] = (now, int(str(job.run_version or 0)), {})
        starts[str(job.id)][2][name] = wanted[name]


def host_load(host):
    """What the hub has written about a counted host: the time of its last comparison with PBS, and the jobs of some of
    its vnodes, [run version, CPUs] by id. None if there is nothing, or it cannot be used."""
    try:
        config = configuration()
        path = load_path(config["heartbeat"], host)
        if path is None or hub_silent_s(config) is not None:
            return None
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about, owner = os.fstat(file.fileno()), os.stat(config["heartbeat"]).st_uid
            foreign = about.st_uid not in (0, owner) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if foreign or not stat.S_ISREG(about.st_mode) or about.st_size > MOST_LOAD_BYTES:
                return None
            told = json.loads(file.read(MOST_LOAD_BYTES).decode("utf-8"))
        compared, vnodes = float(told["compared"]), told["vnodes"]
        if any(cpus < 0 or run < 0 for jobs in vnodes.values() for run, cpus in jobs.values()):
            return None
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    now = time.monotonic()  # a later comparison was made before this machine was booted
    return (compared, vnodes) if max(memory().complete_since, now - KEPT_S + UNSEEN_S) < compared <= now else None


def cpus_at_most(server, host, domains):
    """At least as many CPUs as the server has given on these vnodes of a counted host; None if that is unknown.

    Starts before the hub's last comparison are in the file if they are in PBS. One that the file has shown since, with
    all of its CPUs, has ended when the file shows it no longer.
    """
    load = None if host is None else host_load(host)
    if load is None:
        return None
    compared, vnodes = load
    total = 0
    for domain in domains:
        if domain in vnodes:
            total += sum(cpus for _, cpus in vnodes[domain].values())
        else:
            total += assigned_cpus(server.vnode(domain))
    starts = memory().starts.get(host, {})
    for id, (at, run, places) in list(starts.items()):
        for vnode in [vnode for vnode in places if vnode in vnodes]:
            shown_run, shown_cpus = vnodes[vnode].get(id, (-1, 0))
            if shown_run > run and shown_cpus >= places[vnode]:
                del places[vnode]
        if not places or at < compared - UNSEEN_S:
            del starts[id]
        else:
            total += sum(cpus for vnode, cpus in places.items() if vnode in vnodes)
    return total


def check_counted(server, job, cls, name, host, siblings, wanted, host_cpus):
    domains = [name, *siblings]
    mine = sum(wanted.get(domain, 0) for domain in domains)
    if mine > host_cpus:
        raise MayNotStart(TOO_BIG, "its %d CPUs on the host of %s exceed the host's %d" % (mine, name, host_cpus))
    if not mine:
        return
    known = cpus_at_most(server, host, domains)
    if known is not None and mine + known <= host_cpus:
        return
    vnodes = [server.vnode(domain) for domain in domains]
    missing = mine + sum(assigned_cpus(vnode) for vnode in vnodes) - host_cpus
    if missing <= 0:
        return
    stoppable = []
    seen = {str(job.id)}
    for vnode in vnodes if cls == "priority" else ():
        for other in jobs_on(server, vnode, seen):
            if job_class(str(other.schedselect)) == "preemptible":
                theirs = cpus_by_vnode(str(other.exec_vnode))
                missing -= sum(theirs.get(one, 0) for one in domains)
                stoppable.append(str(other.id))
            if missing <= 0:
                may_preempt(name, ", ".join(stoppable))
                return
    what = "its %d CPUs on the host of %s" % (mine, name)
    raise MayNotStart(NO_CPUS, "%s and those of jobs there exceed the host's %d" % (what, host_cpus))


def started_lately():
    """The runs of jobs on several hosts that were let through lately, oldest first. By job id: run version and time.

    If it is lost, that does no harm.
    """
    started, now = memory().started, time.monotonic()
    for id in list(started):
        if now - started[id][1] < AGAIN_S:
            break
        del started[id]
    return started


def wait_after_refusal(job, vnodes):
    """Raises MayNotStart if a MoM has just refused this job on several hosts, and PBS would try it again at once.

    Other refused jobs have a later execution time. This one has none if it was another hook that rejected it on a host
    of ours.
    """
    id = str(job.id)
    if is_subjob(id) or len(vnodes) < 2:
        return
    run, now = int(str(job.run_version or 0)), time.monotonic()
    started = started_lately()
    if id in started and started[id][0] < run:
        where = ", ".join(sorted(vnodes))
        raise MayNotStart(SENT_BACK, "%s refused it a moment ago; tried again after %d s" % (where, AGAIN_S))
    started.pop(id, None)  # to keep the order
    started[id] = (run, now)


def check_class(server, job, cls, name):
    """Raises MayNotStart unless the job's class is its queue's. `cls`: the class in its schedselect, None if there is
    not exactly one.

    Its own select may name that class, but no other: a subjob keeps the select of its last start, and MoM gets its
    class from there.
    """
    given = resource(job.queue.default_chunk, CLASS_RESOURCE) or resource(server.default_chunk, CLASS_RESOURCE)
    if cls is None and CLASS_RESOURCE not in resource_names(str(job.schedselect)):
        raise MayNotStart(
            NO_CLASS,
            "%s takes jobs of a class only, which the queue's or the server's"
            " default_chunk.magrathea_accepts gives; set it, then qmove the job to its queue" % name,
        )
    named = classes_in(resource(job.Resource_List, "select") or "")
    if cls is None or named - {given} or cls != given:
        others = ", ".join(sorted((named | {cls or "not exactly one"}) - {given}))
        what = "its select names class %s" % others
        raise MayNotStart(
            CLASS_DIFFERS,
            "%s, and its queue %s gives %s; `qalter -l select=...` without a class gives it the queue's, an array has"
            " to be submitted anew" % (what, job.queue.name, given or "none"),
        )


def check_reserved(job, name):
    """Raises MayNotStart if the job is in a reservation of a user, whose queue would give it another class."""
    id = job.reserve_ID
    if not unset(id) and not str(id).startswith(MAINTENANCE_RESERVATION):
        raise MayNotStart(
            NO_RESERVATION, "%s takes no jobs of reservation %s; qmove the job to an ordinary queue" % (name, id)
        )


def recognise(server, names, ours):
    """Add those of these vnodes that are ours to `ours`, as soon as they are recognised, each with its siblings."""
    for name in names:
        vnode = server.vnode(name)
        siblings = None if vnode is None else value_of(vnode, "magrathea_siblings")
        if siblings is not None:
            ours[name] = (vnode, [word for word in words(siblings) if word != "none"])


def check(server, job, wanted, ours):
    """Raises MayNotStart. `ours`: see recognise."""
    cls = job_class(str(job.schedselect))
    done = set()
    for number, (name, (vnode, siblings)) in enumerate(ours.items()):
        if number == 0:  # both depend on the job alone, and a long select takes the server's thread 0.06 s
            check_class(server, job, cls, name)
            check_reserved(job, name)
        if name in done:
            continue  # already checked as a sibling, and with it the whole host
        host_cpus = value_of(vnode, "magrathea_host_ncpus")
        if host_cpus is None:
            check_exclusive(server, job, cls, name, siblings, wanted)
        else:
            host = value_of(vnode, "magrathea_host")
            check_counted(server, job, cls, name, host, siblings, wanted, int(host_cpus))
            done.update(siblings)
    if ours:
        wait_after_refusal(job, wanted)
        tell_kept(job)


def tell_kept(job):
    """Tell MoM's hook which protected resources the job has: MoM does not see the resources of server and queues.

    Set at each start, because a user might have set it for a job of before.
    """
    have = resource(job.Resource_List, KEEPS)
    protecting = configuration().get("protecting", [])
    kept = ",".join(name for name in protecting if has(job, name)) or NOTHING
    if kept != (have or NOTHING):
        job.Resource_List[KEEPS] = kept


def has(job, name):
    """True if the job asks for some of this resource: in all, or in a chunk."""
    asked = resource(job.Resource_List, name)
    if asked is None:
        return name.lower() in resource_names(str(job.schedselect))
    return is_some(asked)


def check_select(event, wanted):
    """Refuse a class in `wanted` (a Resource_List), and a select that can be read in two ways.
    Users choose a class by choosing a queue."""
    if wanted is None:
        return
    asked = wanted["select"]
    names, why = (set(), "") if unset(asked) else examined(str(asked))
    ours = [name for name in (*names, *wanted.keys()) if name.lower().startswith("magrathea")]
    if any(name != KEEPS for name in ours):  # a job that has started has that; PBS lets no user set it
        event.reject(
            "magrathea: %s: the select names a resource of Magrathea's; the class of a job is its queue's: leave it"
            " out, and choose the queue that is meant (qsub -q, qmove)" % OWN_CLASS
        )
    if why:
        why = why if len(why) <= MAX_WHY else why[: MAX_WHY // 2] + " ... " + why[-MAX_WHY // 2 :]
        event.reject("magrathea: %s: the select is not clear: %s" % (SELECT_UNCLEAR, why))


def check_variables(event, variables):
    """Refuse a wrong text in the variable that asks for a signal: else nobody is warned, and nobody knows why. Refuse
    the mark of a subjob, too: MoM would refuse it without end, and nobody would close its vnode.

    If a variable has a byte that is not UTF-8, PBS gives a queuejob hook no variables, and then the job none: refuse
    that, too. A qsub always sends some, and its arguments."""
    if variables is None and not unset(event.job.Submit_arguments):
        event.reject(
            "magrathea: %s: a variable of this job has a byte that is not UTF-8, and PBS would drop all of the job's"
            " variables: correct it (env | iconv -f utf-8 > /dev/null tells where), or submit without it"
            " (qsub -v NAME,... names those that the job needs)" % VARIABLES_LOST
        )
    if not variables:
        return
    if variables.get(REFUSED):
        event.reject("magrathea: %s: %s is Magrathea's own variable: leave it out" % (OWN_CLASS, REFUSED))
    try:
        read_signal(variables.get(SIGNAL) or SIGNALS[0])
    except ValueError as error:
        event.reject("magrathea: %s: %s: %s" % (WARNING_UNCLEAR, SIGNAL, error))


def check_origin(event, server):
    """Refuse a reservation that takes over a running job's place on a vnode of ours."""
    if unset(event.resv.reserve_job):
        return
    job = server.job(str(event.resv.reserve_job))
    for name in vnodes_of(str(job.exec_vnode)) if job is not None and not unset(job.exec_vnode) else ():
        vnode = server.vnode(name)
        if vnode is not None and value_of(vnode, "magrathea_siblings") is not None:
            event.reject(
                "magrathea: %s: %s, where job %s runs, takes no reservations; reserve vnodes that Magrathea does not"
                " manage" % (NO_RESERVATION, name, job.id)
            )


def later_s(id):
    """How long to wait before this job is tried again; each time twice as long."""
    tried = memory().tried
    times = tried.pop(id, 0)
    if len(tried) >= MOST_TRIED:
        del tried[next(iter(tried))]
    tried[id] = times + 1
    return min(MOST_LATER_S, FIRST_LATER_S << min(times, 10))


def refuse(event, code, text):
    """Refuse a job; send a subjob on to where it is refused (rule 3)."""
    id = str(event.job.id)
    if not is_subjob(id):
        if code in UNTIL_FIXED:
            event.job.Execution_Time = int(time.time() + later_s(id) + 0.5)
        event.reject("magrathea: %s" % text)
        return
    pbs.logmsg(pbs.EVENT_ADMIN, "magrathea: subjob %s is sent on, to be refused there: %s" % (event.job.id, text))
    if code not in PASSING:
        if event.job.Variable_List is None:  # it has none, or a byte that is not UTF-8: PBS lets no hook set any then
            event.job.Output_Path = UNMARKED_OUTPUT
            return
        event.job.Variable_List.clear()  # a value that ends with a backslash would hide the mark behind it
        event.job.Variable_List[REFUSED] = code


def main():
    event = pbs.event()
    if event.type == pbs.RESVSUB:
        check_select(event, event.resv.Resource_List)
        try:
            check_origin(event, pbs.server())
        except Exception as error:  # noqa: BLE001  rule 1: no vnode of ours was recognised
            pbs.logmsg(pbs.EVENT_ERROR, "magrathea: hook failed for a reservation: %r" % error)
        return
    if event.type != pbs.RUNJOB:
        check_select(event, event.job.Resource_List)
        if event.type == pbs.QUEUEJOB:
            check_variables(event, event.job.Variable_List)
        return
    wanted, ours = {}, {}
    try:
        wanted = cpus_by_vnode(str(event.job.exec_vnode))
        recognise(pbs.server(), wanted, ours)
        if ours and event.job.Variable_List and event.job.Variable_List.get(REFUSED):
            event.job.Variable_List[REFUSED] = ""  # set by a user past the hooks (pbs_asyalterjob)
        check(pbs.server(), event.job, wanted, ours)
    except MayNotStart as refusal:
        refuse(event, refusal.code, refusal)
    except Exception as error:  # noqa: BLE001  rule 1
        where = ", ".join(ours)
        pbs.logmsg(pbs.EVENT_ERROR, "magrathea: hook failed for %s on %s: %r" % (event.job.id, where or "-", error))
        if ours:
            refuse(event, "hook-failed", "hook failed on %s: %r" % (where, error))
        memory().complete_since = time.monotonic()
    remember(event.job, wanted, ours)


main()
