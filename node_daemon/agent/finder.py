"""Which process belongs to which job (law 3)."""

import os
import time

from .cgroups import Cgroups
from .changes import Births
from .environments import Environments
from .jobs import MOM_NAMES, Job, Proc
from .procfs import read_stat, thread_state, uids_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Set, Tuple

    from .values import Key

PF_KTHREAD = 0x00200000
EXEC_S = 0.05  # a new process may show no environment for so long, because its exec is not done
ENVIRON_BUDGET_S = 0.02  # the longest time that one look spends on environments
STRANGERS_BUDGET_S = 0.005  # of these, the longest time for processes of users who own no job
MOST_ANCESTORS = 16  # between a process of a hook and MoM
SETTLED_S = 5.0  # a process that belonged to no job for so long is read again only every REREAD_S
REREAD_S = 2.0
UNBORN_S = 0.3  # by then /proc shows a process that has got its number


class Finder:
    """Which process belongs to which job.

    `look` reads /proc once, and keeps what it has read in `procs`. If the /proc inode of a process is unchanged, the
    process is read again only if that can matter. A stranger can become a job's process only by an exec (as MoM's
    child becomes the job's shell), so only a thorough look reads strangers again.
    """

    def __init__(self, cgroups: Cgroups, marks: "Tuple[bytes, ...]") -> None:
        self.cgroups = cgroups
        self.environments = Environments([b"\0" + m + b"\0" for m in marks])
        self.procs: "Dict[int, Proc]" = {}
        self.never = (0, 1, 2, os.getpid())
        self.all_users = os.geteuid() == 0  # else the agent may signal its own user's processes only
        self.spared: "Dict[int, Tuple[int, Optional[Tuple[bytes, bytes]]]]" = {}
        self.asked: "Set[Tuple[Key, Optional[int]]]" = set()
        self.unfinished = False  # the last look had no time for all environments
        self.unread: "Set[int]" = set()  # the users of those that it left
        self.births = Births()
        self.newest: "Optional[bytes]" = None  # number when the last look began; None if that look was not whole
        self.newest_at = 0.0  # when a whole look first began with that number
        self.whole_at = 0.0  # when the last whole look began
        self.young_until = 0.0  # until then a process that it saw may become a job's by an exec
        self.grouped: "Dict[Key, Set[int]]" = {}  # pids that it found in the jobs' cgroups

    def spare(self, pid: int) -> None:
        """Never touch this process and its ancestors: it is a hook that asked us, so they are MoM.

        An exec ends this, because the parent of the prologue hook becomes the job by one. An ancestor of another user
        is not MoM: a job has asked us, through a program that runs as root. It and what is above it are not spared.
        """
        asked = pid
        for _ in range(64):
            if pid in self.never:
                return
            try:
                name, fields = read_stat("/proc/%d/stat" % pid)
                if self.all_users and pid != asked and any(uids_of(pid)):
                    return
            except OSError:
                return
            if len(self.spared) >= 4096:  # hooks that ended long ago
                self.spared.clear()
            start, image = int(fields[19]), (fields[25], name)
            self.spared[pid] = (start, image)
            known = self.procs.get(pid)
            if known is not None and known.start == start:
                known.image = image  # it may have been read during an exec
                if known.job is not None:
                    known.job.procs.pop(pid, None)
                    known.job = None
            pid = int(fields[1])

    def _is_spared(self, proc: Proc) -> bool:
        if proc.pid in self.never or proc.pid in self.environments.pids:
            return True
        return self.spared.get(proc.pid) == (proc.start, proc.image)

    def look(self, jobs: "List[Job]", thorough: bool, since: float, environ: bool = True) -> "Set[Proc]":
        """Read /proc and assign each process to its job. Returns the processes that were not assigned before.

        `thorough`: read strangers, too. Members that were seen stopped after the time `since` are not read again.
        `environ`: read environments. That waits for a lock of the process, which a fork holds while it waits for a CPU.
        """
        now = time.monotonic()
        newest = self.births.last()  # before anything is read: a process created after this may be missed
        asked = {(job.key, job.uid) for job in jobs}
        if asked != self.asked:  # a stranger may belong to one of the new jobs
            self.asked = asked
            self.newest = None
            self.procs = {pid: p for pid, p in self.procs.items() if p.job is not None or p.kthread}
        fresh = self._read(now, thorough, since)
        self.environments.tidy(self.procs)
        by_id: "Dict[str, Job]" = {}
        for job in jobs:
            if job.id not in by_id or by_id[job.id].run < job.run:
                by_id[job.id] = job  # an earlier run has no processes left
        current = set(by_id.values())
        members: "Dict[int, Proc]" = {}
        for proc in self.procs.values():
            if proc.job is not None:
                if proc.job in current:
                    members[proc.pid] = proc
                else:
                    proc.job = None
        found = self._by_cgroup(by_id, members, now) | self._by_descent(by_id, members, fresh)
        self.unfinished = not environ
        self.unread = set()
        seeds = self._by_environment(by_id, members, fresh) if environ else None
        if seeds:
            found |= seeds | self._by_descent(by_id, members, fresh)
        for job in jobs:
            job.procs = {}
        for proc in members.values():
            if proc.job is not None and (not proc.dead or proc.threads > 1):
                proc.job.procs[proc.pid] = proc
        self._looked(None if self.unfinished or not thorough else newest, now)
        return found

    def _looked(self, newest: "Optional[bytes]", began: float) -> None:
        """Note that a look is over. `newest`: the number of births when it began; None if it was not whole."""
        if newest is None:
            self.newest = None
            return
        if newest != self.newest:
            self.newest, self.newest_at = newest, began
        self.whole_at = began
        strangers = [p.first_seen for p in self.procs.values() if p.job is None and not p.kthread and not p.dead]
        self.young_until = max(strangers or [0.0]) + SETTLED_S

    def may_miss(self, job: Job) -> bool:
        """Whether the last look may have left out a process of this job."""
        return self.unfinished and (job.uid is None or not self.unread or job.uid in self.unread)

    def unchanged(self, jobs: "Iterable[Job]", patience_s: float) -> bool:
        """Whether another look would find the same processes of these jobs as the last one. Costs next to nothing.

        A process comes to a job by its birth, which is counted; by an exec or a change of its user soon after that; or
        by the job's cgroup. A process has its number before /proc shows it, so the last look must have begun some time
        after the number was first seen. Other ways are rare: an old process that execs, or a number that root has set,
        as for a restored process. The next whole look finds these, after `patience_s` at the latest.
        """
        now = time.monotonic()
        return (
            self.newest is not None
            and self.whole_at - self.newest_at >= UNBORN_S
            and now - self.whole_at < patience_s
            and now >= self.young_until
            and self.births.last() == self.newest
            and (not self.cgroups.found or all(self.cgroups.pids(j.id) == self.grouped.get(j.key) for j in jobs))
        )

    def _read(self, now: float, thorough: bool, since: float) -> "List[Proc]":
        """Bring `procs` up to date. Returns the processes that were read, in order of pid."""
        before, after, fresh = self.procs, {}, []
        with os.scandir("/proc") as entries:
            for entry in entries:
                name = entry.name
                if not "0" <= name[0] <= "9":
                    continue
                pid, inode = int(name), entry.inode()
                old = before.get(pid)
                if old is not None and old.inode == inode:
                    if old.kthread:
                        skip = True
                    elif old.job is not None:
                        skip = old.state == "T" and old.read_at >= since
                    elif thorough:
                        skip = now - old.first_seen > SETTLED_S and now - old.read_at < REREAD_S
                    else:
                        skip = old.judged
                    if skip:
                        after[pid] = old
                        continue
                proc = self._update(pid, inode, old)
                if proc is not None:
                    after[pid] = proc
                    if not proc.kthread:
                        fresh.append(proc)
        self.procs = after
        return fresh

    def _update(self, pid: int, inode: int, old: "Optional[Proc]") -> "Optional[Proc]":
        try:
            name, fields = read_stat("/proc/%d/stat" % pid)
        except OSError:
            return None
        now = time.monotonic()
        start = int(fields[19])
        if old is not None and old.start == start:
            proc = old
            proc.inode = inode
        else:
            proc = Proc(pid, inode, start, now)
            proc.kthread = bool(int(fields[6]) & PF_KTHREAD)
        proc.ppid, proc.pgrp, proc.sid = int(fields[1]), int(fields[2]), int(fields[3])
        proc.threads = int(fields[17])
        proc.state = chr(fields[0][0])
        if proc.state in "ZX" and proc.threads > 1:
            proc.state = thread_state(pid)
        proc.read_at = now
        image = (fields[25], name)
        if proc.image != image:
            proc.image = image
            proc.env_job = None
            proc.uids = None
            proc.judged = False
        return proc

    def _inherits(self, proc: Proc, job: Job, is_sure: bool) -> bool:
        """Whether a child of the job's, or a process in one of its sessions, is the job's. If that `is_sure`, it may
        run as any user, because only a fork leads there. PBS itself stops whatever is in a job's session, too."""
        if job.uid is None or self._is_spared(proc):
            return False
        if not self.all_users or not is_sure:
            return self._fits(proc, job, self._uids(proc))
        if job.uid == 0:
            return proc.image is None or proc.image[1] not in MOM_NAMES
        return not self._is_moms(proc)

    def is_mom(self, proc: Proc) -> bool:
        """Whether it is MoM or a hook of MoM, by its name. Any user may give this name to a program of his own."""
        named = proc.image is not None and proc.image[1] in MOM_NAMES
        return named and not (self.all_users and any(self._uids(proc)))

    def _is_moms(self, proc: Proc) -> bool:
        """Whether it is MoM, a hook of MoM, or was started by these as root. Such processes are in the job's session
        until the job's shell begins. A name alone is no proof, because a user may give it to any program."""
        for _ in range(MOST_ANCESTORS):
            parent = self.procs.get(proc.ppid)
            named = proc.image is not None and proc.image[1] in MOM_NAMES
            if not named and (parent is None or parent.pid == 1 or parent.job is not None):
                return False
            if any(self._uids(proc)):
                return False
            if named or parent is None:
                return True
            proc = parent
        return False

    @staticmethod
    def _fits(proc: Proc, job: Job, uids: "Tuple[int, ...]") -> bool:
        """Whether its uids allow that it is the job's. MoM's own children run as root, but belong to no job of root."""
        return job.uid in uids and (job.uid != 0 or proc.image is None or proc.image[1] not in MOM_NAMES)

    def _uids(self, proc: Proc) -> "Tuple[int, ...]":
        try:
            uid = os.stat("/proc/%d" % proc.pid).st_uid
        except OSError:
            return ()
        if uid != 0:
            return (uid,)
        if proc.uids is None:  # it is root, or /proc shows root because nobody may read its memory
            proc.uids = uids_of(proc.pid)
        return proc.uids

    def _by_cgroup(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", now: float) -> "Set[Proc]":
        found: "Set[Proc]" = set()
        self.cgroups.refresh(now)
        self.grouped = {}
        if not self.cgroups.found:
            return found
        for job in by_id.values():
            self.grouped[job.key] = self.cgroups.pids(job.id)
            for pid in self.grouped[job.key]:
                proc = self.procs.get(pid) or self._update(pid, 0, None)
                if proc is not None and proc.job is None and not self._is_spared(proc):
                    self._take(proc, job, members, found)
        return found

    def _by_environment(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", fresh: "List[Proc]") -> "Set[Proc]":
        found: "Set[Proc]" = set()
        if not by_id:
            return found
        until = time.monotonic() + ENVIRON_BUDGET_S
        owners = {job.uid for job in by_id.values()}
        for job in by_id.values():
            job.doubtful = 0
        candidates: "List[Tuple[Proc, Tuple[int, ...]]]" = []
        unread: "List[Tuple[Proc, int]]" = []
        strangers: "List[Tuple[Proc, int]]" = []
        for proc in fresh:
            if proc.job is not None or proc.dead:
                continue
            uids = self._uids(proc)
            proc.judged = True
            if self._is_spared(proc):
                continue
            if not (any(uids) if None in owners else owners.intersection(uids)):
                strangers += [(proc, uids[0])] if uids else []
                continue
            candidates.append((proc, uids))
            if proc.env_job is None:
                self._ask(proc, uids[0], unread)
        complete = not unread or self.environments.read(unread, until)
        for proc, uid in unread:
            proc.judged = proc.env_job is not None or self.environments.rests(proc, uid)
            # It may be in the midst of an exec: then it will have an environment soon, or has none.
            if not proc.judged and (not complete or time.monotonic() - proc.first_seen < EXEC_S):
                self.unread.update(self._uids(proc))
        self.unfinished = self.unfinished or bool(self.unread)
        for proc, uids in candidates:
            owner = by_id.get(proc.env_job) if proc.env_job else None
            if owner is None:
                continue
            if owner.uid is None:
                owner.doubtful += 1
            elif self._fits(proc, owner, uids):
                owner.cookie = owner.cookie or proc.cookie
                self._take(proc, owner, members, found)
        self._by_cookie(by_id, members, strangers, found)
        return found

    def _by_cookie(
        self,
        by_id: "Dict[str, Job]",
        members: "Dict[int, Proc]",
        strangers: "List[Tuple[Proc, int]]",
        found: "Set[Proc]",
    ) -> None:
        """Find processes of other users that have inherited the environment of a job and nothing else of it. Its cookie
        shows that, because nobody else knows it. No stop waits for them: another user's memory may not answer."""
        if not self.all_users:
            return
        leaders = [members[sid] for job in by_id.values() for sid in job.sessions if sid in members and not job.cookie]
        sessions = [start for job in by_id.values() if job.cookie for start in job.sessions.values()]
        strangers = [(p, u) for p, u in strangers if sessions and p.start >= min(sessions) and not self._is_moms(p)]
        unread = [(p, u) for p, u in strangers if p.env_job is None]
        unread += [(p, uids[0]) for p in leaders if p.env_job is None for uids in [self._uids(p)] if uids]
        unread = [(p, u) for p, u in unread if not self.environments.rests(p, u)]
        if unread and not self.environments.late:
            self.environments.read(unread, time.monotonic() + STRANGERS_BUDGET_S)
        for proc in leaders:
            if proc.job is not None and proc.env_job == proc.job.id:
                proc.job.cookie = proc.cookie
        for proc, _ in strangers:
            proc.judged = proc.env_job is not None
            job = by_id.get(proc.env_job) if proc.env_job else None
            if job is not None and job.uid is not None and proc.cookie and proc.cookie == job.cookie:
                self._take(proc, job, members, found)

    def _ask(self, proc: Proc, uid: int, unread: "List[Tuple[Proc, int]]") -> None:
        """Add a process to those whose environment is to be read now, unless that read hangs or hung."""
        if self.environments.is_being_read(proc):
            proc.judged = False
            self.unread.update(self._uids(proc))
        elif not self.environments.rests(proc, uid):
            unread.append((proc, uid))

    def _by_descent(self, by_id: "Dict[str, Job]", members: "Dict[int, Proc]", fresh: "List[Proc]") -> "Set[Proc]":
        """Find children of a job's process, and processes of a session whose leader belongs or belonged to the job.

        A session's number is free once no process of it is left. Daemons of any user may then get it. So processes of
        other users are the job's only if one of the session's processes is still there that is known as the job's.
        """
        found: "Set[Proc]" = set()
        sessions: "Dict[int, Tuple[Job, int]]" = {}
        held: "Set[int]" = set()
        for job in by_id.values():
            for sid, start in list(job.sessions.items()):
                leader = self.procs.get(sid)
                if leader is not None and leader.start != start:
                    del job.sessions[sid]  # that session has ended, and another process has its number
                else:
                    sessions[sid] = (job, start)
                    if leader is not None:
                        held.add(sid)
        for proc in members.values():
            if proc.pid == proc.sid and proc.job is not None:
                sessions[proc.sid] = (proc.job, proc.start)
            if proc.sid in sessions and sessions[proc.sid][0] is proc.job:
                held.add(proc.sid)
        rest = [p for p in fresh if p.job is None and not p.dead]
        while rest:
            left = []
            for proc in rest:
                parent = members.get(proc.ppid)
                its = parent.job if parent is not None else None
                is_sure = its is not None or proc.sid in held
                if its is None and proc.sid in sessions and proc.start >= sessions[proc.sid][1]:
                    its = sessions[proc.sid][0]
                if its is not None and self._inherits(proc, its, is_sure):
                    self._take(proc, its, members, found)
                    if proc.pid == proc.sid:
                        sessions[proc.sid] = (its, proc.start)
                    if proc.sid in sessions and sessions[proc.sid][0] is its:
                        held.add(proc.sid)
                else:
                    left.append(proc)
            if len(left) == len(rest):
                break
            rest = left
        return found

    def _take(self, proc: Proc, job: Job, members: "Dict[int, Proc]", found: "Set[Proc]") -> None:
        proc.job = job
        self.procs[proc.pid] = members[proc.pid] = proc
        found.add(proc)
        if job.struck.get(proc.pid) == proc.start and proc.struck_at is None:
            proc.struck_at = proc.read_at  # by an earlier agent
        if proc.pid == proc.sid:
            job.sessions[proc.sid] = proc.start

    def forget(self, job: Job) -> None:
        for proc in self.procs.values():
            if proc.job is job:
                proc.job = None
                proc.struck_at = None
