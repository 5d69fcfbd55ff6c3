"""`magrathea-noded`: arguments, logging, signals, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from magrathea import __version__, files, logs, output, supervision
from magrathea.configuration import ConfigurationError
from magrathea.core.model import Kind

from .configuration import DEFAULT_PATH, NodedConfiguration, PathsTable, read

log = logging.getLogger("magrathea-noded")

OK, BAD_CONFIGURATION, CANNOT_START = 0, 2, 3

EPILOG = """\
SIGHUP reads the configuration again; the log says what cannot change while it runs.
SIGTERM and SIGINT end it; jobs and domains stay as they are, and the next start continues from the journal.

exit codes: 0 ended by a signal, or --check found nothing, 2 bad usage or configuration,
3 cannot start here (the log says why; --check, too), 1 a defect, 74 the output cannot be written
"""


class CannotStart(Exception):
    """The daemon cannot start. The text says why, and how to fix it."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="magrathea-noded",
        description="The node daemon of a host: moves CPU and memory between its domains, stops and continues jobs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--check",
        action="store_true",
        help="check configuration, keys and machine, and exit",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None:
        output.run("magrathea-noded", lambda: main(sys.argv[1:]))
    options = arguments(argv)
    logs.configure(options.log_level, "%(levelname)s %(message)s")
    try:
        configuration = read(options.config)
    except ConfigurationError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return BAD_CONFIGURATION
    from .startable import obstacles

    if found := obstacles(configuration):
        for sentence in found:
            log.error("%s: %s", options.config, sentence)
        return CANNOT_START
    if options.check:
        print(f"{options.config}: good; {len(configuration.domain)} domains of {configuration.host.name}")  # noqa: T201
        return OK
    try:
        lock = take_lock(Path(configuration.paths.state_dir))
        try:
            supervision.run(run(configuration, options.config))
        finally:
            os.close(lock)
    except CannotStart as error:
        log.error("%s", error)
        return CANNOT_START
    except supervision.Defect:
        supervision.end()
    return OK


def take_lock(state_dir: Path) -> int:
    """Keep a second daemon of the same host from starting, until this process ends. Raises CannotStart."""
    from .startable import LOCK

    path = state_dir / LOCK
    try:
        state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        return files.lock(path)
    except BlockingIOError as error:
        raise CannotStart(f"{path} is held: another magrathea-noded serves this host; end it first") from error
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}; give magrathea-noded's user the right to write there") from error


async def run(configuration: NodedConfiguration, path: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises CannotStart."""
    from .crash_test_hook import from_environment
    from .daemon import Daemon
    from .hub_keys import HubError
    from .hypervisor.base import Driver, DriverError
    from .hypervisor.local.driver import LocalDriver
    from .hypervisor.moving import DomainMover

    def make_driver(configuration: NodedConfiguration) -> Driver:
        host = configuration.host
        if host.driver == "libvirt":
            from .hypervisor.libvirt.driver import LibvirtDriver

            names = {name: configuration.libvirt_name(name) for name in configuration.domain}
            services = frozenset(n for n, t in configuration.domain.items() if t.kind is Kind.SERVICE)
            sleepers = frozenset(filter(configuration.sleeps_at_shutdown, services))
            return LibvirtDriver(host.name, host.uri, names, services, sleepers)
        files = {name: Path(t.local.pid_file) for name, t in configuration.domain.items() if t.local is not None}
        return LocalDriver(group_name(host.name, configuration.paths.run_dir), files)

    def make_mover(configuration: NodedConfiguration) -> DomainMover | None:
        host = configuration.host
        if host.driver != "libvirt" or not host.uri.startswith("qemu"):
            return None
        from .hypervisor.libvirt.moving.mover import LibvirtMover

        return LibvirtMover(
            host.name, host.uri, {name: configuration.libvirt_name(name) for name in configuration.domain}
        )

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        daemon = Daemon(configuration, path, make_driver, from_environment(os.environ), make_mover=make_mover)
    except DriverError as error:
        raise CannotStart(str(error)) from error
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        if not reloads:
            task = supervision.start(daemon.reload_logged())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    handlers: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: ended.set,
        signal.SIGINT: ended.set,
        signal.SIGHUP: reload,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        await daemon.start()
        log.info("magrathea-noded %s serves %s (%s)", __version__, configuration.host.name, configuration.host.mode)
        supervision.notify("READY=1")
        await ended.wait()
        supervision.notify("STOPPING=1")
    except (OSError, DriverError, HubError) as error:
        raise CannotStart(str(error)) from error
    finally:
        await daemon.close()


def group_name(host: str, run_dir: str) -> str:
    """The name of the local driver's control groups. It differs for each run_dir, because clusters of the demo and of
    tests have hosts of the same names."""
    return host if run_dir == PathsTable().run_dir else f"{host}.{zlib.crc32(run_dir.encode()):08x}"


if __name__ == "__main__":
    sys.exit(main())
