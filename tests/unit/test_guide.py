"""The administrator's guide names every key that a configuration reader accepts, with its true default, and no
other."""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from magrathea.cli.main import cli
from node_daemon import configuration as noded
from node_daemon.agent.configuration import Config
from node_daemon.agent.values import Unusable
from scheduler_plugin.hub import configuration as hub
from scheduler_plugin.setup.install import RESOURCES, wanted_hooks
from scheduler_plugin.setup.setup_model import InstallOptions
from tests.documents import ROOT

GUIDE = (ROOT / "docs/admin-guide.md").read_text()
ROW = re.compile(r"^\| `([\w.-]+)` \| (.*?) \| (.*) \|$", re.MULTILINE)
WORDS = {
    "required",
    'required with `driver = "local"`',
    "all",
    "those of PBS's `pbs_cgroups` hook",
    "what `[shutdown]` has",
}
"""Used in place of a literal default."""


def part(title: str) -> str:
    """The text below a heading, up to the next heading of the same or a higher level."""
    found = re.search(rf"(?m)^(#+) {re.escape(title)}$", GUIDE)
    assert found, f"no heading {title!r}"
    return re.split(rf"(?m)^#{{1,{len(found[1])}}} ", GUIDE[found.end() :])[0]


def struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The table that a field's type is or may be."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def keys_of(table: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its default; keys of an inner table with dots, as samples write them."""
    hints = typing.get_type_hints(table)
    for field in msgspec.structs.fields(table):
        if inner := struct_in(hints[field.name]):
            yield from keys_of(inner, f"{prefix}{field.encode_name}.")
        elif field.required:
            yield prefix + field.encode_name, msgspec.NODEFAULT
        elif field.default_factory is not msgspec.NODEFAULT:
            yield prefix + field.encode_name, field.default_factory()
        else:
            yield prefix + field.encode_name, field.default


def tables() -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and defaults of each table of each file, by the guide's heading."""
    for name, whole in (("noded", noded.NodedConfiguration), ("hub", hub.HubConfiguration)):
        hints = typing.get_type_hints(whole)
        for section, kind in hints.items():
            if typing.get_origin(kind) is dict:
                yield f"{name} `[{section}.NAME]`", dict(keys_of(typing.get_args(kind)[1]))
            elif inner := struct_in(kind):
                yield f"{name} `[{section}]`", dict(keys_of(inner))


TABLES = dict(tables())


def literal(cell: str) -> Any:
    assert cell.startswith("`") and cell.endswith("`"), f"{cell}: a literal, or one of {WORDS}"
    return tomllib.loads(f"x = {cell.strip('`')}")["x"]


def test_the_files_tables_are_found() -> None:
    assert {"noded `[host]`", "noded `[domain.NAME]`", "hub `[pbs]`"} <= set(TABLES)


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_of_a_table_is_there_with_its_default(heading: str) -> None:
    told = {key: (default, meaning) for key, default, meaning in ROW.findall(part(heading))}
    assert set(told) == set(TABLES[heading])
    for key, default in TABLES[heading].items():
        cell, meaning = told[key]
        assert meaning.strip()
        if default is msgspec.NODEFAULT:
            assert cell.startswith("required"), key
        elif default is None:
            assert cell in WORDS and not cell.startswith("required"), key
        else:
            assert literal(cell) == default, key


def test_every_key_of_the_agents_file_is_there_with_its_default(tmp_path: Path) -> None:
    told = {key: default for key, default, _ in ROW.findall(part("agent"))}
    (tmp_path / "wrong.json").write_text('{"no_such_key": 1}')
    with pytest.raises(Unusable, match="known are ") as refused:
        Config(str(tmp_path / "wrong.json"))
    assert set(told) == set(str(refused.value).rpartition("known are ")[2].split(", "))
    literals = {key: cell.strip("`") for key, cell in told.items() if cell not in WORDS}
    pairs = ",".join(f"{json.dumps(key)}:{value}" for key, value in literals.items())
    (tmp_path / "told.json").write_text("{" + pairs + "}")
    (tmp_path / "empty.json").write_text("{}")
    default, said = Config(str(tmp_path / "empty.json")), Config(str(tmp_path / "told.json"))
    for key in literals:
        assert getattr(said, key) == getattr(default, key), key


def test_the_guide_names_everything_that_install_makes() -> None:
    told = set(re.findall(r"`(magrathea(?:_\w+)?)`", part("Install")))
    assert told == {*wanted_hooks(InstallOptions(memory_moves=True)), *RESOURCES}


def test_every_command_has_its_place() -> None:
    names = cli.list_commands(click.Context(cli))
    assert {name for name in names if f"magrathea {name}" not in GUIDE} == set()
