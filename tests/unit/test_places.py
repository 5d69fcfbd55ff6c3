"""One set of default places: parts, commands, samples and units agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea import client, doctor, history, places
from magrathea.cli import guest_status
from node_daemon import configuration as noded
from node_daemon.agent.configuration import Config
from scheduler_plugin.hub import configuration as hub
from scheduler_plugin.setup import checks, heartbeat
from scheduler_plugin.setup import cli as setup
from scheduler_plugin.setup.hook_texts import hook_text
from scheduler_plugin.setup.sched_config import InstallError
from scheduler_plugin.setup.setup_model import InstallOptions
from tests.documents import DOCUMENTS, ROOT, blocks

DEPLOY = ROOT / "deploy"


def unit(name: str, key: str) -> str:
    """What a unit says about the key."""
    found = re.search(rf"^{key}=(\S+)", (DEPLOY / f"systemd/magrathea-{name}.service").read_text(), re.MULTILINE)
    assert found, (name, key)
    return found[1]


def test_the_units_make_the_default_directories() -> None:
    assert f"/run/{unit('hub', 'RuntimeDirectory')}" == places.HUB_RUN_DIR
    assert f"/var/lib/{unit('hub', 'StateDirectory')}" == places.HUB_STATE_DIR
    assert f"/run/{unit('noded', 'RuntimeDirectory')}" == places.NODED_RUN_DIR
    assert f"/var/lib/{unit('noded', 'StateDirectory')}" == places.NODED_STATE_DIR


def test_every_default_of_the_hub_is_in_the_directories_of_its_unit() -> None:
    table = hub.HubTable()
    made = (f"/run/{unit('hub', 'RuntimeDirectory')}/", f"/var/lib/{unit('hub', 'StateDirectory')}")
    for path in (table.heartbeat_file, table.control_socket, table.state_dir, *table.listen):
        assert path.removeprefix("ipc://").startswith(made), path


def test_hook_and_hub_mean_the_same_heartbeat_file_if_nobody_names_one() -> None:
    assert InstallOptions().heartbeat == hub.HubTable().heartbeat_file == places.HEARTBEAT


def test_commands_look_where_the_daemons_are() -> None:
    assert Path(hub.HubTable().control_socket) == client.HUB_SOCKET
    paths = noded.PathsTable()
    assert Path(paths.run_dir, "control.sock") == client.DEFAULT_SOCKET
    assert Path(paths.state_dir, "journal.sqlite") == history.DEFAULT_FILE
    assert doctor.Paths().hub == Path(hub.DEFAULT_FILE)
    assert doctor.Paths().noded == noded.DEFAULT_PATH


def test_mom_hook_agent_and_status_mean_the_same_socket_of_an_agent(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text("{}")
    agent = Config(str(tmp_path / "agent.json"))
    assert f'DEFAULT_SOCKET = "{agent.socket}"' in hook_text("magrathea_mom")
    assert agent.socket == guest_status.DEFAULT_SOCKET
    run = unit("agent", "RuntimeDirectory")
    assert agent.socket.startswith(f"/run/{run}/")
    assert agent.state.startswith(f"/var/lib/{unit('agent', 'StateDirectory')}/")


def test_the_unit_reads_the_configuration_that_install_reads() -> None:
    assert f"--config {places.HUB_CONFIGURATION}" in (DEPLOY / "systemd/magrathea-hub.service").read_text()
    [option] = [one for one in setup.install_command.params if one.name == "hub_config"]
    assert str(option.default) == places.HUB_CONFIGURATION


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_that_copies_the_hubs_file_does_so_before_it_installs(page: Path) -> None:
    text = "".join(block.text for block in blocks(page))
    if "cp deploy/hub.toml" in text:
        assert text.index("cp deploy/hub.toml") < text.index("magrathea pbs install")


def test_no_page_names_another_heartbeat_file() -> None:
    for page in [*DOCUMENTS, *DEPLOY.rglob("*.toml")]:
        if page.name == "CHANGELOG.md":
            continue
        found = set(re.findall(r"/[\w./-]*heartbeat\b(?!-)", page.read_text()))
        assert found <= {places.HEARTBEAT}, page


# The heartbeat file of an installation


def hub_file(folder: Path, path: str = "/srv/beat") -> Path:
    file = folder / "hub.toml"
    file.write_text(f'[hub]\nheartbeat_file = "{path}"\nlisten = ["tcp://*:17017"]\nkeys_dir = "{folder}/none"\n')
    return file


def test_install_takes_the_hubs_file_before_it_has_keys(tmp_path: Path) -> None:
    assert heartbeat.chosen(None, hub_file(tmp_path), "/of/the/last/install") == "/srv/beat"


def test_without_the_hubs_file_the_last_installs_counts_then_the_default(tmp_path: Path) -> None:
    assert heartbeat.chosen(None, tmp_path / "none", "/of/the/last/install") == "/of/the/last/install"
    assert heartbeat.chosen(None, tmp_path / "none", "") == places.HEARTBEAT
    assert heartbeat.chosen("/given", tmp_path / "none", "/of/the/last/install") == "/given"


def test_an_option_that_contradicts_the_hub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="leave the option out"):
        heartbeat.chosen("/other", hub_file(tmp_path), "")
    assert heartbeat.chosen("/srv/beat", hub_file(tmp_path), "") == "/srv/beat"


def test_a_hubs_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("[hub]\nheartbeat = 1\n")
    with pytest.raises(InstallError, match="line 2"):
        heartbeat.chosen(None, tmp_path / "hub.toml", "")


def test_check_compares_hook_and_hub(tmp_path: Path) -> None:
    file = hub_file(tmp_path)
    assert [item.status for item in heartbeat.check(file, "/srv/beat")] == [checks.OK]
    [item] = heartbeat.check(file, "/var/spool/pbs/magrathea.heartbeat")
    assert item.status == checks.DIFFERENT
    assert "/srv/beat" in item.text
    assert item.fix == checks.FIX
    assert list(heartbeat.check(tmp_path / "none", "/srv/beat")) == []


def test_help_names_the_default() -> None:
    said = "".join(CliRunner().invoke(setup.pbs, ["install", "--help"]).output.split())
    assert places.HEARTBEAT in said
    assert places.HUB_CONFIGURATION in said
