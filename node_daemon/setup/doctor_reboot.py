"""Checks of `magrathea doctor` on a host that puts its domains to sleep at a shutdown: does systemd wait for that, and
for long enough?"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping

from magrathea.doctor import Check, Status

from ..configuration import NodedConfiguration

HOST = "host"
UNIT = "magrathea-sleep.service"
TARGETS = ("reboot.target", "poweroff.target")
SYSTEMCTL_S = 5.0
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
"""systemd's words for times (systemd.time(7)), as `systemctl show` prints them."""


def shutdown(c: NodedConfiguration) -> Iterator[Check]:
    """Nothing if nobody is to sleep."""
    names = list(filter(c.sleeps_at_shutdown, c.domain))
    if not names:
        return
    try:
        unit = shown(UNIT, "LoadState", "ActiveState", "UnitFileState")
        limits = {target: seconds(shown(target, "JobTimeoutUSec").get("JobTimeoutUSec", "")) for target in TARGETS}
    except (OSError, subprocess.SubprocessError) as error:
        fix = "does this machine have systemd? without it call `magrathea host sleep` before a shutdown"
        yield Check(HOST, "sleep-unit", Status.WARN, f"{UNIT} could not be looked at", str(error), fix)
        return
    yield judged_unit(names, unit)
    yield from judged_time(c.shutdown.time_s, limits)


def judged_unit(names: list[str], unit: Mapping[str, str]) -> Check:
    who = f"{', '.join(names)} will not sleep when the machine shuts down"
    enable = f"cp deploy/systemd/{UNIT} /etc/systemd/system/; systemctl enable --now magrathea-sleep"
    if unit.get("LoadState") != "loaded":
        return Check(HOST, "sleep-unit", Status.WARN, who, f"{UNIT} is not installed", enable)
    if unit.get("ActiveState") != "active":
        cause = f"{UNIT} is {unit.get('ActiveState', 'unknown')}, so systemd has nothing to stop"
        return Check(HOST, "sleep-unit", Status.WARN, who, cause, "systemctl enable --now magrathea-sleep")
    if unit.get("UnitFileState") != "enabled":
        who = f"{', '.join(names)} will not sleep at the shutdown after the next one"
        cause = f"{UNIT} is {unit.get('UnitFileState', 'unknown')}"
        return Check(HOST, "sleep-unit", Status.WARN, who, cause, "systemctl enable magrathea-sleep")
    return Check(HOST, "sleep-unit", Status.OK, f"at a shutdown systemd waits until these sleep: {', '.join(names)}")


def judged_time(time_s: float, limits: Mapping[str, float | None]) -> Iterator[Check]:
    for target, limit_s in limits.items():
        if limit_s is not None and time_s >= limit_s:
            text = f"systemd forces the machine off before `time_s` in [shutdown] ({time_s:g} s) is over"
            fix = f"lower `time_s`, or raise it by `systemctl edit {target}`"
            cause = f"JobTimeoutSec of {target} is {limit_s:g} s"
            yield Check(HOST, f"sleep-{target.partition('.')[0]}", Status.WARN, text, cause, fix)


def shown(unit: str, *properties: str) -> dict[str, str]:
    """Properties of a unit. Raises OSError, SubprocessError."""
    command = ("systemctl", "show", "-p", ",".join(properties), unit)
    said = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=True
    )
    return dict(line.split("=", 1) for line in said.stdout.splitlines() if "=" in line)


def seconds(text: str) -> float | None:
    """A time that systemd prints, such as `1h 30min`, in seconds; None for `infinity` and what is none."""
    words = text.split()
    found = [re.fullmatch(r"([0-9.]+)([a-z]+)", word) for word in words]
    if not words or not all(match is not None and match[2] in UNITS_S for match in found):
        return None
    return sum(float(match[1]) * UNITS_S[match[2]] for match in found if match is not None)
