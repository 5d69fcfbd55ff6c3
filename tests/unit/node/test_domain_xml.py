"""Adopting changes only what must be in a domain's XML, in libvirt's own text; a channel that cannot work is reported
with each of its faults."""

from __future__ import annotations

import difflib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from node_daemon.setup.domain_xml import NotAdoptable, adopted_xml

DATA = Path(__file__).parents[2] / "data" / "domains"
SOCKET = "/run/magrathea/guest/n1.sock"
CHANNEL_LINES = [
    "    <channel type='unix'>",
    f"      <source mode='connect' path='{SOCKET}'>",
    "        <reconnect enabled='yes' timeout='1'/>",
    "      </source>",
    "      <target type='virtio' name='org.magrathea.0'/>",
    "    </channel>",
]


def data(name: str) -> str:
    return (DATA / f"{name}.xml").read_text("utf-8")


def with_devices(devices: str) -> str:
    return f"<domain type='kvm'>\n  <name>n1</name>\n  <devices>\n    {devices}\n  </devices>\n</domain>\n"


def changed_lines(before: str, after: str) -> list[str]:
    found = difflib.unified_diff(before.splitlines(), after.splitlines(), "a", "b", "", "", 0, "")
    return [line for line in found if line[:2] not in ("--", "++", "@@")]


def test_another_balloon_model_keeps_its_statistics_driver_and_address() -> None:
    before = data("half-plugged")
    assert changed_lines(before, adopted_xml(before, "kvm", SOCKET)) == [
        "-    <memballoon model='virtio-non-transitional' freePageReporting='on'>",
        "+    <memballoon model='virtio-non-transitional' freePageReporting='on' autodeflate='on'>",
        *(f"+{line}" for line in CHANNEL_LINES),
    ]


@pytest.mark.parametrize("name", ["half-plugged", "own-quota", "function-from-pool"])
def test_nothing_else_changes_by_a_byte(name: str) -> None:
    before = data(name)
    after = adopted_xml(before, "kvm", SOCKET)
    for line in CHANNEL_LINES:
        after = after.replace(line + "\n", "", 1)
    after = after.replace(" autodeflate='on'", "")
    if "freePageReporting" not in before:
        after = after.replace(" freePageReporting='on'", "")
    assert after == before


def test_devices_in_one_line_and_options_of_the_emulator_stay() -> None:
    before = data("emulator-options")
    head, _, tail = before.partition("<memballoon model='virtio'/></devices>")
    after = adopted_xml(before, "kvm", SOCKET)
    assert after.startswith(head + "<memballoon model='virtio' autodeflate='on'") and after.endswith(
        "</devices>" + tail
    )


@pytest.mark.parametrize(
    ("balloon", "becomes"),
    [
        ("<memballoon model='virtio'/>", "<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>"),
        ('<memballoon model="virtio" />', "<memballoon model=\"virtio\" autodeflate='on' freePageReporting='on' />"),
        (
            "<memballoon model='virtio' autodeflate='off' freePageReporting='off'/>",
            "<memballoon model='virtio' autodeflate='on' freePageReporting='off'/>",
        ),
        ("<memballoon model='none'/>", "<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>"),
        (
            "<memballoon model='none'><alias name='a>b'/></memballoon>",
            "<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>",
        ),
    ],
)
def test_a_balloon_gets_what_it_must_have_and_an_admins_choice_stands(balloon: str, becomes: str) -> None:
    before = with_devices(balloon)
    after = adopted_xml(before, "kvm", SOCKET)
    assert changed_lines(before, after) == [f"-    {balloon}", f"+    {becomes}", *(f"+{x}" for x in CHANNEL_LINES)]


@pytest.mark.parametrize(
    "xml",
    [
        "<domain type='kvm'><name>n1</name></domain>",
        "<domain type='kvm'><name>n1</name><devices/></domain>",
        "<domain type='kvm'><name>n1</name><devices></devices></domain>",
        "<domain type='kvm'>\n  <name>n1</name>\n  <devices>\n  </devices>\n</domain>\n",
        with_devices("<!-- </devices> --><emulator>/usr/bin/x</emulator>"),
        with_devices("<disk a='&gt;/>'/>"),
    ],
)
def test_a_channel_and_a_balloon_are_added_to_whatever_is_there(xml: str) -> None:
    after = adopted_xml(xml, "kvm", SOCKET)
    top = ET.fromstring(after)
    balloon, source = top.find("devices/memballoon"), top.find("devices/channel/source")
    assert balloon is not None and balloon.get("autodeflate") == "on"
    assert source is not None and source.attrib == {"mode": "connect", "path": SOCKET}
    assert adopted_xml(after, "kvm", SOCKET) == after, "adopting twice changes nothing more"


def test_a_container_gets_a_directory_and_xen_no_balloon() -> None:
    container = ET.fromstring(adopted_xml(with_devices(""), "lxc", "/run/magrathea/guest/n1/agent.sock"))
    source = container.find("devices/filesystem/source")
    assert source is not None and source.get("dir") == "/run/magrathea/guest/n1"
    assert container.find("devices/memballoon") is None
    xen = ET.fromstring(adopted_xml(with_devices(""), "xen", SOCKET))
    target = xen.find("devices/channel/target")
    assert target is not None and target.get("type") == "xen"
    assert xen.find("devices/memballoon") is None


def channel(source: str, type: str = "unix", name: str = "org.magrathea.0", port: str = "virtio") -> str:
    return f"<channel type='{type}'>{source}<target type='{port}' name='{name}'/></channel>"


AGAIN = "<reconnect enabled='yes' timeout='1'/>"
RIGHT = f"<source mode='connect' path='{SOCKET}'>{AGAIN}</source>"


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        (channel(f"<source mode='bind' path='{SOCKET}'/>"), "is in mode 'bind', so QEMU itself listens there"),
        (channel(f"<source path='{SOCKET}'/>"), "has no mode"),
        (channel(f"<source mode='connect' path='/x'>{AGAIN}</source>"), f"goes to /x, not {SOCKET}"),
        (channel("<source mode='bind'/>"), "goes to a path of its own making"),
        (channel("<source mode='bind' path='/x'/>"), "and is in mode 'bind'"),
        (channel(f"<source mode='connect' path='{SOCKET}'/>"), "lost when the node daemon restarts"),
        (channel(f"<source mode='connect' path='{SOCKET}'><reconnect enabled='no'/></source>"), "no <reconnect"),
        (channel("", type="pty"), "is of type 'pty', not 'unix'"),
        (channel(RIGHT, port="guestfwd"), "target of type 'guestfwd', not 'virtio'"),
        (channel(RIGHT) + channel(RIGHT), "2 channels org.magrathea.0"),
        (channel(RIGHT, name="org.site.1"), f"its channel org.site.1 uses {SOCKET}"),
    ],
)
def test_a_channel_that_cannot_work_is_reported_with_its_faults(devices: str, says: str) -> None:
    with pytest.raises(NotAdoptable) as refused:
        adopted_xml(with_devices(devices), "kvm", SOCKET)
    assert says in str(refused.value)
    assert f"goes to {SOCKET}, not {SOCKET}" not in str(refused.value)


def test_the_fields_channel_is_told_its_mode() -> None:
    with pytest.raises(NotAdoptable, match="mode must be 'connect'"):
        adopted_xml(data("listening-channel"), "kvm", "/run/magrathea/guest/x.sock")
