"""A private OpenPBS cluster on this machine: a server and any number of MoMs, each in namespaces of its own.

For the demo, the benchmarks and the tests, if OpenPBS is installed; needs root. Nothing outside its directory and its
namespaces is changed, and several clusters may run at once. Nothing stays behind when the owner ends, not even after
SIGKILL (openpbs_machine.py).

    with PrivateOpenPbs(["n1", "p1"]) as cluster:
        job = cluster.qsub("alice", script="hostname")
        cluster.wait(lambda: cluster.job(job)["job_state"] == "F", "the job's end")

Machines: `HEAD` (server, scheduler, pbs_comm) and one per MoM. `HOST` stands for the cluster's outermost namespaces,
where a physical host's own daemons run: it sees all processes, and reaches all machines over the bridge.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from magrathea.pbs_text.listing import decoded

from .. import leftovers
from ..waiting import BOUND_S
from . import openpbs_machine as machine
from . import openpbs_needs

HOST = "host"
HEAD = "head"
USERS = ("alice", "bob")
DATABASE_USER = "pbsdata"
FIRST_UID = 20001
GATEWAY = "10.117.0.1"
PBS_HOME = "/run/pbs"
"""PBS_HOME inside a machine, which has its own /run. MoM refuses a home below a directory that all may write to, as
/tmp."""

LOCKS = {
    "comm": "server_priv/comm.lock",
    "server": "server_priv/server.lock",
    "sched": "sched_priv/sched.lock",
    "mom": "mom_priv/mom.lock",
}
"""The pid file of each of PBS's daemons, relative to PBS_HOME."""

T = TypeVar("T")


class NoOpenPbs(Exception):
    """OpenPBS cannot be started here; the text says why and how to fix it."""


class Timeout(Exception):
    """A wait was in vain; the text says what did not happen, and shows the cluster's state."""


