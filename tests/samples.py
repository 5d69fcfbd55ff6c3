"""The sample configurations of deploy/ as they would stand on a machine that has what they name."""

from __future__ import annotations

import re
from pathlib import Path

from scheduler_plugin.hub import keys


def on_a_host(sample: Path, folder: Path) -> Path:
    """A copy of a host's sample in `folder`, with its keys and directories there."""
    keys.init(folder / "keys")
    keys.enrol(folder / "keys", "host1").rename(folder / "host.key_secret")
    (folder / "keys/hub.key").rename(folder / "hub.key")
    text = sample.read_text().replace("/etc/magrathea", str(folder))
    if not re.search(r"(?m)^\[paths\]", text):
        text += "\n[paths]\n"
    text = re.sub(r"(?m)^\[paths\]\n", f'[paths]\nrun_dir = "{folder}/run"\nstate_dir = "{folder}/state"\n', text)
    (folder / sample.name).write_text(text)
    return folder / sample.name
