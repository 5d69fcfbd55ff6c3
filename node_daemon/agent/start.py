"""The `magrathea-agent` command."""

import gc
import os
import selectors
import signal
import stat
import sys

from . import VERSION
from .agent import Agent
from .configuration import CONFIG_VARIABLE, DEFAULT_CONFIG, Config
from .ends import Ends
from .log import log
from .loop import Loop
from .own_process import keep_standard_descriptors, raise_priority, set_oom_score
from .values import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Callable, List, Optional, Tuple

USAGE = """usage: magrathea-agent [--config FILE] [--check] [--version] [--help]

The agent of a domain: relays requests of MoM's hooks to the host's node daemon, stops and continues jobs.

  --config FILE  configuration (JSON); else $%s, else %s
  --check        read the configuration, report what is wrong with it, and end
  --version      print the version and end

exit codes: 0 ended by a signal, or --check found nothing, 1 a defect, 2 bad usage or configuration,
3 cannot start here (the last line says why; --check, too), 74 the output cannot be written

SIGTERM or SIGINT ends it. Stopped jobs stay stopped: the node daemon decides about them, and the next agent continues
where this one left off.
""" % (CONFIG_VARIABLE, DEFAULT_CONFIG)


BAD_CONFIGURATION, CANNOT_START, LOST = 2, 3, 74  # exit codes, as of the other programs


def say(text: str) -> bool:
    """Print the text. False, with a line on stderr, if the output is full or closed."""
    if sys.stdout is None:
        log.error("the output cannot be written: it is closed")
        return False
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        log.error("the output cannot be written: %s" % error.strerror)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # for what Python writes at its end
        return False
    return True


def options(arguments: "List[str]") -> "Tuple[str, str]":
    """(what to do: run, check, version or help; path of the configuration). Raises Unusable."""
    what = "run"
    path = os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config":
            if not equals and not rest:
                raise Unusable("--config: needs a file")
            path = value if equals else rest.pop(0)
        elif word in ("--check", "--version", "--help", "-h"):
            what = "help" if word == "-h" else word[2:]
        else:
            raise Unusable("%s: no such option; see --help" % word)
    return what, path


def obstacles(config: Config) -> "List[str]":
    """What would keep the agent from starting on this machine although the configuration itself is valid."""
    found = []
    for name, path in (("socket", config.socket), ("state", config.state)):
        directory = os.path.dirname(path)
        while not os.path.lexists(directory):
            directory = os.path.dirname(directory)
        if not os.path.isdir(directory):
            found.append("%s: %s is no directory; remove it, or name another path" % (name, directory))
        elif not os.access(directory, os.W_OK | os.X_OK):
            found.append("%s: %s cannot be written by uid %d" % (name, directory, os.geteuid()))
        if os.path.isdir(path):
            found.append("%s: %s is a directory; name a file in it" % (name, path))
    if os.path.lexists(config.socket) and not _is(stat.S_ISSOCK, config.socket) and not os.path.isdir(config.socket):
        found.append("socket: %s is no socket; remove it, or name another path" % config.socket)
    return found


def _is(kind: "Callable[[int], bool]", path: str) -> bool:
    return kind(os.lstat(path).st_mode)


def check(config: Config) -> "List[str]":
    """What would fail on this machine although the configuration itself is valid."""
    found = obstacles(config)
    path = os.path.realpath(config.channel_path)
    if not os.path.exists(path):
        found.append("channel: %s does not exist (yet): is the port in the domain's definition?" % config.channel_path)
    elif config.channel_kind == "unix" and not _is(stat.S_ISSOCK, path):
        found.append("channel: %s is no socket; name the socket of the node daemon" % config.channel_path)
    elif config.channel_kind == "port" and not _is(stat.S_ISCHR, path):
        found.append(
            "channel: %s is no device; name the port of the domain's definition, or unix:PATH" % config.channel_path
        )
    return found


def watch_signals(loop: Loop, ends: Ends) -> None:
    """Let SIGTERM and SIGINT end the loop. SIGHUP is ignored: closing a terminal does not end an agent. SIGIO reports a
    change of MoM's directory."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)

    def noted(number: int, frame: "Optional[FrameType]") -> None:
        """Nothing to do: the byte in the pipe wakes the loop."""

    def arrived(events: int) -> None:
        numbers = set(os.read(reading, 64))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            loop.stop()
        elif signal.SIGIO in numbers:
            ends.directory_changed()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        signal.signal(number, noted)
    signal.set_wakeup_fd(writing)
    loop.watch(reading, selectors.EVENT_READ, arrived)
    ends.signalled = True


def main(arguments: "Optional[List[str]]" = None) -> int:
    """Run the command. Returns one of the exit codes that its help lists."""
    keep_standard_descriptors()
    try:
        what, path = options(sys.argv[1:] if arguments is None else arguments)
        if what == "help":
            return 0 if say(USAGE) else LOST
        if what == "version":
            return 0 if say("magrathea-agent %s\n" % VERSION) else LOST
        config = Config(path)
    except Unusable as error:
        log.error(str(error))
        return BAD_CONFIGURATION
    if what == "check":
        found = check(config)
        is_told = say("".join("%s: %s\n" % (path, line) for line in found) or "%s: ok\n" % path)
        return CANNOT_START if found else 0 if is_told else LOST
    try:
        in_the_way = obstacles(config)
        if in_the_way:
            raise Unusable("; ".join("%s: %s" % (path, line) for line in in_the_way))
        agent = Agent(config)
        watch_signals(agent.loop, agent.ends)
        if os.geteuid() == 0 and not set_oom_score(-1000):
            log.info("oom_score_adj may not be lowered here: if memory runs out, the kernel may kill this agent first")
        raise_priority()
        agent.start()
    except Unusable as error:
        log.error(str(error))
        return CANNOT_START
    freeze = getattr(gc, "freeze", None)  # since Python 3.7
    if freeze is not None:
        freeze()  # what exists now stays, so no collection needs to look at it
    gc.enable()  # disabled in __main__
    try:
        return agent.loop.run()
    finally:
        agent.stop()
