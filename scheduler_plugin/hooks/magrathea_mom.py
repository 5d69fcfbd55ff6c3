"""Magrathea's hook for MoM: it asks the agent before a job starts, and reports ends and MoM's own list of jobs to it.

Events: execjob_begin is a claim. execjob_prologue waits until the job's memory has arrived; it is registered only if
memory moves. execjob_preterm is a qdel: a stopped job must get its SIGTERM, and a job in its prologue must not start.
execjob_abort is a release. exechost_periodic sends the list, exechost_startup reports a missing agent. The agent itself
finds the end of a job: with a hook for execjob_end each job ends a second later, because MoM looks only once a second
whether the hook is ready, and a MoM with a hook for execjob_epilogue never runs the site's own epilogue script.

Rule 1: if no agent is configured on this machine (no agent.json), return at once. Jobs start as without Magrathea.
Rule 2: if the configured agent does not answer, or anything else fails, a claim is refused, never accepted. A refusal
sets a later execution time on the job, because PBS would try again at once, and takes back the start that PBS has
counted (`refuse`), because PBS holds a job after 21 failed starts, however far apart they are.
Rule 3: execjob_begin blocks MoM's main loop, so it ends within 2 s. Every job's start pays for the imports (json 5.5
ms, socket 1.8 ms, _socket 0.6 ms), so the common path avoids them.

PBS's own Python runs this, 3.6 or later; standard library only.
"""

import os
import time

import pbs

from magrathea.pbs_text.amounts import size_bytes, whole_mib, whole_number
from magrathea.pbs_text.placement import hosts_of, placed, vnodes_of
from magrathea.pbs_text.select import job_class
from magrathea.pbs_text.words import is_subjob, is_true

DEFAULT_CONFIGURATION = "/etc/magrathea/agent.json"
DEFAULT_SOCKET = "/run/magrathea/agent.sock"
AGENT_CLAIM_S = 1.6  # the agent's time; with the next two 2.0 s in all (magrathea/deadlines.py has the whole table)
HOOK_MARGIN_S = 0.2  # added for the answer's way back
TAKE_BACK_S = 0.2  # to take back a claim that got no answer
TELL_S = 2.0  # for releases and lists; nothing waits for them
PREPARED_S = 5.0  # for one question of the prologue, which asks again
WAIT_S = 585.0  # for all questions of the prologue: less than its alarm (install.py), which the hook cannot read
MAX_PARTS = 200  # of a job's parts in one question
RETRY_S = 10  # if the refusal has no time
SHORTEST_WAIT_S = 1
DEFECT_RETRY_S = 60  # after a defect, which is rarely over soon
PBS_HOLDS_ABOVE = 20  # PBS holds a job if a start fails and its run_count is more (check_failed_attempts)
SISTER_REJECTED = " 15169 from node "  # MoM's log on a sister's hook that rejected the job (PBSE_HOOK_REJECT)
LOG_TAIL_BYTES = 16384
KEEPS, NOTHING = "magrathea_keeps", "none"  # a resource of the job, set by the server's hook
REFUSED = "MAGRATHEA_REFUSED"  # variable that the server's hook sets for a subjob that may never start as it is
UNMARKED_OUTPUT = "/magrathea-refused"  # the output's path instead, if no hook can set its variables

WARNING = "MAGRATHEA_SIGNAL"  # variable of a job that wants a warning, as for qsub -v
WARNING_RESOURCE = "stop_signal"  # the same as a resource, for a queue's resources_default; a site may create it
WARNING_CHARS = 64

# The hook acts on these codes of magrathea/core/refusals.py; a test compares the two.
CODES = ("timeout", "deleted", "memory-short", "hub-lost", "domain-unknown")
TIMEOUT, DELETED, MEMORY_SHORT, HUB_LOST, DOMAIN_UNKNOWN = CODES
# Of the server's hook. Tried without an end, such a subjob would take its vnodes from others several times a second.
FOR_GOOD = ("class-differs", "no-class", "no-reservation", "two-domains", "too-big")
NOWHERE = FOR_GOOD[:2]  # due to the job alone: another placement would not help it


