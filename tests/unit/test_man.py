"""Manual pages: one for each command, with each of its options, and man itself reports no error."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from magrathea.cli.main import cli
from magrathea_lab.waiting import BOUND_S
from tools import manual_pages as man

ROOT = Path(__file__).parents[2]
PAGES = {page.name: page for page in man.pages()}


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for word in command.list_commands(context):
            child = command.get_command(context, word)
            assert child is not None
            yield from commands(child, f"{name}-{word}")


def test_there_is_a_page_for_each_program_and_each_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(PAGES) == {*scripts, *(name for name, _ in commands(cli, "magrathea"))}
    assert {page.section for page in PAGES.values() if page.name in scripts} == {1, 8}


@pytest.mark.parametrize(("name", "command"), list(commands(cli, "magrathea")), ids=str)
def test_a_page_names_every_option_of_its_command(name: str, command: click.Command) -> None:
    page = PAGES[name]
    terms = " ".join(term for term, _ in page.options)
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            assert all(option in terms for option in param.opts), param.name
    assert "-h, --help" in terms
    assert page.what and page.synopsis.startswith("magrathea ") and page.description


@pytest.mark.parametrize("name", PAGES)
def test_a_page_lists_the_exit_codes_if_the_command_does_something(name: str) -> None:
    if name == "magrathea" or not PAGES[name].commands:
        assert PAGES[name].sections[man.EXIT_STATUS]


@pytest.mark.parametrize("name", ["magrathea-noded", "magrathea-agent", "magrathea-hub"])
def test_a_daemons_page_has_its_options_with_their_meaning(name: str) -> None:
    options = dict(PAGES[name].options)
    assert {"--check", "--config"} <= {term.split()[0] for term in options}
    assert options["--check"]


def test_examples_keep_their_lines_and_exit_codes_have_their_section() -> None:
    source = man.roff(PAGES["magrathea"])
    examples = source.partition(".SH EXAMPLES")[2]
    assert re.match(r"\n\.nf\nmagrathea status +this host", examples)
    assert ".SH EXIT STATUS" in man.roff(PAGES["magrathea-doctor"])


def test_nothing_in_a_text_is_taken_for_a_command_of_roff() -> None:
    page = man.Page("x", 1, "it's -n \\n", ".de x", description=[".so /etc/passwd", ["'x", ".x"]])
    lines = man.roff(page).splitlines()
    macros = {line.split()[0] for line in lines if line.startswith((".", "'"))}
    assert macros == {".TH", ".nh", ".ad", ".SH", ".nf", ".fi", ".PP"}
    assert r"x \- it\(aqs \-n \en" in lines


def test_the_pages_are_written_and_man_accepts_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(man.main, ["--out", str(tmp_path / "man")])
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "man").iterdir())
    assert {file.name for file in files} == {page.file for page in PAGES.values()}
    for file in files:
        assert file.read_text().startswith(".TH ")
    if shutil.which("groff") is None:
        pytest.skip("NOT RUN: the pages' look; there is no groff")
    argv = ["groff", "-man", "-ww", "-z", "-Tutf8", "-k", *map(str, files)]
    done_groff = subprocess.run(argv, capture_output=True, text=True, timeout=BOUND_S)
    assert (done_groff.returncode, done_groff.stderr) == (0, "")
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-c", str(tmp_path / "man/magrathea-pbs-install.1")],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    ).stdout
    plain = re.sub(r".\x08", "", shown)
    assert re.search(r"^OPTIONS$", plain, re.MULTILINE) and "--priority QUEUE" in plain
