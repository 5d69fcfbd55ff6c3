"""`magrathea host adopt`: what it proposes, changes and refuses, on libvirt's own test driver."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from magrathea.cli.main import cli
from magrathea.core.model import Domain, Host, Kind, Mode, Sleep, SleepCause
from magrathea.core.moves import Moves, Ownership, Visitor
from node_daemon.configuration import DomainTable, read
from node_daemon.hypervisor.moving import Departure
from node_daemon.journal import open_journal
from node_daemon.moves.papers import Papers
from node_daemon.setup import adopt
from node_daemon.setup.domain_xml import NotAdoptable


def domain(name: str, cpus: int = 8, mib: int = 4096, type: str = "test", inside: str = "", devices: str = "") -> str:
    return (
        f"<domain type='{type}'><name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>{cpus}</vcpu>"
        f"<os><type>hvm</type></os>{inside}<devices>{devices}</devices></domain>"
    )


def domain_data(name: str) -> str:
    """A domain as sites have them."""
    return (Path(__file__).parents[2] / "data" / "domains" / f"{name}.xml").read_text("utf-8")


def found(name: str = "n1", used_mib: int | None = None, persistent: bool = True, **more: Any) -> adopt.Found:
    return adopt.parse(domain(name, **more), used_mib=used_mib, persistent=persistent)


@pytest.mark.parametrize(
    ("name", "cpus", "kind", "says"),
    [
        ("batch-high", 8, Kind.PRIORITY, "high"),
        ("rush_prio", 8, Kind.PRIORITY, "prio"),
        ("ldap", 8, Kind.SERVICE, "ldap"),
        ("worker1", 8, Kind.NORMAL, "8 of the host's 8"),
        ("small", 3, Kind.SERVICE, "less than half"),
        ("highlander", 8, Kind.NORMAL, "a worker"),
    ],
)
def test_a_kind_is_guessed_and_the_guess_explained(name: str, cpus: int, kind: Kind, says: str) -> None:
    guessed, why = adopt.guess(found(name, cpus=cpus), 8)
    assert guessed is kind
    assert says in why


def test_no_kind_is_guessed_from_prose() -> None:
    prose = "<title>High priority</title><description>an LDAP server for urgent jobs</description>"
    assert adopt.guess(found("batch1", inside=prose), 8)[0] is Kind.NORMAL


def test_sizes_are_what_the_guest_has_now() -> None:
    half = adopt.parse(domain_data("half-plugged"))
    assert (half.cpus, half.memory_mib) == (2, 8192), "2 of 8 processors; memory of up to 16 GiB"
    own = adopt.parse(domain_data("own-quota"))
    assert (own.cpus, own.memory_mib) == (8, 16384)


def test_a_running_domain_has_what_it_has_now_and_not_what_it_is_defined_with() -> None:
    live = domain("n1", cpus=8, mib=8192).replace("<vcpu>", "<vcpu current='3'>")
    running = adopt.parse(domain("n1", cpus=8, mib=4096), live=live)
    assert (running.cpus, running.memory_mib) == (3, 8192)


@pytest.mark.parametrize(
    ("device", "mib"),
    [
        ("<memory model='dimm'><target><size unit='MiB'>1024</size></target></memory>", 4096),
        ("<memory model='nvdimm'><target><size unit='MiB'>1024</size></target></memory>", 3072),
        (
            "<memory model='virtio-mem'><target><size unit='MiB'>2048</size><requested unit='MiB'>512</requested>"
            "</target></memory>",
            2560,
        ),
        (
            "<memory model='virtio-mem'><target><size unit='MiB'>2048</size><requested unit='MiB'>512</requested>"
            "<current unit='MiB'>256</current></target></memory>",
            2304,
        ),
    ],
)
def test_memory_counts_as_far_as_it_is_plugged_in(device: str, mib: int) -> None:
    assert found(mib=4096, devices=device).memory_mib == mib


def test_the_admins_word_goes_before_a_guess() -> None:
    (p,) = adopt.propose([found("ldap")], 8, 16384, {"ldap": (Kind.NORMAL, "as told")})
    assert (p.kind, p.why) == (Kind.NORMAL, "as told")


def test_a_floor_is_what_the_guest_uses_and_a_margin() -> None:
    assert adopt.floor_mib(found(used_mib=205)) == 304  # 205 + 96, rounded up to a multiple of 16
    assert adopt.floor_mib(found(used_mib=5)) == adopt.LEAST_FLOOR_MIB
    assert adopt.floor_mib(found()) == adopt.UNKNOWN_FLOOR_MIB
    assert adopt.floor_mib(found(mib=256)) == 256


def test_a_ceiling_leaves_reserve_services_and_the_siblings_floors() -> None:
    founds = [found("n1", 200, mib=8192), found("high", 200, mib=8192), found("dns", mib=1000)]
    by_name = {p.found.name: p for p in adopt.propose(founds, 8, 8192, {})}
    assert by_name["dns"].memory_mib == 1000
    assert by_name["n1"].memory_mib == 8192 - 512 - 1000 - by_name["high"].floor_mib
    assert adopt.missing_mib(by_name.values(), 8192) == 0


def test_a_shortage_is_reported_in_mib() -> None:
    proposals = adopt.propose([found("n1"), found("high")], 8, 1024, {})
    assert adopt.missing_mib(proposals, 1024) == 512 + 2 * 512 - 1024


@pytest.mark.parametrize(
    ("xml", "pinned", "says"),
    [
        (domain("n1", type="vz"), "", "not supported"),
        (domain("n1"), "a PCI device pins all its memory: remove the <hostdev>", "remove the <hostdev>, or keep"),
        (domain("n 1"), "", "virsh domrename"),
    ],
)
def test_domains_that_cannot_be_handled_are_refused_with_the_fix(xml: str, pinned: str, says: str) -> None:
    why = adopt.obstacle(replace(adopt.parse(xml), pinned=pinned))
    assert says in why
    assert "=service`" in why


def test_domains_without_pinned_memory_are_adopted() -> None:
    assert adopt.obstacle(found()) == ""


def test_a_transient_domain_is_refused() -> None:
    assert "virsh define" in adopt.obstacle(found(persistent=False))


def test_memory_is_understood_in_every_unit_of_libvirts() -> None:
    for unit, value, mib in (("KiB", 1048576, 1024), ("GiB", 2, 2048), ("b", 2**30, 1024), ("MB", 1000, 953)):
        xml = f"<domain type='kvm'><name>n</name><memory unit='{unit}'>{value}</memory></domain>"
        assert adopt.parse(xml).memory_mib == mib


@pytest.mark.parametrize(
    "xml", ["<domain", "<domain><vcpu>x</vcpu></domain>", "<domain><memory unit='pt'>1</memory></domain>"]
)
def test_xml_that_is_no_domain_is_reported(xml: str) -> None:
    with pytest.raises(NotAdoptable, match="cannot be understood"):
        adopt.parse(xml)


# With libvirt's test driver, which forgets everything with its last connection


@pytest.fixture
def libvirtd() -> Iterator[Any]:
    libvirt = pytest.importorskip(
        "libvirt", reason="libvirt's Python binding is missing: pip install magrathea[libvirt]"
    )
    connection = libvirt.open("test:///default")
    try:
        for one in connection.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):
                one.destroy()
            one.undefine()
        for xml in (domain("n1"), domain("high"), domain("dns", 1, 512)):
            connection.defineXML(xml)
        yield connection
    finally:
        connection.close()


def run(tmp_path: Path, *words: str) -> Result:
    line = ("host", "adopt", "--uri", "test:///default", "--config", str(tmp_path / "noded.toml"), *words)
    return CliRunner().invoke(cli, line)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("node_daemon.setup.adopt_cli.STATE", tmp_path / "state")
    return tmp_path / "state"


def xml_of(connection: Any, name: str) -> str:
    return str(connection.lookupByName(name).XMLDesc(2))


def test_without_apply_nothing_is_changed(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    before = xml_of(libvirtd, "n1")
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    assert "+    <channel" in done.output
    assert '+driver = "libvirt"' in done.output
    assert "nothing has been changed" in done.output
    assert xml_of(libvirtd, "n1") == before
    assert not list(tmp_path.iterdir())


def test_the_written_file_is_read_as_this_host(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--apply", "--name", "h1")
    assert done.exit_code == 0, done.output
    host = read(tmp_path / "noded.toml").reconfigured(0.0)
    assert (host.host, {d.name: d.kind for d in host.domains}) == (
        "h1",
        {"n1": Kind.NORMAL, "high": Kind.PRIORITY, "dns": Kind.SERVICE},
    )
    assert "org.magrathea.0" in xml_of(libvirtd, "n1")
    assert "org.magrathea.0" not in xml_of(libvirtd, "dns")
    again = run(tmp_path)
    assert again.exit_code == 0, again.output
    assert "nothing to change" in again.output


def test_undoing_leaves_no_trace(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    before = {name: xml_of(libvirtd, name) for name in ("n1", "high", "dns")}
    run(tmp_path, "--apply")
    done = run(tmp_path, "--undo")
    assert done.exit_code == 0, done.output
    assert {name: xml_of(libvirtd, name) for name in before} == before
    assert not (tmp_path / "noded.toml").exists()
    assert "nothing to undo" in run(tmp_path, "--undo").output


def test_undoing_gives_the_configuration_back_byte_for_byte(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    config = tmp_path / "noded.toml"
    run(tmp_path, "--apply", "--name", "h1")
    before = config.read_bytes().replace(b"\n", b"\r\n") + "# Rechner für Jürgen".encode()
    config.write_bytes(before)
    config.chmod(0o640)
    for old in list(state.rglob("*.toml")):
        old.unlink()
    libvirtd.defineXML(domain("n2"))
    assert run(tmp_path, "--apply").exit_code == 0
    assert config.read_bytes().startswith(before) and b"[domain.n2]" in config.read_bytes()
    assert config.stat().st_mode & 0o777 == 0o640
    assert run(tmp_path, "--undo").exit_code == 0
    assert (config.read_bytes(), config.stat().st_mode & 0o777) == (before, 0o640)


def test_a_domain_whose_name_looks_like_a_backup_is_undone_too(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    libvirtd.defineXML(domain("n1.adopted"))
    before = xml_of(libvirtd, "n1.adopted")
    run(tmp_path, "--apply")
    assert "org.magrathea.0" in xml_of(libvirtd, "n1.adopted")
    assert run(tmp_path, "--undo").exit_code == 0
    assert xml_of(libvirtd, "n1.adopted") == before


def test_undoing_keeps_what_somebody_has_changed_since(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    run(tmp_path, "--apply")
    changed = xml_of(libvirtd, "n1").replace("<vcpu placement='static'>8<", "<vcpu placement='static'>4<")
    libvirtd.defineXML(changed)
    config = tmp_path / "noded.toml"
    config.write_text(config.read_text() + "\n# mine\n")
    done = run(tmp_path, "--undo")
    assert done.exit_code == 1
    assert "n1 has been changed since" in done.output
    assert config.read_text().endswith("# mine\n")
    assert "org.magrathea.0" not in xml_of(libvirtd, "high")


def test_a_new_domain_is_added_to_the_configuration_that_is_there(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    run(tmp_path, "--apply")
    libvirtd.defineXML(domain("n2"))
    done = run(tmp_path, "--apply")
    assert done.exit_code == 0, done.output
    assert "[domain.n2]" in (tmp_path / "noded.toml").read_text()
    assert set(read(tmp_path / "noded.toml").domain) == {"dns", "high", "n1", "n2"}
    run(tmp_path, "--undo")
    assert not (tmp_path / "noded.toml").exists()


def moved_hosts(tmp_path: Path) -> None:
    """n1 has moved to h2, and v1, which is h2's, has come here; `high` sleeps."""
    config = tmp_path / "noded.toml"
    config.write_text(config.read_text() + f'[paths]\nstate_dir = "{tmp_path}"\n')
    table = DomainTable(kind=Kind.NORMAL, cpus=8)
    papers = Papers(departure=Departure("v1", "", "/run/v1.sock", ()), table=table).encoded()
    high = Domain("high", Kind.PRIORITY, 8, sleep=Sleep(1.0, "for a test", SleepCause.ADMIN))
    host = Host("h1", Mode.EXCLUSIVE, 8, 8192, (high,))
    journal = open_journal(read(config).journal_path)
    journal.commit(host, None, (), {}, Moves((Ownership("n1", 2, "h2", 2),), visitors=(Visitor("v1", papers),)))
    journal.close()


