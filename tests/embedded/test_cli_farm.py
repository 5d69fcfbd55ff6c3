"""`magrathea hosts`, `status HOST`, `explain`, `preview` with a real hub and real daemons."""

from __future__ import annotations

import json
import time
from typing import Any

from click.testing import CliRunner

from magrathea import client
from magrathea.cli import main
from magrathea_lab.clusters.standin import StandInCluster
from magrathea_lab.waiting import BOUND_S


def said(*command: str) -> Any:
    result = CliRunner().invoke(main.cli, [*command, "--format", "json"])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def accepting(answers: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {answer["domain"]: answer["jobs"] for answer in answers if not answer["code"]}


def test_a_preview_by_hub_and_by_daemon_names_the_victim_and_changes_nothing() -> None:
    with StandInCluster() as cluster:
        hub = ("--hub", str(cluster.directory / "hub-control.sock"))
        low = cluster.submit("low", 1000)
        ask = ("preview", "--class", "priority", "-l", "select=1:ncpus=1")
        until = time.monotonic() + BOUND_S
        while not any(jobs for jobs in accepting(said(*ask, *hub)["chunks"][0]["answers"]).values()):
            assert time.monotonic() < until, cluster.picture()
            time.sleep(0.1)
        answers = said(*ask, *hub)["chunks"][0]["answers"]
        victim = next(a for a in answers if a["jobs"])
        assert victim["jobs"] == [low]
        socket = cluster.control_socket(victim["host"])
        by_daemon = accepting(said(*ask, "--socket", str(socket))["chunks"][0]["answers"])
        assert by_daemon[victim["domain"]] == [low]
        both = said("preview", "--class", "priority", "-l", "select=2:ncpus=1", *hub)
        assert sum(place["jobs"] == [low] for place in both["placed"]) <= 1, "a job is preempted once"
        assert [part["job"]["stopped_since"] for part in said("explain", low, *hub)] == [None]
        assert not any(job.stop for domain in client.status(socket).domains for job in domain.jobs)
        assert said("status", victim["host"], *hub)["host"] == victim["host"]
        story = said("history", low, *hub)
        assert {(entry["host"], entry["job"]) for entry in story} == {(victim["host"], low)}
        assert story == [{**entry, "host": victim["host"]} for entry in said("history", low, "--socket", str(socket))]
        assert {entry["host"] for entry in said("history", "--since", "1h", *hub)} == {"h1", "h2"}
        assert {"host", "domain"} == {row["what"] for row in said("hosts", *hub)}
