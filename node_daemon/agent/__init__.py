"""magrathea-agent: the one process of Magrathea inside a domain.

It stands between the domain's MoM (a unix socket for the MoM hook) and the host's node daemon (the guest channel: a
virtio-serial port or a unix socket). It relays claims and releases, finds the processes of jobs, stops and continues
them, reports memory, and runs the site's own scripts. One folder, standard library only, Python >= 3.6, because a
guest may run any system, old or new. The folder works under any name: `python3 -I -S FOLDER`.

Laws of this package:

1. The agent touches processes of jobs only. It knows a process by its pid *and* its start time. Signals go through
   a pidfd, and the process is checked after the pidfd was opened (before Python 3.9: right before the signal). So a
   signal never hits another process that has got the same pid. One exception: after the guest was saved to disk, the
   agent ends MoM's connections to PBS, which have no other end any more (`mom_connections`). It sends MoM no signal.
2. A stop is a standing order: the agent enforces it again every 0.5 s until the daemon lifts it. It decides nothing
   itself. When it ends (by SIGTERM, too), stopped jobs stay stopped, and the next agent continues from the state file.
3. The agent finds a job's processes by PBS's job cgroup, and by PBS_JOBID among the processes of the job's owner. What
   descends from these or is in a session of theirs is the job's, too, whoever it runs as; so is what has inherited the
   job's PBS_JOBCOOKIE. MoM, its hooks and their programs are not. A process that was found belongs to the job for its
   whole life: it cannot leave.
4. A cgroup is frozen for some milliseconds only, as a barrier: freeze, SIGSTOP each process, thaw. Then PBS sees plain
   stopped processes, as after its own suspend: its SIGCONT continues them, its SIGKILL kills them. A process in a v1
   freezer would notice neither. Nothing stays frozen that only the agent could thaw.
5. All input is bounded, and its types are checked, before it is used. No shell is ever started.
6. There is one thread. It waits for the selector, for a short freeze, for a look's environments, and for the directory
   of users. Each of these is bounded. What reads memory of other processes, and so may hang in the kernel, runs in a
   child process. So does the question to the directory of users, which may be away for minutes.
7. A job is over here when its top process has ended and none of its processes lives, or when MoM has deleted its file
   about the job. The agent reports that without a hook of PBS. A job that MoM's list shows later as running is a job
   again.

| module | for |
| --- | --- |
| `values`, `log`, `configuration` | checks of input; lines on stderr; the configuration file |
| `procfs`, `signals`, `own_process` | reading /proc; signals that hit the right process; the agent's own process |
| `jobs` | `Job` and `Proc`: what the agent knows about a job and a process |
| `cgroups`, `changes`, `environments`, `finder` | which processes belong to a job, and whether anything has changed |
| `loop`, `children` | the event loop; child processes |
| `sweeper`, `stopper`, `ender` | standing orders: when to look; stopping and continuing; the end of stopped jobs |
| `ends` | when a job is over |
| `pager`, `advice`, `swaps` | memory of stopped jobs: out to swap and back; what the swap can take |
| `lines`, `refusals`, `sessions`, `parts`, `wire` | messages of the guest channel, for both ends |
| `transports`, `channel` | the guest channel to the node daemon |
| `mom_server`, `mom_requests`, `owners` | the socket for MoM's hooks, their requests, owners of jobs |
| `daemon_requests`, `scripts`, `machine` | the daemon's requests; the site's scripts; the guest's clock and power |
| `mom_connections` | MoM's connections to PBS after the guest was saved to disk |
| `table`, `state_file`, `private_files`, `reports` | the table of jobs, its file, reports to the daemon |
| `agent`, `start`, `__main__` | all parts together, and the command |

Times are seconds, `now` is `time.monotonic()`. Memory is in MiB.
"""

from .sessions import PROTOCOL as PROTOCOL

VERSION = "0.1.0"
