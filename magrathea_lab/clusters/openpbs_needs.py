"""What a private OpenPBS cluster needs of this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount", "hostname", "su")


def missing(exec_dir: str = "/opt/pbs") -> str | None:
    """What this machine lacks for a private OpenPBS cluster; None if it has everything."""
    if not Path(exec_dir, "sbin/pbs_server").exists():
        return f"OpenPBS is not installed in {exec_dir}"
    if os.geteuid() != 0:
        return "a private OpenPBS cluster needs root (network and mount namespaces)"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"commands that are not installed: {', '.join(lacking)}"
    return None
