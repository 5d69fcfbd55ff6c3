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

from . import maintenance

log = logging.getLogger(__name__)


class HookFiles:
    """`heartbeat`: the file that `pbs install --heartbeat` names; the names of the others begin with its name."""

    def __init__(self, heartbeat: Path) -> None:
        self._heartbeat = heartbeat
        self._heartbeat_failed = False
        self._asked = b""

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
