"""Everything that the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT

FOLDERS = ("magrathea", "node_daemon", "scheduler_plugin", "magrathea_lab", "tests", "bench", "tools", "deploy")
SOURCES = {"/" + path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
DECISIONS = ROOT / "docs" / "decisions"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_links_of_a_document_exist(document: Path) -> None:
    """A file may be named by the end of its path."""
    text = document.read_text()
    named = {
        name.removeprefix("/etc/magrathea/") for name in re.findall(r"`([\w./]+\.(?:py|toml|json|service))`", text)
    }
    missing = {name for name in named if not any(source.endswith("/" + name) for source in SOURCES)}
    assert not {name for name in missing if not (document.parent / name).exists() and not (ROOT / name).exists()}
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link}
    assert not {link for link in links - {""} if not (document.parent / link).exists()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_a_document_names_exist(document: Path) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text()))
    assert not {f"{file}::{name}" for file, name in named if not _has_test(ROOT / file, name)}


def test_each_attack_of_the_threat_model_has_its_test() -> None:
    """A row of its tables is an attack, what it gets, and the test; so the page promises nothing that is not shown."""
    lines = (ROOT / "docs" / "security.md").read_text().splitlines()
    heads = {number for number, line in enumerate(lines[1:]) if line == "| --- | --- | --- |"}
    rows = [line for number, line in enumerate(lines) if number not in heads and line.count(" | ") == 2]
    rows = [line for line in rows if line.startswith("| ") and line != "| --- | --- | --- |"]
    assert len(rows) > 40
    assert not [row for row in rows if "`tests/" not in row.rpartition(" | ")[2]]


def _has_test(file: Path, name: str) -> bool:
    return file.exists() and re.search(rf"^(async )?def {name}\(", file.read_text(), re.MULTILINE) is not None


def test_the_folders_of_the_map_for_contributors_exist() -> None:
    rooms = re.findall(r"^\| `([\w/]+/)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert "magrathea/core/" in rooms
    assert not {room for room in rooms if not (ROOT / room).is_dir()}


@pytest.mark.parametrize("record", sorted(DECISIONS.glob("[!R]*.md")), ids=lambda path: path.stem)
def test_a_decision_has_its_four_parts_and_is_in_the_list(record: Path) -> None:
    text = record.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
        "What would change it",
    ]
    title = text.partition("\n")[0].removeprefix("# ")
    assert f"[{title}]({record.name})" in (DECISIONS / "README.md").read_text()


def test_the_files_map_names_every_module_that_a_reader_may_look_for() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = [*(ROOT / "magrathea" / "core").glob("*.py"), *(ROOT / "node_daemon").rglob("*.py")]
    found += [*(ROOT / "scheduler_plugin" / "hub").glob("*.py"), *(ROOT / "scheduler_plugin" / "pbs").glob("*.py")]
    found = [path for path in found if path.parent.name != "agent"]  # it has its own table
    # Not in the table: command lines, configuration, clocks, keys, pools of threads.
    beside = {
        "__init__.py",
        "main.py",
        "configuration.py",
        "clock.py",
        "crash_test_hook.py",
        "scripts.py",
        "keys.py",
        "call_pool.py",
    }
    assert not {path.name for path in found} - beside - set(re.findall(r"(\w+\.py)", text))


def test_the_way_of_a_claim_names_what_is_in_each_file() -> None:
    rows = re.findall(r"^\| (?:domain|host|core|server) \| `([^`]+)` \| (.*?) ?\|",
                      (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)  # fmt: skip
    assert rows
    for file, names in rows:
        source = (ROOT / file).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^ *(async )?(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"


def test_the_agents_table_names_each_of_its_modules_once() -> None:
    folder = ROOT / "node_daemon" / "agent"
    rows = re.findall(r"^\| (`.*?) \| .* \|$", (folder / "__init__.py").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(path.stem for path in folder.glob("*.py") if path.name != "__init__.py")
