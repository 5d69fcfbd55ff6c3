"""Writes cpio archives ("newc"), the format of Linux's initial RAM disks. root owns everything in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class Archive:
    """One archive, written to `file` and closed at the end of the `with` block. Parent folders are made as needed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._serial = 0
        self._folders: set[str] = {""}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._entry("TRAILER!!!", 0, b"")

    def add(self, path: str, mode: int, content: bytes) -> None:
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._parents(path)
        if path not in self._folders:
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | mode, b"")

    def tree(self, root: Path) -> None:
        """Add everything in `root`: folders, files, symbolic links."""
        for parent, folders, files in os.walk(root):
            for name in sorted([*folders, *files]):
                path = Path(parent) / name
                inside = str(path.relative_to(root))
                if path.is_symlink():
                    self.link(inside, str(path.readlink()))
                elif path.is_dir():
                    self.folder(inside, stat.S_IMODE(path.stat().st_mode))
                elif path.is_file():
                    self.add(inside, stat.S_IMODE(path.stat().st_mode), path.read_bytes())

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._folders:
            self.folder(parent)

    def _entry(self, path: str, mode: int, content: bytes) -> None:
        self._serial += 1
        name = path.encode() + b"\0"
        fields = (self._serial, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._file.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))
