"""The guest as a machine: its clock and its power."""

import os
import time

from .children import Child
from .lines import BadValue
from .log import log
from .loop import Loop
from .refusals import NOT_PERMITTED, NOT_SUPPORTED, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

    from .lines import Doc

CLOCK_S = 0.5  # a smaller error is left alone: the message itself took time
MADE_UNIX_S = 1.7e9  # a date before this program existed
POWER_AGAIN_S = 10.0  # if a power-off has no effect for so long, it is forced


class Machine:
    """The guest as a machine: its clock, and its power.

    The agent changes them only if it is certain to be in a guest: its channel is a virtio-serial port, or the
    configuration has a command for power-off. Anywhere else it would turn off the host.
    """

    WAYS = (["shutdown", "-h", "now"], ["poweroff"], ["halt", "-p"])
    FORCED = ["poweroff", "-f"]
    PLACES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

    def __init__(self, loop: Loop, is_guest: bool, power_off: "List[str]") -> None:
        self.loop = loop
        self.is_guest = is_guest
        self.configured = power_off

    def can(self) -> "List[str]":
        if os.geteuid() != 0:
            return ["power"] if self.configured else []
        return (["clock"] if self.is_guest else []) + (["power"] if self.is_guest or self.configured else [])

    def set_clock(self, unix_s: float) -> "Doc":
        """Set the clock if it is clearly wrong: it stood still while the guest was saved to disk."""
        if not MADE_UNIX_S <= unix_s <= 2.0**33:
            raise BadValue("unix_s is %.60r, which is no present time" % unix_s)
        wrong_s = unix_s - time.time()
        if abs(wrong_s) <= CLOCK_S:
            return {"ok": True, "set": False}
        if not self.is_guest:
            return refusal(NOT_PERMITTED, "this agent may not be in a guest, so it leaves the clock alone")
        try:
            time.clock_settime(time.CLOCK_REALTIME, unix_s)
        except PermissionError:
            return refusal(NOT_PERMITTED, "the clock is %.1f s wrong and only root may set it" % wrong_s)
        log.info("the clock was %.1f s wrong and is set" % -wrong_s)
        return {"ok": True, "set": True}

    def power_off(self) -> "Doc":
        """Turn this guest off soon after the answer."""
        command = self._command() if "power" in self.can() else []
        if not command:
            why = "the agent is not root, or not in a virtual machine; `power_off` in its configuration may say how"
            return refusal(NOT_SUPPORTED, "power cannot be turned off from here: " + why)
        log.warning("power off: %s" % " ".join(command))
        self.loop.after(0.05, lambda: self._run(command))
        forced = [] if self.configured or self._systemd() else self._found(self.FORCED)
        if forced:
            self.loop.after(POWER_AGAIN_S, lambda: self._run(forced))
        return {"ok": True}

    @staticmethod
    def _systemd() -> bool:
        return os.path.isdir("/run/systemd/system")

    def _command(self) -> "List[str]":
        if self.configured:
            return self.configured
        ways = (["systemctl", "--no-block", "poweroff"],) if self._systemd() else self.WAYS
        return next((found for found in map(self._found, ways) if found), [])

    def _found(self, command: "List[str]") -> "List[str]":
        """The command with the full path of its program; empty if the program is not installed."""
        paths = (os.path.join(place, command[0]) for place in self.PLACES)
        path = next((p for p in paths if os.access(p, os.X_OK)), "")
        return [path, *command[1:]] if path else []

    def _run(self, command: "List[str]") -> None:
        def ended(status: int) -> None:
            if status:
                log.warning("power off: its command ended with status %d" % status)

        environment = {"PATH": ":".join(self.PLACES)}
        Child(self.loop, command[0], lambda output: os.execve(command[0], command, environment), ended)