class NoAnswer(Exception):
    """There is no agent, or it did not answer in time."""


class Unreadable(Exception):
    """The agent's configuration cannot be read; the text says how to fix it."""


class NotHere(Exception):
    """None of the job's hosts can be this MoM; the text says how to fix it."""


def agent_socket():
    """Path of the agent's socket; None if no agent is configured on this machine. Raises Unreadable."""
    path = os.environ.get("MAGRATHEA_AGENT_CONF") or DEFAULT_CONFIGURATION
    try:
        # O_NONBLOCK: a pipe in the place of the file must not stop MoM
        with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable("%s cannot be read: %s; see magrathea-agent --check" % (path, error)) from None
    after = text.partition('"socket"')[2].split('"', 2)
    if len(after) == 3 and after[0].strip() == ":" and "\\" not in after[1] and '"socket"' not in after[2]:
        return after[1]
    import json  # the common form was not found

    try:
        return str(json.loads(text).get("socket", DEFAULT_SOCKET))
    except (ValueError, AttributeError, RecursionError) as error:
        raise Unreadable("%s is no JSON object: %s; see magrathea-agent --check" % (path, error)) from None


def ask(path, request, timeout_s):
    """Send one JSON line to the agent; return its answer as text. Raises NoAnswer."""
    import _socket

    until = time.monotonic() + timeout_s
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        link.settimeout(timeout_s)
        link.connect(path)
        link.sendall(request.encode("utf-8") + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0:
                raise NoAnswer("the agent at %s did not answer within %.1f s" % (path, timeout_s))
            link.settimeout(left)
            piece = link.recv(65536)
            if not piece:
                raise NoAnswer("the agent at %s closed the connection without an answer" % path)
            answer += piece
    except OSError as error:
        raise NoAnswer("no agent at %s (%s); is magrathea-agent running here?" % (path, error)) from None
    finally:
        link.close()
    return answer.decode("utf-8")


def is_ok(answer):
    """True if the answer has `"ok": true`. The common form is recognised without a parser."""
    if answer.replace(" ", "").startswith(('{"ok":true,', '{"ok":true}')):
        return True
    import json

    return json.loads(answer).get("ok") is True


def quoted(value):
    """A JSON string."""
    text = str(value)
    plain = text.replace(".", "").replace("-", "").replace("_", "").replace("/", "")
    if text.isalnum() or plain.encode("ascii", "replace").isalnum():
        return '"%s"' % text
    import json  # a subjob's brackets, or an unusual user name

    return json.dumps(text)


def own_part(job, here):
    """(CPUs, MiB of memory) of the job's chunks on this MoM. `here`: its name. Raises NotHere."""
    own, by_chunk = own_host(job, here), hosts(job)
    cpus, memory_bytes = 0, 0
    for number, chunk in enumerate(placed(str(job.exec_vnode))):
        for _, resources in chunk if by_chunk[number] == own else ():
            cpus += sum(whole_number(value) for name, value in resources if name == "ncpus")
            memory_bytes += sum(size_bytes(value) for name, value in resources if name == "mem")
    return cpus, whole_mib(memory_bytes)


def hosts(job):
    """The host of each chunk, in PBS's words for it: those of exec_host2, or if that is missing the vnodes' names."""
    chunks = placed(str(job.exec_vnode))
    found = hosts_of(str(job.exec_host2 or ""))
    return found if len(found) == len(chunks) else [chunk[0][0].split("[")[0] for chunk in chunks]


def own_host(job, here):
    """Which of the job's hosts is this MoM. Raises NotHere.

    A vnode may be created by an alias, an address, or a name in other case than MoM's own. If no name tells, the first
    host is the mother superior's, and another is the one that has an address of this machine.
    """
    every = list(dict.fromkeys(hosts(job)))
    named = [host for host in every if is_name_of(here, host)]
    if len(named) == 1:
        return named[0]
    if job.in_ms_mom():
        return every[0]
    others = [host for host in named or every if host != every[0]]
    if len(others) != 1:
        others = [host for host in others if is_local(host)]
    if len(others) != 1:
        raise NotHere(
            "none of the job's hosts (%s) is known as this one, %s; set PBS_MOM_NODE_NAME in this machine's pbs.conf to"
            " its name among them, and restart pbs_mom" % (", ".join(every)[:200], here)
        )
    return others[0]


def is_name_of(here, host):
    """True if both may name one machine: in any case of letters, and if either has no domain, without it."""
    ours, theirs = here.lower(), host.lower()
    short = "." not in ours or "." not in theirs
    return ours == theirs or (short and ours.split(".")[0] == theirs.split(".")[0])


def is_local(host):
    """True if the host's name leads to an address of this machine."""
    import _socket

    try:
        found = _socket.getaddrinfo(host, 0, 0, _socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(can_bind(_socket.socket(*entry[:3]), entry[4]) for entry in found)


def can_bind(probe, address):
    try:
        probe.bind(address)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def identity(job):
    return '"id":%s,"run":%d' % (quoted(job.id), int(str(job.run_version or 0)))


def home():
    """Where MoM keeps its files. The agent finds there which jobs MoM has."""
    path = str(pbs.pbs_conf.get("PBS_HOME") or "")
    return ',"home":%s' % quoted(path) if path.startswith("/") else ""


def description(job, here):
    """The part of a claim and of a list that describes the job. Raises NotHere."""
    cpus, memory_mib = own_part(job, here)
    told = str(job.Rerunable)
    rerunnable = "true" if told in ("", "None") or is_true(told) else "false"  # unset means y
    sizes = '"cpus":%d,"memory_mib":%d,"rerunnable":%s' % (cpus, memory_mib, rerunnable)
    sister = "" if own_host(job, here) == hosts(job)[0] else ',"sister":true'  # it may never have a process here
    return '%s,%s,"owner":%s%s%s' % (identity(job), sizes, quoted(job.euser), sister, warning(job))


def warning(job):
    """What the job, or its queue, asks for before a stop; the node daemon reads it. A longer warning than a second
    needs the prologue hook, which makes the preempting job wait."""
    asked = job.Variable_List.get(WARNING) if job.Variable_List else None
    if not asked:
        try:
            asked = str(job.Resource_List[WARNING_RESOURCE] or "")
        except (AttributeError, KeyError, TypeError):  # the site has not created it
            return ""
    if not asked or len(asked) > WARNING_CHARS:
        return ""
    return ',"warning":%s' % quoted(asked) + has_prologue()


def has_prologue():
    """Whether this MoM has the hook that waits in a job's prologue."""
    path = os.path.join(str(pbs.pbs_conf.get("PBS_HOME")), "mom_priv", "hooks", "magrathea_prologue.HK")
    return ',"prologue":%s' % ("true" if os.path.exists(path) else "false")


def refuse(event, text, retry_after_s):
    """Reject the job for now, without a trace that adds up.

    An array whose last subjobs all wait (W) is finished by PBS, so a subjob gets no later execution time. It waits in
    state Q for PBS's next cycle.
    """
    uncount(event.job)
    if not is_subjob(str(event.job.id)):
        event.job.Execution_Time = int(time.time() + max(SHORTEST_WAIT_S, retry_after_s) + 0.5)
    event.reject("magrathea: " + text)


def uncount(job):
    """Take back the start that PBS has counted. Other reruns may have brought the count above PBS's limit already."""
    job.run_count = min(max(0, int(str(job.run_count or 0)) - 1), PBS_HOLDS_ABOVE)


def claim(event, path):
    job = event.job
    if str(job.Output_Path).rpartition(":")[2] == UNMARKED_OUTPUT:  # PBS puts a host before it
        job.run_count = PBS_HOLDS_ABOVE + 1  # PBS holds it now: a user may set this path, and only delays himself
        return event.reject("magrathea: no hook can read this subjob's variables; the server's log has the details")
    refused = job.Variable_List.get(REFUSED) if job.Variable_List else None
    if refused:  # by the server's hook
        code = refused if len(refused) < 40 and refused.replace("-", "").isalnum() else "refused"  # a user may set it
        if code in FOR_GOOD:  # counted and without a later execution time, so that PBS holds the array soon
            if code in NOWHERE:  # now
                job.run_count = PBS_HOLDS_ABOVE + 1
            return event.reject("magrathea: %s; the server's log has the details" % code)
        return refuse(event, "%s; the server's log has the details" % code, RETRY_S)
    cls = job_class(str(job.schedselect)) or "protected"
    about = '%s,"class":"%s"%s' % (description(job, pbs.get_local_nodename()), cls, protected_by(job))
    if '"prologue":' not in about:
        about += has_prologue()
    request = '{"op":"claim","job":{%s}%s,"deadline_s":%s}' % (about, home(), AGENT_CLAIM_S)
    try:
        answer = ask(path, request, AGENT_CLAIM_S + HOOK_MARGIN_S)
    except NoAnswer as error:
        take_back(path, job)
        return refuse(event, str(error), RETRY_S)
    if is_ok(answer):
        return None
    import json

    said = json.loads(answer)
    if said.get("code") == TIMEOUT:
        take_back(path, job)
    text = "%s (%s)" % (said.get("text", "refused without a reason"), said.get("code", "no code"))
    return refuse(event, text, said.get("retry_after_s", RETRY_S))


def protected_by(job):
    """The part of a claim with the protected resources that the job has, as the server's hook has set them."""
    try:
        kept = job.Resource_List[KEEPS]
    except (KeyError, AttributeError, TypeError, pbs.UnsetResourceNameError):
        return ""  # the resource exists only if the administrator protects any
    kept = "" if kept is None else str(kept)
    return "" if kept in ("", NOTHING) else ',"keeps":%s' % quoted(kept)


def take_back(path, job):
    """Release a claim that got no answer: it may have been granted. If this fails too, the claim expires."""
    try:
        ask(path, '{"op":"release","job":{%s}}' % identity(job), TAKE_BACK_S)
    except NoAnswer as error:
        pbs.logmsg(pbs.EVENT_DEBUG, "magrathea: claim of %s not taken back: %s" % (job.id, error))


def wait_for_memory(event, path):
    """Wait for the memory of all parts of the job, on its first MoM: on the others a prologue blocks the main loop."""
    job = event.job
    if not job.in_ms_mom():
        return None
    import json

    until, why = time.monotonic() + WAIT_S, "its memory was not there in time"
    request = '{"op":"prepared","job":{%s},"deadline_s":%s,"vnodes":' % (identity(job), PREPARED_S)
    vnodes = sorted(vnodes_of(str(job.exec_vnode)))
    while vnodes and time.monotonic() < until:
        asked = time.monotonic()
        try:
            said = json.loads(ask(path, request + json.dumps(vnodes[:MAX_PARTS]) + "}", PREPARED_S + HOOK_MARGIN_S))
        except NoAnswer as error:
            said = {"text": str(error)}
        if said.get("ok") and said.get("ready"):
            del vnodes[:MAX_PARTS]
            continue
        if said.get("code") == DELETED:  # PBS loses a qdel that comes now, and would start the job
            job.delete()
            return event.reject("magrathea: deleted before it started")
        why = said.get("text", why)
        if said.get("code") in (MEMORY_SHORT, HUB_LOST, DOMAIN_UNKNOWN):  # other jobs wait for what this job holds
            return refuse(event, why, said.get("retry_after_s", RETRY_S))
        time.sleep(max(0.0, min(0.5, asked + 0.5 - time.monotonic())))
    return refuse(event, "given up after %d s: %s" % (WAIT_S, why), RETRY_S) if vnodes else None


def tell(path, request, what):
    """Send a message that nothing waits for. If it is lost, MoM's next list corrects it."""
    try:
        answer = ask(path, request, TELL_S)
        why = "" if is_ok(answer) else answer.strip()
    except NoAnswer as error:
        why = str(error)
    if why:
        pbs.logmsg(pbs.EVENT_ERROR, "magrathea: %s not delivered: %s" % (what, why))


def release(event, path):
    tell(path, '{"op":"release","job":{%s}}' % identity(event.job), "release of %s" % event.job.id)


def abort(event, path):
    """Release the job, and take its start back if the hook of another host rejected it.

    That host's own correction does not last: this MoM, the job's first, sends its count to the server afterwards.
    """
    release(event, path)
    job = event.job
    if job.in_ms_mom() and len(set(hosts(job))) > 1 and was_rejected_by_sister(str(job.id)):
        uncount(job)


def was_rejected_by_sister(id):
    """True if MoM's log says so. PBS tells it to the hook in no other way; MoM writes it just before the abort."""
    path = os.path.join(str(pbs.pbs_conf.get("PBS_HOME")), "mom_logs", time.strftime("%Y%m%d"))
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        pbs.logmsg(pbs.EVENT_DEBUG, "magrathea: who rejected %s? %s" % (id, error))
        return False
    start = ";%s;job_start_error" % id
    last = [line for line in lines if start in line][-1:]
    return bool(last) and SISTER_REJECTED in last[0]


def ending(event, path):
    tell(path, '{"op":"ending","job":{%s}}' % identity(event.job), "qdel of %s" % event.job.id)


def report(event, path):
    here = pbs.get_local_nodename()
    jobs = []
    for job in event.job_list.values():
        try:
            about = description(job, here)
        except (NotHere, ValueError) as error:  # then its claim was refused; the others are listed
            pbs.logmsg(pbs.EVENT_ERROR, "magrathea: job %s: %s" % (job.id, error))
            continue
        session = '"session_id":%d,' % int(str(job.session_id)) if job.session_id else ""
        jobs.append('{%s"substate":%d,%s}' % (session, int(str(job.substate or 0)), about))
    tell(path, '{"op":"jobs","jobs":[%s]%s}' % (",".join(jobs), home()), "list of %d jobs" % len(jobs))


def look(event, path):
    """MoM starts. It has no list of jobs yet, so only report a missing agent."""
    tell(path, '{"op":"ping"}', "first contact of this MoM")


def main():
    event = pbs.event()
    todo = {
        pbs.EXECJOB_BEGIN: claim,
        pbs.EXECJOB_PROLOGUE: wait_for_memory,
        pbs.EXECJOB_PRETERM: ending,
        pbs.EXECJOB_ABORT: abort,
        pbs.EXECJOB_END: release,  # until `magrathea pbs install` has set the events anew
        pbs.EXECHOST_PERIODIC: report,
        pbs.EXECHOST_STARTUP: look,
    }[event.type]
    try:
        path = agent_socket()
        if path is not None:
            todo(event, path)
    except Unreadable as error:
        if todo in (claim, wait_for_memory):
            refuse(event, str(error), DEFECT_RETRY_S)
        else:
            pbs.logmsg(pbs.EVENT_ERROR, "magrathea: %s" % error)
    except NotHere as error:
        refuse(event, str(error), DEFECT_RETRY_S)
    except Exception as error:  # rule 2: whatever the error, no job starts without an accepted claim
        if todo in (claim, wait_for_memory):
            refuse(event, "hook failed: %r; please report it" % error, DEFECT_RETRY_S)
        raise


main()
