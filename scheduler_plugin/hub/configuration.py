"""The hub's configuration file (hub.toml). It is read strictly, see magrathea/configuration.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from magrathea import places
from magrathea.configuration import AbsolutePath, Problem, configuration_error, parse, read_text

from ..pbs import kinds
from . import keys

DEFAULT_FILE = places.HUB_CONFIGURATION

_OptionalPathText = Annotated[
    str, msgspec.Meta(pattern=r"^(/.*)?$", max_length=4096, description='a path in quotes that begins with /, or ""')
]
_Endpoint = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(ipc:///.+|tcp://.+:[0-9]+)$", description='"ipc:///PATH" or "tcp://ADDRESS:PORT" to listen on'
    ),
]


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


class HubTable(msgspec.Struct, kw_only=True, frozen=True):
    """[hub]. `heartbeat_file`: touched every two seconds while PBS answers; the runjob hook looks at its age.

    `control_socket`: everybody on this machine may ask there what the hub knows; nothing can be changed there.
    `connections_per_address`: most TCP connections of one address; a host needs one.
    """

    listen: Annotated[list[_Endpoint], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [places.HUB_ENDPOINT]
    )
    state_dir: AbsolutePath = places.HUB_STATE_DIR
    keys_dir: AbsolutePath = places.KEYS_DIR
    heartbeat_file: AbsolutePath = places.HEARTBEAT
    control_socket: AbsolutePath = places.HUB_CONTROL
    connections_per_address: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 64
    log_level: LogLevel = LogLevel.INFO


class PbsTable(msgspec.Struct, kw_only=True, frozen=True):
    """[pbs]. `kind`: see pbs/kinds.py. `conf`: for openpbs, default $PBS_CONF_FILE or /etc/pbs.conf. `socket`: for
    kinds that are reached by a unix socket.

    `workers`: how many calls that PBS relays to MoMs may run at once. `call_deadline_s`: the hub gives up a longer call
    and then looks what has become of it. `compare_s`: pause between two comparisons of everything with PBS.
    `publish_budget`: share of the PBS server's one thread that publishing may take; up to `publish_burst_s` of it can
    be saved up. `set_priority`: also publish ranks as the vnode's Priority (turn it off if the site uses Priority).
    """

    kind: str = "openpbs"
    conf: _OptionalPathText = ""
    socket: _OptionalPathText = ""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    call_deadline_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 20.0
    compare_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    publish_budget: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    publish_burst_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0
    set_priority: bool = True


class ElsewhereTable(msgspec.Struct, kw_only=True, frozen=True):
    """[elsewhere]. `after_s`: a domain that has been preempted for longer goes on at an idle host, if that is worth it;
    0: none does. `rest_s`: no domain moves so again before that time, whatever it moved for."""

    after_s: Annotated[float, msgspec.Meta(ge=0, le=2_592_000)] = 0.0
    rest_s: Annotated[float, msgspec.Meta(ge=1, le=2_592_000)] = 1800.0


class HubConfiguration(msgspec.Struct, kw_only=True, frozen=True):
    """The whole file."""

    hub: HubTable = HubTable()
    pbs: PbsTable = PbsTable()
    elsewhere: ElsewhereTable = ElsewhereTable()

    @property
    def state_dir(self) -> Path:
        return Path(self.hub.state_dir)

    @property
    def keys_dir(self) -> Path:
        return Path(self.hub.keys_dir)

    @property
    def tcp(self) -> list[str]:
        return [endpoint for endpoint in self.hub.listen if endpoint.startswith("tcp://")]

    @property
    def ipc(self) -> list[str]:
        return [endpoint for endpoint in self.hub.listen if endpoint.startswith("ipc://")]


def load(path: Path) -> HubConfiguration:
    """The file at `path`, with the keys that it needs. Raises ConfigurationError with every mistake."""
    return _load(path, lambda c: [*_problems(c), *_without_keys(c)])


def load_alone(path: Path) -> HubConfiguration:
    """The file at `path`, for those who do not need its keys. Raises ConfigurationError with every mistake in it."""
    return _load(path, _problems)


def _load(path: Path, problems_of: Callable[[HubConfiguration], Iterable[Problem]]) -> HubConfiguration:
    text = read_text(path)
    configuration, _ = parse(text, HubConfiguration, str(path))
    if problems := list(problems_of(configuration)):
        raise configuration_error(problems, text, str(path))
    return configuration


def _problems(c: HubConfiguration) -> Iterable[Problem]:
    if len(set(c.hub.listen)) < len(c.hub.listen):
        yield Problem(("hub", "listen"), "`listen` in [hub] names an endpoint twice; take one out")
    places: dict[str, str] = {}
    paths = [("heartbeat_file", c.hub.heartbeat_file), ("control_socket", c.hub.control_socket)]
    for key, path in [*paths, *(("listen", endpoint.removeprefix("ipc://")) for endpoint in c.ipc)]:
        if (other := places.setdefault(os.path.normpath(path), key)) != key:
            text = f"`{other}` and `{key}` in [hub] are the same file {path}; give each its own"
            yield Problem(("hub", key), text)
    if c.pbs.kind not in (known := kinds.known()):
        yield Problem(("pbs", "kind"), f"`kind` in [pbs] is {c.pbs.kind!r}; known here: {', '.join(known) or 'none'}")


def _without_keys(c: HubConfiguration) -> Iterable[Problem]:
    if c.tcp:
        try:
            keys.read_secret(c.keys_dir / keys.HUB_SECRET)
            keys.enrolled(c.keys_dir)
        except keys.KeysError as error:
            yield Problem(
                ("hub", "listen"),
                f"`listen` in [hub] has {c.tcp[0]}, and TCP is never opened without keys: {error}; "
                f"first: magrathea keys --dir {c.keys_dir} init",
            )
