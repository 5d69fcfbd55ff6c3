"""What changes in a domain's XML, as edits of libvirt's own text: pure.

Rule 1: only what must be is changed. Every other byte stays: comments, namespaces, the order of attributes, what this
program does not know. A parsed and printed tree would lose some of it.
Rule 2: a channel of Magrathea's name that cannot work is reported with each of its faults; it is never overwritten.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import xml.parsers.expat as expat
from collections.abc import Iterator
from dataclasses import dataclass, field

CHANNEL = "org.magrathea.0"
"""The port's name; in the guest it is /dev/virtio-ports/org.magrathea.0 (deploy/agent.json)."""
GUEST_DIRECTORY = "/run/magrathea-host"
"""Where a container finds the directory of the host's socket."""

BALLOON_MODELS = ("virtio", "virtio-transitional", "virtio-non-transitional")
"""QEMU's balloons. They differ in how the guest finds them, and the guest's image may need one of them."""


class NotAdoptable(Exception):
    """Magrathea cannot handle this domain; the text says why, and how to fix it."""


@dataclass(slots=True)
class Element:
    """An element's places in the text, in bytes. `inside`: the end of its start tag; `close`: where its end tag begins.
    `<a/>` has both at its end."""

    tag: str
    start: int
    inside: int = 0
    close: int = 0
    end: int = 0
    children: list[Element] = field(default_factory=list)

    @property
    def is_empty_tag(self) -> bool:
        return self.inside == self.end

    def find(self, tag: str) -> Element | None:
        return next((child for child in self.children if child.tag == tag), None)


def places(text: bytes) -> Element:
    """The top element of an XML text. Raises expat.ExpatError."""
    parser = expat.ParserCreate("utf-8")
    outside = Element("", 0)
    opened = [outside]

    def begins(tag: str, attributes: object) -> None:
        start = parser.CurrentByteIndex
        element = Element(tag, start, inside=_tag_end(text, start))
        opened[-1].children.append(element)
        opened.append(element)

    def ends(tag: str) -> None:
        element = opened.pop()
        if text[element.inside - 2 : element.inside] == b"/>":
            element.close = element.end = element.inside
        else:
            element.close = parser.CurrentByteIndex
            element.end = text.index(b">", element.close) + 1

    parser.StartElementHandler, parser.EndElementHandler = begins, ends
    parser.Parse(text, True)
    return outside.children[0]


def _tag_end(text: bytes, start: int) -> int:
    """The place behind the `>` of the tag that begins at `start`. A `>` in an attribute's value does not end it."""
    quote = 0
    for at in range(start, len(text)):
        byte = text[at]
        if quote:
            quote = 0 if byte == quote else quote
        elif byte in b"\"'":
            quote = byte
        elif byte == ord(">"):
            return at + 1
    raise ValueError("a tag without an end")  # expat would have refused it


class TextEdits:
    """Changes of one text, applied together."""

    def __init__(self, xml: str) -> None:
        self.text = xml.encode()
        self.top = places(self.text)
        self._edits: list[tuple[int, int, bytes]] = []

    def replace(self, start: int, end: int, by: str) -> None:
        self._edits.append((start, end, by.encode()))

    def set_attribute(self, element: Element, name: str, value: str) -> None:
        """Set it in the element's start tag; it keeps its place if it is there."""
        tag = self.text[element.start : element.inside]
        found = re.search(rb"\s" + name.encode() + rb"\s*=\s*(\"[^\"]*\"|'[^']*')", tag)
        if found is not None:
            self.replace(element.start + found.start(1), element.start + found.end(1), f"'{value}'")
            return
        end = len(tag.rstrip(b"/>").rstrip()) + element.start
        self.replace(end, end, f" {name}='{value}'")

    def append(self, parent: Element, lines: list[str]) -> None:
        """Add a child as the parent's last one, in the text's own indentation."""
        outer = self._indentation(parent.close if not parent.is_empty_tag else parent.start)
        inner = self._indentation(parent.children[-1].start) if parent.children else None
        inner = outer + "  " if inner is None else inner
        unit = inner[len(outer) :] or "  "
        block = "".join(inner + line.replace("\t", unit) + "\n" for line in lines)
        if parent.is_empty_tag:
            slash = parent.inside - 2
            self.replace(slash, parent.inside, f">\n{block}{outer}</{parent.tag}>")
            return
        line_start = self.text.rfind(b"\n", 0, parent.close) + 1
        if self.text[line_start : parent.close].strip():  # the end tag does not begin a line
            self.replace(parent.close, parent.close, f"\n{block}{outer}")
        else:
            self.replace(line_start, line_start, block)

    def _indentation(self, at: int) -> str:
        line = self.text[self.text.rfind(b"\n", 0, at) + 1 : at].decode(errors="replace")
        return line if not line.strip() else ""

    def result(self) -> str:
        pieces, done = [], 0
        for start, end, by in sorted(self._edits, key=lambda edit: edit[0]):  # edits of one place keep their order
            pieces += [self.text[done:start], by]
            done = end
        return b"".join([*pieces, self.text[done:]]).decode()


