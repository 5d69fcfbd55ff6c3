"""One guest of a rig: its libvirt domain, and actions inside it (../guests/rig/usr/lib/magrathea-test/mom.py)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from ..waiting import BOUND_S, until


class GuestError(Exception):
    """The guest did not answer, or could not do what was asked; the text has the details."""


class Port:
    """Sends requests to the MoM stand-in over its virtio-serial port. Any thread may ask; each gets its own answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._answers: dict[int, dict[str, Any] | None] = {}
        self._waiting: dict[int, socket.socket | None] = {}  # request number -> the link it was sent over
        self._came = threading.Condition()

    def ask(self, op: str, bound_s: float = BOUND_S, **fields: Any) -> dict[str, Any]:
        """The guest's answer. Raises GuestError if none comes in time or the guest ends meanwhile."""
        number = next(self._ids)
        line = b"\n" + json.dumps({"id": number, "op": op, **fields}).encode() + b"\n"
        end = time.monotonic() + bound_s
        with self._came:
            self._waiting[number] = None
        try:
            self._send(number, line, end)
            with self._came:
                while number not in self._answers:
                    if not self._came.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                        raise GuestError(f"{self._path.name}: no answer to {op} within {bound_s:g} s")
                if (answer := self._answers.pop(number)) is None:
                    raise GuestError(f"{self._path.name}: the guest has ended before it answered {op}")
                return answer
        finally:
            with self._came:
                del self._waiting[number]
                self._answers.pop(number, None)

    def _send(self, number: int, line: bytes, end: float) -> None:
        while True:
            try:
                with self._lock:
                    if self._socket is None:
                        self._connect()
                    assert self._socket is not None
                    with self._came:
                        self._waiting[number] = self._socket
                    self._socket.sendall(line)
                return
            except OSError as error:
                self.close()
                if time.monotonic() > end:
                    raise GuestError(f"{self._path.name}: {error}") from error
                time.sleep(0.1)

    def _connect(self) -> None:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(self._path))
        except OSError:
            link.close()
            raise
        self._socket = link
        threading.Thread(target=self._read, args=(link,), daemon=True).start()

    def _read(self, link: socket.socket) -> None:
        pieces = bytearray()
        with contextlib.suppress(OSError):
            while piece := link.recv(65536):
                pieces += piece
                while (end := pieces.find(b"\n")) >= 0:
                    line = bytes(pieces[:end])
                    del pieces[: end + 1]
                    with contextlib.suppress(ValueError):
                        self._answered(json.loads(line))
        with self._lock:
            if self._socket is link:
                self._socket = None
        with self._came:
            self._answers |= {number: None for number, over in self._waiting.items() if over is link}
            self._came.notify_all()
        link.close()

    def _answered(self, answer: Any) -> None:
        if isinstance(answer, dict):
            with self._came:
                if answer.get("id") in self._waiting:
                    self._answers[answer["id"]] = answer
                    self._came.notify_all()

    def close(self) -> None:
        with self._lock:
            link, self._socket = self._socket, None
        if link is not None:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


@dataclass
class Job:
    """A job as PBS would start it: `owner` runs `script` in a session of its own."""

    id: str
    cls: str = "preemptible"
    script: str = "while :; do sleep 0.05; done"
    cpus: int = 1
    memory_mib: int = 0
    run: int = 1
    owner: str = "alice"
    rerunnable: bool = True
    cgroup: bool = False
    """In a control group of its own, as with PBS's cgroups hook."""

    def described(self) -> dict[str, Any]:
        sizes = {"class": self.cls, "cpus": self.cpus, "memory_mib": self.memory_mib}
        return {"id": self.id, "run": self.run, **sizes, "rerunnable": self.rerunnable, "owner": self.owner}


def holding(mib: int, *, locked: bool = False) -> str:
    """A script that holds that much memory and checks it byte for byte, again and again; its output counts the
    checks. `locked`: no swap can take it; the job's owner must be root."""
    return f"exec python3 -S -E /usr/lib/magrathea-test/hold.py {'--locked ' if locked else ''}{mib}"


