"""The agent and the stand-in's MoM repeat PBS's numbers, because they may not import them."""

from __future__ import annotations

from magrathea.pbs_text import states
from magrathea.pbs_view import PublishedVnode, is_open
from magrathea_lab.pbs_standin import mom
from node_daemon.agent import mom_requests


def test_the_numbers_of_those_who_cannot_import_them_are_the_same() -> None:
    assert mom_requests.ENDING_SUBSTATE == states.ENDING_SUBSTATE
    assert (mom.PRERUN, mom.RUNNING) == (states.PRERUN_SUBSTATE, states.RUNNING_SUBSTATE)
    assert (mom.SUSPENDED, mom.EXITING) == (states.SUSPENDED_SUBSTATE, states.ENDING_SUBSTATE)


def test_a_vnode_where_pbs_starts_nothing_is_shown_as_closed_on_a_login_node() -> None:
    """Words of OpenPBS's table (attr_node_func.c), in its own letters."""
    for word in ("offline", "offline_by_mom", "down", "Stale", "maintenance", "state-unknown", "unresolvable", "sleep"):
        assert not is_open(PublishedVnode("n1", "h1", "free", f"job-busy,{word}")), word
    for word in ("free", "job-busy", "job-exclusive", "resv-exclusive", "busy"):
        assert is_open(PublishedVnode("n1", "h1", "free", word)), word
