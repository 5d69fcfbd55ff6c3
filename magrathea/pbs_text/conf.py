"""`pbs.conf` (`parse_config_line` in pbs_loadconf.c)."""

from __future__ import annotations

import os
from pathlib import Path

from magrathea import files

DEFAULT_CONF = "/etc/pbs.conf"
MAX_BYTES = 1024 * 1024


def read_conf(path: Path) -> dict[str, str]:
    """Names and values. If a name occurs twice, the last line counts. Quotes are part of a value. Raises OSError."""
    lines = (os.fsdecode(line).strip() for line in files.read_named(path, MAX_BYTES).split(b"\n"))
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name: value for name, equals, value in pairs if equals}
