"""exec_vnode and exec_host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.pbs_text.placement import hosts_of, placed, vnodes_of


def test_chunks_with_their_vnodes_and_resources() -> None:
    assert placed("(n1:ncpus=1:mem=5kb+n2:ncpus=1)+(n3:ncpus=0)") == [
        [("n1", [("ncpus", "1"), ("mem", "5kb")]), ("n2", [("ncpus", "1")])],
        [("n3", [("ncpus", "0")])],
    ]
    assert placed("n1:ncpus=1+(n2)") == [[("n1", [("ncpus", "1")])], [("n2", [])]]


def test_a_resource_that_comes_twice_counts_twice() -> None:
    assert placed("(n1:mem=1gb:mem=1kb)") == [[("n1", [("mem", "1gb"), ("mem", "1kb")])]]


def test_vnodes_once_each_in_their_order() -> None:
    assert vnodes_of("(big[1]:ncpus=1+big[0]:ncpus=1)+(n-2.site:ncpus=1)+(big[1]:ncpus=2)") == [
        "big[1]",
        "big[0]",
        "n-2.site",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "()", "(n1:ncpus=1", "n1:ncpus=1)", "((n1:ncpus=1))", "(n1:ncpus=1)+", "(n1:)", "(:ncpus=1)", "(n1:ncpus)",
        "(n1:ncpus=1+(n2:ncpus=1))",
    ],
)  # fmt: skip
def test_text_that_cannot_be_parsed_is_never_guessed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        placed(text)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("n1/0", ["n1"]),
        ("n2/0*0", ["n2"]),
        ("n1/0*2+n2/0", ["n1", "n2"]),
        ("n1.site:15002/0*2+n2:15002/0", ["n1.site", "n2"]),
    ],
)
def test_hosts_chunk_by_chunk(text: str, hosts: list[str]) -> None:
    assert hosts_of(text) == hosts


amounts = st.dictionaries(st.sampled_from(["ncpus", "mem", "ngpus"]), st.from_regex(r"[0-9]{1,3}(kb)?", fullmatch=True))
pieces = st.lists(
    st.tuples(st.from_regex(r"[a-z][a-z0-9.\[\]-]{0,6}", fullmatch=True), amounts), min_size=1, max_size=3
)


@given(st.lists(pieces, min_size=1, max_size=4))
def test_text_as_pbs_writes_it_is_read_back(chunks: list[list[tuple[str, dict[str, str]]]]) -> None:
    texts = ["+".join(f"{v}" + "".join(f":{n}={a}" for n, a in has.items()) for v, has in chunk) for chunk in chunks]
    found = placed("+".join(f"({text})" for text in texts))
    assert found == [[(vnode, list(has.items())) for vnode, has in chunk] for chunk in chunks]
