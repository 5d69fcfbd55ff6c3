"""Each command in a document exists, with all of its options.

docs/walk-through.md and docs/user-guide.md are also executed, by tests/openpbs/test_walk_through.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from magrathea.cli.main import cli
from magrathea.configuration import ConfigurationError
from magrathea_lab.waiting import BOUND_S
from node_daemon import configuration as node_configuration
from node_daemon import main as noded
from node_daemon.agent.start import options
from scheduler_plugin.hub import configuration as hub_configuration
from scheduler_plugin.hub.main import main as hub
from tests.documents import DOCUMENTS, ROOT, Block, blocks
from tools import manual_pages as man

RUN = {"server", "host", "user", "n1", "p1"}
"""Places where a block is executed (tests/openpbs). A block without such a word may contain only Magrathea's
commands."""

INLINE = re.compile(r"`(magrathea(?:-\w+)? [^`]+)`")


def parse(argv: list[str]) -> None:
    """Parse a command line as the program does, without executing it. Raises the program's error for a wrong one."""
    program, *rest = argv
    if program == "magrathea-noded":
        noded.arguments(rest)
    elif program == "magrathea-agent":
        options(rest)
    elif program == "magrathea-hub":
        hub.make_context(program, rest)
    else:
        assert program == "magrathea", argv
        command: click.Command = cli
        context = cli.make_context(program, list(rest))
        while isinstance(command, click.Group):
            left = [*getattr(context, "_protected_args", ()), *context.args]  # click 8 keeps the first word separately
            name, found, rest = command.resolve_command(context, left)
            assert found is not None and name
            command, context = found, found.make_context(name, list(rest), parent=context)


def commands(text: str) -> list[list[str]]:
    """Our command lines in a shell block, without comments, redirections and other commands."""
    found = []
    for line in re.sub(r"<<'?EOF'?\n.*?^EOF$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
        lexer = shlex.shlex(line.removeprefix("runuser -u magrathea -- "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        one: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("();<>|&"):
                one.append(word)
            else:
                found.append(one)
                one = [] if word not in (">", "<") else ["a file"]
    return [words for words in found if words and words[0].startswith("magrathea")]


@pytest.mark.parametrize("page", man.pages(), ids=lambda page: page.name)
def test_the_examples_of_a_commands_help_are_understood(page: man.Page) -> None:
    for lines in page.sections.get(man.EXAMPLES, []):
        for line in lines:
            for words in commands(re.split(r"\s{3,}", line)[0]):  # its explanation may follow
                parse(words)


def configuration(block: Block, directory: Path) -> None:
    """Check a whole file with the reader that the block names: `toml noded` or `toml hub`. Raises the reader's
    error."""
    [kind] = block.words
    file = directory / f"{kind}.toml"
    file.write_text(block.text)
    {"noded": node_configuration.read, "hub": hub_configuration.load}[kind](file)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_document_are_understood(document: Path, tmp_path: Path) -> None:
    for block in blocks(document):
        if block.text.startswith("#!/bin/sh\n"):
            checked = subprocess.run(["sh", "-n"], input=block.text, capture_output=True, text=True, timeout=BOUND_S)
            assert checked.returncode == 0, f"{block.place}: {checked.stderr}"
        elif block.language == "toml":
            configuration(block, tmp_path)
        elif block.language == "sh":
            if not RUN & set(block.words):
                assert len(commands(block.text)) == len(block.text.splitlines()), block.place
            for words in commands(block.text):
                if words != ["magrathea", "--version"]:
                    parse(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_in_its_sentences_are_there_with_their_options(document: Path) -> None:
    """Arguments may be missing there, or be placeholders (`HOST`)."""
    for line in INLINE.findall(document.read_text()):
        for [program, *words] in commands(line):
            if program != "magrathea":
                continue
            command: click.Command = cli
            while isinstance(command, click.Group) and words and not words[0].startswith("-") and words[0].islower():
                context = click.Context(command)
                name = words.pop(0)
                child = command.get_command(context, name)
                assert child is not None, f"`{line}`: no command {name}"
                command = child
            options = {option for param in command.get_params(click.Context(command)) for option in param.opts}
            options |= {option for param in command.params for option in param.secondary_opts}
            given = {word.partition("=")[0] for word in words if word.startswith("-")}
            assert given <= options, f"`{line}`"


def test_a_wrong_configuration_is_reported(tmp_path: Path) -> None:
    wrong = Block(ROOT / "docs/x.md", 1, "toml", ("noded",), '[host]\nname = "h"\n')
    with pytest.raises(ConfigurationError):
        configuration(wrong, tmp_path)


def test_a_wrong_command_is_reported() -> None:
    for wrong in ("magrathea statsu", "magrathea status --wacth", "magrathea-noded --chek", "magrathea-hub --no"):
        with pytest.raises((click.UsageError, SystemExit)):
            parse(wrong.split())
