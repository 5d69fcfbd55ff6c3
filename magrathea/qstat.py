"""What PBS reports about a job, a queue or its vnodes, through its own `qstat` and `pbsnodes`: no library, no rights
beyond the user's."""

from __future__ import annotations

import os
import shutil
import subprocess

from .core.words import JobClass
from .job_ids import is_typed_id
from .pbs_text.amounts import size_bytes, whole_mib, whole_number
from .pbs_text.listing import QSTAT_ENVIRONMENT, QSTAT_JOB, QSTAT_QUEUE, decoded, listed, listed_vnodes
from .pbs_text.select import CLASS_RESOURCE, job_class
from .pbs_text.select import chunks as chunks_of
from .reports import Chunk
from .text import printable

DEADLINE_S = 10.0
FOLDER = "/opt/pbs/bin"
"""Where PBS's commands are if they are not on PATH."""


class NoQstat(Exception):
    """PBS does not answer or does not know the object; the text says why, and how to fix it."""


class NoAnswer(NoQstat):
    """PBS does not answer here, whatever it is asked."""


NOT_CONNECTED = "cannot connect to server"
"""Of qstat and pbsnodes; their exit code is then one of many."""


def _ask(*arguments: str) -> str:
    return _run("qstat", "-f", "-w", *arguments)


def _run(name: str, *arguments: str) -> str:
    program = shutil.which(name) or shutil.which(name, path=FOLDER)
    if program is None:
        raise NoAnswer(f"there is no `{name}` here; put PBS's commands on PATH")
    command = [program, *arguments]
    told = printable(" ".join(command))
    environment = {**os.environ, **QSTAT_ENVIRONMENT}
    try:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, env=environment)
    except ValueError as error:  # a null byte in an argument
        raise NoQstat(f"`{told}`: {error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"`{told}`: {error}") from error
    if done.returncode != 0:
        said = printable(decoded(done.stderr).strip()) or f"`{told}` ended with {done.returncode}"
        raise NoAnswer(said) if NOT_CONNECTED in said else NoQstat(said)
    return decoded(done.stdout)


def job(id: str) -> tuple[str, dict[str, str]]:
    """A job's full id and attributes, resources as "Resource_List.select". Raises NoQstat."""
    if not is_typed_id(id):
        raise NoQstat(f"{printable(id, 80)!r} is no id of a job; write it as 12, 12[3] or 12.server")
    for name, attributes in listed(_ask("--", id), [QSTAT_JOB]).items():
        return name, attributes
    raise NoQstat(f"qstat reports nothing about {printable(id)}")


def vnodes() -> dict[str, dict[str, str]]:
    """The attributes of all vnodes, by name. Raises NoQstat."""
    return listed_vnodes(_run("pbsnodes", "-av"))


def class_of_queue(queue: str) -> JobClass:
    """The class that a queue gives its jobs; a queue without one gives `protected`. Raises NoQstat."""
    for attributes in listed(_ask("-Q", "--", queue), [QSTAT_QUEUE]).values():
        return _class(attributes.get(f"default_chunk.{CLASS_RESOURCE}"))
    raise NoQstat(f"qstat reports nothing about queue {printable(queue)}")


def class_of_select(select: str) -> JobClass:
    """The class that all chunks name, or `protected`."""
    return _class(job_class(select))


def _class(word: str | None) -> JobClass:
    return JobClass(word) if word in set(JobClass) else JobClass.PROTECTED


def chunks(select: str) -> list[Chunk]:
    """The chunks of a select. Raises ValueError that names what cannot be parsed."""
    found = []
    for count, pairs in chunks_of(select):
        asked = dict(pairs)
        memory_mib = whole_mib(size_bytes(asked.get("mem", "0")))
        if count:  # PBS accepts chunks with a count of 0
            found.append(Chunk(count, whole_number(asked.get("ncpus", "1")), memory_mib))
    if not found:
        raise ValueError(f"`{select}` asks for nothing; a select is like 2:ncpus=4:mem=1gb+1:ncpus=1")
    return found
