"""Programs in a guest that kill when memory runs short, before the kernel does. They choose the largest process. In a
guest that has given its memory away, that is a stopped job.

Magrathea itself leaves a stopped job's `oom_score_adj` alone. A score that protects it would outlive an agent that is
killed, and the kernel would then kill MoM in the job's place. So the guest is to be without such a program, or the
program is told to leave jobs alone.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from magrathea.doctor import Check, Status

GUEST = "guest"
OOMCTL_S = 2.0

_EARLYOOM = (
    "`systemctl disable --now earlyoom`; or let it wait for full swap, `-m 2,1 -s 1,1` in EARLYOOM_ARGS "
    "(/etc/default/earlyoom), and give the guest more swap than its jobs need"
)
_OOMD = (
    "`systemctl disable --now systemd-oomd.socket systemd-oomd`; or ManagedOOMSwap=auto and "
    "ManagedOOMMemoryPressure=auto in the slices that `oomctl` names, and ManagedOOMPreference=omit in MoM's unit"
)
KILLERS = {
    "earlyoom": _EARLYOOM,
    "systemd-oomd": _OOMD,
    "nohang": "`systemctl disable --now nohang`, or exempt jobs in its configuration",
    "oomd": "stop it, or exempt jobs in its configuration",
}
"""The names of their processes, and what to do about each."""


def running(proc: Path = Path("/proc")) -> list[str]:
    """The killers that run."""
    found = set()
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                found.add((entry / "comm").read_text("utf-8", "replace").strip())
    return sorted(found & KILLERS.keys())


def watches_nothing() -> bool:
    """True if systemd-oomd says that it watches no control group, so that it kills nobody."""
    oomctl = shutil.which("oomctl")
    if oomctl is None:
        return False
    try:
        done = subprocess.run([oomctl], capture_output=True, timeout=OOMCTL_S, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return False
    return b"Monitored CGroups:" in done.stdout and b"Path:" not in done.stdout


def check(proc: Path = Path("/proc"), idle_oomd: Callable[[], bool] = watches_nothing) -> Check:
    """The result of `magrathea doctor` in a guest."""
    found = running(proc)
    if "systemd-oomd" in found and idle_oomd():
        found.remove("systemd-oomd")
    if not found:
        return Check(GUEST, "oom-killers", Status.OK, "no program here kills stopped jobs when memory is short")
    cause = f"{', '.join(found)} runs here and kills the largest process when memory is short"
    fix = "; ".join(f"{name}: {KILLERS[name]}" for name in found)
    return Check(GUEST, "oom-killers", Status.WARN, "a stopped job may be killed", cause, fix)
