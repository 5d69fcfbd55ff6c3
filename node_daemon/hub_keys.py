"""The keys with which a host and its hub know each other: files in ZeroMQ's certificate format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from magrathea import files

CURVE_KEY_BYTES = 4096


class HubError(Exception):
    """The connection cannot be set up. The text names the file or endpoint, and the fix."""


class HubKeys(NamedTuple):
    """This host's pair, and the hub's public key."""

    public: bytes
    secret: bytes
    hub: bytes


def load_pair(key_file: str, hub_key_file: str) -> HubKeys:
    """The keys in both files. Raises HubError."""
    from zmq import ZMQError, curve_public

    public, secret = _load(Path(key_file), "`magrathea keys enrol` on the hub's machine makes it")
    hub, _ = _load(Path(hub_key_file), "`magrathea keys init` on the hub's machine makes it")
    if secret is None:
        raise HubError(f"{key_file}: holds no secret key; take the file that `magrathea keys enrol` made")
    for path, key in ((key_file, public), (key_file, secret), (hub_key_file, hub)):
        try:
            curve_public(key)  # it takes any text that can be a key
        except (ZMQError, ValueError) as error:
            raise HubError(f"{path}: not a key file; `magrathea keys` makes key files") from error
    return HubKeys(public, secret, hub)


def _load(path: Path, made_by: str) -> tuple[bytes, bytes | None]:
    """(public, secret) of a ZeroMQ certificate file. Raises HubError."""
    from zmq.auth import load_certificate  # only with CURVE: it costs 3 MB

    try:
        if len(files.read(path, CURVE_KEY_BYTES + 1)) > CURVE_KEY_BYTES:
            raise HubError(
                f"{path}: more than {CURVE_KEY_BYTES} bytes; a key file has some hundred; give the right file"
            )
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else f"not a key file: {error}"
        raise HubError(f"{path}: {what}; {made_by}, copy it here (mode 0600)") from error
    return public, secret
