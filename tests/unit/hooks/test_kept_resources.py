"""The way of a protected resource from PBS's server to the claim: the server's hook, and the agent's message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magrathea_lab.pbs_standin.pbs_module import Hook, HookJob, Server
from node_daemon.agent.lines import BadValue
from node_daemon.guest_channel.messages import Claim, decode
from scheduler_plugin.setup.hook_texts import hook_text
from scheduler_plugin.setup.kept_resources import KEEPS

SERVER = hook_text("magrathea_server")
CLASS = "magrathea_accepts"


def told(
    directory: Path, wanted: dict[str, Any], *protecting: str, siblings: str | None = "p1", chunk: str = ""
) -> Any:
    """What the server's hook tells MoM's of a job with these resources, as it starts."""
    config = directory / "hook.json"
    config.write_text(json.dumps({"heartbeat": "/none", "protecting": list(protecting)}))
    available = {"ncpus": 4} | ({"magrathea_siblings": siblings} if siblings else {})
    vnodes = {"n1": {"resources_available": available, "resources_assigned": {"ncpus": 0}, "jobs": None}}
    attributes = {
        "queue": "q",
        "schedselect": f"1:ncpus=1{chunk}:{CLASS}=preemptible",
        "exec_vnode": "(n1:ncpus=1)",
        "Resource_List": {"select": f"1:ncpus=1{chunk}", **wanted},
    }
    job = HookJob("1.srv", attributes, {CLASS: "preemptible"})
    server = Server("srv", vnodes | ({"p1": vnodes["n1"]} if siblings else {}), {}, None)
    outcome = Hook("magrathea_server", SERVER, config).run("runjob", server=server, job=job)
    assert outcome.accepted, outcome.message
    mark = job.Resource_List[KEEPS]
    return None if mark is None else str(mark)


SOME, NONE = ("1", "2.5", "10gb", "True", "blue"), ("0", "0kb", "0.0", "False")


@pytest.mark.parametrize("value", [*SOME, *NONE])
def test_the_servers_hook_tells_which_protected_resources_a_job_has(tmp_path: Path, value: str) -> None:
    expected = "lic_a" if value in SOME else None
    assert told(tmp_path, {"lic_a": value, "lic_b": "1"}, "lic_a", "lic_c") == expected


def test_all_of_them_are_told_and_one_of_a_chunk_too(tmp_path: Path) -> None:
    assert told(tmp_path, {"lic_a": "1"}, "lic_a", "os", chunk=":os=deb") == "lic_a,os"


def test_letters_may_have_either_case_as_in_pbs(tmp_path: Path) -> None:
    assert told(tmp_path, {}, "Os", chunk=":Os=deb") == told(tmp_path, {}, "Os", chunk=":OS=deb") == "Os"


def test_a_mark_that_a_user_has_set_is_taken_back(tmp_path: Path) -> None:
    assert told(tmp_path, {KEEPS: "lic_a"}, "lic_a") == "none"
    assert told(tmp_path, {KEEPS: "lic_a"}) == "none", "also if nothing is protected any more"


def test_vnodes_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    assert told(tmp_path, {"lic_a": "1"}, "lic_a", siblings=None) is None


def claim(keeps: str) -> bytes:
    job = {"id": "1.srv", "run": 1, "class": "preemptible", "cpus": 1, "rerunnable": True, "keeps": keeps}
    return json.dumps({"type": "request", "op": "claim", "id": 1, "session": "0" * 16, "job": job}).encode()


def test_the_daemon_reads_names_of_resources_and_nothing_else() -> None:
    message = decode(claim("lic_a,b-c.d")).message
    assert isinstance(message, Claim) and message.job.keeps == "lic_a,b-c.d"
    for bad in ("a b", "a\n", "\x1b[31m", "x" * 201, "\xe9"):
        with pytest.raises(BadValue):
            decode(claim(bad))
