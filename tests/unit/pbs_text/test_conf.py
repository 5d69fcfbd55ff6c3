"""pbs.conf as PBS itself reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from magrathea.pbs_text.conf import read_conf


def test_names_and_values(tmp_path: Path) -> None:
    path = tmp_path / "pbs.conf"
    path.write_bytes(
        b"PBS_EXEC=/opt/pbs\n  # PBS_HOME=/wrong\n\t PBS_HOME=/var/spool/pbs  \r\nno value\n\n"
        b'PBS_SERVER=one\nPBS_SERVER=two\nPBS_X="a=b"\nPBS_DIR=/j\xfcrgen\nPBS_EMPTY='
    )
    assert read_conf(path) == {
        "PBS_EXEC": "/opt/pbs",
        "PBS_HOME": "/var/spool/pbs",
        "PBS_SERVER": "two",
        "PBS_X": '"a=b"',
        "PBS_DIR": "/j\udcfcrgen",
        "PBS_EMPTY": "",
    }


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_conf(tmp_path / "pbs.conf")
