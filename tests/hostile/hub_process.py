"""A hub as a process of its own, with a PBS that does not answer."""

from __future__ import annotations

import socket as sockets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from magrathea_lab.waiting import BOUND_S, until
from scheduler_plugin.hub import keys
from tests.embedded.real_hub import free_port

ROOT = Path(__file__).parents[2]


class HubProcess:
    """`files`: the limit of open files, soft and hard."""

    def __init__(self, directory: Path, *, files: tuple[int, int], more: str = "") -> None:
        self.directory = directory
        self.port = free_port()
        self.keys_dir = directory / "keys"
        keys.init(self.keys_dir)
        self.log_file = directory / "hub.log"
        config = directory / "hub.toml"
        config.write_text(
            f'[hub]\nlisten = ["tcp://127.0.0.1:{self.port}"]\nstate_dir = "{directory}/state"\n'
            f'keys_dir = "{directory}/keys"\nheartbeat_file = "{directory}/heartbeat"\n'
            f'control_socket = "{directory}/control.sock"\n{more}'
            f'[pbs]\nkind = "standin"\nsocket = "{directory}/pbs.sock"\n'
        )
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {files}); "
        program = f"{limited}from scheduler_plugin.hub.main import main; main()"
        with self.log_file.open("wb") as log:
            command = [sys.executable, "-c", program, "--config", str(config)]
            self.process = subprocess.Popen(command, stderr=log, cwd=ROOT)
        self.until(lambda: "listening at" in self.log, "it listens")

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def true() -> bool:
            assert self.process.poll() is None, f"the hub has ended with {self.process.returncode}: {self.log}"
            return condition()

        until(true, lambda: f"{what}; {self.log}")

    def connect(self, address: str = "127.0.0.1") -> sockets.socket:
        """A connection from that address, which sends nothing."""
        return sockets.create_connection(("127.0.0.1", self.port), BOUND_S, (address, 0))

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(BOUND_S)
        finally:
            self.process.kill()
            self.process.wait()
