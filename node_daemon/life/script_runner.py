"""Runs the site's own scripts on the host.

The folder `[paths] scripts` holds an executable `before-preempt`, or several in `before-preempt.d/`, which run in the
order of their names; the same for the other names in NAMES. A script gets the environment of the daemon's service and
MAGRATHEA_* variables. It has a time limit, and its output goes to the log. Its exit code is logged and nothing more:
no script can prevent anything, and no switch waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

from magrathea import supervision

log = logging.getLogger(__name__)

NAMES = tuple(
    f"{when}-{what}"
    for what in ("preempt", "activate", "boot", "shutdown", "freeze", "defrost")
    for when in ("before", "after")
)
"""A domain's jobs are stopped; are continued; it boots, is shut down, is saved, is restored (docs/site-scripts.md)."""

OUTPUT_BYTES = 16384
"""So much of a script's output is logged."""

AT_ONCE = 8
"""So many scripts run at the same time at most. Others are not started, which is logged."""


class ScriptRunner:
    """Starts scripts. `close` ends those that still run."""

    def __init__(self, folder: Path | None, time_limit_s: float) -> None:
        self.folder = folder
        self.time_limit_s = time_limit_s
        self._running: set[asyncio.Task[None]] = set()

    def run(self, name: str, environment: dict[str, str]) -> None:
        """Run all scripts of that name, one after the other, in the background."""
        found = self.find(name)
        if not found:
            return
        if len(self._running) >= AT_ONCE:
            log.warning("scripts of %s not started: %d others still run", name, AT_ONCE)
            return
        task = supervision.start(self._run_all(found, environment))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def finish(self, name: str, environment: dict[str, str]) -> None:
        """Run all scripts of that name, one after the other. Returns after the last one."""
        found = self.find(name)
        if found:
            await self._run_all(found, environment)

    def find(self, name: str) -> list[Path]:
        if self.folder is None:
            return []
        try:
            many = sorted((self.folder / f"{name}.d").iterdir()) if (self.folder / f"{name}.d").is_dir() else []
            return [p for p in [self.folder / name, *many] if p.is_file() and os.access(p, os.X_OK)]
        except OSError as error:
            log.warning("scripts of %s: %s", name, error)
            return []

    async def close(self) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run_all(self, found: list[Path], environment: dict[str, str]) -> None:
        for path in found:
            await self._run(path, {**os.environ, **environment})

    async def _run(self, path: Path, environment: dict[str, str]) -> None:
        try:
            process = await asyncio.create_subprocess_exec(
                path,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a null byte, or text that cannot be encoded
            log.warning("script %s: %s", path, error)
            return
        output = bytearray()
        try:
            async with asyncio.timeout(self.time_limit_s):
                await self._collect(process, output)
                code = await process.wait()
        except TimeoutError:
            log.warning("script %s ended after its limit of %g s", path, self.time_limit_s)
        else:
            log.log(logging.INFO if code == 0 else logging.WARNING, "script %s: exit code %d", path, code)
        finally:
            with suppress(ProcessLookupError):  # its whole session, with every process that holds the output open
                os.killpg(process.pid, signal.SIGKILL)
        for line in bytes(output).decode(errors="replace").splitlines():
            log.info("script %s: %s", path.name, line)

    async def _collect(self, process: asyncio.subprocess.Process, output: bytearray) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(4096):
            output += data[: max(0, OUTPUT_BYTES - len(output))]
