"""The processes that make machines out of namespaces, for private_openpbs.py. Run as a program, as root, on Linux.

  supervise DIR   outside: starts `root`; when its standard input closes because its owner has ended, in whatever
                  way, it ends everything and removes DIR
  root DIR        first process of the cluster's own PID, network, mount, UTS and IPC namespaces; makes a bridge
  start DIR NAME  inside these: starts a machine with its own namespaces, linked to the bridge; returns when it is ready
  init DIR NAME   first process of that machine

A machine's /etc and /run are directories below DIR, mounted in its own mount namespace, so that the real machine's
files are never written. When the first process of a PID namespace ends, the kernel kills all others in it. So no
process of a cluster survives the cluster. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

READY_S = 120.0
"""A machine is ready in 0.3 s; this bound allows for a starved machine."""

BRIDGE = "cluster0"
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """This process gets SIGKILL when the thread that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def command(*argv: str) -> None:
    """Run a command. Raises RuntimeError with the command's own error message."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=READY_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip()}")


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def only_child(process: subprocess.Popen[bytes]) -> int:
    """The pid of the process that `unshare --fork` forks; waits until it exists."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        if pids := children(process.pid):
            return pids[0]
        time.sleep(0.005)
    raise RuntimeError(f"unshare started nothing within {READY_S:.0f} s (exit code {process.returncode})")


def unshared(role: str, *args: str) -> list[str]:
    return [
        *("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child=SIGKILL"),
        *("--mount-proc", "--propagation", "private", "--"),
        *(sys.executable, __file__, role, *args),
    ]


def reap_for_ever() -> None:
    """The duty of a first process: reap orphans."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # no child at the moment
        signal.sigtimedwait({signal.SIGCHLD}, 1.0)


def write_at_once(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)


def supervise(base: Path) -> None:
    log = (base / "root.log").open("ab")
    process = subprocess.Popen(
        unshared("root", str(base)),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    first = only_child(process)
    write_at_once(base / "root.pid", str(first))
    sys.stdin.buffer.read()  # until the owner closes its end or is gone
    if process.poll() is None:
        os.kill(first, signal.SIGKILL)
    process.wait()
    shutil.rmtree(base, ignore_errors=True)


def root(base: Path) -> None:
    config = json.loads((base / "cluster.json").read_text())
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", BRIDGE, "type", "bridge")
    command("ip", "addr", "add", f"{config['gateway']}/24", "dev", BRIDGE)
    command("ip", "link", "set", BRIDGE, "up")
    command("mount", "--bind", str(base / "etc/hosts"), "/etc/hosts")
    write_at_once(base / "root.ready", "")
    reap_for_ever()


def start(base: Path, name: str) -> None:
    here = base / "m" / name
    (here / "ready").unlink(missing_ok=True)
    log = (here / "init.log").open("ab")
    process = subprocess.Popen(
        unshared("init", str(base), name), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    pid = only_child(process)
    write_at_once(here / "pid", str(pid))
    outer = f"v{pid}"  # a new name each time, because the kernel may not have removed an old machine's link yet
    command("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    command("ip", "link", "set", outer, "master", BRIDGE, "up")
    until = time.monotonic() + READY_S
    while not (here / "ready").exists():
        if time.monotonic() > until or process.poll() is not None:
            raise RuntimeError(f"machine {name} did not start: {(here / 'init.log').read_text()[-2000:]}")
        time.sleep(0.01)


def init(base: Path, name: str) -> None:
    config = json.loads((base / "cluster.json").read_text())
    here = base / "m" / name
    until = time.monotonic() + READY_S
    while subprocess.run(["ip", "link", "show", "eth0"], capture_output=True).returncode != 0:
        if time.monotonic() > until:
            raise RuntimeError(f"no network link came within {READY_S:.0f} s")
        time.sleep(0.01)
    command("hostname", name)
    command("ip", "link", "set", "lo", "up")
    command("ip", "addr", "add", f"{config['machines'][name]}/24", "dev", "eth0")
    command("ip", "link", "set", "eth0", "up")
    # Each call to PBS takes a port below 1024 and would keep it for a minute. After some hundred calls in a row (tests
    # that poll) the next call would hang until a port is free.
    Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").write_text("0")
    for inside in ("/etc", "/run"):
        command("mount", "--bind", f"{here}{inside}", inside)
    _own_shared_memory(base, here / "shm")
    write_at_once(here / "ready", "")
    reap_for_ever()


def _own_shared_memory(base: Path, shared: Path) -> None:
    """Keep PostgreSQL's shared memory in the cluster's directory. It outlives the processes, but not the directory."""
    place = Path("/dev/shm")
    if base.is_relative_to(place):
        (shared / base.relative_to(place)).mkdir(parents=True, exist_ok=True)
        command("mount", "--bind", str(base), str(shared / base.relative_to(place)))
    shared.mkdir(exist_ok=True)
    shared.chmod(0o1777)
    command("mount", "--rbind", str(shared), str(place))


ROLES = {"supervise": supervise, "root": root, "start": start, "init": init}


def main(argv: list[str]) -> None:
    role, base, *rest = argv
    ROLES[role](Path(base), *rest)  # type: ignore[operator]


if __name__ == "__main__":
    main(sys.argv[1:])
