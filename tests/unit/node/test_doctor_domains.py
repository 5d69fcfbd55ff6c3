"""`magrathea doctor` on a host with libvirt's test hypervisor: pinned memory, balloons, channels."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from magrathea.core.model import Mode, State
from magrathea.doctor import Status
from magrathea.messages import Snapshot
from node_daemon.configuration import NodedConfiguration, read
from node_daemon.hypervisor.base import FLOOR_ADVICE
from node_daemon.setup import doctor, doctor_domains
from node_daemon.setup.domain_xml import adopted_xml
from tests.fakes.libvirt import URI, only_domains, xml
from tests.fakes.reports import domain


def configured(tmp_path: Path, floor_mib: int = 128, uri: str = URI) -> NodedConfiguration:
    file = tmp_path / "noded.toml"
    file.write_text(f"""
[host]
name = "h1"
mode = "exclusive"
cpus = 4
memory_mib = 4096
reserve_mib = 0
driver = "libvirt"
uri = "{uri}"
[paths]
run_dir = "{tmp_path}"
[domain.n1]
kind = "normal"
memory_mib = 1024
floor_mib = {floor_mib}
""")
    return read(file)


def found(c: NodedConfiguration, definition: str) -> dict[str, tuple[Status, str]]:
    with only_domains(definition):
        return {check.name: (check.status, check.cause) for check in doctor_domains.domains(c)}


def adopted(tmp_path: Path) -> str:
    return adopted_xml(xml("n1"), "test", str(tmp_path / "guest" / "n1.sock"))


def test_an_adopted_domain_is_all_right(tmp_path: Path) -> None:
    checks = found(configured(tmp_path), adopted(tmp_path))
    assert {name: status for name, (status, _) in checks.items()} == {"movable-n1": Status.OK, "channel-n1": Status.OK}


@pytest.mark.parametrize(("floor_mib", "status"), [(128, Status.FAIL), (1024, Status.OK)])
def test_pinned_memory_fails_unless_nobody_counts_on_it(tmp_path: Path, floor_mib: int, status: Status) -> None:
    definition = adopted(tmp_path).replace("<devices>", "<memoryBacking><locked/></memoryBacking><devices>")
    assert found(configured(tmp_path, floor_mib), definition)["movable-n1"][0] is status


def test_a_domain_without_a_channel_or_with_one_in_the_wrong_mode_fails(tmp_path: Path) -> None:
    c = configured(tmp_path)
    assert "no channel" in found(c, xml("n1"))["channel-n1"][1]
    listens = (
        adopted(tmp_path).replace("mode='connect'", "mode='bind'").replace("<reconnect enabled='yes' timeout='1'/>", "")
    )
    status, cause = found(c, listens)["channel-n1"]
    assert status is Status.FAIL and "mode must be 'connect'" in cause


def test_a_domain_that_libvirt_does_not_have_and_a_libvirt_that_is_not_there_are_told(tmp_path: Path) -> None:
    assert found(configured(tmp_path), xml("other"))["libvirt-n1"][0] is Status.FAIL
    nowhere = configured(tmp_path, uri=f"qemu:///system?socket={tmp_path}/none")
    assert [check.status for check in doctor_domains.domains(nowhere)] == [Status.WARN]


@pytest.mark.parametrize(("floor_mib", "status"), [(128, Status.WARN), (1024, Status.NOTE)])
def test_the_daemons_note_is_no_warning_once_nobody_counts_on_the_memory(
    tmp_path: Path, floor_mib: int, status: Status
) -> None:
    note = f"domain n1: its memory is locked. {FLOOR_ADVICE}"
    snapshot = Snapshot("h1", "b", 1, 0, Mode.EXCLUSIVE, 4, 4096, [], hub_connected=True, notes=[note])
    [check] = [c for c in doctor.of_snapshot(configured(tmp_path, floor_mib), snapshot) if c.cause == note]
    assert check.status is status


def test_a_sleeping_domain_is_a_note_with_its_reason_and_the_way_back(tmp_path: Path) -> None:
    asleep = replace(domain("n1", state=State.ASLEEP), why="n1 sleeps on disk with 2 jobs: new memory", agent=False)
    snapshot = Snapshot("h1", "b", 1, 0, Mode.EXCLUSIVE, 4, 4096, [asleep], hub_connected=True)
    [check] = [c for c in doctor.of_snapshot(configured(tmp_path), snapshot) if c.name == "domain-n1"]
    assert (check.status, check.cause) == (Status.NOTE, asleep.why) and "magrathea domain defrost n1" in check.fix
