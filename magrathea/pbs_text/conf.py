"""`pbs.conf` (`parse_config_line` in pbs_loadconf.c)."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_CONF = "/etc/pbs.conf"


def read_conf(path: Path) -> dict[str, str]:
    """Names and values. If a name occurs twice, the last line counts. Quotes are part of a value. Raises OSError."""
    lines = (os.fsdecode(line).strip() for line in path.read_bytes().split(b"\n"))
    pairs = (line.partition("=") for line in lines if not line.startswith("#"))
    return {name: value for name, equals, value in pairs if equals}
