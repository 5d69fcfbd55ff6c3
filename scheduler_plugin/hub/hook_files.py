"""The files through which the hub and the server's hooks talk: the heartbeat, and others beside it.

A file that cannot be written or read is an alert, never the hub's end: PBS still needs the hub.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from magrathea import files
from magrathea.decoding import UNDECODABLE
from magrathea.messages import MAX_BYTES
from magrathea.pbs_text.host_loads import LOADS, load_path

from . import maintenance

log = logging.getLogger(__name__)


class HookFiles:
    """`heartbeat`: the file that `pbs install --heartbeat` names; the names of the others begin with its name."""

    def __init__(self, heartbeat: Path) -> None:
        self._heartbeat = heartbeat
        self._heartbeat_failed = False
        self._asked = b""
        self._loads: dict[str, bytes] = {}
        self._loads_failed = False

    def touch(self) -> None:
        """Touch the heartbeat file. The runjob hook preempts nothing once this file is old."""
        try:
            files.touch(self._heartbeat, 0o644)
            self._heartbeat_failed = False
        except OSError as error:
            if not self._heartbeat_failed:
                log.error(
                    "ALERT %s cannot be touched: %s; the runjob hook will refuse to preempt", self._heartbeat, error
                )
            self._heartbeat_failed = True

    def forgotten(self) -> maintenance.Answers:
        """The answers of the hook magrathea_vnodes; empty if there are none or they cannot be read."""
        try:
            answers = maintenance.decode_answers(
                files.read(Path(f"{self._heartbeat}{maintenance.FORGOTTEN}"), MAX_BYTES)
            )
        except FileNotFoundError:
            return {}
        except (OSError, *UNDECODABLE) as error:
            log.error("ALERT the answers of the hook magrathea_vnodes cannot be read: %s", error)
            return {}
        return answers

    def ask_to_forget(self, requests: Mapping[str, tuple[int, maintenance.When]], *, again: bool = False) -> None:
        """Write the requests for the hook magrathea_vnodes if they have changed.

        `again`: check the file even if they have not; somebody may have changed it.
        """
        wanted = msgspec.json.encode(requests)
        if wanted == self._asked and not again:
            return
        self._asked = wanted
        path = Path(f"{self._heartbeat}{maintenance.FORGET}")
        try:
            with contextlib.suppress(FileNotFoundError):
                if files.read(path, len(wanted) + 1) == wanted:
                    return
            files.replace(path, wanted)
        except OSError as error:
            log.error(
                "ALERT %s cannot be written: %s; vnodes may be in maintenance after a restart of PBS", path, error
            )

    def remove_loads(self) -> None:
        """Remove all files about hosts' loads. A former hub wrote them."""
        self._loads.clear()
        try:
            with contextlib.suppress(FileNotFoundError):
                for path in Path(f"{self._heartbeat}{LOADS}").iterdir():
                    path.unlink()
        except OSError as error:
            self._load_failed(error)

    def write_load(self, host: str, data: bytes) -> None:
        """Write what the runjob hook may know of a host's load (host_loads.py); if that is empty, remove the file."""
        name = load_path(str(self._heartbeat), host)
        if name is None or data == self._loads.get(host, b""):
            return
        path = Path(name)
        try:
            if data:
                path.parent.mkdir(mode=0o755, exist_ok=True)
                files.replace(path, data, 0o644)
                self._loads[host] = data
            else:
                path.unlink(missing_ok=True)
                self._loads.pop(host, None)
            self._loads_failed = False
        except OSError as error:
            self._load_failed(error)

    def _load_failed(self, error: OSError) -> None:
        """Report it once. An old file does no harm: the hook adds what it has let through since that comparison."""
        if not self._loads_failed:
            log.error("ALERT %s; the runjob hook reads PBS's own sums instead, which takes longer", error)
        self._loads_failed = True
