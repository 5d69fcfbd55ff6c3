"""The agent and the stand-in's MoM repeat PBS's numbers, because they may not import them."""

from __future__ import annotations

from magrathea.pbs_text import states
from magrathea_lab.pbs_standin import mom
from node_daemon.agent import mom_requests


def test_the_numbers_of_those_who_cannot_import_them_are_the_same() -> None:
    assert mom_requests.ENDING_SUBSTATE == states.ENDING_SUBSTATE
    assert (mom.PRERUN, mom.RUNNING) == (states.PRERUN_SUBSTATE, states.RUNNING_SUBSTATE)
    assert (mom.SUSPENDED, mom.EXITING) == (states.SUSPENDED_SUBSTATE, states.ENDING_SUBSTATE)
