"""Write manual pages from the commands themselves: `python -m tools.manual_pages --out DIR`.

There is a page for each program of the package and each sub-command of `magrathea`. Click commands are walked. Of other
programs (argparse, and the agent, which uses neither) the output of `--help` is read. The click-man library does only
the first, and does not find sub-commands that are loaded when needed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from magrathea import __version__

PREFIX = "magrathea-"
USER, ADMIN = 1, 8
"""Sections of the manual: commands for users, and daemons that an admin starts."""

EXAMPLES, EXIT_STATUS = "EXAMPLES", "EXIT STATUS"


@dataclass(slots=True)
class Page:
    """`options`, `commands`: a term and its text. `sections`: other sections by title, as paragraphs. A paragraph that
    is a list keeps its lines as they are."""

    name: str
    section: int
    what: str
    synopsis: str
    description: list[str | list[str]] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)
    sections: dict[str, list[str | list[str]]] = field(default_factory=dict)
    see: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        return f"{self.name}.{self.section}"

    @property
    def reference(self) -> str:
        return f"{self.name}({self.section})"


def pages() -> list[Page]:
    """All pages, each with references to related ones."""
    from magrathea.cli.main import cli

    found = list(_of_click(cli, "magrathea", USER))
    for point in sorted(entry_points(group="console_scripts"), key=lambda point: point.name):
        if point.name.startswith(PREFIX):
            program = point.load()
            if isinstance(program, click.Command):
                found += _of_click(program, point.name, ADMIN)
            else:
                found.append(_of_help(program, point.name))
    programs = [page.reference for page in found if page.section == ADMIN]
    for page in found:
        around = [other.reference for other in found if page.name.startswith(other.name + "-")]
        below = [other.reference for other in found if other.name.rpartition("-")[0] == page.name]
        others = programs if page.section == ADMIN or page.name == "magrathea" else []
        page.see = [reference for reference in dict.fromkeys([*around, *below, *others]) if reference != page.reference]
    return found


def _of_click(command: click.Command, name: str, section: int, parent: click.Context | None = None) -> Iterator[Page]:
    info = name if parent is None else (command.name or name)
    ctx = click.Context(command, info_name=info, parent=parent, **command.context_settings)
    page = Page(name, section, _short(command), f"{ctx.command_path} {_pieces(command, ctx)}")
    _split(page, _paragraphs(inspect.cleandoc(command.help or "")))
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and (
            record[1] or isinstance(param, click.Option)
        ):  # bare arguments stand in the synopsis
            page.options.append(record)
    below = _children(command, ctx)
    page.commands = [(word, _short(child)) for word, child in below]
    yield page
    for word, child in below:
        yield from _of_click(child, f"{name}-{word}", section, ctx)


def _short(command: click.Command) -> str:
    return command.get_short_help_str(200).rstrip(".")


def _pieces(command: click.Command, ctx: click.Context) -> str:
    return " ".join(command.collect_usage_pieces(ctx))


def _children(command: click.Command, ctx: click.Context) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return []
    all_of_it = ((word, command.get_command(ctx, word)) for word in command.list_commands(ctx))
    return [(word, child) for word, child in all_of_it if child is not None and not child.hidden]


def _paragraphs(text: str) -> list[str | list[str]]:
    """The paragraphs of a click help text. A paragraph that begins with a line `\\b` keeps its lines."""
    found: list[str | list[str]] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.strip("\n").splitlines()
        found.append(lines[1:] if lines[0].strip() == "\b" else " ".join(line.strip() for line in lines))
    return found


def _split(page: Page, paragraphs: list[str | list[str]]) -> None:
    """Put examples and exit codes into sections of their own."""
    for paragraph in paragraphs:
        first = paragraph[0] if isinstance(paragraph, list) else paragraph
        if isinstance(paragraph, list) and re.fullmatch(r"Examples?:", first):
            page.sections.setdefault(EXAMPLES, []).append(_flush(paragraph[1:]))
        elif re.match(r"[Ee]xit codes?:", first):
            text = " ".join(paragraph) if isinstance(paragraph, list) else paragraph
            page.sections.setdefault(EXIT_STATUS, []).append(text.partition(":")[2].strip())
        else:
            page.description.append(paragraph)


def _flush(lines: list[str]) -> list[str]:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[indent:] for line in lines]


OPTION = re.compile(r"  (-\S.*?)(?:  +(\S.*))?")


def _of_help(program: Any, name: str) -> Page:
    """A page from the output of `--help`: usage, paragraphs, and options that begin with two spaces and a dash."""
    page = Page(name, ADMIN, "", "")
    for block in re.split(r"\n\s*\n", _help_of(program).strip("\n")):
        lines = block.splitlines()
        if lines[0].lower().startswith("usage:"):
            page.synopsis = " ".join(block.partition(":")[2].split())
        elif any(OPTION.fullmatch(line) for line in lines):
            page.options += _options(lines)
        else:
            _split(page, [" ".join(line.strip() for line in lines)])
    first = str(page.description[0]) if page.description else name
    page.what = first.partition(": ")[0].rstrip(".")
    return page


def _help_of(program: Any) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        program(["--help"])
    return said.getvalue()


def _options(lines: list[str]) -> Iterator[tuple[str, str]]:
    term, text = "", ""
    for line in lines:
        if match := OPTION.fullmatch(line):
            if term:
                yield term, text
            term, text = match[1], match[2] or ""
        elif term:
            text = f"{text} {line.strip()}".strip()
    yield term, text


# As roff, for the macros of man(7)


def roff(page: Page) -> str:
    """The page's source. It has no date, so the same commands give the same bytes."""
    lines = [
        f'.TH "{_text(page.name.upper())}" {page.section} "" "Magrathea {_text(__version__)}" "Magrathea"',
        ".nh",
        ".ad l",
    ]
    lines += [".SH NAME", rf"{_text(page.name)} \- {_text(page.what)}"]
    lines += [".SH SYNOPSIS", _text(page.synopsis)]
    lines += [".SH DESCRIPTION", *_body(page.description or [page.what])]
    lines += _terms("OPTIONS", page.options) + _terms("COMMANDS", page.commands)
    for title in (EXIT_STATUS, EXAMPLES):
        if title in page.sections:
            lines += [f".SH {title}", *_body(page.sections[title])]
    if page.see:
        names = (reference.partition("(") for reference in page.see)
        lines += [".SH SEE ALSO", ",\n".join(rf"\fB{_text(name)}\fR({section}" for name, _, section in names)]
    return "\n".join(lines) + "\n"


