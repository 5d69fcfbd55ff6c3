"""The hook for vnodes: what it sets in which run, and what a folder of another user can do to it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scheduler_plugin.setup.hook_texts import hook_text
from tests.fakes.hook_vnode import HookVnode

IN_MAINTENANCE = 0x20000
LEFT = {"the request": "as it lies there"}


class Vnode(HookVnode):
    def __init__(self, state: int = 0, siblings: str | None = "p1") -> None:
        super().__init__("n1", state, siblings)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the hook for a request about n1; return its answer."""
    config = tmp_path / "hook.json"
    config.write_text(json.dumps({"heartbeat": str(tmp_path / "heartbeat")}))

    def run(
        vnode: Vnode | None, number: int = 1, when: str = "free", asked: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        pbs = ModuleType("pbs")
        accepted: list[bool] = []
        vnodes = {} if vnode is None else {"n1": vnode}
        event = SimpleNamespace(vnode_list=vnodes, accept=lambda: accepted.append(True))
        for name, value in {
            "event": lambda: event,
            "hook_config_filename": str(config),
            "logmsg": lambda level, text: None,
            "EVENT_DEBUG3": 0,
            "EVENT_ERROR": 0,
            "UnsetResourceNameError": type("UnsetResourceNameError", (Exception,), {}),
        }.items():
            setattr(pbs, name, value)
        monkeypatch.setitem(sys.modules, "pbs", pbs)
        if asked is None or asked != LEFT:
            (tmp_path / "heartbeat.forget").write_text(json.dumps({"n1": [number, when]} if asked is None else asked))
        exec(compile(hook_text("magrathea_vnodes"), "magrathea_vnodes", "exec"), {"__name__": "hook"})
        assert accepted, "a rejection inherited from another event would hang the server"
        answers = tmp_path / "heartbeat.forgotten"
        found: dict[str, Any] = json.loads(answers.read_text()) if answers.exists() else {}
        return found

    return run


def test_the_database_gets_nobodys_name_and_then_the_memory_is_emptied(run: Callable[..., Any]) -> None:
    vnode = Vnode()
    assert run(vnode) == {"n1": [1, 1]} and vnode.set == ["none"]
    assert run(vnode) == {"n1": [1, 2]} and vnode.set == ["none", ""]
    assert run(vnode) == {"n1": [1, 2]} and vnode.set == ["none", ""]
    assert run(vnode, number=2) == {"n1": [2, 1]} and vnode.set == ["none", "", "none"]


@pytest.mark.parametrize("asked", [{}, {"n1": [7, "free"]}, {"n1": [7, "stuck"]}])
def test_a_former_hubs_request_is_not_left_half_done(run: Callable[..., Any], asked: dict[str, Any]) -> None:
    vnode = Vnode()
    assert run(vnode) == {"n1": [1, 1]}
    assert run(vnode, asked=asked) == {"n1": [1, 2]} and vnode.set == ["none", ""]
    assert run(vnode, asked=asked) == ({"n1": [7, 1]} if asked else {})


def test_a_vnode_in_maintenance_for_somebody_is_left_alone(run: Callable[..., Any]) -> None:
    vnode = Vnode(IN_MAINTENANCE)
    for when in ("free", "ours"):
        assert run(vnode, when=when) == {} and vnode.set == []


def test_a_suspend_between_the_two_runs_is_waited_for_unless_it_is_ours(run: Callable[..., Any]) -> None:
    assert run(Vnode()) == {"n1": [1, 1]}
    vnode = Vnode(IN_MAINTENANCE)
    assert run(vnode) == {"n1": [1, 1]} and vnode.set == []
    assert run(vnode, when="ours") == {"n1": [1, 2]} and vnode.set == [""]


def test_a_vnode_that_is_stuck_is_emptied_in_maintenance(run: Callable[..., Any]) -> None:
    vnode = Vnode(IN_MAINTENANCE)
    run(vnode, when="stuck")
    assert run(vnode, when="stuck") == {"n1": [1, 2]} and vnode.set == ["none", ""]


@pytest.mark.parametrize("vnode", [None, Vnode(siblings=None)], ids=["unknown", "not ours"])
def test_other_vnodes_are_not_changed(run: Callable[..., Any], vnode: Vnode | None) -> None:
    assert run(vnode) == {}
    assert vnode is None or vnode.set == []


def test_a_link_in_the_hubs_folder_is_replaced_and_never_followed(run: Callable[..., Any], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("{}")
    (tmp_path / "heartbeat.forgotten").symlink_to(precious)
    (tmp_path / "heartbeat.forgotten.new").symlink_to(precious)
    assert run(Vnode()) == {"n1": [1, 1]}
    assert precious.read_text() == "{}"
    assert not (tmp_path / "heartbeat.forgotten").is_symlink()


UNREADABLE = ('{"n1":[1,', "[" * 3000, "7", '{"n1":7}', '{"n1":[1e999,"free"]}', '{"n1":[null,"free"]}', "\xff")


@pytest.mark.parametrize("text", UNREADABLE)
@pytest.mark.parametrize("name", ["heartbeat.forget", "heartbeat.forgotten"])
def test_a_file_that_cannot_be_read_is_answered_like_none(
    run: Callable[..., Any], tmp_path: Path, text: str, name: str
) -> None:
    """`run` requires that the event is accepted: without an answer the server would hang."""
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    asked = LEFT if name.endswith("forget") else None
    assert run(vnode := Vnode(), asked=asked) == ({} if asked else {"n1": [1, 1]})
    assert vnode.set == ([] if asked else ["none"])


def test_a_pipe_in_the_hubs_folder_keeps_nobody_waiting(run: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "heartbeat.forget")
    assert run(vnode := Vnode(), asked=LEFT) == {}
    assert vnode.set == []


def test_a_link_in_the_hubs_folder_is_not_read(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text('{"n1":[1,"free"]}')
    (tmp_path / "heartbeat.forget").symlink_to(tmp_path / "precious")
    assert run(vnode := Vnode(), asked=LEFT) == {}
    assert vnode.set == []


def test_the_event_is_accepted_although_the_answer_cannot_be_written(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "heartbeat.forgotten.new").mkdir()
    run(Vnode())