class MachineProcess:
    """A program of the cluster that keeps running. `pid` is its pid as seen from outside."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log
        self.pid = machine.only_child(popen)  # nsenter forks to enter the PID namespace

    def running(self) -> bool:
        return self.popen.poll() is None

    def kill(self, sig: int = signal.SIGKILL, timeout_s: float = BOUND_S) -> int:
        """Send a signal and wait for the end; returns the exit code as `nsenter` passes it on."""
        if self.running():
            os.kill(self.pid, sig)
        return self.popen.wait(timeout_s)


class PrivateOpenPbs:
    """See the module's docstring. Use it from one thread at a time, except `run`, which any thread may call."""

    def __init__(
        self,
        moms: Sequence[str] = ("n1", "p1", "n2", "p2"),
        *,
        exec_dir: str = "/opt/pbs",
        ncpus: int = 4,
        on_disk: bool = False,
    ) -> None:
        """`ncpus`: the CPUs that each vnode reports, independent of this machine's; jobs are only counted, they compute
        little.

        `on_disk`: do not use a file system in memory, even if there is room.
        """
        if why := openpbs_needs.missing(exec_dir):
            raise NoOpenPbs(why)
        self.moms = tuple(moms)
        self.exec_dir = Path(exec_dir)
        self.ncpus = ncpus
        self.base, taken = leftovers.take_directory("mgpbs-", None if on_disk else openpbs_needs.in_memory())
        self._taken = [taken]
        self.server_name = HEAD
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._root_pid = 0
        self._pids: dict[str, int] = {}
        self._processes: list[MachineProcess] = []

    # Up and down

    def __enter__(self) -> PrivateOpenPbs:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; all vnodes are `free` afterwards. Raises NoOpenPbs."""
        try:
            self._bring_up()
        except (Timeout, RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise NoOpenPbs(f"OpenPBS in {self.exec_dir} does not start: {error}") from error

    def _bring_up(self) -> None:
        self.base.chmod(0o755)
        machines = {name: f"10.117.0.{number}" for number, name in enumerate((HEAD, *self.moms), start=2)}
        (self.base / "cluster.json").write_text(json.dumps({"gateway": GATEWAY, "machines": machines}))
        (self.base / "etc").mkdir()
        hosts = [f"127.0.0.1 localhost\n{GATEWAY} {HOST}\n", *(f"{ip} {name}\n" for name, ip in machines.items())]
        (self.base / "etc/hosts").write_text("".join(hosts))
        for number, user in enumerate(USERS):
            home = self.base / "home" / user
            home.mkdir(parents=True)
            os.chown(home, FIRST_UID + number, FIRST_UID + number)
        for name in machines:
            self._prepare(name)
        self._supervisor = subprocess.Popen(
            [sys.executable, machine.__file__, "supervise", str(self.base)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._taken.append(leftovers.take_process(self._supervisor.pid))
        self.wait(lambda: (self.base / "root.ready").exists(), "the cluster's own namespaces")
        self._root_pid = int((self.base / "root.pid").read_text())
        with ThreadPoolExecutor(len(machines)) as pool:
            for done in [pool.submit(self._start_head), *(pool.submit(self._set_up_mom, mom) for mom in self.moms)]:
                done.result()
        for mom in self.moms:  # only now: a MoM that finds no server tries again only seconds later
            self.start_mom(mom)
        self.qmgr("\n".join(f"create node {m}\nset node {m} resources_available.ncpus={self.ncpus}" for m in self.moms))
        self.wait_free(*self.moms)

    def stop(self) -> None:
        """Stop everything and remove it. Safe to call at any time, and more than once."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # it is killed below
                self._supervisor.wait(BOUND_S)
        leftovers.undo_all(self._taken)
        for process in self._processes:
            process.popen.wait(BOUND_S)  # its namespace has ended, so it ends too
        self._supervisor, self._taken, self._processes = None, [], []

    def _prepare(self, name: str) -> None:
        """Make a machine's directories: a copy of this machine's /etc with the machine's own names, users, pbs.conf."""
        here = self.base / "m" / name
        here.mkdir(parents=True)
        machine.command("cp", "-a", "/etc", str(here))
        shutil.rmtree(here / "etc/magrathea", ignore_errors=True)  # keys and configuration of this machine
        for directory, mode in (("run/postgresql", 0o1777), ("tmp", 0o1777), ("etc/magrathea", 0o755)):
            (here / directory).mkdir(parents=True, exist_ok=True)
            (here / directory).chmod(mode)
        etc = here / "etc"
        shutil.copy(self.base / "etc/hosts", etc / "hosts")
        (etc / "hostname").write_text(name + "\n")
        # files only: each lookup would wait for a DNS server that does not exist
        (etc / "nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n"
        )
        users = {user: (FIRST_UID + i, self.base / "home" / user) for i, user in enumerate(USERS)}
        users[DATABASE_USER] = (FIRST_UID - 1, here / "tmp")
        for file, line in (
            ("passwd", "{user}:x:{uid}:{uid}::{home}:/bin/sh\n"),
            ("group", "{user}:x:{uid}:\n"),
            ("shadow", "{user}:*:19000:0:99999:7:::\n"),
        ):
            old = (etc / file).read_text().splitlines(keepends=True)
            kept = [account for account in old if account.split(":")[0] not in users]
            new = [line.format(user=user, uid=uid, home=home) for user, (uid, home) in users.items()]
            (etc / file).write_text("".join(kept + new))
        is_head = name == HEAD
        settings = {
            "PBS_EXEC": self.exec_dir,
            "PBS_HOME": PBS_HOME,
            "PBS_SERVER": HEAD,
            "PBS_TMPDIR": here / "tmp",  # qsub's own daemon listens there; clusters must not share it
            "PBS_START_SERVER": int(is_head),
            "PBS_START_SCHED": int(is_head),
            "PBS_START_COMM": int(is_head),
            "PBS_START_MOM": int(not is_head),
            "PBS_CORE_LIMIT": 0,
            "PBS_LOG_HIGHRES_TIMESTAMP": 1,
            "PBS_SCP": "/bin/false",
        }
        (etc / "pbs.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    def pbs_home(self, name: str) -> Path:
        """A machine's PBS_HOME as seen from outside."""
        return self.base / "m" / name / PBS_HOME.lstrip("/")

    def _set_up_mom(self, mom: str) -> None:
        self.start_machine(mom, mom_too=False)
        self._habitat(mom)
        (self.pbs_home(mom) / "mom_priv/config").write_text(f"$clienthost {HEAD}\n$usecp *:/ /\n")

    def _habitat(self, name: str) -> None:
        env = {"PBS_DATA_SERVICE_USER": DATABASE_USER}
        self.run(name, [str(self.exec_dir / "libexec/pbs_habitat")], env=env)

    def _start_head(self) -> None:
        self.start_machine(HEAD, mom_too=False)
        self._habitat(HEAD)
        self.start_server()
        self.qmgr(
            "set server flatuid=True\nset server job_history_enable=True\n"
            "set server acl_roots=root@*\nset server scheduling=True\n"
        )

    # Machines and PBS's daemons

    def start_machine(self, name: str, *, mom_too: bool = True) -> None:
        """Start a machine that was never started or was killed."""
        self.run(HOST, [sys.executable, machine.__file__, "start", str(self.base), name])
        inner = int((self.base / "m" / name / "pid").read_text())
        self._pids[name] = self._outer(inner)
        if mom_too:
            self.start_mom(name)

    def kill_machine(self, name: str) -> None:
        """Kill every process of the machine at once, like a power cut."""
        os.kill(self._pids.pop(name), signal.SIGKILL)

    def _outer(self, inner: int) -> int:
        """The pid outside of the process that has the pid `inner` in HOST."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = status.read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            pids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
            outer = int(status.parent.name)
            if len(pids) == 3 and int(pids[1]) == inner and pids[2] == "1" and self._is_ours(outer):
                return outer
        raise RuntimeError(f"process {inner} of the cluster is gone; see {self.base}/m/*/init.log")

    def _is_ours(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            return False
        return os.fsencode(str(self.base)) in words

    def start_mom(self, name: str, *args: str) -> None:
        """Start MoM; with the argument `-p` it keeps jobs that ran before a crash. Raises RuntimeError if it does not
        start."""
        self.run(name, [str(self.exec_dir / "sbin/pbs_mom"), *args])

    def start_server(self) -> None:
        """Start those of pbs_comm, pbs_server and pbs_sched that are not running; returns when the server answers."""
        for daemon in ("comm", "server", "sched"):
            if not self._alive(HEAD, LOCKS[daemon]):
                self.run(HEAD, [str(self.exec_dir / "sbin" / f"pbs_{daemon}")])
        self.wait(lambda: self.run(HEAD, ["qstat", "-B"], check=False).returncode == 0, "the PBS server's answer")

    def _alive(self, name: str, pid_file: str) -> bool:
        path = self.pbs_home(name) / pid_file
        try:
            pid = path.read_text().strip()
        except FileNotFoundError:
            return False
        return bool(pid) and self.run(name, ["kill", "-0", pid], check=False).returncode == 0

    def kill_server(self) -> None:
        """Kill pbs_server alone. Its database keeps running, as after a real crash."""
        self.kill_daemon("server")

    def kill_daemon(self, daemon: str, name: str = HEAD) -> None:
        """Kill one of PBS's daemons (`server`, `sched`, `comm`, `mom`) on a machine, and wait until it has ended."""
        lock = LOCKS[daemon]
        self.run(name, ["kill", "-9", (self.pbs_home(name) / lock).read_text().strip()])
        self.wait(lambda: not self._alive(name, lock), f"the end of pbs_{daemon} on {name}")

    # Commands

    def argv(
        self, name: str, argv: Sequence[str], *, user: str = "root", env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command line that runs `argv` as `user` on a machine, in the user's home directory."""
        number = 0 if user == "root" else FIRST_UID + USERS.index(user)
        home = "/root" if user == "root" else str(self.base / "home" / user)
        path = f"{self.exec_dir}/bin:{self.exec_dir}/sbin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        variables = {"HOME": home, "USER": user, "LOGNAME": user, "PATH": path, "LANG": "C.UTF-8", **(env or {})}
        target = self._root_pid if name == HOST else self._pids[name]
        return [
            *("nsenter", "-t", str(target), "-m", "-u", "-n", "-p", "-i", "-S", str(number), "-G", str(number), "--"),
            *("env", "-i", "-C", home, *(f"{key}={value}" for key, value in variables.items())),
            *argv,
        ]

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        text: str | None = None,
        timeout: float = BOUND_S,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `text` is its standard input. Raises RuntimeError with the command's message."""
        # Output goes to files, not to pipes: daemons that the command leaves behind inherit them.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            whole = self.argv(name, argv, user=user, env=env)
            source = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
            done = subprocess.run(whole, stdout=out, stderr=err, text=True, timeout=timeout, **source)
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = decoded(out.read()), decoded(err.read())
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{name}: {' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        result: subprocess.CompletedProcess[str] = done
        return result

    def spawn(
        self, name: str, title: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> MachineProcess:
        """Start a program that keeps running; its output goes to `<base>/log/<title>.log`."""
        log = self.base / "log" / f"{title}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as out:
            popen = subprocess.Popen(
                self.argv(name, argv, env=env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = MachineProcess(title, popen, log)
        self._processes.append(process)
        return process

    def qmgr(self, lines: str) -> str:
        """Run qmgr's commands from standard input. With `-c` qmgr would run only the last of several."""
        done = self.run(HEAD, ["qmgr"], text=lines + "\n")
        if done.stderr.strip():
            raise RuntimeError(f"qmgr: {done.stderr.strip()}")
        return done.stdout

    def qsub(self, user: str, *args: str, script: str) -> str:
        """Submit a job; return its id. PBS copies its output to the user's home directory."""
        return self.run(HEAD, ["qsub", *args], user=user, text=script + "\n").stdout.strip()

    def job(self, job_id: str) -> dict[str, Any]:
        """All attributes of a job from qstat's JSON, also of a finished one; {} if PBS does not know it."""
        return self.jobs(job_id).get(job_id, {})

    def jobs(self, *words: str) -> dict[str, dict[str, Any]]:
        """Attributes of jobs by id. `words`: ids (none: all jobs), or more of qstat's options before them."""
        return self._listed("Jobs", "qstat", "-x", "-f", "-F", "json", *words)

    def vnode(self, name: str) -> dict[str, Any]:
        """All attributes of a vnode from pbsnodes' JSON; {} if PBS does not know it."""
        return self.vnodes().get(name, {})

    def vnodes(self) -> dict[str, dict[str, Any]]:
        return self._listed("nodes", "pbsnodes", "-av", "-F", "json")

    def _listed(self, kind: str, *argv: str) -> dict[str, dict[str, Any]]:
        """What a command prints as JSON; {} if PBS knows none of what was asked for."""
        done = self.run(HEAD, argv, check=False)
        return dict(json.loads(done.stdout or "{}").get(kind, {}))

    def output(self, user: str, job_id: str, kind: str = "o", name: str = "STDIN") -> str:
        """A job's output. Waits for the file, because PBS copies it after the job's end."""
        path = self.base / "home" / user / f"{name}.{kind}{job_id.split('.')[0]}"
        self.wait(path.exists, f"the output file {path.name}")
        return path.read_text()

    # Waiting

    def wait(self, condition: Callable[[], T], what: str, timeout_s: float = BOUND_S, every_s: float = 0.05) -> T:
        """Wait until `condition` returns something true, and return that. Raises Timeout."""
        until = time.monotonic() + timeout_s
        while True:
            if value := condition():
                return value
            if time.monotonic() > until:
                raise Timeout(f"{what}: not within {timeout_s:g} s\n{self.picture()}")
            if self._supervisor is not None and self._supervisor.poll() is not None:
                raise RuntimeError(f"the cluster has ended while waiting for {what}")
            time.sleep(every_s)

    def wait_free(self, *vnodes: str, timeout_s: float = BOUND_S) -> None:
        self.wait(
            lambda: all(self.vnode(v).get("state") == "free" for v in vnodes), f"vnodes free: {vnodes}", timeout_s, 0.1
        )

    def wait_job(self, job_id: str, states: str, timeout_s: float = BOUND_S) -> dict[str, Any]:
        """Wait until the job's state is one of the letters in `states`; return its attributes."""

        def there() -> dict[str, Any]:
            job = self.job(job_id)
            return job if job.get("job_state", "-") in states else {}

        return self.wait(there, f"job {job_id} in one of the states {states}", timeout_s)

    def picture(self) -> str:
        """What PBS shows now, for error messages; empty if there is no server yet."""
        if HEAD not in self._pids:
            return ""
        lines = [self.run(HEAD, ["qstat", "-answ1"], check=False).stdout]
        for name, vnode in self.vnodes().items():
            have = {
                key: value
                for key, value in vnode.get("resources_available", {}).items()
                if key not in ("arch", "host", "vnode")
            }
            told = {key: vnode[key] for key in ("jobs", "comment", "maintenance_jobs") if key in vnode}
            lines.append(f"{name}: {vnode.get('state')} {have} {told}")
        return "\n".join(lines)

    @contextmanager
    def stopped_scheduling(self) -> Iterator[None]:
        """Start no jobs inside the `with`. Jobs submitted there start in one scheduling cycle afterwards."""
        self.qmgr("set server scheduling=False")
        try:
            yield
        finally:
            self.qmgr("set server scheduling=True")
