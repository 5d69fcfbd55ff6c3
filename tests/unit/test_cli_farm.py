"""`magrathea hosts`, `explain`, `preview`: what they print for a hub's answer, and how names fold."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from magrathea import qstat
from magrathea.cli import main
from magrathea.core.model import JobClass, Kind, State
from magrathea.messages import (
    Chunk,
    DomainReport,
    ElsewhereView,
    FarmView,
    HostView,
    MoveView,
    Outlook,
    Snapshot,
    encode,
)
from magrathea.name_folding import fold
from magrathea.preview import outlook_farm
from tests.fakes.control_socket import AT, PREEMPTION, answering, domain, job, snapshot

NOBODY = 65534

WOULD = snapshot(
    domain("n1", State.RUNNING_PREEMPTIBLE, job("20.srv"), accepts=[JobClass.PREEMPTIBLE, JobClass.PROTECTED]),
    domain("p1", State.WOULD_PREEMPT, kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY]),
    hub_connected=True,
)


def asked(
    path: Path,
    command: list[str],
    *hosts: Snapshot,
    live: bool = True,
    moves: Sequence[MoveView] = (),
    elsewhere: Sequence[ElsewhereView] = (),
) -> Result:
    views = [HostView(live=live, snapshot=host) for host in hosts]
    lists = {"moves": list(moves), "elsewhere": list(elsewhere)}
    view = FarmView(at=AT, knows_pbs=True, hosts=views, booked=[], **lists)  # type: ignore[arg-type]
    with answering(path, encode(view) + b"\n"):
        return CliRunner().invoke(main.cli, [*command, "--hub", str(path)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub.sock"


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([f"node{n:03}" for n in range(1, 141)], "node[001-140]"),
        (["n9", "n10", "n11", "n13"], "n[9-11,13]"),
        (["n1", "n01"], "n01,n1"),
        (["a-1-b", "a-2-b", "login"], "a-[1-2]-b,login"),
        ([], ""),
    ],
)
def test_names_fold(names: list[str], folded: str) -> None:
    assert fold(names) == folded


@given(st.sets(st.from_regex(r"[ab]?[0-9]{1,3}[x]?", fullmatch=True), max_size=40))
def test_no_name_is_lost_or_added_by_folding(names: set[str]) -> None:
    assert set(unfolded(fold(names))) == names


def unfolded(text: str) -> list[str]:
    found: list[str] = []
    for name in filter(None, re.split(r",(?![^\[]*\])", text)):
        prefix, _, rest = name.partition("[")
        ranges, _, suffix = rest.partition("]")
        for part in ranges.split(",") if rest else ():
            first, _, last = part.partition("-")
            found += [f"{prefix}{n:0{len(first)}}{suffix}" for n in range(int(first), int(last or first) + 1)]
        if not rest:
            found.append(name)
    return found


def test_hosts_are_counted_by_state(path: Path) -> None:
    result = asked(path, ["hosts", "--format", "plain"], PREEMPTION)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "host\tlive\t1\th1",
        "domain\tpreempted\t1\tn1.cluster",
        "domain\trunning-priority\t1\tp1.cluster",
    ]


def test_a_paused_host_is_counted_as_such(path: Path) -> None:
    quiet = msgspec.structs.replace(PREEMPTION, paused="a look", paused_since=AT - 5)
    assert asked(path, ["hosts", "--format", "plain"], quiet).stdout.splitlines()[0] == "host\tpaused\t1\th1"


def test_a_silent_host_is_seen_and_its_domains_are_unknown(path: Path) -> None:
    result = asked(path, ["hosts", "--format", "json"], PREEMPTION, live=False)
    assert result.exit_code == 1
    assert [(row["state"], row["count"]) for row in json.loads(result.stdout)] == [("silent", 1), ("unknown", 2)]


MOVES = [
    MoveView(domain="n1", source="h1", target="h2", at=AT - 5, text="h1 copies it"),
    MoveView(domain="n2", source="h1", target="h2", at=0.0, text="h2 prepares"),
    MoveView(domain="n3", source="h1", target="h9", at=AT - 90, text="refused (no-visitors): \x1b[31mno", over=True),
]


def test_domains_on_their_way_are_counted_by_both_hosts_and_the_last_moves_are_told(path: Path) -> None:
    rows = asked(path, ["hosts", "--format", "plain"], PREEMPTION, moves=MOVES).stdout.splitlines()
    assert rows[-1] == "move\th1 -> h2\t2\tn[1-2]"
    lines = asked(path.with_name("two"), ["hosts"], PREEMPTION, moves=MOVES).stdout.splitlines()
    assert lines[-3:] == [
        "n1, from h1 to h2: h1 copies it (5 s ago)",
        "n2, from h1 to h2: h2 prepares",
        "n3, from h1 to h9: refused (no-visitors): \\x1b[31mno (90 s ago)",
    ]


def test_status_through_the_hub_names_what_moves_to_or_from_a_host(path: Path) -> None:
    lines = asked(path, ["status", "h1"], PREEMPTION, moves=MOVES).stdout.splitlines()
    assert lines[-2:] == [
        "on its way: n1, from h1 to h2: h1 copies it (5 s ago)",
        "on its way: n2, from h1 to h2: h2 prepares",
    ]


def test_a_job_in_a_domain_on_its_way_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = asked(path, ["explain", "12"], PREEMPTION, moves=MOVES).stdout.splitlines()
    assert lines[-1] == "n1, from h1 to h2: h1 copies it (5 s ago)"
    attributes = {"job_state": "S", "exec_vnode": "(n1:ncpus=2)", "schedselect": "1:ncpus=2"}
    monkeypatch.setattr(qstat, "job", lambda id: ("99.srv", attributes))
    result = asked(path.with_name("two"), ["explain", "99", "--format", "plain"], PREEMPTION, moves=MOVES)
    assert (result.exit_code, result.stdout) == (0, "h1\th2\tn1\th1 copies it\n")


GOES = ElsewhereView(domain="n1", host="h1", to="h2", since=AT - 700, text="preempted for 700 s, and there is room")
STAYS = ElsewhereView(domain="n1", host="h1", to="", since=AT - 700, text="it moved 5 s ago; it rests for 600 s")
OTHER = ElsewhereView(domain="n7", host="h3", to="", since=AT - 700, text="h3 is paused")


@pytest.mark.parametrize(
    ("view", "line"),
    [
        (GOES, "n1 is to go on at h2 instead of h1: preempted for 700 s, and there is room"),
        (STAYS, "n1 stays on h1: it moved 5 s ago; it rests for 600 s"),
    ],
)
def test_it_is_said_why_a_preempted_domain_goes_elsewhere_or_does_not(
    path: Path, view: ElsewhereView, line: str
) -> None:
    views = [view, OTHER]
    explained = asked(path, ["explain", "12"], PREEMPTION, elsewhere=views).stdout.splitlines()
    assert explained[-1] == line
    told = asked(path.with_name("2"), ["explain", "12", "--format", "json"], PREEMPTION, elsewhere=views).stdout
    assert json.loads(told)[0]["elsewhere"]["text"] == view.text
    hosts = asked(path.with_name("3"), ["hosts"], PREEMPTION, elsewhere=views).stdout.splitlines()
    assert hosts[-2:] == [line, "n7 stays on h3: h3 is paused"]
    status = asked(path.with_name("4"), ["status", "h1"], PREEMPTION, elsewhere=views).stdout.splitlines()
    assert status[-1] == f"preempted: {line}"


@pytest.mark.parametrize("name", ["12", "12.srv"])
def test_a_preempted_job_is_explained(path: Path, name: str) -> None:
    result = asked(path, ["explain", name, "--format", "plain"], PREEMPTION)
    assert result.exit_code == 0, result.output
    assert result.stdout == "h1\tn1\tn1.cluster\tpreemptible\tstopped 35 s for 13.srv\t35\t1\n"


def test_a_waiting_job_is_explained_by_the_answer_of_each_domain(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(id: str) -> tuple[str, dict[str, object]]:
        select = "1:ncpus=1:magrathea_accepts=priority"
        return f"{id}.srv", {"job_state": "Q", "schedselect": select, "comment": "Not Running: wait"}

    monkeypatch.setattr(qstat, "job", waiting)
    result = asked(path, ["explain", "30"], WOULD)
    assert result.exit_code == 0, result.output
    assert "it fits now; it would preempt 20.srv" in result.stdout
    assert "30.srv: state Q, class priority, on no host; PBS: Not Running: wait" in result.stdout
    assert "accepts" in result.stdout
    assert "n1 (20.srv)" in result.stdout


def test_a_job_that_nobody_knows_has_its_exit_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(id: str) -> tuple[str, dict[str, object]]:
        raise qstat.NoQstat("Unknown Job Id")

    monkeypatch.setattr(qstat, "job", unknown)
    result = asked(path, ["explain", "99"], WOULD)
    assert result.exit_code == 1
    assert "Unknown Job Id" in result.stderr


def test_a_preview_names_the_victims_and_changes_nothing(path: Path) -> None:
    command = ["preview", "--class", "priority", "-l", "select=1:ncpus=2", "--format", "plain"]
    result = asked(path, command, WOULD)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "2\th1\tp1\tp1.cluster\taccepts\tn1 (20.srv)\t1\t-"
    assert asked(path.with_name("two"), [*command[:3], "-l", "select=2:ncpus=2"], WOULD).exit_code == 1


@pytest.mark.parametrize("wrong", [["-l", "select=x:ncpus"], ["-l", "ncpus=1"], ["-l", "select=1:ncpus=many"]])
def test_a_select_that_cannot_be_read_is_wrong_usage(path: Path, wrong: list[str]) -> None:
    result = CliRunner().invoke(main.cli, ["preview", "--class", "priority", *wrong, "--hub", str(path)])
    assert result.exit_code == 2


def test_a_silent_host_accepts_nothing_in_a_preview() -> None:
    views = [HostView(live=False, snapshot=WOULD)]
    outlook = outlook_farm(views, JobClass.PRIORITY, [Chunk(1, 1)])
    assert {answer.code for answer in outlook.chunks[0].answers} == {"host-unknown"}
    assert not outlook.fits


# Adding up


def named(host: str, *domains: DomainReport, **more: object) -> Snapshot:
    return msgspec.structs.replace(snapshot(*domains, hub_connected=True, **more), host=host)


def would(host: str, victim: str, cpus: int = 2) -> Snapshot:
    return named(
        host,
        domain("n1", State.RUNNING_PREEMPTIBLE, job(victim), accepts=[JobClass.PREEMPTIBLE], ncpus=cpus),
        domain("p1", State.WOULD_PREEMPT, kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY], ncpus=cpus),
        cpus=cpus,
    )


def outlook(hosts: list[Snapshot], *chunks: Chunk, cls: JobClass = JobClass.PRIORITY) -> Outlook:
    return outlook_farm([HostView(live=True, snapshot=host) for host in hosts], cls, chunks)


def places(found: Outlook) -> list[tuple[int, str, str, list[str]]]:
    return [(place.chunk, place.host, place.domain, place.jobs) for place in found.placed]


def test_each_chunk_finds_only_what_the_chunks_before_leave() -> None:
    hosts = [would("h1", "20.srv"), would("h2", "21.srv")]
    assert places(outlook(hosts, Chunk(2, 2))) == [(0, "h1", "p1", ["20.srv"]), (0, "h2", "p1", ["21.srv"])]
    three = outlook(hosts, Chunk(3, 2))
    assert (len(three.placed), three.fits) == (2, False)


def test_a_host_is_preempted_once_for_all_chunks_that_it_takes() -> None:
    found = outlook([would("h1", "20.srv", cpus=4)], Chunk(1, 2), Chunk(2, 1))
    assert places(found) == [(0, "h1", "p1", ["20.srv"]), (1, "h1", "p1", []), (1, "h1", "p1", [])]
    assert found.fits


def test_domains_that_need_not_preempt_come_first() -> None:
    free = named("h2", domain("p1", kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY], rank=500))
    assert places(outlook([would("h1", "20.srv"), free], Chunk(1, 1))) == [(0, "h2", "p1", [])]


def test_on_an_exclusive_host_chunks_do_not_go_to_two_domains() -> None:
    both = named("h1", *(domain(name, kind=Kind.PRIORITY, accepts=[JobClass.PRIORITY]) for name in ("p1", "p2")))
    assert len(outlook([both], Chunk(1, 2), Chunk(1, 2)).placed) == 1


def test_a_paused_host_is_preempted_by_nothing_in_a_preview() -> None:
    quiet = msgspec.structs.replace(would("h1", "20.srv"), paused="a look", paused_since=AT - 5)
    assert not outlook([quiet], Chunk(1, 1)).fits


def test_all_chunks_together_are_summed_up_in_a_sentence(path: Path) -> None:
    ask = ["preview", "--class", "priority", "-l"]
    for number, (select, code, sentence) in enumerate(
        (
            ("select=1:ncpus=2", 0, "it fits now; it would preempt 20.srv"),
            ("select=1:ncpus=1+1:ncpus=1", 0, "it fits now, all 2 chunks of it; it would preempt 20.srv"),
            ("select=1:ncpus=1+1:ncpus=2", 1, "it does not fit now: 1 of 2 chunks find a place"),
        )
    ):
        result = asked(path.with_name(str(number)), [*ask, select], would("h1", "20.srv"))
        assert result.exit_code == code, result.output
        assert sentence in result.stdout.splitlines()[0]


def test_every_chunk_of_a_waiting_job_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    select = "1:ncpus=2:magrathea_accepts=priority+1:ncpus=1:magrathea_accepts=priority"
    monkeypatch.setattr(qstat, "job", lambda id: ("30.srv", {"job_state": "Q", "schedselect": select}))
    facts = json.loads(asked(path, ["explain", "30", "--format", "json"], would("h1", "20.srv")).stdout)
    assert [part["chunk"] for part in facts["chunks"]] == [[1, 2, 0], [1, 1, 0]]
    assert (facts["fits"], len(facts["placed"])) == (False, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: changing the user needs root")
def test_a_jobs_owner_may_ask_why_it_waits() -> None:
    """As a user without rights: the command itself, and the user's own qstat on PATH."""
    view = FarmView(at=AT, knows_pbs=True, hosts=[HostView(live=True, snapshot=WOULD)], booked=[])
    with tempfile.TemporaryDirectory() as name, answering(Path(name) / "hub", encode(view) + b"\n"):
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "hub").chmod(0o666)
        job = "Job Id: 30.srv\n    job_state = Q\n    schedselect = 1:ncpus=1:magrathea_accepts=priority\n"
        (folder / "qstat").write_text(f"#!/bin/sh\ncat << end\n{job}end\n", encoding="utf-8")
        (folder / "qstat").chmod(0o755)
        program = ["explain", "30", "--hub", str(folder / "hub")]
        importlib.import_module("magrathea.cli.farm")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                os.environ["PATH"] = f"{folder}:/usr/bin:/bin"
                result = CliRunner().invoke(main.cli, program)
                os.write(write, f"{result.exit_code} {result.output}".encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
    assert told.startswith("0 30.srv: state Q, class priority, on no host"), told
    assert "n1 (20.srv)" in told


def test_a_note_that_all_hosts_have_is_shown_once(path: Path) -> None:
    both = [named(host, domain("n1"), notes=["memory is not moved", f"of {host}"]) for host in ("h1", "h2")]
    lines = asked(path, ["status"], *both).stdout.splitlines()
    assert [line for line in lines if line.startswith("note")] == [
        "note: of h1",
        "note: of h2",
        "note, of all hosts: memory is not moved",
    ]


def test_a_live_hosts_times_are_current_whatever_the_age_of_its_snapshot(path: Path) -> None:
    quiet = msgspec.structs.replace(PREEMPTION, at=AT - 80)
    for live, since in ((True, "90 s"), (False, "10 s")):
        result = asked(path.with_name(since), ["status"], quiet, live=live)
        assert since in next(line for line in result.stdout.splitlines() if line.startswith("n1"))


def test_a_domain_of_another_kind_reports_it(path: Path) -> None:
    result = asked(path, ["preview", "--class", "priority", "--format", "plain"], WOULD)
    assert result.stdout.splitlines()[1].split("\t")[4] == "wrong-class"


def test_without_a_hub_the_exit_code_shows_it(path: Path) -> None:
    result = CliRunner().invoke(main.cli, ["hosts", "--hub", str(path)])
    assert result.exit_code == 3
    assert "the hub does not answer" in result.stderr


def test_status_through_the_hub_shows_a_host_or_all(path: Path) -> None:
    result = asked(path, ["status", "h1", "--format", "plain"], PREEMPTION)
    assert result.exit_code == 0, result.output
    assert next(line.split("\t")[:4] for line in result.stdout.splitlines()) == ["h1", "n1", "normal", "preempted"]
    every = asked(path.with_name("two"), ["status", "--format", "json"], PREEMPTION)
    assert [host["host"] for host in json.loads(every.stdout)] == ["h1"]
    assert asked(path.with_name("three"), ["status", "h9"], PREEMPTION).exit_code == 2
