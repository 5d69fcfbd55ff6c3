"""The connection to the PBS stand-in."""

from __future__ import annotations

import socket
from pathlib import Path

from magrathea_lab.pbs_standin.client import reached


def test_a_server_is_reached_when_it_listens_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "pbs.sock"
    assert reached(path) is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert path.exists() and reached(path) is None
        server.listen()
        client = reached(path)
        assert client is not None
        client.close()
