"""select and schedselect by PBS's own grammar."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.core.model import JobClass
from magrathea.pbs_text.select import (
    CLASSES,
    MAX_SELECT,
    chunks,
    examined,
    job_class,
    plus_parts,
    resource_names,
    resources,
)
from tests.steps import counted, lines_run


@pytest.mark.parametrize(
    ("select", "found"),
    [
        ("2", [(2, [])]),
        ("ncpus=1", [(1, [("ncpus", "1")])]),
        ("1:ncpus=1:mem=100mb", [(1, [("ncpus", "1"), ("mem", "100mb")])]),
        ("2:NCPUS=1:Mem=100MB", [(2, [("ncpus", "1"), ("mem", "100MB")])]),
        ("007:ncpus=1+host=n1", [(7, [("ncpus", "1")]), (1, [("host", "n1")])]),
        ("0:ncpus=1+1:ncpus=1", [(0, [("ncpus", "1")]), (1, [("ncpus", "1")])]),
        (" 1 : ncpus = 1 : mem = 1gb ", [(1, [("ncpus", "1"), ("mem", "1gb")])]),
        ("1:note='a:b+c'", [(1, [("note", "a:b+c")])]),
        ('1:note="it\'s":ncpus=2', [(1, [("note", "it's"), ("ncpus", "2")])]),
        ("1:note='say \"x+y\"'+2", [(1, [("note", 'say "x+y"')]), (2, [])]),
        ('1:note="(a)"', [(1, [("note", "(a)")])]),
        ("1:note='x'y", [(1, [("note", "xy")])]),
        ("1:note=", [(1, [("note", "")])]),
    ],
)
def test_chunks(select: str, found: list[tuple[int, list[tuple[str, str]]]]) -> None:
    assert chunks(select) == found


@pytest.mark.parametrize(
    "select",
    [
        "", "+", "1+", "+1:ncpus=1", "1:ncpus=1++1", "1:", "1:ncpus", "1:ncpus=1:", ":ncpus=1", "x:ncpus=1", "1ncpus=1",
        "1:=1", "1:9x=1", "1:ncpus=1:ncpus=2", "1:ncpus=1:NCPUS=2", '1:note="open', "1:note='open+1:ncpus=1",
        "1:note=(a)", "(1:ncpus=1)", "-1:ncpus=1", "1:a b=1",
    ],
)  # fmt: skip
def test_text_that_cannot_be_parsed_is_never_guessed(select: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        chunks(select)
    assert job_class(select) is None


@pytest.mark.parametrize(
    ("schedselect", "cls"),
    [
        ("1:ncpus=1:magrathea_accepts=priority", "priority"),
        ("1:ncpus=1:MAGRATHEA_accepts=priority", "priority"),
        ("1:ncpus=1:magrathea_accepts=preemptible+2:ncpus=1:magrathea_accepts=preemptible", "preemptible"),
        ("1:ncpus=1:magrathea_accepts=protected", "protected"),
        ("1:ncpus=1", None),
        ("1:ncpus=1:magrathea_accepts=priority+1:ncpus=1", None),
        ("1:ncpus=1:magrathea_accepts=priority+1:ncpus=1:magrathea_accepts=preemptible", None),
        ('1:ncpus=1:software="x:magrathea_accepts=priority"', None),
        ("1:ncpus=1:software='x+1:magrathea_accepts=priority':magrathea_accepts=preemptible", "preemptible"),
        ("1:ncpus=1:magrathea_accepts=emperor", None),
        ("1:ncpus=1:magrathea_accepts=priority:magrathea_accepts=priority", None),
    ],
)
def test_the_class_is_the_one_of_all_chunks(schedselect: str, cls: str | None) -> None:
    assert job_class(schedselect) == cls


def test_the_classes_are_those_of_the_core() -> None:
    assert set(CLASSES) == {cls.value for cls in JobClass}


def test_no_name_goes_unseen() -> None:
    assert resource_names("1:ncpus=1+2:Magrathea_Rank=9:mem=1gb") == {"ncpus", "magrathea_rank", "mem"}
    assert resource_names('1:software="a:magrathea_accepts=priority"') == {"software"}
    assert "magrathea_accepts" in resource_names('1:note=(a): Magrathea_accepts = priority:x="')


plain = st.text(st.characters(codec="ascii", exclude_characters="\"'+:=()", min_codepoint=33), min_size=1, max_size=5)
quotable = st.text(st.characters(codec="ascii", exclude_characters='"', min_codepoint=32), max_size=8)


asked = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True), plain | quotable, max_size=3)


@given(st.lists(st.tuples(st.integers(0, 99), asked), min_size=1, max_size=4))
def test_text_as_pbs_writes_it_is_read_back(parts: list[tuple[int, dict[str, str]]]) -> None:
    """Built as do_schedselect in vnparse.c does: with quotes if the value needs them."""
    text = "+".join(
        f"{count}" + "".join(f':{name}="{value}"' for name, value in asked.items()) for count, asked in parts
    )
    assert chunks(text) == [
        (count, [(name, value.rstrip()) for name, value in asked.items()]) for count, asked in parts
    ]


@given(st.text(st.sampled_from("1a:+='\"( )"), max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = chunks(text)
    except ValueError:
        return
    assert len(found) == len(plus_parts(text))


MOST_STEPS = 60
"""Lines run and characters copied for each character of a select: fewer than 30 are enough to read it in one pass."""


def assert_one_pass(read: Callable[[str], object], text: str) -> None:
    copied = [0]
    _, lines = lines_run(lambda: read(counted(text, copied)))
    assert lines < MOST_STEPS * len(text) + 100
    assert copied[0] < MOST_STEPS * len(text)


@pytest.mark.long
@pytest.mark.parametrize(
    ("read", "text"),
    [(chunks, "1:a='" + "x" * 1_000_000 + "'"), (resources, "a=1" + ":a=1" * 25_000)],
    ids=["a long value", "many resources"],
)
def test_a_very_long_select_is_read_in_one_pass(read: Callable[[str], object], text: str) -> None:
    assert_one_pass(read, text)


SIZE = MAX_SELECT // 4
LONG = {
    "text within quotes": "1:a='" + "x" * (SIZE - 6) + "'",
    "open quote": "1:a='" + "x" * (SIZE - 5),
    "resources": ("1" + ":a=1" * SIZE)[:SIZE],
    "different resources": ("1" + "".join(f":a{chr(97 + n % 26)}{n}=1" for n in range(SIZE)))[:SIZE],
    "chunks": ("1+" * SIZE)[: SIZE - 1],
    "chunks with quotes": ("1:a='x'+" * SIZE)[: SIZE - 1],
    "plus signs": "+" * SIZE,
    "colons": ":" * SIZE,
    "equals": "1:a" + "=" * (SIZE - 3),
    "spaces": "1:a=" + " " * (SIZE - 4),
    "spaces and quotes": ("1:a= ' ' " * SIZE)[:SIZE],
    "digits": "9" * SIZE,
    "brackets": "1:a=" + "(" * (SIZE - 4),
}


@pytest.mark.long
@pytest.mark.parametrize("select", LONG.values(), ids=LONG)
def test_every_long_select_is_read_in_one_pass(select: str) -> None:
    assert_one_pass(examined, select)


def test_a_longer_select_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magrathea.pbs_text.select.chunks", None)
    assert "longer" in examined("1:a='" + "x" * MAX_SELECT + "'")[1]
