"""Reads and changes PBS for install and uninstall, with qmgr, qstat and the scheduler's file.

Rule 1: qmgr gets its commands on standard input (with `-c` it carries out only the last of several).
Rule 2: nothing is decided here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from magrathea import files
from magrathea.pbs_text.conf import read_conf
from magrathea.pbs_text.listing import QSTAT_ENVIRONMENT, QSTAT_JOB, decoded, listed
from magrathea.text import printable

from .install import CONFIG, SCRIPT
from .kept_resources import KEEPS
from .sched_config import InstallError
from .setup_model import Present, SetupChange, SubmittedJob

COMMAND_S = 60.0
NO_TROUBLE = "' contents overwritten"
"""The end of qmgr's message, printed as an error, when a hook's script was replaced."""

GREETING = "Max open servers:"
"""The first line that qmgr prints when it reads standard input begins with this."""


@dataclass(frozen=True, slots=True)
class Place:
    """The places of PBS's files on this machine."""

    exec_dir: Path
    home: Path

    @property
    def sched_config(self) -> Path:
        return self.home / "sched_priv/sched_config"


def find_pbs(conf: Path) -> Place:
    """Read pbs.conf. Raises InstallError."""
    try:
        values = read_conf(conf)
    except OSError as error:
        raise InstallError(
            f"{conf}: {error.strerror}; run this on the PBS server's machine, or give its path: --conf"
        ) from error
    if lacking := [name for name in ("PBS_EXEC", "PBS_HOME") if name not in values]:
        raise InstallError(f"{conf}: {', '.join(lacking)} is not set")
    return Place(Path(values["PBS_EXEC"]), Path(values["PBS_HOME"]))


def run(place: Place, argv: Sequence[str], text: str | None = None) -> str:
    """Run one of PBS's commands; return its output. Raises InstallError with the command's own message."""
    told = " ".join(argv) if text is None or text.count("\n") > 1 else f"{argv[0]}: {text.strip()}"
    try:
        done = subprocess.run(
            [place.exec_dir / "bin" / argv[0], *argv[1:]],
            input=os.fsencode(text or ""),
            capture_output=True,
            timeout=COMMAND_S,
            env={**os.environ, **QSTAT_ENVIRONMENT},
        )
    except FileNotFoundError as error:
        raise InstallError(f"{place.exec_dir}/bin/{argv[0]} does not exist; is PBS_EXEC in pbs.conf right?") from error
    except (OSError, ValueError) as error:  # an argument that is too long or has a null byte, or no program
        raise InstallError(f"{printable(told)}: cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{told}: no answer within {COMMAND_S:.0f} s; does pbs_server run?") from error
    said = decoded(done.stderr)
    trouble = [line for line in said.splitlines() if line.strip() and not line.endswith(NO_TROUBLE)]
    if done.returncode != 0 or (text is not None and trouble):
        raise InstallError(f"{printable(told)}: {printable(' '.join(said.split())) or f'exit code {done.returncode}'}")
    return decoded(done.stdout)


def qmgr(place: Place, command: str) -> str:
    """Run one qmgr command; return its output. Raises InstallError with qmgr's own message."""
    out = run(place, ["qmgr"], command + "\n")
    return out.removeprefix(out.partition("\n")[0] + "\n" if out.startswith(GREETING) else "")


def jobs(place: Place) -> tuple[SubmittedJob, ...]:
    """All jobs and subjobs that PBS knows, also finished ones. Raises InstallError."""
    known = listed(run(place, ["qstat", "-x", "-t", "-f", "-w"]), [QSTAT_JOB])
    if unknown := [id for id, job in known.items() if "job_state" not in job]:
        raise InstallError(f"qstat -x -t -f -w: no state of {', '.join(unknown)}; its answer cannot be understood")
    return tuple(
        SubmittedJob(
            id=id,
            state=job["job_state"],
            queue=job.get("queue", ""),
            select=job.get("Resource_List.select", ""),
            schedselect=job.get("schedselect", ""),
            keeps=f"Resource_List.{KEEPS}" in job,
        )
        for id, job in known.items()
    )


