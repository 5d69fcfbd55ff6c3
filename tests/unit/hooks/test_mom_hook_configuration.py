"""MoM's hook and an agent configuration that it cannot read: no job starts, none is tried again at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.hooks.mom_rig import a_job, run

MAKERS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": os.mkdir,
    "no UTF-8": lambda path: path.write_bytes(b'{"socket": "/run/\xff"}'),
    "byte order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf{}"),
    "no JSON": lambda path: path.write_text("socket = /run/x"),
    "no object": lambda path: path.write_text("[1]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "empty": lambda path: path.write_text(""),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    config = tmp_path / "agent.json"
    MAKERS[kind](config)
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(config))
    for event in ("execjob_begin", "execjob_prologue"):
        refused = run(event, a_job(run_count=3))
        assert not refused.accepted and str(config) in refused.message and "magrathea-agent --check" in refused.message
        assert refused.changes["Execution_Time"] and refused.changes["run_count"] == 2
    for event in ("execjob_end", "execjob_preterm"):
        assert run(event, a_job()).accepted
    assert run("exechost_periodic", jobs=(a_job(),)).accepted
    assert run("exechost_startup").accepted
