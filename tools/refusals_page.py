"""Write the tables of refusals in docs/admin-guide.md from the code's table: `python -m tools.refusals_page [--check]`.

It writes only between the two marks and leaves the rest of the guide as it is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magrathea.core.refusals import TABLE, Section

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "admin-guide.md"
BEGIN = "<!-- written by `python -m tools.refusals_page` from magrathea/core/refusals.py; do not edit -->\n"
END = "<!-- end of what is written -->\n"

INTRODUCTIONS = {
    Section.SERVER_HOOK: (
        "By the server's hook, before a job is sent to a vnode",
        "The job's comment shows it (`qstat -s`): `magrathea: CODE: ...`.",
    ),
    Section.CLAIM: (
        "Claims, in the domain",
        "The answer to MoM's hook. The job waits with a later execution time (`W`; a subjob in `Q`), and PBS tries it"
        " again, however often. `magrathea history` on the host lists each.",
    ),
    Section.COMMAND: ("Commands", "The command prints `refused (CODE): ...`."),
    Section.STEP: (
        "Drivers, agents and their channel",
        "The history, a domain's fault and the log show them.",
    ),
}
"""The heading and first paragraph of each section."""


def tables() -> str:
    """The text between the marks."""
    lines: list[str] = []
    for section, (heading, introduction) in INTRODUCTIONS.items():
        lines += [
            f"### {heading}",
            "",
            introduction,
            "",
            "| code | cause | fix | tried again |",
            "| --- | --- | --- | --- |",
        ]
        rows = (meaning for meaning in TABLE if meaning.section is section)
        lines += [f"| `{m.code}` | {m.cause} | {m.fix} | {m.again.words} |" for m in rows]
        lines.append("")
    return "\n".join(lines)


def written(guide: str) -> str:
    """The guide with its tables brought up to date. Raises ValueError if a mark is missing."""
    before, begin, rest = guide.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{GUIDE} lacks the line {BEGIN if not begin else END!r}")
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the tables are stale")
    options = parser.parse_args()
    guide = GUIDE.read_text(encoding="utf-8")
    text = written(guide)
    if options.check and text != guide:
        sys.stderr.write(f"{GUIDE}: stale tables of refusals: run `python -m tools.refusals_page` and commit it\n")
        return 1
    if not options.check:
        GUIDE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