def present(place: Place) -> Present:
    """Read everything that `changes` compares from PBS. Raises InstallError."""
    lists = qmgr(place, "list resource\nlist hook\nlist pbshook\nlist queue @default\nlist server\nlist sched")
    hooks = listed(lists, ["Hook"])
    ours = [name for name in hooks if name.startswith("magrathea_")]
    contents: dict[tuple[str, str], str] = {}
    for name in ours:
        for content_type in (SCRIPT, CONFIG):
            try:
                contents[name, content_type] = qmgr(place, f"export hook {name} {content_type} default")
            except InstallError as error:  # the hook has no such content yet, so it must be imported
                if "failed to open" not in str(error).lower():
                    raise
    try:
        vnodes = listed(qmgr(place, "list node @default"), ["Node"])
    except InstallError as error:
        if "no nodes" not in str(error).lower() and "unknown node" not in str(error).lower():
            raise
        vnodes = {}
    try:
        sched_config = place.sched_config.read_bytes().decode("latin-1")
    except OSError as error:
        raise InstallError(
            f"{place.sched_config}: {error.strerror}; run this as root on the server's machine"
        ) from error
    return Present(
        resources=listed(lists, ["Resource"]),
        hooks={name: hook for name, hook in hooks.items() if hook.get("type") != "pbs"},
        queues=listed(lists, ["Queue"]),
        vnodes=vnodes,
        server=next(iter(listed(lists, ["Server"]).values()), {}),
        contents=contents,
        sched_config=sched_config,
        scheds=listed(lists, ["Sched"]),
        pbs_hooks={name: hook for name, hook in hooks.items() if hook.get("type") == "pbs"},
        jobs=jobs(place),
    )


def steps(changes: Iterable[SetupChange]) -> Iterator[list[SetupChange]]:
    """The changes in their order, in groups that one qmgr process can carry out together.

    Each connection of a PBS command uses privileged ports for a minute. With a process for each change, some hundred
    changes in a minute use them up, and the next command waits (seen).
    """
    together: list[SetupChange] = []
    for change in changes:
        if change.qmgr and change.content is None:
            together.append(change)
            continue
        if together:
            yield together
            together = []
        yield [change]
    if together:
        yield together


def apply(place: Place, step: Sequence[SetupChange]) -> None:
    """Carry out a step; if one of its changes fails, the others are still made. Raises InstallError."""
    [change, *more] = step
    if more or (change.qmgr and change.content is None):
        qmgr(place, "\n".join(one.qmgr for one in step))
    elif change.command:
        run(place, change.command)
    elif not change.qmgr:
        assert change.content is not None
        write_sched_config(place, change.content)
    else:
        assert change.content is not None
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".magrathea", encoding="utf-8") as file:
                file.write(change.content)
                file.flush()
                qmgr(place, change.qmgr.replace("{file}", file.name))
        except OSError as error:  # no space, or no folder for temporary files
            raise InstallError(f"{change.text}: no temporary file ({error.strerror}); see $TMPDIR") from error


def _write_config(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(files.open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(text.encode("latin-1"))
    shutil.copymode(path, new)
    os.chown(new, path.stat().st_uid, path.stat().st_gid)
    new.rename(path)


def backup_of(place: Place) -> Path:
    """The path of the scheduler's configuration as it was before the first install."""
    return place.sched_config.with_name(place.sched_config.name + ".before-magrathea")


def write_sched_config(place: Place, text: str) -> None:
    """Replace the file atomically, keep the first version as its backup, and send the scheduler SIGHUP.

    `text`: one character a byte. Raises InstallError; then the file is as it was, so that another try does all of it.
    """
    path, backup = place.sched_config, backup_of(place)
    try:
        before = path.read_bytes().decode("latin-1")
        if not backup.exists():
            half = backup.with_name(backup.name + ".new")
            shutil.copy2(path, half)
            half.rename(backup)
        _write_config(path, text)
    except OSError as error:
        raise InstallError(f"{error.filename or path}: {error.strerror}; the scheduler's file is as it was") from error
    try:
        _hang_up(path.with_name("sched.lock"))
    except (OSError, ValueError) as error:
        _write_config(path, before)
        raise InstallError(
            f"the scheduler of {path.with_name('sched.lock')} got no signal ({error}), so {path} is as it was; is"
            " pbs_sched well? Stop it, or start it again"
        ) from error


def _hang_up(lock: Path) -> None:
    """Let the scheduler read its file again. If none runs, it will when it starts. Raises OSError, ValueError."""
    try:
        os.kill(int(lock.read_text().strip()), signal.SIGHUP)
    except (FileNotFoundError, ProcessLookupError):
        return


def age_s(file: Path) -> float | None:
    """Seconds since a file was last touched; None if it does not exist."""
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except FileNotFoundError:
        return None
