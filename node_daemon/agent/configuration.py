"""The agent's configuration file."""

import codecs
import os
import stat

from .lines import BadValue, parse
from .values import Unusable, is_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple

    from .lines import Doc

DEFAULT_CONFIG = "/etc/magrathea/agent.json"
CONFIG_VARIABLE = "MAGRATHEA_AGENT_CONF"
MAX_CONFIG_BYTES = 65536
SOCKET_PATH_BYTES = 107  # unix(7), without the closing zero
DEFAULT_CGROUPS = (
    # OpenPBS's pbs_cgroups: <mount>/<cgroup_prefix>.service/jobid/<job id>, one mount per v1 controller, or v2.
    "/sys/fs/cgroup/pbs_jobs.service/jobid/{job}",
    "/sys/fs/cgroup/*/pbs_jobs.service/jobid/{job}",
)


BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe, too, opens at once."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class Config:
    """The agent's configuration file: a JSON object; unknown keys are refused. Raises Unusable."""

    def __init__(self, path: str) -> None:
        self.path = path
        doc = self._read(path)
        self.socket = self._text(doc, "socket", "/run/magrathea/agent.sock")
        self.channel = self._text(doc, "channel", "port:/dev/virtio-ports/org.magrathea.0")
        self.state = self._text(doc, "state", "/var/lib/magrathea/agent-state.json")
        self.scripts = self._text(doc, "scripts", "/etc/magrathea/hooks.d/guest")
        limit = doc.pop("script_time_limit_s", 30)
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0.1 <= limit <= 3600:
            raise Unusable("%s: script_time_limit_s is %.60r; give seconds from 0.1 to 3600" % (path, limit))
        self.script_time_limit_s = float(limit)
        self.job_cgroups = self._cgroups(doc)
        self.environment = self._environment(doc)
        self.power_off = self._command(doc, "power_off")
        if doc:
            known = "socket, channel, state, scripts, script_time_limit_s, job_cgroups, environment, power_off"
            raise Unusable("%s: unknown key %s; known are %s" % (path, ", ".join(sorted(doc)), known))
        kind, _, where = self.channel.partition(":")
        if kind not in ("unix", "port") or not where.startswith("/"):
            raise Unusable(
                '%s: channel is %.100r; give "unix:/path/to/socket" or "port:/dev/virtio-ports/NAME"'
                % (path, self.channel)
            )
        self.channel_kind, self.channel_path = kind, where
        for name, one in (("socket", self.socket), ("channel", where if kind == "unix" else "")):
            if len(os.fsencode(one)) > SOCKET_PATH_BYTES:
                raise Unusable(
                    "%s: the path of %s has %d bytes; a socket's has at most %d"
                    % (path, name, len(os.fsencode(one)), SOCKET_PATH_BYTES)
                )
        if len({os.path.normpath(one) for one in (self.socket, self.state, where)}) < 3:
            raise Unusable("%s: socket, state and channel must be three different files" % path)

    @staticmethod
    def _read(path: str) -> "Doc":
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Unusable("%s: cannot be read: it is a pipe or a device, not a file" % path)
                text = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise Unusable(
                "%s: cannot be read: %s; give --config or set %s" % (path, error.strerror, CONFIG_VARIABLE)
            ) from error
        if len(text) > MAX_CONFIG_BYTES:
            raise Unusable("%s: longer than %d bytes" % (path, MAX_CONFIG_BYTES))
        if text.startswith(BYTE_ORDER_MARKS):
            raise Unusable("%s: begins with a byte order mark; save the file as UTF-8 without one (no BOM)" % path)
        if not text.strip():
            raise Unusable("%s: is empty; write {} for the defaults" % path)
        try:
            text.decode("utf-8")
            return parse(text)
        except UnicodeDecodeError as error:
            raise Unusable("%s: byte %d is not UTF-8; save the file as UTF-8" % (path, error.start)) from error
        except BadValue as error:
            raise Unusable("%s: %s" % (path, error)) from error

    def _text(self, doc: "Doc", name: str, default: str) -> str:
        value = doc.pop(name, default)
        if not is_text(value) or not 0 < len(value) < 4096:
            raise Unusable("%s: %s is %.60r; give a path" % (self.path, name, value))
        if name != "channel" and not value.startswith("/"):
            raise Unusable("%s: %s is %.60r; give an absolute path" % (self.path, name, value))
        return str(value)

    def _cgroups(self, doc: "Doc") -> "Tuple[str, ...]":
        value = doc.pop("job_cgroups", list(DEFAULT_CGROUPS))
        if not isinstance(value, list) or len(value) > 16 or not all(is_text(v) for v in value):
            raise Unusable("%s: job_cgroups must be a list of at most 16 path templates" % self.path)
        for template in value:
            if not template.startswith("/") or template.rpartition("/")[2].count("{job}") != 1:
                raise Unusable(
                    "%s: job_cgroups: %.100r must be absolute with {job} in its last part" % (self.path, template)
                )
        return tuple(value)

    def _command(self, doc: "Doc", name: str) -> "List[str]":
        value = doc.pop(name, [])
        if not isinstance(value, list) or len(value) > 16 or not all(is_text(v) and v for v in value):
            raise Unusable("%s: %s must be a list of at most 16 words: a program and its arguments" % (self.path, name))
        if value and not value[0].startswith("/"):
            raise Unusable("%s: %s: %.100r is no absolute path" % (self.path, name, value[0]))
        return value

    def _environment(self, doc: "Doc") -> "Tuple[bytes, ...]":
        """Variables that a job's process must have beside PBS_JOBID, as `NAME=value`.

        They tell the domains of one machine apart if these can see each other's processes: a job on two domains has
        the same PBS_JOBID in both.
        """
        value = doc.pop("environment", {})
        if not isinstance(value, dict) or len(value) > 8:
            raise Unusable("%s: environment must be an object of at most 8 variables" % self.path)
        for name, text in value.items():
            if not is_text(text) or not is_text(name) or "=" in name or not name:
                raise Unusable("%s: environment: %.60r=%.60r is no variable" % (self.path, name, text))
        return tuple(("%s=%s" % item).encode() for item in sorted(value.items()))
