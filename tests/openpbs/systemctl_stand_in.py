#!/usr/bin/env python3
"""`systemctl enable|disable --now UNIT`, as much as tests of our units need: the user, directories, commands.

It knows User=, UMask=, WorkingDirectory=, the directories of systemd.exec(5), ExecStartPre= and ExecStart=.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DIRECTORIES = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "ConfigurationDirectory": "/etc"}
END_S = 120


def settings(unit: str) -> dict[str, str]:
    lines = Path(f"/etc/systemd/system/{unit}.service").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key: value for key, _, value in pairs}


def start(unit: str) -> None:
    said = settings(unit)
    user = pwd.getpwnam(said.get("User", "root"))
    for kind, parent in DIRECTORIES.items():
        for name in said.get(kind, "").split():
            path = Path(parent) / name
            path.mkdir(mode=0o755, exist_ok=True)
            if kind != "ConfigurationDirectory":
                os.chown(path, user.pw_uid, user.pw_gid)
    log = Path(f"/run/{unit}.log").open("ab")  # noqa: SIM115  the unit's own, as long as it runs
    how: dict[str, Any] = {
        "cwd": said.get("WorkingDirectory", "/"),
        "stdin": subprocess.DEVNULL,
        "stdout": log,
        "stderr": subprocess.STDOUT,
        "user": user.pw_uid,
        "group": user.pw_gid,
        "extra_groups": [],
        "umask": int(said.get("UMask", "0022"), 8),
        "start_new_session": True,
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
    }
    if "ExecStartPre" in said:
        subprocess.run(said["ExecStartPre"].split(), check=True, **how)
    process = subprocess.Popen(said["ExecStart"].split(), **how)
    Path(f"/run/{unit}.pid").write_text(str(process.pid))


def stop(unit: str) -> None:
    pid = int(Path(f"/run/{unit}.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + END_S
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            sys.exit(f"{unit} has not ended within {END_S} s")
        time.sleep(0.05)


if __name__ == "__main__":
    [what, now, name] = sys.argv[1:]
    assert now == "--now"
    {"enable": start, "disable": stop}[what](name)
