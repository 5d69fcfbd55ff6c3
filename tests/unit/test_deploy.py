"""The product's own loaders accept the sample files in deploy/, and the samples name every key."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from magrathea_lab.waiting import BOUND_S
from node_daemon import configuration as noded
from node_daemon.agent.configuration import Config
from scheduler_plugin.hub import configuration as hub
from scheduler_plugin.hub import keys
from tests.samples import on_a_host

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def uncommented(text: str) -> str:
    """The sample with its commented-out defaults enabled: lines like `# key = value`."""
    return re.sub(r"^# ([a-z_.]+ = )", r"\1", text, flags=re.MULTILINE)


def test_noded_toml_is_good(tmp_path: Path) -> None:
    configuration = noded.read(DEPLOY / "noded.toml")
    assert set(configuration.domain) == {"n1", "p1"}
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "node_daemon.main",
            "--check",
            "--config",
            str(on_a_host(DEPLOY / "noded.toml", tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert result.returncode == 0, result.stderr


def test_noded_toml_shows_the_true_defaults() -> None:
    """Every commented-out line is an existing key with its default value."""
    text = (DEPLOY / "noded.toml").read_text()
    commented = re.findall(r"^# ([a-z_]+) = (\S+?)\s*(?:#.*)?$", text, flags=re.MULTILINE)
    machines = {"cpus", "memory_mib", "vnode", "endpoints"}  # these depend on the machine, or are part of another table
    tables: list[type[msgspec.Struct]] = [noded.HostTable, noded.LimitsTable, noded.PathsTable, noded.JournalTable]
    tables += [noded.ControlTable, noded.ShutdownTable, noded.VisitorsTable, noded.MovesTable, noded.DomainTable]
    fields = [f for table in tables for f in msgspec.structs.fields(table)]
    defaults = {f.name: f.default if f.default_factory is msgspec.NODEFAULT else f.default_factory() for f in fields}
    assert [key for key, _ in commented] == re.findall(r"^# ([a-z_]+) = ", text, flags=re.MULTILINE)
    for key, value in commented:
        assert key in defaults or key in machines, key
        if key not in machines:
            assert tomllib.loads(f"x = {value}")["x"] == defaults[key], key


@pytest.mark.parametrize(
    ("table", "but"),
    [
        (noded.HostTable, set()),
        (noded.LimitsTable, {"allow_short_min_run"}),
        (noded.HubEndpointsTable, set()),
        (noded.PathsTable, set()),
        (noded.JournalTable, set()),
        (noded.ControlTable, set()),
        (noded.ShutdownTable, set()),
        (noded.VisitorsTable, set()),
        (noded.MovesTable, set()),
        (noded.DomainTable, set()),
        (noded.LocalTable, set()),
    ],
)
def test_noded_toml_names_every_key(table: type[msgspec.Struct], but: set[str]) -> None:
    text = (DEPLOY / "noded.toml").read_text()
    fields = {f.name for f in msgspec.structs.fields(table)} - but
    assert not {name for name in fields if not re.search(rf"\b{name}\b", text)}


def test_hub_toml_is_good_as_soon_as_there_are_keys(tmp_path: Path) -> None:
    keys.init(tmp_path / "keys")
    keys.enrol(tmp_path / "keys", "host1")
    sample = (DEPLOY / "hub.toml").read_text()
    sample = re.sub(r"^# keys_dir = \"[^\"]*\"", f'keys_dir = "{tmp_path}/keys"', sample, flags=re.MULTILINE)
    (tmp_path / "hub.toml").write_text(sample)
    configuration = hub.load(tmp_path / "hub.toml")
    assert configuration.tcp == ["tcp://*:17017"]
    (tmp_path / "all.toml").write_text(uncommented(sample))
    assert hub.load(tmp_path / "all.toml") == configuration, "what is commented out is the default"


@pytest.mark.parametrize("table", [hub.HubTable, hub.PbsTable, hub.ElsewhereTable])
def test_hub_toml_names_every_key(table: type[msgspec.Struct]) -> None:
    text = (DEPLOY / "hub.toml").read_text()
    assert not {f.name for f in msgspec.structs.fields(table) if not re.search(rf"\b{f.name}\b", text)}


def test_agent_json_is_good_and_shows_the_defaults(tmp_path: Path) -> None:
    sample = Config(str(DEPLOY / "agent.json"))
    (tmp_path / "empty.json").write_text("{}")
    default = Config(str(tmp_path / "empty.json"))
    for key in json.loads((DEPLOY / "agent.json").read_text()):
        assert getattr(sample, key) == getattr(default, key), key


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_understood_by_systemd(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT RUN: systemd's own check of the units; there is no systemd-analyze")
    # The unit's programs are not installed here; the next test checks its settings.
    text = re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", unit.read_text(), flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(text)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    newer = "DelegateSubgroup"  # systemd 254; older ones log that and continue
    said = [line for line in result.stderr.splitlines() if unit.name in line and newer not in line]
    assert not said
    assert result.returncode == 0, result.stderr


def test_the_hub_cannot_take_the_memory_of_the_server_beside_it() -> None:
    assert re.search(r"^MemoryMax=\d+G$", (DEPLOY / "systemd" / "magrathea-hub.service").read_text(), re.MULTILINE)


def test_units_start_programs_of_the_package() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    commands = re.findall(r"^Exec\w+=/opt/magrathea/bin/(\S+)", "".join(u.read_text() for u in UNITS), re.MULTILINE)
    assert set(commands) == {"magrathea", "magrathea-noded", "magrathea-hub"} <= set(project["scripts"])


def test_directories_of_units_and_samples_fit() -> None:
    """Every directory below /run and /var/lib that a sample names is made by its unit."""
    for sample, unit in (
        ("hub.toml", "magrathea-hub"),
        ("noded.toml", "magrathea-noded"),
        ("agent.json", "magrathea-agent"),
    ):
        text = (DEPLOY / "systemd" / f"{unit}.service").read_text()
        made = {f"/run/{d}" for d in re.findall(r"^RuntimeDirectory=(\S+)", text, re.MULTILINE)}
        made |= {f"/var/lib/{d}" for d in re.findall(r"^StateDirectory=(\S+)", text, re.MULTILINE)}
        named = re.findall(r'(/run/magrathea[^/"]*|/var/lib/magrathea[^/"]*)', (DEPLOY / sample).read_text())
        beside = {"/run/magrathea-hub"} if sample == "noded.toml" else set()  # the hub's own, on its machine
        assert set(named) - beside <= made, sample
