"""The hub's files: configuration, keys, ledger."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from zmq.auth import load_certificate

from magrathea.configuration import ConfigurationError
from scheduler_plugin.hub import configuration, keys, ledger
from scheduler_plugin.hub.books import LedgerEntry
from scheduler_plugin.hub.keys_cli import keys as command
from scheduler_plugin.hub.main import main
from scheduler_plugin.hub.sleepers import Sleeper
from scheduler_plugin.pbs import kinds
from scheduler_plugin.pbs.base import PbsError

# HubConfiguration


def load(directory: Path, text: str) -> configuration.HubConfiguration:
    path = directory / "hub.toml"
    path.write_text(text)
    return configuration.load(path)


def test_an_empty_file_is_a_configuration_without_tcp(tmp_path: Path) -> None:
    found = load(tmp_path, "")
    assert found.tcp == []
    assert found.ipc == ["ipc:///run/magrathea-hub/hub.ipc"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[hub]\nlissen = ["ipc:///x"]', "lissen"),
        ("[hub]\nlisten = []", "listen"),
        ('[hub]\nlisten = ["tcp://*"]', "listen"),
        ('[hub]\nlisten = ["ipc:///x", "ipc:///x"]', "twice"),
        ("[pbs]\nworkers = 0", "workers"),
        ("[pbs]\npublish_budget = 2", "publish_budget"),
        ('[pbs]\nkind = "slurm"', "openpbs, standin"),
        ('[pbs]\nconf = "relative"', "conf"),
        ("[pbs", "TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert told in str(error.value)
    assert "hub.toml" in str(error.value)


def test_a_missing_setting_of_a_kind_is_named_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    path.write_text('[pbs]\nkind = "standin"')
    done = CliRunner().invoke(main, ["--config", str(path), "--check"])
    assert (done.exit_code, "`socket` in [pbs] is missing" in done.output) == (2, True)


def test_the_product_names_no_kind_but_finds_it(tmp_path: Path) -> None:
    settings = load(tmp_path, f'[pbs]\nkind = "standin"\nsocket = "{tmp_path}/pbs.sock"').pbs
    connect = kinds.connector("standin", settings)
    with pytest.raises(PbsError, match=r"pbs\.sock"):
        connect()


def test_tcp_without_keys_is_refused_with_the_fix(tmp_path: Path) -> None:
    text = f'[hub]\nlisten = ["tcp://*:17017"]\nkeys_dir = "{tmp_path}/keys"'
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert f"magrathea keys --dir {tmp_path}/keys init" in str(error.value)
    keys.init(tmp_path / "keys")
    assert load(tmp_path, text).tcp == ["tcp://*:17017"]


# Keys


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_modes(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    assert keys.init(directory) == directory / "hub.key"
    pair = keys.enrol(directory, "h1", ["n1", "p1"])
    assert pair == directory / "to-hosts" / "h1.key_secret"
    assert mode(directory) == mode(pair.parent) == mode(directory / "hosts") == 0o700
    assert mode(directory / "hub.key_secret") == mode(pair) == 0o600
    assert mode(directory / "hub.key") == 0o644
    assert not list(directory.rglob(".*")), "no half-written files"


def test_zeromq_reads_them(tmp_path: Path) -> None:
    keys.init(tmp_path)
    public, secret = load_certificate(keys.enrol(tmp_path, "h1"))
    assert secret is not None
    assert load_certificate(tmp_path / "hosts" / "h1.key") == (public, None)
    assert keys.read(tmp_path / "hosts" / "h1.key").public == public.decode()


def test_enrolled_hosts_and_their_vnodes(tmp_path: Path) -> None:
    keys.init(tmp_path)
    keys.enrol(tmp_path, "h2")
    keys.enrol(tmp_path, "h1", ["p1", "n1"])
    found = keys.enrolled(tmp_path)
    assert [(one.host, one.vnodes) for one in found] == [("h1", frozenset({"n1", "p1"})), ("h2", None)]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    keys.init(tmp_path)
    keys.enrol(tmp_path, "h1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(keys.KeysError, match="exists already"):
        keys.init(tmp_path)
    with pytest.raises(keys.KeysError, match="revoke h1"):
        keys.enrol(tmp_path, "h1")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_revoked_host_is_enrolled_no_more_and_may_be_again(tmp_path: Path) -> None:
    keys.init(tmp_path)
    pair = keys.enrol(tmp_path, "h1")
    kept = keys.revoke(tmp_path, "h1")
    assert keys.enrolled(tmp_path) == []
    assert kept.exists()
    assert not pair.exists()
    with pytest.raises(keys.KeysError, match="not enrolled"):
        keys.revoke(tmp_path, "h1")
    keys.enrol(tmp_path, "h1")
    keys.revoke(tmp_path, "h1")


@pytest.mark.parametrize("name", ["", "../h1", "h1/x", ".h1", "h 1", 'h"1', "h1\n", "h" * 256])
def test_a_name_that_could_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    keys.init(tmp_path)
    for use in (keys.enrol, keys.revoke):
        with pytest.raises(keys.KeysError):
            use(tmp_path, name)
    assert keys.enrolled(tmp_path) == []


def test_a_key_file_under_another_hosts_name_is_refused(tmp_path: Path) -> None:
    keys.init(tmp_path)
    keys.enrol(tmp_path, "h1")
    (tmp_path / "hosts" / "h2.key").write_text((tmp_path / "hosts" / "h1.key").read_text())
    with pytest.raises(keys.KeysError, match=r"h2\.key"):
        keys.enrolled(tmp_path)


def test_garbage_is_no_key(tmp_path: Path) -> None:
    keys.init(tmp_path)
    no_z85, too_large = (b'public-key = "%s"' % (digit * 40) for digit in (b"~", b"#"))
    for garbage in (b"", b"\xff", b'public-key = "short"', no_z85, too_large, b"x" * 100_000):
        (tmp_path / "hosts" / "h1.key").write_bytes(garbage)
        with pytest.raises(keys.KeysError, match=r"h1\.key"):
            keys.enrolled(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    directory = str(tmp_path / "keys")

    def keys_command(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, ["--dir", directory, *arguments])
        return result.exit_code, result.output

    assert keys_command("enrol", "h1")[0] == 1
    assert "keys init" in keys_command("enrol", "h1")[1]
    assert keys_command("init")[0] == 0
    code, said = keys_command("enrol", "h1", "--vnode", "n1")
    assert code == 0
    assert "to-hosts/h1.key_secret" in said
    assert "hub.key" in said
    secret = keys.read(tmp_path / "keys" / "to-hosts" / "h1.key_secret").secret
    assert secret not in said
    code, said = keys_command("list")
    assert said.startswith("h1  ")
    assert "n1" in said
    assert secret not in said
    assert keys_command("enrol", "h1")[0] == 1
    assert keys_command("revoke", "h1")[0] == 0
    assert keys_command("list") == (0, "")


# The ledger


def entries() -> list[LedgerEntry]:
    return [
        LedgerEntry(id="1.srv", run=2, asked_at=5.0, booked=True, comment="Job run at — Thu", walltime_s=600),
        LedgerEntry(id="2[3].srv", run=1, asked_at=6.0, doubt_until=900.0),
    ]


def kept(most: int = 2) -> ledger.Kept:
    sleeper = Sleeper(host="h1", domain="n1", vnode="n1", since=3.5, reason="a new disk", wakes=True)
    return ledger.Kept(entries()[:most], {"3.srv": (7.5, 2)}, (sleeper,), ("n1",))


def test_a_file_of_before_times_were_recorded_is_read(tmp_path: Path) -> None:
    (tmp_path / ledger.NAME).write_text('{"version":1,"entries":[{"id":"1.srv","run":2}]}')
    assert ledger.load(tmp_path) == ledger.Kept([LedgerEntry(id="1.srv", run=2)], {})


def test_a_job_by_an_id_that_pbs_never_makes_is_dropped_and_nothing_else_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = LedgerEntry(id="5[900,1-1000]@,7\n<3>x", run=1, booked=True)
    ledger.save(tmp_path, kept()._replace(entries=[bad, *entries()], paid={"@": (1.0, 1), "3.srv": (7.5, 2)}))
    assert ledger.load(tmp_path) == kept()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("ALERT") and "ids that PBS never makes" in line and line.isprintable()


def test_saved_data_is_loaded_unchanged(tmp_path: Path) -> None:
    assert ledger.load(tmp_path) == ledger.Kept([], {})
    ledger.save(tmp_path, kept())
    assert ledger.load(tmp_path) == kept()
    ledger.save(tmp_path, ledger.Kept([], {}))
    assert ledger.load(tmp_path) == ledger.Kept([], {})
    assert mode(tmp_path / ledger.NAME) == 0o600


def test_a_crash_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    ledger.save(tmp_path, kept())
    (tmp_path / "books.new").write_text('{"version": 1, "entr')
    assert ledger.load(tmp_path) == kept()
    ledger.save(tmp_path, kept(1))
    assert ledger.load(tmp_path) == kept(1)


def test_a_damaged_one_is_put_aside_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger.save(tmp_path, kept())
    path = tmp_path / ledger.NAME
    path.write_bytes(path.read_bytes()[:-10])
    assert ledger.load(tmp_path) == ledger.Kept([], {})
    assert "ALERT" in caplog.text
    assert (tmp_path / "books.damaged").exists()
