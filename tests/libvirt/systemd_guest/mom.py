"""Runs in the guest: plays MoM for one job of alice, until the host has stopped, moved and continued it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

JOB = {"id": "1.srv", "run": 1, "owner": "alice", "cpus": 1, "memory_mib": 0, "rerunnable": True}
PROGRAM = """
import time
held = bytearray(b"x" * (40 << 20))
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
BOUND_S = 120.0


def ask(message: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10.0)
        link.connect("/run/magrathea/agent.sock")
        link.sendall(json.dumps(message).encode() + b"\n")
        with link.makefile("rb") as lines:
            return json.loads(lines.readline())


def state(process: "subprocess.Popen[bytes]") -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def connected() -> "tuple[socket.socket, socket.socket]":
    """Both ends of a connection as MoM has one to pbs_comm."""
    with socket.create_server(("127.0.0.1", 17001)) as comm:
        mine = socket.create_connection(comm.getsockname())
        return mine, comm.accept()[0]


def wait_for(letters: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + BOUND_S
    while state(process) not in letters and time.monotonic() < end:
        time.sleep(0.05)
    print("job is", "stopped" if state(process) == "T" else "running", flush=True)


def main() -> None:
    end = time.monotonic() + BOUND_S
    while not (said := ask({"op": "claim", "job": {**JOB, "class": "preemptible"}, "deadline_s": 1.8})).get("ok"):
        if time.monotonic() > end:
            sys.exit(f"never granted: {said}")
        time.sleep(0.2)
    environment = {**os.environ, "PBS_JOBID": "1.srv"}
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, env=environment, user="alice", start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    listed = {**JOB, "substate": 42, "session_id": process.pid}
    Path("/proc/self/comm").write_text("pbs_mom")
    mine, _theirs = connected()
    print("list", ask({"op": "jobs", "jobs": [listed]}), flush=True)
    wait_for("T", process)
    wait_for("RS", process)
    mine.settimeout(0.0)
    print("connection", "ended" if mine.recv(1) == b"" else "lives", flush=True)
    process.kill()
    print("release", ask({"op": "release", "job": JOB}), flush=True)


main()
