"""A real MoM whose connection to pbs_comm has died silently, as after its guest was saved to disk, notices it at once
when the agent ends the connection."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.clusters.private_openpbs import HEAD, PrivateOpenPbs

PACKAGE = Path(__file__).resolve().parents[2] / "node_daemon"
MOM = "n1"
HELD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from agent import mom_connections as m
found = {}
for pid in m.moms():
    found.update(m.connections_of(pid, m.ports_of(pid)))
print(json.dumps(sorted(found)))
"""
END = """
import json, sys
sys.path.insert(0, sys.argv[1])
from agent import mom_connections as m
def missing():
    raise OSError(38, "not on this machine")
for name in sys.argv[2:]:
    setattr(m, name, missing)
print(json.dumps(m.end_all()))
"""
LOSE = """
import sys
sys.path.insert(0, sys.argv[1])
from agent import mom_connections as m
comm, address = int(sys.argv[2]), int.from_bytes(bytes(map(int, sys.argv[3].split("."))), sys.byteorder)
for line in open("/proc/%d/net/tcp" % comm, "rb").read().split(b"\\n")[1:-1]:
    words = line.split()
    local, remote = m._end(words[1]), m._end(words[2])
    if words[3] == m.ESTABLISHED and local[1] == m.COMM_PORT and remote[0] == address:
        m.Destroyer().end(0, m.Connection(comm, 0, local, remote))
        print("lost", remote)
"""


@pytest.fixture(scope="module")
def pbs() -> Iterator[PrivateOpenPbs]:
    with PrivateOpenPbs([MOM]) as cluster:
        yield cluster


def program(pbs: PrivateOpenPbs, machine: str, text: str, *words: str) -> str:
    return pbs.run(machine, [sys.executable, "-I", "-S", "-c", text, str(PACKAGE), *words]).stdout


def held(pbs: PrivateOpenPbs) -> list[int]:
    """The inodes of MoM's established connections to PBS."""
    found: list[int] = json.loads(program(pbs, MOM, HELD))
    return found


def lose_connection(pbs: PrivateOpenPbs) -> list[int]:
    """MoM's connection loses its other end, and MoM hears nothing of that. Returns the connection's inode."""
    before: list[int] = pbs.wait(lambda: held(pbs), "MoM is connected")
    link = json.loads(pbs.run(MOM, ["ip", "-j", "-4", "addr", "show", "scope", "global"]).stdout)[0]
    pbs.run(MOM, ["ip", "link", "set", link["ifname"], "down"])
    comm = (pbs.pbs_home(HEAD) / "server_priv/comm.lock").read_text().strip()
    assert "lost" in program(pbs, HEAD, LOSE, comm, link["addr_info"][0]["local"])
    pbs.wait(lambda: "down" in pbs.vnode(MOM)["state"], "the server has noticed")
    pbs.run(MOM, ["ip", "link", "set", link["ifname"], "up"])
    assert held(pbs) == before, "MoM has noticed nothing"
    return before


@pytest.mark.parametrize("missing", [(), ("Destroyer",), ("Shutter",)], ids=["any way", "a copy", "the kernel"])
def test_a_dead_connection_is_noticed_at_once_and_the_vnode_comes_back(
    pbs: PrivateOpenPbs, missing: tuple[str, ...]
) -> None:
    before = lose_connection(pbs)
    assert json.loads(program(pbs, MOM, END, *missing)) == [1, 1]
    assert held(pbs) != before, "MoM's old connection has ended"
    pbs.wait_free(MOM)
    assert held(pbs) != before
    job = pbs.qsub("alice", script="echo right")
    assert pbs.output("alice", job) == "right\n"


def test_without_any_way_it_says_so_and_leaves_the_connection_alone(pbs: PrivateOpenPbs) -> None:
    before: list[int] = pbs.wait(lambda: held(pbs), "MoM is connected")
    with pytest.raises(RuntimeError, match="not on this machine"):
        program(pbs, MOM, END, "Shutter", "Destroyer")
    assert held(pbs) == before


def test_another_users_program_with_moms_name_and_other_ports_are_left_alone(pbs: PrivateOpenPbs) -> None:
    """A user's process may have any name, and MoM may have connections that lead elsewhere."""
    pretender = """
import socket, sys, ctypes
sys.path.insert(0, sys.argv[1])
ctypes.CDLL(None).prctl(15, b"pbs_mom", 0, 0, 0)
door = socket.create_server(("127.0.0.1", int(sys.argv[2])))
mine = socket.create_connection(door.getsockname())
theirs, _ = door.accept()
from agent import mom_connections as m
import os
print([pid for pid in m.moms() if pid == os.getpid()], len(m.connections_of(os.getpid(), {int(sys.argv[2])})))
print(len(m.connections_of(os.getpid(), {1})))
"""

    def as_user(user: str, *words: str) -> list[Any]:
        argv = ["/usr/bin/python3", "-I", "-S", "-c", pretender, str(PACKAGE), *words]
        return pbs.run(MOM, argv, user=user).stdout.splitlines()

    assert as_user("alice", "17001") == ["[] 1", "0"]
    first, second = as_user("root", "17001")
    assert first.endswith(" 1") and not first.startswith("[]"), "root's counts"
    assert second == "0"


def test_the_ports_are_those_of_moms_configuration(pbs: PrivateOpenPbs) -> None:
    text = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from agent import mom_connections as m
print(json.dumps(sorted(m.ports_of(os.getpid()))))
"""
    argv = [sys.executable, "-I", "-S", "-c", text, str(PACKAGE)]
    assert json.loads(pbs.run(MOM, argv).stdout) == [15001, 17001]
    env = {"PBS_LEAF_ROUTERS": "c1:17011,c2:17012", "PBS_BATCH_SERVICE_PORT": "15051", "PBS_CONF_FILE": "/none"}
    assert json.loads(pbs.run(MOM, argv, env=env).stdout) == [15001, 15051, 17001, 17011, 17012]
