"""PBS's numbers and words for the states of jobs (job.h) and vnodes (pbs_nodes.h).

The agent and the stand-in's MoM cannot import this package and repeat the numbers; a test compares them.
"""

from __future__ import annotations

PRERUN_SUBSTATE = 41
"""Substate of a job that was sent to its MoM and has not started yet; MoM refuses to suspend it."""

RUNNING_SUBSTATE = 42

SUSPENDED_SUBSTATE = 43
"""Substate of a job that a signal has suspended (`suspend` or `admin-suspend`); its state letter is S."""

RESUMING_SUBSTATE = 45
"""Substate of a suspended job that the scheduler will resume (after a plain `resume`); its state letter is S."""

ENDING_SUBSTATE = 50
"""From this substate on a job is ending, whatever its state letter is."""

REQUEUING_SUBSTATE = 63
"""Substate of a job that was rerun by force, until one of its MoMs has answered; then PBS requeues it."""

DEAD_STATES = frozenset({"down", "state-unknown", "Stale", "unresolvable"})
"""Words in a vnode's state that mean its MoM does not answer, or does not have this vnode."""

CLOSED_STATES = DEAD_STATES | {"offline", "offline_by_mom", "maintenance", "sleep"}
"""Words in a vnode's state with which PBS starts no job there (`VNODE_UNAVAILABLE` in pbs_nodes.h)."""
