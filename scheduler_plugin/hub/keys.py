"""The keys of hub and hosts: files in ZeroMQ's certificate format (zmq.auth reads them), and who may connect.

    DIR/hub.key_secret        the hub's pair, 0600
    DIR/hub.key               its public half: every host has a copy
    DIR/hosts/HOST.key        public halves of hosts that may connect; metadata: host, vnodes (optional)
    DIR/to-hosts/HOST.key_secret   a host's pair, 0600, to be carried to the host and then removed here
    DIR/revoked/HOST.TIME.key      public halves of hosts that may no longer connect

A host's name is bound to its key: the hub takes a sender's name from its key, never from the message.
All files are written atomically; none overwrites another.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from magrathea import files

HUB = "hub"
HUB_SECRET = "hub.key_secret"
HUB_PUBLIC = "hub.key"
HOSTS, TO_HOSTS, REVOKED = "hosts", "to-hosts", "revoked"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_MAX_BYTES = 64 * 1024  # of one certificate; even the longest list of vnodes is far shorter
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""Digits of Z85 (rfc.zeromq.org/spec/32), by their value."""
_LINE = re.compile(r'\s*([a-z-]+)\s*=\s*"([^"]*)"\s*')


class KeysError(Exception):
    """A key or its file cannot be used. The text names the file, the cause and the fix."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. `secret` is empty in a public half. Keys are Z85 text of 40 characters."""

    public: str
    secret: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A host that may connect. `vnodes`: the vnodes that it may report; None: any that belongs to no other host."""

    host: str
    public: str
    vnodes: frozenset[str] | None
    path: Path


def checked_name(name: str) -> str:
    """The name of a host or vnode if it can also be a file's name. Raises KeysError."""
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r} is no name of a host or vnode: letters, digits, dots, dashes, underscores")
    return name


def read(path: Path) -> Certificate:
    """Read a certificate file. Raises KeysError."""
    try:
        data = files.read(path, _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise KeysError(f"{path}: too long; a key file has at most {_MAX_BYTES} bytes")
        lines = data.decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"{path}: cannot be read: {error}") from error
    found = {m.group(1): m.group(2) for line in lines if (m := _LINE.fullmatch(line))}
    public, secret = found.pop("public-key", ""), found.pop("secret-key", "")
    if not _is_key(public) or (secret and not _is_key(secret)):
        raise KeysError(f"{path}: no ZeroMQ certificate; `magrathea keys` makes them")
    return Certificate(public, secret, found)


def _is_key(text: str) -> bool:
    """True if ZeroMQ takes it as a key: 40 digits, each 5 of them a number of 32 bits."""
    if len(text) != 40 or not set(text) <= set(_Z85):
        return False
    groups = (text[at : at + 5] for at in range(0, 40, 5))
    return all(sum(_Z85.index(digit) * 85**place for place, digit in enumerate(reversed(g))) < 2**32 for g in groups)


def read_secret(path: Path) -> Certificate:
    """Read a key pair. Raises KeysError, also if others may read the file."""
    certificate = read(path)
    if not certificate.secret:
        raise KeysError(f"{path}: holds no secret key")
    if path.stat().st_mode & 0o077:
        raise KeysError(f"{path}: others may read it; chmod 600 {path}, and consider it known")
    return certificate


def enrolled(directory: Path) -> list[Enrolled]:
    """All hosts that may connect, sorted by name. Raises KeysError."""
    found = []
    try:
        paths = sorted((directory / HOSTS).glob("*.key"))
    except OSError as error:
        raise KeysError(f"{directory / HOSTS}: cannot be read: {error}") from error
    for path in paths:
        certificate = read(path)
        host = certificate.metadata.get("host", "")
        if host != path.stem:
            raise KeysError(f"{path}: is the key of host {host!r}; a key file is named after its host: HOST.key")
        vnodes = certificate.metadata.get("vnodes")
        names = None if vnodes is None else frozenset(vnodes.split(",")) - {""}
        found.append(Enrolled(host, certificate.public, names, path))
    keys = [one.public for one in found]
    if double := next((one for one in found if keys.count(one.public) > 1), None):
        raise KeysError(f"{double.path}: another host has the same key; revoke both and enrol them again")
    return found


def init(directory: Path) -> Path:
    """Make the hub's pair; returns its public half's path. Raises KeysError if there is one."""
    for path in (directory, directory / HOSTS, directory / TO_HOSTS, directory / REVOKED):
        path.mkdir(parents=path == directory, mode=0o700, exist_ok=True)
        path.chmod(0o700)
    public, secret = _pair()
    _write(directory / HUB_SECRET, _text(public, secret, {"name": HUB}))
    _write(directory / HUB_PUBLIC, _text(public, "", {"name": HUB}), mode=0o644)
    return directory / HUB_PUBLIC


def enrol(directory: Path, host: str, vnodes: Sequence[str] = ()) -> Path:
    """Make a host's pair; returns the path of the file to be carried to it. Raises KeysError if it has one."""
    if not (directory / HUB_SECRET).exists():
        raise KeysError(f"{directory}: no hub key yet; first: magrathea keys init")
    metadata = {"host": checked_name(host)}
    if vnodes:
        metadata["vnodes"] = ",".join(sorted(checked_name(vnode) for vnode in vnodes))
    public, secret = _pair()
    pair = directory / TO_HOSTS / f"{host}.key_secret"
    if (directory / HOSTS / f"{host}.key").exists():
        raise KeysError(f"host {host} is enrolled already; for a new key first: magrathea keys revoke {host}")
    _write(pair, _text(public, secret, metadata))
    try:
        _write(directory / HOSTS / f"{host}.key", _text(public, "", metadata))
    except KeysError:
        pair.unlink()  # somebody else has enrolled the host at this very moment
        raise
    return pair


def revoke(directory: Path, host: str) -> Path:
    """Forbid a host to connect. Returns the path of its kept public key. Raises KeysError if it is not enrolled."""
    path = directory / HOSTS / f"{checked_name(host)}.key"
    kept = directory / REVOKED / f"{host}.{time.time_ns() // 1000}.key"
    try:
        path.rename(kept)
    except FileNotFoundError as error:
        raise KeysError(f"host {host} is not enrolled; see: magrathea keys list") from error
    (directory / TO_HOSTS / f"{host}.key_secret").unlink(missing_ok=True)
    return kept


def _pair() -> tuple[str, str]:
    import zmq  # `magrathea keys list` does not need it

    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _text(public: str, secret: str, metadata: Mapping[str, str]) -> str:
    lines = ["#   Magrathea key, a ZeroMQ CURVE certificate", "metadata"]
    lines += [f'    {name} = "{value}"' for name, value in metadata.items()]
    lines += ["curve", f'    public-key = "{public}"']
    if secret:
        lines.append(f'    secret-key = "{secret}"')
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a new file, completely or not at all. Raises KeysError if the file exists."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(files.open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode)  # the umask must not change the mode
        path.hardlink_to(new)  # unlike a rename it fails if the name is taken
    except FileExistsError as error:
        raise KeysError(f"{path} exists already and is not overwritten") from error
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
