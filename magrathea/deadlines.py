"""The two seconds of a claim: who waits how long for what, from MoM's hook to the stopped processes.

MoM's main loop waits for `execjob_begin`, so everything must end within CLAIM_S. Each part gives up a little before the
part that waits for it. So the waiting part still gets a reason, not silence:

    MoM's hook          CLAIM_S            2.0  all together
      its take-back     TAKE_BACK_S        0.2    of a claim without an answer, at the end
      the agent's time  AGENT_CLAIM_S      1.6    sent with the claim
      the way back      HOOK_MARGIN_S      0.2    to the hook, added to the agent's time
        node daemon     DAEMON_CLAIM_S     1.4      until its answer; 0.2 are left for the guest channel
          a question    CONFIRM_S          1.0        of these, at most, to a hub, before anything is stopped
          memory        MEMORY_GLANCE_S    0.4        of these, at most, to notice a shortage
          an order      ORDER_S            1.2        sent with it to the agent of each preempted domain
          its way back  ORDER_MARGIN_S     0.2
            a process   UNINTERRUPTIBLE_S  1.0          in uninterruptible sleep then counts as stopped

The hook and the agent cannot import this module, and repeat some of these numbers. A test adds all of them up and
compares them.
"""

from __future__ import annotations

CLAIM_S = 2.0
"""The promise of docs/architecture.md. While MoM waits, it starts no other job and answers no qdel."""

TAKE_BACK_S = 0.2
"""For the hook to take back a claim that got no answer: it may have been granted."""

HOOK_MARGIN_S = 0.2
"""For the agent's answer to reach the hook on a busy guest."""

AGENT_CLAIM_S = 1.6
"""After this time the agent answers that the daemon was silent."""

DAEMON_CLAIM_S = 1.4
"""After this time the daemon refuses, or grants although CPU has not moved yet. The agent would reject a later
answer."""

CONFIRM_S = 1.0
"""For a hub to answer whether PBS has given the job to the domain, if a claim would cost a sibling something. PBS
answers it in a millisecond; on a busy machine more is on the way. A claim without an answer is refused."""

MEMORY_GLANCE_S = 0.4
"""How long a claim also waits for memory; most shortages show by then. The prologue waits for the rest, because MoM
does nothing else during a claim."""

ORDER_S = 1.2
"""For an agent to stop all processes of the named jobs, and to search again until it finds no new ones."""

ORDER_MARGIN_S = 0.2
"""For the agent's answer to reach the daemon."""

UNINTERRUPTIBLE_S = 1.0
"""From then on a process in uninterruptible sleep counts as stopped if its stop is pending. Otherwise a file server
that hangs would make all its jobs impossible to preempt."""
