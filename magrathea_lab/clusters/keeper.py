"""Starts the parts of a cluster, and guarantees that no process started here or by them stays behind.

As a program it is a subreaper. A JSON line on its standard input starts a part; a line on its output reports the
pid. Its input closes when its owner ends, in whatever way. Then it ends all its descendants and removes the
directory that it was given.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .. import processes
from ..waiting import BOUND_S

LOOK_S = 0.1
"""How often the keeper collects ended processes."""
ORDERLY_S = 4.0
"""Time for an orderly end. What is left afterwards is killed all at once."""


class KeptProcess:
    """A program that was started. `log`: what it prints."""

    def __init__(self, name: str, pid: int, log: Path) -> None:
        self.name, self.pid, self.log = name, pid, log

    def running(self) -> bool:
        fields = processes.stat_fields(self.pid)
        return fields is not None and fields[2] not in "ZX"

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal and wait for the process to end. Raises TimeoutError."""
        processes.send([self.pid], sig)
        until = time.monotonic() + BOUND_S
        while self.running():
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name} (process {self.pid}) has not ended {BOUND_S:g} s after signal {sig}")
            time.sleep(0.01)


class Keeper:
    """The owner's side. `close` may be called at any time, and more than once."""

    def __init__(self, environment: Mapping[str, str], directory: Path | None = None) -> None:
        """`directory` is removed at the end."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "magrathea_lab.clusters.keeper", *([str(directory)] if directory else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environment}, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> KeptProcess:
        """Start a part in a session of its own. Raises RuntimeError if it cannot be started."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"argv": list(argv), "env": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} cannot be started: the keeper of the processes has ended")
        return KeptProcess(name, json.loads(line)["pid"], log)

    def close(self) -> None:
        """End everything. Raises subprocess.TimeoutExpired."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(BOUND_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


def _start(order: dict[str, object]) -> int:
    argv, environment, log = order["argv"], order["env"], order["log"]
    assert isinstance(argv, list) and isinstance(environment, dict) and isinstance(log, str)
    with Path(log).open("ab") as output:
        part = subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=lambda: processes.die_with_parent(signal.SIGTERM),
        )  # fmt: skip
    part.returncode = 0  # `_collect` reaps it, not this object
    return part.pid


def _collect() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_in_order(parts: list[int]) -> None:
    """End the parts one after the other, in the order of their start: a part that gives back what others use comes
    last."""
    deadline = time.monotonic() + ORDERLY_S
    for pid in parts:
        processes.send([pid], signal.SIGTERM)
        while (fields := processes.stat_fields(pid)) and fields[2] not in "ZX" and time.monotonic() < deadline:
            time.sleep(0.005)
        _collect()


def main() -> None:
    processes.become_subreaper()
    started: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the owner decides when to end
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    buffer = b""
    try:
        while True:
            _collect()
            if not select.select([0], [], [], LOOK_S)[0]:
                continue
            data = os.read(0, 65536)
            if not data:
                return
            buffer += data
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                started.append(_start(json.loads(line)))
                os.write(1, json.dumps({"pid": started[-1]}).encode() + b"\n")
    except OSError:
        return  # SIGTERM closed our input, or the owner has stopped reading
    finally:
        _end_in_order(started)
        processes.end_descendants()
        for directory in sys.argv[1:]:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
