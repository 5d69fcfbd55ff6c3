"""The two seconds of a claim: who waits how long for whom, from MoM's hook to the processes that are stopped.

MoM's main loop waits for `execjob_begin`, so that all of it is over within CLAIM_S. Each part gives up a little before
the one that waits for it, which then still gets a reason instead of silence:

    MoM's hook          CLAIM_S            2.0  all that it may take
      its take-back     TAKE_BACK_S        0.2    of a claim without an answer, at the end
      the agent's turn  AGENT_CLAIM_S      1.6    sent with the claim
      the way back      HOOK_MARGIN_S      0.2    to the hook, beyond the agent's turn
        node daemon     DAEMON_CLAIM_S     1.4      its answer; 0.2 are left for the guest channel
          memory        MEMORY_GLANCE_S    0.4        at most, of these, for a shortage to be seen
          an order      ORDER_S            1.2        sent with it to the agent of each domain that is preempted
          its way back  ORDER_MARGIN_S     0.2
            a process   UNINTERRUPTIBLE_S  1.0          in uninterruptible sleep counts as stopped

The hook and the agent must do without this module and have some of these numbers again, under names of their own. A
test adds all of them up and compares them.
"""

from __future__ import annotations

CLAIM_S = 2.0
"""What docs/architecture.md promises; a MoM that waits longer starts no other job and answers no qdel meanwhile."""

TAKE_BACK_S = 0.2
"""For the hook to take a claim back that was not answered: it may have been granted all the same."""

HOOK_MARGIN_S = 0.2
"""For the agent's answer to get to the hook, on a guest that is busy."""

AGENT_CLAIM_S = 1.6
"""Then the agent answers that the daemon was silent."""

DAEMON_CLAIM_S = 1.4
"""Then the daemon refuses, or grants although CPU has not moved yet. Of an answer that comes later the agent could only
say that it came too late."""

MEMORY_GLANCE_S = 0.4
"""Most memory that cannot be had is known to be lacking by then. The rest is for the prologue to wait for, because MoM
does nothing else during a claim."""

ORDER_S = 1.2
"""For an agent to stop all processes of the jobs named, and to look again until it finds nothing new."""

ORDER_MARGIN_S = 0.2
"""For its answer to get to the daemon."""

UNINTERRUPTIBLE_S = 1.0
"""From then on a process in uninterruptible sleep counts as stopped, if its stop is pending. Otherwise no job of a file
server that hangs could ever be preempted."""
