"""For tests of the agent: the node daemon's end of the guest channel, MoM's end of the agent's socket, and real jobs.

The agent under test is the real one, in a process of its own. Every process made here is our descendant, because we are
a subreaper. So `Rig.close` finds and ends all of them, however they try to hide.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import leftovers
from ..waiting import BOUND_S, NotInTime, until

AGENT = Path(__file__).resolve().parents[2] / "node_daemon" / "agent"
PR_SET_CHILD_SUBREAPER = 36
MARK = "MAGRATHEA_TEST"

Doc = dict[str, Any]


def owner() -> pwd.struct_passwd:
    """The user who owns the jobs: another user if we are root, else we ourselves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def stat_of(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def state(pid: int) -> str:
    """A process's state letter; "" if it has gone."""
    fields = stat_of(pid)
    return fields[0] if fields else ""


def start_time(pid: int) -> int:
    fields = stat_of(pid)
    assert fields is not None, f"process {pid} has gone"
    return int(fields[19])


def command_line(pid: int) -> bytes:
    """Empty for a process that ends or has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_same_program(pid: int, other: int) -> bool:
    """True if both processes live and have the same command line."""
    return bool(mine := command_line(pid)) and mine == command_line(other)


def descendants(pid: int) -> dict[int, str]:
    """pid -> state of all living descendants."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        fields = stat_of(int(entry.name)) if entry.name.isdigit() else None
        # a main thread that is a zombie may have living threads
        if fields is not None and (fields[0] not in "ZX" or int(fields[17]) > 1):
            parents[int(entry.name)] = (int(fields[1]), fields[0])
    found = {pid: ""}
    grown = True
    while grown:
        grown = False
        for child, (parent, letter) in parents.items():
            if parent in found and child not in found:
                found[child] = letter
                grown = True
    del found[pid]
    return found


def consent(request: Doc) -> Doc | None:
    """The daemon's usual answer, for tests that set no other."""
    return {"ok": True}


def job_python() -> str:
    """A Python interpreter that the jobs' owner may run. Ours may be in a home directory that others cannot read."""
    if os.geteuid() != 0:
        return sys.executable
    found = [p for p in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if Path(p).exists()]
    for python in found:
        tried = (
            subprocess.run([python, "-c", ""], user=owner().pw_uid, cwd="/", capture_output=True, check=False)
            if _reachable(python)
            else None
        )
        if tried is not None and tried.returncode == 0:
            return python
    raise FileNotFoundError(f"no Python that {owner().pw_name} may run: {found}; install one in /usr/bin")


def _reachable(path: str) -> bool:
    """True if everybody may reach this file and run it."""
    real = Path(path).resolve()
    return all(part.stat().st_mode & 0o001 for part in (real, *real.parents, *Path(path).absolute().parents))


class Host:
    """The node daemon's end. It answers the agent's requests with `answers[op]`, and keeps them in `asked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener: socket.socket | None = None
        self.sock: socket.socket | None = None
        self.buffer = b""
        self.session = ""
        self.agent: Doc = {}
        self.ids = 0
        self.asked: list[Doc] = []
        self.bad: list[bytes] = []
        self.answers: dict[str, Callable[[Doc], Doc | None]] = {}

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(8)
        self.listener.settimeout(BOUND_S)

    def accept(self, hello: bool = True) -> Host:
        """Accept the agent's connection, and send the hello."""
        if self.listener is None:
            self.listen()
        assert self.listener is not None
        if self.sock is not None:
            self.sock.close()
        self.sock, _ = self.listener.accept()
        self.buffer = b""
        if hello:
            self.greet()
            until(lambda: self.turn() or self.agent, "the agent's hello")
        return self

    def greet(self) -> None:
        self.session = os.urandom(8).hex()
        self.agent = {}
        self.raw(b"\n" + self.line(type="hello", protocol=1, session=self.session, host="h1", domain="n1"))

    @staticmethod
    def line(**doc: Any) -> bytes:
        return json.dumps(doc).encode() + b"\n"

    def raw(self, data: bytes) -> None:
        assert self.sock is not None
        self.sock.sendall(data)

    def turn(self, wait_s: float = 0.01) -> list[Doc]:
        """Handle what has arrived; return the answers in it. Raises ConnectionError if the agent has gone."""
        assert self.sock is not None
        if not select.select([self.sock], [], [], wait_s)[0]:
            return []
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the agent has closed the channel")
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        found = []
        for line in lines:
            if not line:
                continue
            try:
                doc = json.loads(line)
            except ValueError:
                self.bad.append(line)
                continue
            if doc["type"] == "hello":
                self.agent = doc
            elif doc["type"] == "answer":
                found.append(doc)
            else:
                self.asked.append(doc)
                answer = self.answers.get(doc["op"], consent)(doc)
                if answer is not None:
                    self.raw(self.line(type="answer", id=doc["id"], session=doc["session"], **answer))
        return found

    def send(self, op: str, **body: Any) -> int:
        """Send a request and return its id."""
        self.ids += 1
        self.raw(self.line(type="request", id=self.ids, session=self.session, op=op, **body))
        return self.ids

    def request(self, op: str, bound_s: float = BOUND_S, **body: Any) -> Doc:
        """Send a request and return the agent's answer."""
        return self.answer(self.send(op, **body), bound_s)

    def answer(self, id: int, bound_s: float = BOUND_S) -> Doc:
        def come() -> Doc | None:
            return next((a for a in self.turn() if a["id"] == id), None)

        answer: Doc = until(come, f"answer {id}", bound_s)
        return answer

    def orders(self, deadline_s: float = 10.0, **words: str) -> Doc:
        """Send a full set of orders: `orders(j12="stop")` is one row for job "12.srv", run 1. Several jobs: rows in
        that order."""
        rows = [{"id": f"{name[1:]}.srv", "run": 1, "order": word} for name, word in words.items()]
        return self.request("orders", orders=rows, deadline_s=deadline_s)

    def order(self, word: str) -> Doc:
        """Send an order for job 12.srv alone, and wait until it is carried out; return its row of the answer."""
        answer = self.orders(j12=word)
        assert answer["ok"], answer
        row: Doc = answer["jobs"][0]
        return row

    def seen(self, op: str) -> list[Doc]:
        self.turn()
        return [doc for doc in self.asked if doc["op"] == op]

    def await_op(self, op: str) -> Doc:
        found: list[Doc] = until(lambda: self.seen(op), f"request {op} of the agent")
        return found[-1]

    def close(self) -> None:
        for sock in (self.sock, self.listener):
            if sock is not None:
                sock.close()
        self.sock = self.listener = None


class Rig:
    """A directory with an agent, its host, and its jobs."""

    def __init__(self, python: str = os.environ.get("MAGRATHEA_AGENT_PYTHON", sys.executable), **config: Any) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.directory, self._taken = leftovers.take_directory("magrathea-agent-")
        self.directory.chmod(0o755)
        self.python = python
        self.host = Host(self.directory / "guest.sock")
        self.socket = self.directory / "agent.sock"
        self.state = self.directory / "state.json"
        self.log = self.directory / "log"
        self.config_path = self.directory / "agent.json"
        config = {
            "socket": str(self.socket),
            "channel": f"unix:{self.host.path}",
            "state": str(self.state),
            "scripts": str(self.directory / "hooks"),
            "environment": {MARK: self.directory.name},  # so that tests in parallel do not see each other's jobs
            **config,
        }
        self.config_path.write_text(json.dumps(config))
        self.agent: subprocess.Popen[bytes] | None = None
        self.before = set(descendants(os.getpid()))
        self.orphans: set[int] = set()
        """Readers of killed agents. They may outlive them for a moment."""

    def start(self, connect: bool = True) -> Rig:
        if connect and self.host.listener is None:
            self.host.listen()
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [self.python, str(AGENT), "--config", str(self.config_path)], stderr=log, start_new_session=True
            )
        if connect:
            self.host.accept()
        return self

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Kill the agent; return its exit code."""
        assert self.agent is not None
        self.orphans.update(self.readers())
        self.agent.send_signal(number)
        return self.agent.wait(BOUND_S)

    def mom(self, op: str, **body: Any) -> Doc:
        """Ask as a MoM hook and return the answer; the host's end keeps answering meanwhile."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND_S)
            # EAGAIN: the kernel's queue of connections is full
            until(lambda: sock.connect_ex(str(self.socket)) == 0, "a place in the agent's queue")
            sock.sendall(json.dumps({"op": op, **body}).encode() + b"\n")
            return self.mom_answer(sock)

    def mom_answer(self, sock: socket.socket) -> Doc:
        data = b""

        def come() -> bool:
            nonlocal data
            if self.host.sock is not None:
                self.host.turn(0)
            if select.select([sock], [], [], 0.005)[0]:
                piece = sock.recv(65536)
                data += piece
                return not piece or data.endswith(b"\n")
            return False

        until(come, "an answer of the agent to MoM")
        answer: Doc = json.loads(data)
        return answer

    @staticmethod
    def job(id: str = "12.srv", run: int = 1, **more: Any) -> Doc:
        job = {"id": id, "run": run, "class": "preemptible", "cpus": 1, "memory_mib": 1, "rerunnable": True}
        return {**job, "owner": owner().pw_name, **more}

    def claim(self, id: str = "12.srv", run: int = 1, **more: Any) -> Doc:
        return self.mom("claim", job=self.job(id, run, **more), deadline_s=BOUND_S)

    def run_job(
        self,
        program: str | list[str],
        id: str | None = "12.srv",
        uid: int | None = None,
        env: dict[str, str] | None = None,
        keep: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a job as MoM does: own session, PBS_JOBID in the environment, the owner's uid. A shell script or an
        argv."""
        argv = ["/bin/bash", "-c", program] if isinstance(program, str) else program
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/",
            MARK: self.directory.name,
            **leftovers.mark(),
            **(env or {}),
        }
        if id is not None:
            environment["PBS_JOBID"] = id
        who = None if os.geteuid() else owner().pw_uid if uid is None else uid
        groups = None if who is None else ()
        return subprocess.Popen(
            argv, env=environment, start_new_session=True, cwd="/", user=who, extra_groups=groups, pass_fds=keep
        )

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def children(self) -> dict[int, str]:
        """pid -> state of all that was started here, except the agent and its readers of environments."""
        found = descendants(os.getpid())
        apart = self.before | self.orphans | ({self.agent.pid} if self.agent else set())
        return {pid: letter for pid, letter in found.items() if pid not in apart and not self._is_reader(pid)}

    def _is_reader(self, pid: int) -> bool:
        """Whether it is, or was, a reader of the agent. One that ends has no command line any more, even before it is
        a zombie."""
        fields = stat_of(pid)
        if fields is None:
            return True
        agent = self.agent.pid if self.agent else 0
        # in this order: one that ends in between has no command line then
        return int(fields[1]) == agent and (is_same_program(pid, agent) or not command_line(pid))

    def readers(self) -> list[int]:
        """The agent's own children that are still the agent's program."""
        if self.agent is None:
            return []
        agent = self.agent.pid
        return [pid for pid in descendants(agent) if is_same_program(pid, agent)]

    def close(self) -> None:
        end = time.monotonic() + BOUND_S
        if self.agent is not None and self.agent.poll() is None:
            self.agent.kill()
            self.agent.wait(BOUND_S)
        number = signal.SIGSTOP  # first, so that none forks while others are killed
        while True:
            left = self.children()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGSTOP:
                number = signal.SIGKILL if all(letter in "TtDZ" for letter in left.values()) else number
                number = signal.SIGKILL if time.monotonic() > end - BOUND_S / 2 else number
                continue
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not left:
                break
            if time.monotonic() > end:
                raise NotInTime(f"processes {left} do not end")
            time.sleep(0.005)
        self.host.close()
        self._taken.undo()

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None and self.log.exists():
            sys.stderr.write(self.log_text()[-4000:])
        self.close()


def hook(rig: Rig) -> socket.socket:
    """A connection to the agent, as a MoM hook makes it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(BOUND_S)
    sock.connect(str(rig.socket))
    return sock


@contextlib.contextmanager
def running(**config: Any) -> Iterator[Rig]:
    """A rig with an agent that is connected."""
    with Rig(**config) as rig:
        yield rig.start()
