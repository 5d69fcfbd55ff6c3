"""An agent for MoM's hook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mom_rig import FakeAgent


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent is configured on this machine; returns the path of its socket."""
    path = tmp_path / "agent.sock"
    config = tmp_path / "agent.json"
    config.write_text(json.dumps({"channel": "unix:/x", "socket": str(path), "state": "/y"}))
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(config))
    return path


@pytest.fixture
def agent(configured: Path) -> Iterator[FakeAgent]:
    agent = FakeAgent(configured)
    yield agent
    agent.close()
