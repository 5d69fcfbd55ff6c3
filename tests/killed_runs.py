"""A run of the laboratory in a process of its own that a test kills, and what the run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from magrathea_lab import processes

BEGIN = """
import json, os, subprocess, sys, time
from pathlib import Path
from magrathea_lab import leftovers
leftovers.RECORDS = Path(sys.argv[1])
taken, _ = leftovers.begin_run()
def say(**what):
    print(json.dumps(what), flush=True)
    time.sleep(10000)
"""


class KilledRun:
    """A run in a process of its own. `said`: what it reported to have taken."""

    def __init__(self, records: Path, text: str) -> None:
        argv = [sys.executable, "-c", BEGIN + text, str(records)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait()}"
        self.said: dict[str, Any] = json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def left(run: KilledRun) -> list[str]:
    """What still exists of all that the run has started or made: directories, and processes by their arguments."""
    directory = str(run.said["directory"])
    found = [directory] if Path(directory).exists() else []
    found += [f"process {pid}" for pid in run.said["processes"] if processes.start_ticks(pid) is not None]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if directory.encode() in words and processes.start_ticks(int(entry.name)) is not None:
            found.append(f"process {entry.name}")
    return found