def test_what_has_moved_keeps_its_table_and_visitors_are_left_alone(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    assert run(tmp_path, "--apply", "--name", "h1").exit_code == 0
    moved_hosts(tmp_path)
    libvirtd.lookupByName("n1").undefine()
    libvirtd.defineXML(domain("v1"))
    before, file = xml_of(libvirtd, "v1"), (tmp_path / "noded.toml").read_text()
    done = run(tmp_path, "--apply")
    assert done.exit_code == 0, done.output
    assert "n1 is at h2; its table stays as it is" in done.output
    assert "a visitor" in done.output and "it sleeps on disk" in " ".join(done.output.split())
    assert xml_of(libvirtd, "v1") == before and (tmp_path / "noded.toml").read_text() == file


def test_json_has_everything(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, "--format", "json").output)
    assert [d["domain"] for d in told["domains"]] == ["dns", "high", "n1"]
    assert set(told["changes"]) == {"high", "n1"}
    assert told["applied"] is False


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--kind", "n1=turbo"], 2, "one of normal, priority, service"),
        (["--kind", "n9=normal"], 1, "has no domain n9"),
        (["--apply", "--undo"], 2, "exclude each other"),
        (["--uri", "qemu+nonsense:///x"], 2, "is libvirtd running"),
    ],
)
def test_wrong_wishes_are_refused(
    words: list[str], code: int, says: str, libvirtd: Any, state: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, *words)
    assert done.exit_code == code, done.output
    assert says in done.output
    assert not list(tmp_path.iterdir())


