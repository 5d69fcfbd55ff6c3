"""The site's scripts run, are bounded, and never delay anything."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from magrathea_lab.waiting import eventually
from node_daemon.life.script_runner import ScriptRunner


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def finished(scripts: ScriptRunner) -> None:
    await eventually(lambda: not scripts._running, "the scripts' end")


def test_scripts_of_a_name_run_in_order_with_what_they_need(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script(tmp_path / "before-preempt", f'echo "first $MAGRATHEA_DOMAIN" >> {tmp_path}/out; echo seen; exit 3')
    script(tmp_path / "before-preempt.d" / "20", f"echo third >> {tmp_path}/out")
    script(tmp_path / "before-preempt.d" / "10", f"echo second >> {tmp_path}/out")
    (tmp_path / "before-preempt.d" / "15").write_text("not executable")

    async def test() -> None:
        scripts = ScriptRunner(tmp_path, 10)
        scripts.run("before-preempt", {"MAGRATHEA_DOMAIN": "n1"})
        scripts.run("after-preempt", {})
        await finished(scripts)

    with caplog.at_level(logging.INFO):
        asyncio.run(test())
    assert (tmp_path / "out").read_text().split("\n") == ["first n1", "second", "third", ""]
    assert "exit code 3" in caplog.text and "seen" in caplog.text


def test_a_script_has_a_time_limit_and_its_children_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script(tmp_path / "before-preempt", f"sleep 1000 & echo $! > {tmp_path}/child; wait")

    async def test() -> None:
        scripts = ScriptRunner(tmp_path, 0.5)
        scripts.run("before-preempt", {})
        assert scripts._running, "it was only started"
        await finished(scripts)

    asyncio.run(test())
    assert "after its limit" in caplog.text
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    assert not child.exists() or " Z " in child.read_text()


@pytest.mark.parametrize("value", ["12.srv\0", "\ud800"])
def test_a_value_that_no_process_can_be_given_costs_that_script_and_not_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    script(tmp_path / "before-preempt", f"echo $MAGRATHEA_JOBS >> {tmp_path}/out")

    async def test() -> None:
        scripts = ScriptRunner(tmp_path, 10)
        await scripts.finish("before-preempt", {"MAGRATHEA_JOBS": value})
        await scripts.finish("before-preempt", {"MAGRATHEA_JOBS": "13.srv"})

    asyncio.run(test())
    assert (tmp_path / "out").read_text() == "13.srv\n"
    assert caplog.text.count("WARNING") == 1


def test_a_flood_of_output_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script(tmp_path / "before-preempt", "yes | head -c 1000000")

    async def test() -> None:
        scripts = ScriptRunner(tmp_path, 10)
        scripts.run("before-preempt", {})
        await finished(scripts)

    with caplog.at_level(logging.INFO):
        asyncio.run(test())
    assert "exit code 0" in caplog.text and caplog.text.count(": y") < 10_000


def test_no_folder_and_a_broken_script_are_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "before-preempt").write_bytes(b"\x00\x01")
    (tmp_path / "before-preempt").chmod(0o755)

    async def test() -> None:
        ScriptRunner(None, 10).run("before-preempt", {})
        ScriptRunner(tmp_path / "nowhere", 10).run("before-preempt", {})
        broken = ScriptRunner(tmp_path, 10)
        broken.run("before-preempt", {})
        await finished(broken)

    asyncio.run(test())
    assert "Exec format error" in caplog.text
