"""The site's scripts run, are bounded, and never delay anything."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from magrathea_lab.waiting import BOUND_S, eventually, until
from node_daemon.life.script_runner import ScriptRunner


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


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
    named = tmp_path / "child"
    script(tmp_path / "before-preempt", f"sleep 1000 & echo $! > {named}; wait")

    async def test(limit_s: float) -> None:
        scripts = ScriptRunner(tmp_path, limit_s)
        scripts.run("before-preempt", {})
        assert scripts._running, "it was only started"
        await finished(scripts)

    for limit_s in (0.5, 5.0, BOUND_S / 2):  # on a busy machine its child is late
        asyncio.run(test(limit_s))
        if named.exists() and named.read_text():
            break
    assert "after its limit" in caplog.text
    until(lambda: has_ended(int(named.read_text())), "the end of its child")


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
