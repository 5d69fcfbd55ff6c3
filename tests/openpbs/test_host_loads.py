"""The hub's file about a counted host, and what the runjob hook makes of it, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magrathea.pbs_text.host_loads import load_path
from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD
from magrathea_lab.fleet import COUNTED
from magrathea_lab.scenarios.scenarios import wait, wait_all_free, wait_running
from scheduler_plugin.setup.hook_texts import hook_text

from .jobs import LONG

ASKS = "def assigned_cpus(vnode):\n"
SAYS = 'pbs.logmsg(pbs.EVENT_ERROR, "asked for the sum of " + str(vnode.name))\n'


@contextmanager
def with_a_hook_that_says_what_it_asks(fleet: OpenPbsCluster) -> Iterator[None]:
    text = hook_text("magrathea_server")
    at = text.index(ASKS) + len(ASKS)
    hook(fleet, f"{text[:at]}    {SAYS}{text[at:]}")
    try:
        yield
    finally:
        hook(fleet, text)


def hook(fleet: OpenPbsCluster, text: str) -> None:
    file = fleet.directory / "magrathea_server.text"
    file.write_text(text, encoding="utf-8")
    fleet.pbs.run(HEAD, ["qmgr", "-c", f"import hook magrathea_server application/x-python default {file}"])


def asked(fleet: OpenPbsCluster) -> int:
    """How often the server's log has that the hook asked for a vnode's sum."""
    logs = (fleet.pbs.pbs_home(HEAD) / "server_logs").glob("*")
    return sum(path.read_text(errors="replace").count("asked for the sum of ") for path in logs)


def shown(fleet: OpenPbsCluster) -> dict[str, dict[str, Any]]:
    """The jobs in the file about the counted host, by vnode; empty without a file."""
    path = load_path(str(fleet.pbs.pbs_home(HEAD) / "magrathea.heartbeat"), COUNTED.name)
    assert path is not None
    try:
        return dict(json.loads(Path(path).read_text())["vnodes"])
    except FileNotFoundError:
        return {}


def test_a_start_on_a_counted_host_asks_for_no_sums_while_the_hubs_file_tells_enough(fleet: OpenPbsCluster) -> None:
    with fleet.only(COUNTED), with_a_hook_that_says_what_it_asks(fleet):
        wait(fleet, "the file has all vnodes", lambda: shown(fleet).keys() == {"n2", "n3", "p3"})
        first = fleet.submit("low", LONG, select="1:ncpus=1:host=n2")  # the hook's first event may be this one
        wait_running(fleet, first)
        wait(fleet, "the file shows it", lambda: first in shown(fleet)["n2"])

        def starts_unasked() -> bool:
            """Jobs until the hub has compared once since the hook remembers."""
            sums = asked(fleet)
            job = fleet.submit("low", LONG, select="1:ncpus=1:host=n3")
            wait_running(fleet, job)
            wait(fleet, "the file shows it", lambda: job in shown(fleet).get("n3", {}))
            quiet = asked(fleet) == sums
            fleet.delete(job)
            wait(fleet, "the file shows it no longer", lambda: job not in shown(fleet).get("n3", {job: 0}))
            return quiet

        wait(fleet, "a start without questions", starts_unasked)
        fleet.delete(first)
        wait_all_free(fleet, COUNTED)


def test_the_hub_removes_what_a_former_hub_wrote_and_writes_it_again(fleet: OpenPbsCluster) -> None:
    wait(fleet, "there is a file", lambda: bool(shown(fleet)))
    fleet.parts["hub"].kill()
    stray = Path(str(load_path(str(fleet.pbs.pbs_home(HEAD) / "magrathea.heartbeat"), "stray")))
    stray.write_text("{}")
    fleet.start_part("hub")
    wait(fleet, "the stray file is gone", lambda: not stray.exists())
    wait(fleet, "there is a file again", lambda: bool(shown(fleet)))
    wait_all_free(fleet, COUNTED)