def adopted_xml(xml: str, type: str, socket: str) -> str:
    """The domain's XML with the channel to `socket` and a balloon that can be used. Raises NotAdoptable."""
    top = ET.fromstring(xml)
    edits = TextEdits(xml)
    devices = edits.top.find("devices")
    add: list[list[str]] = []
    if type == "lxc":
        if not _has_directory(top, socket):
            add.append(_directory(socket))
    else:
        if type != "xen":  # Xen's balloon is the kernel's own driver, and has no attributes
            add += _balloon(edits, top, devices)
        if not check_channel(top, type, socket):
            add.append(_channel(type, socket))
    if not add:
        return edits.result()
    if devices is None:
        edits.append(edits.top, ["<devices>", *(f"\t{line}" for lines in add for line in lines), "</devices>"])
    else:
        edits.append(devices, [line for lines in add for line in lines])
    return edits.result()


def _balloon(edits: TextEdits, top: ET.Element, devices: Element | None) -> list[list[str]]:
    """Make the balloon usable. Returns the lines of a new one if there is none.

    Without `autodeflate` a target that the guest cannot reach kills its jobs. Free page reporting returns the memory of
    ended jobs to the host; an admin's `off` stands. Seen with libvirt 9.0 and QEMU 7.2: a guest of 2 GiB, balloon to
    512 MiB.
    """
    now = top.find("devices/memballoon")
    if now is None or devices is None:
        return [["<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>"]]
    place = devices.find("memballoon")
    assert place is not None
    if now.get("model") not in BALLOON_MODELS:  # its children belong to another bus
        edits.replace(place.start, place.end, "<memballoon model='virtio' autodeflate='on' freePageReporting='on'/>")
        return []
    missing = {} if now.get("freePageReporting") else {"freePageReporting": "on"}
    if now.get("autodeflate") != "on":
        missing = {"autodeflate": "on", **missing}
    for name, value in missing.items():
        edits.set_attribute(place, name, value)
    return []


# The channel


def check_channel(top: ET.Element, type: str, socket: str) -> bool:
    """True if the right channel is there, False if none of that name is. Raises NotAdoptable."""
    found = [c for c in top.findall("devices/channel") if _name(c) == CHANNEL]
    others = [c for c in top.findall("devices/channel") if _name(c) != CHANNEL and _source(c).get("path") == socket]
    if others:
        used = f"its channel {_name(others[0]) or '(without a name)'} uses {socket}, the socket of {CHANNEL}"
        raise NotAdoptable(f"{used}; give that <channel> another path first")
    if len(found) > 1:
        raise NotAdoptable(f"it has {len(found)} channels {CHANNEL}; remove them first, a right one is added")
    if not found:
        return False
    faults = list(_channel_faults(found[0], "xen" if type == "xen" else "virtio", socket))
    if faults:
        raise NotAdoptable(f"its channel {CHANNEL} {', and '.join(faults)}; remove that <channel> first")
    return True


def _channel_faults(channel: ET.Element, port: str, socket: str) -> Iterator[str]:
    if channel.get("type") != "unix":
        yield f"is of type {channel.get('type')!r}, not 'unix'"
        return
    source = _source(channel)
    mode, path = source.get("mode"), source.get("path")
    if path != socket:
        yield f"goes to {path or 'a path of its own making'}, not {socket}"
    if mode != "connect":
        word = f"is in mode {mode!r}" if mode else "has no mode"
        yield f"{word}, so QEMU itself listens there; the node daemon listens, so the mode must be 'connect'"
    else:
        again = source.find("reconnect")
        if again is None or again.get("enabled") != "yes":
            yield "has no <reconnect enabled='yes' timeout='1'/>, so it is lost when the node daemon restarts"
    target = channel.find("target")
    if target is not None and target.get("type") != port:
        yield f"has a target of type {target.get('type')!r}, not {port!r}"


def _name(channel: ET.Element) -> str:
    target = channel.find("target")
    return target.get("name", "") if target is not None else ""


def _source(channel: ET.Element) -> ET.Element:
    source = channel.find("source")
    return source if source is not None else ET.Element("source")


def _channel(type: str, socket: str) -> list[str]:
    port = "xen" if type == "xen" else "virtio"
    return [
        "<channel type='unix'>",
        f"\t<source mode='connect' path={_quoted(socket)}>",
        "\t\t<reconnect enabled='yes' timeout='1'/>",
        "\t</source>",
        f"\t<target type='{port}' name='{CHANNEL}'/>",
        "</channel>",
    ]


# A container's directory


def _has_directory(top: ET.Element, socket: str) -> bool:
    for mount in top.findall("devices/filesystem"):
        target, source = mount.find("target"), mount.find("source")
        if target is not None and target.get("dir") == GUEST_DIRECTORY:
            if source is not None and source.get("dir") == socket.rpartition("/")[0]:
                return True
            raise NotAdoptable(f"something else is mounted on {GUEST_DIRECTORY}; remove that <filesystem> first")
    return False


def _directory(socket: str) -> list[str]:
    return [
        "<filesystem type='mount' accessmode='passthrough'>",
        f"\t<source dir={_quoted(socket.rpartition('/')[0])}/>",
        f"\t<target dir='{GUEST_DIRECTORY}'/>",
        "</filesystem>",
    ]


def _quoted(value: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), ("'", "&apos;")):
        value = value.replace(character, entity)
    return f"'{value}'"
