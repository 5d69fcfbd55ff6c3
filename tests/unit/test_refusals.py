"""The table of refusals: complete, written into the guide, and equal in the programs that cannot import it."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

from magrathea.core.refusals import TABLE, Again, RefusalCode, Section, retry_after_s
from node_daemon.agent import refusals as agents
from scheduler_plugin.setup.hook_texts import hook_text
from tools import refusals_page


def test_each_code_has_a_row_and_none_has_two_in_a_section() -> None:
    assert {meaning.code for meaning in TABLE} == set(RefusalCode)
    assert max(Counter((meaning.section, meaning.code) for meaning in TABLE).values()) == 1
    assert all(meaning.cause and meaning.fix for meaning in TABLE)


def test_the_guide_has_the_tables_as_they_are() -> None:
    guide = refusals_page.GUIDE.read_text(encoding="utf-8")
    assert refusals_page.written(guide) == guide, "stale: run `python -m tools.refusals_page`"


def test_claims_that_lack_memory_are_tried_again_later_than_others() -> None:
    assert retry_after_s(RefusalCode.HOST_BUSY) < retry_after_s(RefusalCode.MEMORY_SHORT)


def test_the_agents_codes_are_of_the_table_with_the_same_times() -> None:
    assert len(agents.CODES) > 10 and set(RefusalCode) >= agents.CODES
    assert {code: retry_after_s(RefusalCode(code)) for code in agents.RETRY_AFTER_S} == agents.RETRY_AFTER_S


def constant(hook: str, name: str) -> Any:
    """The literal that a hook's text assigns to this name."""
    tree = ast.parse(hook_text(hook))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    [found] = [node.value for node in assigned if ast.unparse(node.targets[0]) == name]
    return ast.literal_eval(found)


def test_the_server_hooks_codes_are_those_of_its_section() -> None:
    own = {meaning.code for meaning in TABLE if meaning.section is Section.SERVER_HOOK}
    assert set(constant("magrathea_server", "CODES")) == own


def test_the_mom_hook_acts_on_codes_of_claims_and_retries_as_in_the_table() -> None:
    claims = {meaning.code for meaning in TABLE if meaning.section is Section.CLAIM}
    assert set(constant("magrathea_mom", "CODES")) < claims
    assert constant("magrathea_mom", "RETRY_S") == Again.UNTOLD.seconds
