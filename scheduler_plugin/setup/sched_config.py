"""The `resources:` lines of the scheduler's configuration, which name the resources that it regards."""

from __future__ import annotations

import re
from collections.abc import Iterable

from magrathea.pbs_text.words import words


class InstallError(Exception):
    """PBS cannot be set up; the text says what, where and how to fix it."""


_RESOURCES_LINE = re.compile(r"(?m)^[ \t]*resources[ \t]*:.*$")
_UNDERSTOOD = re.compile(r'([ \t]*resources[ \t]*:[ \t]*")([^"\\\n]*)("[ \t]*(?:(?:all|ALL)[ \t]*)?\r?)')


def resources_lines(sched_config: str) -> list[re.Match[str]]:
    """The valid `resources:` lines: prefix, value, rest. Raises InstallError if one cannot be parsed."""
    found = []
    for line in _RESOURCES_LINE.finditer(sched_config):
        match = _UNDERSTOOD.fullmatch(sched_config, line.start(), line.end())
        if match is None:
            number = sched_config.count("\n", 0, line.start()) + 1
            raise InstallError(
                f"sched_config, line {number}: {line[0].strip()!r} cannot be parsed, so nothing is changed;"
                ' write it as resources: "ncpus, mem, ..." on one line'
            )
        found.append(match)
    return found


def with_resources(sched_config: str, names: Iterable[str]) -> str:
    """The scheduler's configuration with `names` in its last `resources:` line; unchanged if they are all there.

    The scheduler silently ignores a resource that is not in this line, even a host-level one. Without any such line it
    uses all resources (seen on a real server): then no line is added, since it would exclude the others.
    """
    lines = resources_lines(sched_config)
    have = {word for line in lines for word in words(line[2])}
    lacking = [name for name in names if name not in have]
    if not lines or not lacking:
        return sched_config
    last = lines[-1]
    value = ", ".join([last[2].rstrip(" ,\t"), *lacking]) if words(last[2]) else ", ".join(lacking)
    return sched_config[: last.start()] + last[1] + value + last[3] + sched_config[last.end() :]


def without_resources(sched_config: str, names: Iterable[str]) -> str:
    """The scheduler's configuration without `names` in its `resources:` lines; other lines stay byte for byte."""
    unwanted = set(names)
    for line in reversed(resources_lines(sched_config)):
        if unwanted & set(words(line[2])):
            value = ", ".join(word for word in words(line[2]) if word not in unwanted)
            sched_config = sched_config[: line.start()] + line[1] + value + line[3] + sched_config[line.end() :]
    return sched_config
