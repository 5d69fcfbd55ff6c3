"""The laboratory's own programs that run inside guests, copied to a folder that the guest's Python can import from."""

from __future__ import annotations

import shutil
from pathlib import Path

from .. import processes, work
from ..pbs_standin import mom, pbs_module

MODULES = (processes, mom, pbs_module, work)
"""They use the standard library only: a guest has nothing else."""


def copy_programs(target: Path) -> None:
    """Copy the modules below `target`, each in its package."""
    for module in MODULES:
        assert module.__file__ is not None
        folder = target.joinpath(*module.__name__.split(".")[:-1])
        folder.mkdir(parents=True, exist_ok=True)
        for package in (folder, *folder.parents):
            if package == target:
                break
            (package / "__init__.py").touch()
        shutil.copy(module.__file__, folder)
