"""magrathea-agent: the one process of Magrathea inside a domain.

It stands between the domain's MoM (a unix socket for the MoM hook) and the host's node daemon (the guest channel: a
virtio-serial port or a unix socket). It relays claims and releases, finds the processes of jobs, stops and continues
them, reports memory, and runs the site's own scripts. One folder, standard library only, Python >= 3.6, because a
guest is whatever its users need. The folder works under any name: `python3 -I -S FOLDER`.

Laws of this package:

1. Only processes of the job are ever touched. A process is known by pid *and* start time; a signal goes through a
   pidfd whose process has been looked at after the pidfd was opened (before Python 3.9: looked at right before the
   signal). So a recycled pid is never hit.
2. A stop is a standing order: it is swept again every 0.5 s until the daemon lifts it. The agent decides nothing by
   itself: when it ends (SIGTERM too), what is stopped stays stopped, and the next agent goes on from the state file.
3. A job is found by PBS's job cgroup, and by session, descent and PBS_JOBID, of processes of the job's owner only.
   Once found, a process is the job's as long as it lives: none can leave its job.
4. A cgroup is frozen for some milliseconds only, as a barrier: freeze, SIGSTOP each process, thaw. What PBS sees are
   plainly stopped processes, as after its own suspend: its SIGCONT continues them, its SIGKILL kills them (which a
   process frozen by a v1 freezer would not notice), and nothing is left frozen that only the agent could thaw.
5. Everything from outside is bounded and checked by type before it is used. No shell, anywhere.
6. One thread. Nothing in here waits for anything but the selector (and a short freeze, bounded).

| module | for |
| --- | --- |
| `values`, `log`, `configuration` | what comes from outside, checked; lines on stderr; the configuration file |
| `procfs`, `signals`, `own_process` | reading /proc; signals that hit nobody else; the agent's own process |
| `jobs` | `Job` and `Proc`: what is known of a job and of a process |
| `cgroups`, `changes`, `finder` | which processes are a job's, and whether anything has changed |
| `loop`, `children` | the event loop; child processes |
| `sweeper`, `stopper`, `ender` | standing orders: when to look; stopping and continuing; the end of stopped jobs |
| `pager`, `advice` | memory of stopped jobs: out to swap and back |
| `lines`, `refusals`, `sessions`, `parts`, `wire` | what is said on the guest channel, for both its ends |
| `transports`, `channel` | the guest channel to the node daemon |
| `mom_server`, `mom_requests`, `owners` | the socket for MoM's hooks, what they ask, who owns a job |
| `daemon_requests`, `scripts`, `machine` | what the node daemon asks; the site's scripts; the guest's clock and power |
| `table`, `state_file`, `private_files`, `reports` | the table of jobs, what survives the agent, what it tells |
| `agent`, `start`, `__main__` | all parts together, and the command |

Times are seconds, `now` is `time.monotonic()`. Memory is in MiB.
"""

from .sessions import PROTOCOL as PROTOCOL

VERSION = "0.1.0"
