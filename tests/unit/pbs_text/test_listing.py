"""The output of qmgr and qstat; the files in data/ were printed by a real server (see its README)."""

from __future__ import annotations

import os

import pytest

from magrathea.pbs_text.listing import QSTAT_JOB, decoded, listed


def test_qmgrs_lists_are_read_with_their_continuations() -> None:
    text = (
        "Hook pbs_cgroups\n    type = site\n    event = execjob_begin,execjob_end,\n\texecjob_attach,\n"
        "\texecjob_abort\n"
        "    order = 100\n\nHook other\n    enabled = true\n\n"
    )
    assert listed(text, ["Hook"]) == {
        "pbs_cgroups": {
            "type": "site",
            "event": "execjob_begin,execjob_end,execjob_attach,execjob_abort",
            "order": "100",
        },
        "other": {"enabled": "true"},
    }


def test_objects_of_other_kinds_are_left_out() -> None:
    text = "Queue a\n    enabled = True\nServer s\n    scheduling = True\nQueue b\n"
    assert listed(text, ["Queue"]) == {"a": {"enabled": "True"}, "b": {}}


@pytest.mark.parametrize("letter", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_line(letter: str) -> None:
    text = f"Job Id: 1.srv\n    comment = a{letter}    queue = high\n    queue = low\n"
    assert listed(text, [QSTAT_JOB])["1.srv"] == {"comment": f"a{letter}    queue = high", "queue": "low"}


def test_bytes_that_are_no_utf_8_survive() -> None:
    raw = b"Job Id: 1.srv\n    Variable_List = CONTACT=J\xfcrgen,U=J\xc3\xbcrgen\n"
    value = listed(decoded(raw), [QSTAT_JOB])["1.srv"]["Variable_List"]
    assert os.fsencode(value) == b"CONTACT=J\xfcrgen,U=J\xc3\xbcrgen"
