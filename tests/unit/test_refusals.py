"""The table of refusals: complete, written into the guide, and known to those that cannot import it."""

from __future__ import annotations

from collections import Counter

from magrathea.core.refusals import TABLE, RefusalCode, Section, retry_after_s
from node_daemon.agent import refusals as agents
from tests.refusal_codes import refusal_codes
from tools import refusals_page


def test_each_code_has_a_row_and_none_has_two_in_a_section() -> None:
    assert {meaning.code for meaning in TABLE} == set(RefusalCode)
    assert max(Counter((meaning.section, meaning.code) for meaning in TABLE).values()) == 1
    assert all(meaning.cause and meaning.fix for meaning in TABLE)


def test_the_guide_has_the_tables_as_they_are() -> None:
    guide = refusals_page.GUIDE.read_text(encoding="utf-8")
    assert refusals_page.written(guide) == guide, "stale: run `python -m tools.refusals_page`"


def test_what_lacks_memory_is_tried_again_later_than_other_claims() -> None:
    assert retry_after_s(RefusalCode.HOST_BUSY) < retry_after_s(RefusalCode.MEMORY_SHORT)


def test_the_agents_codes_are_of_the_table_with_the_same_times() -> None:
    assert len(agents.CODES) > 10 and set(RefusalCode) >= agents.CODES
    assert {code: retry_after_s(RefusalCode(code)) for code in agents.RETRY_AFTER_S} == agents.RETRY_AFTER_S


def test_agent_and_hooks_know_the_codes() -> None:
    assert set(refusal_codes()) <= {code.value for code in RefusalCode}
    hook = {code for code, files in refusal_codes().items() if any("hooks/magrathea_server" in f for f in files)}
    assert hook == {meaning.code.value for meaning in TABLE if meaning.section is Section.SERVER_HOOK}
