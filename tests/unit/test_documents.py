"""How blocks of a document are found, and how a block of output is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import documents
from tests.documents import blocks, says


def test_blocks_have_their_language_words_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "d.md").write_text("text\n\n```sh server again\na\nb\n```\nmore\n```\nc\n```\n")
    first, second = blocks(tmp_path / "d.md")
    assert (first.language, first.words, first.text, first.place) == ("sh", ("server", "again"), "a\nb\n", "d.md:4")
    assert (second.language, second.words, second.text) == ("", (), "c\n")
    (tmp_path / "d.md").write_text("```sh\na\n")
    with pytest.raises(AssertionError, match="without an end"):
        blocks(tmp_path / "d.md")


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("a b\n", "a   b  \n"),
        ("a ...\n", "a b c\n"),
        ("a ...\n", "a\n"),
        ("... b ...\n", "a b c\n"),
        ("...x...\n", "axb\n"),
        ("a\n...\nd\n", "a\nb\nc\nd\n"),
        ("a\n...\nd\n", "a\nd\n"),
        ("...\nd\n...\n", "d\n"),
        ("   a\n", "     a\n"),
        ("1.0 (x)\n", "1.0 (x)"),
    ],
)
def test_output_is_as_shown(expected: str, printed: str) -> None:
    assert says(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        ("a\n", "b\n"),
        ("a\n", "a\nb\n"),
        ("a\nb\n", "a\n"),
        ("a ...\n", "ab\n"),
        ("a b\n", "ab\n"),
        ("1.0\n", "1x0\n"),
        ("a\n...\nd\n", "a\nb\n"),
        ("a\n", ""),
    ],
)
def test_other_output_is_not(expected: str, printed: str) -> None:
    assert not says(expected, printed)