def _terms(title: str, terms: list[tuple[str, str]]) -> list[str]:
    lines = [f".SH {title}"] if terms else []
    for term, text in terms:
        lines += [".TP", rf"\fB{_text(term)}\fR", _text(text) or r"\&"]
    return lines


def _body(paragraphs: list[str | list[str]]) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        if isinstance(paragraph, list):
            yield from _verbatim(paragraph)
        else:
            yield _text(paragraph)


def _verbatim(lines: list[str]) -> list[str]:
    return [".nf", *(_text(line) or r"\&" for line in lines), ".fi"]


def _text(text: str) -> str:
    """The text with everything escaped that has a meaning in roff."""
    for character, escape in (("\\", r"\e"), ("-", r"\-"), ("`", r"\(ga"), ("'", r"\(aq"), ('"', r"\(dq")):
        text = text.replace(character, escape)
    return r"\&" + text if text.startswith(".") else text


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory for the pages.")
def main(out: Path) -> None:
    """Write the manual pages of all commands: `man -l DIR/magrathea.1` shows one."""
    out.mkdir(parents=True, exist_ok=True)
    found = pages()
    for page in found:
        (out / page.file).write_text(roff(page), encoding="utf-8")
    click.echo(f"{len(found)} pages in {out}")


if __name__ == "__main__":
    main()
