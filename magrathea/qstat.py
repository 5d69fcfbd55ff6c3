"""What PBS says of a job or a queue, through its own `qstat`: no library, no rights beyond the user's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import msgspec

from magrathea.decoding import UNDECODABLE

from .core.model import JobClass
from .messages import Chunk

DEADLINE_S = 10.0
DEFAULT = "/opt/pbs/bin/qstat"
_CLASS = re.compile(r"(?:^|:)magrathea_accepts=([a-z]+)")
_MIB = {"": 1 / 2**20, "k": 1 / 2**10, "m": 1.0, "g": 2.0**10, "t": 2.0**20}


class NoQstat(Exception):
    """PBS cannot be asked, or does not know it: why, and what to do."""


def _ask(*arguments: str) -> dict[str, Any]:
    program = shutil.which("qstat") or (DEFAULT if os.access(DEFAULT, os.X_OK) else None)
    if program is None:
        raise NoQstat("there is no `qstat` here; put PBS's commands on PATH")
    command = [program, "-F", "json", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        if done.returncode != 0:
            raise NoQstat(done.stderr.strip() or f"`{' '.join(command)}` ended with {done.returncode}")
        return msgspec.json.decode(done.stdout, type=dict[str, Any])
    except (OSError, subprocess.TimeoutExpired, *UNDECODABLE) as error:
        raise NoQstat(f"`{' '.join(command)}`: {error}") from error


def job(id: str) -> tuple[str, dict[str, Any]]:
    """The full id and attributes of a job. Raises NoQstat."""
    for name, attributes in _ask("-f", "--", id).get("Jobs", {}).items():
        return str(name), dict(attributes)
    raise NoQstat(f"qstat says nothing of {id}")


def class_of_queue(queue: str) -> JobClass:
    """The class that a queue gives its jobs; a queue without one gives `protected`. Raises NoQstat."""
    for attributes in _ask("-Q", "-f", "--", queue).get("Queue", {}).values():
        return _class(str(attributes.get("default_chunk", {}).get("magrathea_accepts", "")))
    raise NoQstat(f"qstat says nothing of queue {queue}")


def class_of_select(select: str) -> JobClass:
    found = _CLASS.search(select)
    return _class(found[1] if found else "")


def _class(word: str) -> JobClass:
    return JobClass(word) if word in set(JobClass) else JobClass.PROTECTED


def chunks(select: str) -> list[Chunk]:
    """The parts of a select. Raises ValueError, naming the one that cannot be read."""
    found = []
    for part in select.split("+"):
        words = part.split(":")
        count = int(words.pop(0)) if words[0].isdecimal() else 1
        asked = dict(word.partition("=")[::2] for word in words)
        memory = re.fullmatch(r"([0-9]+)([kmgt]?)b?", asked.get("mem", "0").lower())
        if not asked.get("ncpus", "1").isdecimal() or memory is None or count < 1 or "" in asked.values():
            raise ValueError(f"`{part}` is no chunk like 2:ncpus=4:mem=1gb")
        found.append(Chunk(count, int(asked.get("ncpus", "1")), int(int(memory[1]) * _MIB[memory[2]])))
    return found
