"""Fenced blocks of the documents, and whether a command's real output matches a block.

After the language a block may have words that tell where and how to run it (`sh server`, `sh user again`). Readers do
not see them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "deploy/README.md")),
]
"""Every page of the repository."""
FENCE = re.compile(r"^```(.*)$")


@dataclass(frozen=True)
class Block:
    """`line`: number of its first line in the document, from 1. `words`: the words after the language."""

    document: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    found: list[Block] = []
    inside: list[str] | None = None
    start, info = 0, [""]
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if not (fence := FENCE.match(line)):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, start, info = [], number + 1, fence[1].split() or [""]
        else:
            found.append(Block(document, start, info[0], tuple(info[1:]), "".join(f"{one}\n" for one in inside)))
            inside = None
    assert inside is None, f"{document}:{start}: a block without an end"
    return found


def pattern(expected: str) -> re.Pattern[str]:
    """The pattern of the expected output: a line `...` stands for any lines, `...` in a line for any text. More spaces
    match."""
    parts = []
    for line in expected.splitlines():
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            words = (r"[^\n]*".join(map(re.escape, word.split("..."))) for word in line.split())
            parts.append(r"[ \t]+".join(words).replace(r"[ \t]+[^\n]*", r"(?:[ \t]+[^\n]*)?") + r"[ \t]*\n")
            if line[:1].isspace():
                parts[-1] = r"[ \t]*" + parts[-1]
    return re.compile("".join(parts))


def says(expected: str, printed: str) -> bool:
    return pattern(expected).fullmatch(printed if printed.endswith("\n") or not printed else printed + "\n") is not None