def test_a_domain_with_pinned_memory_is_refused_and_left_alone(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    network = libvirtd.networkDefineXML(domain_data("pool-of-functions.net"))
    for name in ("n1", "high"):
        libvirtd.lookupByName(name).undefine()
    libvirtd.defineXML(domain("n1", inside="<memoryBacking><locked/></memoryBacking>"))
    libvirtd.defineXML(domain("high", devices="<interface type='network'><source network='sriov-pool'/></interface>"))
    try:
        before = {name: xml_of(libvirtd, name) for name in ("n1", "high")}
        done = run(tmp_path, "--apply")
    finally:
        network.undefine()
    assert done.exit_code == 1
    assert "remove <locked/>" in done.output.replace("\n", " ") and "'sriov-pool'" in done.output
    assert {name: xml_of(libvirtd, name) for name in before} == before


def test_a_domain_known_by_another_name_keeps_it(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    run(tmp_path, "--apply")
    config = tmp_path / "noded.toml"
    config.write_text(config.read_text().replace("[domain.n1]\n", '[domain.batch]\nlibvirt.name = "n1"\n'))
    libvirtd.defineXML(domain("n1").replace("</name>", f"</name><uuid>{uuid_of(libvirtd, 'n1')}</uuid>"))
    done = run(tmp_path, "--apply")
    assert done.exit_code == 0, done.output
    assert "/guest/batch.sock" in xml_of(libvirtd, "n1")
    assert "[domain.n1]" not in config.read_text()


def uuid_of(connection: Any, name: str) -> str:
    uuid = connection.lookupByName(name).UUIDString()
    assert isinstance(uuid, str)
    return uuid


@pytest.mark.parametrize("form", ["table", "json", "plain"])
def test_names_and_descriptions_of_any_letters_are_shown_as_they_are(
    libvirtd: Any, state: Path, tmp_path: Path, form: str
) -> None:
    name = "high [b]é'\"&amp;\\"
    libvirtd.defineXML(domain(name, inside="<description>[/] priority\nof Jürgen\t[red]</description>"))
    done = run(tmp_path, "--format", form)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1)
    assert "[b]é" in done.output or form == "json"
    done = run(tmp_path, "--apply", "--format", form)
    assert isinstance(done.exception, SystemExit | None), done.exception


def test_a_folder_that_cannot_be_made_is_told(libvirtd: Any, state: Path, tmp_path: Path) -> None:
    state.write_text("a file in the folder's place")
    done = run(tmp_path, "--apply")
    assert done.exit_code == 1 and str(state) in done.stderr and "run this as root" in done.stderr