class Guest:
    """See the module's docstring. `name`: the node daemon's name for it; `libvirt_name`: libvirt's."""

    def __init__(self, name: str, libvirt_name: str, connect: Callable[[], Any], folder: Path) -> None:
        self.name = name
        self.libvirt_name = libvirt_name
        self.folder = folder
        self.port = Port(folder / f"{name}.test")
        self._connect = connect

    # From outside

    @property
    def domain(self) -> Any:
        """libvirt's object. Raises libvirt.libvirtError."""
        return self._connect().lookupByName(self.libvirt_name)

    @property
    def up(self) -> bool:
        return bool(self.domain.isActive())

    def boot(self) -> None:
        """Start it if it is down, resume it if it is paused; return at once."""
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.create()
        if self.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            self.domain.resume()

    def wait(self, bound_s: float = BOUND_S) -> None:
        """Wait until the MoM stand-in in the guest answers."""
        end = time.monotonic() + bound_s
        while True:
            try:
                self.port.ask("ping", 2.0)
                return
            except GuestError as error:
                assert time.monotonic() < end, f"{self.name} does not answer: {error}\n{self.console()}"

    def end(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.domain.destroy()

    def console(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / f"{self.name}.console").read_text(errors="replace")[-3000:]
        return "(no console)"

    def cpu_seconds(self) -> float:
        """Processor time of the domain so far, as libvirt reports it."""
        return float(self.domain.info()[4]) / 1e9

    # Inside

    def sh(self, script: str, bound_s: float = BOUND_S) -> str:
        """Run a shell script as root; return its output. Raises GuestError if it fails."""
        answer = self.port.ask("sh", bound_s + 2, script=script, timeout_s=bound_s)
        if not answer.get("ok") or answer["code"] != 0:
            raise GuestError(f"{self.name}: {script!r}: {answer}")
        return str(answer["output"])

    def stray(self) -> None:
        """Start a process that belongs to no job and takes all the CPU it gets until the end of the test."""
        self.write("/tmp/stray", b"#!/bin/sh\nwhile :; do :; done\n", 0o755)
        self.sh("setsid /tmp/stray < /dev/null > /dev/null 2>&1 &")

    def write(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self.port.ask("write", path=path, content=base64.b64encode(content).decode(), mode=mode)

    def kill(self, words: str) -> list[int]:
        """Send SIGKILL to all processes with these words in their command line; return their pids."""
        return list(self.port.ask("kill_all", words=words)["pids"])

    def memory(self) -> dict[str, int]:
        """The guest's /proc/meminfo, in MiB."""
        return dict(self.port.ask("memory")["mib"])

    def ask_agent(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask the agent as the MoM hook does; return its answer."""
        return self.port.ask("agent", message=message)

    def stop_agent(self) -> None:
        """End the agent, and prevent init from starting it again."""
        self.sh("touch /run/agent.off")
        self.kill("magrathea-agent")

    def start_agent(self) -> None:
        self.sh("rm -f /run/agent.off")

    def jobs(self) -> dict[str, Any]:
        """The jobs by id: run, states (letters of the processes), resident_mib, swapped_mib, code, released, output."""
        return dict(self.port.ask("look")["jobs"])

    def states(self, job: Job) -> str:
        return str(self.jobs().get(job.id, {}).get("states", ""))

    def all_stopped(self, job: Job) -> bool:
        """True if all processes of the job are stopped.

        A shell that waits in `vfork` for a child that was stopped shows `D`, and counts as stopped.
        """
        states = set(self.states(job))
        return "T" in states and states <= {"T", "D"}

    def claim(self, job: Job) -> dict[str, Any]:
        """The MoM hook's claim, once. If it is granted, MoM has the job from then on."""
        return self.port.ask("claim", job=job.described())

    def start(self, job: Job) -> None:
        """Run the claimed job's script."""
        answer = self.port.ask("start", job=job.described(), script=job.script, cgroup=job.cgroup)
        if not answer.get("ok"):
            raise GuestError(f"{self.name}: {job}: {answer}")

    def qsub(self, job: Job, bound_s: float = BOUND_S) -> Job:
        """Claim until the claim is granted, wait until the job is prepared (as the prologue does), and start it."""
        end = time.monotonic() + bound_s
        while not (answer := self.claim(job)).get("ok"):
            assert time.monotonic() < end, f"{job} was never accepted: {answer}"
            job.run += 1
            time.sleep(0.1)
        while not (said := self.port.ask("prepared", job=job.described())).get("ready"):
            assert time.monotonic() < end, f"{job} was never prepared: {said}"
            time.sleep(0.05)
        self.start(job)
        return job

    def end_last(self, job: Job) -> None:
        """End the processes of the job that the guest's end waits for. The guest may be gone a moment later."""
        self.port.ask("kill", job=job.described())

    def qdel(self, job: Job) -> None:
        """End the job's processes; MoM then releases the job."""
        self.end_last(job)

        def released() -> bool:
            return bool(self.jobs().get(job.id, {"released": True})["released"])

        until(released, lambda: f"{job.id} released: {self.jobs()}; {self.console()}")
        self.port.ask("forget", job=job.described())

    def tell_jobs(self, suspended: list[tuple[str, int]]) -> dict[str, Any]:
        """Send MoM's list to the agent."""
        return self.port.ask("tell_jobs", 5.0, suspended=[list(key) for key in suspended])
