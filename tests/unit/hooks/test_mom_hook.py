"""MoM's hook with an agent that gives a test's answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from .mom_rig import FakeAgent, a_job, run


def test_without_an_agent_configured_everything_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(tmp_path / "none.json"))
    for event in ("execjob_begin", "execjob_prologue", "execjob_end", "execjob_abort"):
        assert run(event, a_job()).accepted
    assert run("exechost_periodic").accepted
    assert run("exechost_startup").accepted


def test_a_claim_has_everything_that_the_agent_needs(agent: FakeAgent) -> None:
    assert run("execjob_begin", a_job()).accepted
    [request] = agent.heard
    assert request.pop("deadline_s") <= 1.8
    assert request == {
        "op": "claim",
        "job": {
            "id": "12.srv", "run": 2, "class": "preemptible", "cpus": 2, "memory_mib": 100,
            "rerunnable": True, "owner": "alice", "prologue": False,
        },
        "home": "/nowhere",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"Variable_List": {"MAGRATHEA_SIGNAL": "B:USR1@30"}}, "B:USR1@30"),
        ({"Resource_List": {"stop_signal": "USR2"}}, "USR2"),
        ({"Variable_List": {"MAGRATHEA_SIGNAL": "USR1"}, "Resource_List": {"stop_signal": "USR2"}}, "USR1"),
        ({"Variable_List": {"MAGRATHEA_SIGNAL": "USR1@" + "9" * 60}}, None),
        ({"Resource_List": {"select": "1"}}, None),
    ],
)
def test_a_claim_and_a_list_say_which_warning_the_job_or_its_queue_asks_for(
    agent: FakeAgent, tmp_path: Path, changes: dict[str, Any], asked: str | None
) -> None:
    hooks = tmp_path / "mom_priv" / "hooks"
    hooks.mkdir(parents=True)
    assert run("execjob_begin", a_job(**changes), pbs_home=tmp_path).accepted
    (hooks / "magrathea_prologue.HK").touch()
    assert run("exechost_periodic", jobs=(a_job(**changes),), pbs_home=tmp_path).accepted
    claim, listed = agent.heard[0]["job"], agent.heard[1]["jobs"][0]
    assert (claim.get("warning"), listed.get("warning")) == (asked, asked)
    assert claim["prologue"] is False, "it has to wait for others that are warned"
    assert listed.get("prologue") is (None if asked is None else True)


def test_a_job_that_starts_pays_for_no_parser(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    """json and socket cost 7 ms of PBS's own interpreter at each start of a job."""
    imported: list[str] = []
    real = __import__

    def spy(name: str, *args: Any, **kwargs: Any) -> Any:
        imported.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", spy)
    assert run("execjob_begin", a_job()).accepted
    assert set(imported) & {"json", "socket", "re", "subprocess"} == set()


def test_a_subjob_that_the_servers_hook_has_marked_is_refused_without_a_claim_and_at_once(agent: FakeAgent) -> None:
    """Without a later execution time PBS tries it again at once, and soon holds the array: after the first start, if it
    is the job itself that can start nowhere."""
    for code, counts in (("class-differs", 21), ("no-class", 21), ("two-domains", None), ("too-big", None)):
        refused = run("execjob_begin", a_job(id="12[3].srv", run_count=1, Variable_List={"MAGRATHEA_REFUSED": code}))
        assert not refused.accepted and code in refused.message
        assert refused.changes.get("run_count") == counts
    assert "Execution_Time" not in refused.changes and agent.heard == []
    forged = run("execjob_begin", a_job(Variable_List={"MAGRATHEA_REFUSED": "x\n\x1b[2J"}))
    assert not forged.accepted and forged.message.isprintable()
    assert run("execjob_begin", a_job(Variable_List={"HOME": "/"})).accepted


@pytest.mark.parametrize("host", ["head:", ""])
def test_a_subjob_whose_variables_no_hook_can_read_is_refused_once(agent: FakeAgent, host: str) -> None:
    marked = a_job(id="12[3].srv", run_count=1, Variable_List=None, Output_Path=f"{host}/magrathea-refused")
    refused = run("execjob_begin", marked)
    assert not refused.accepted and refused.changes == {"run_count": 21} and agent.heard == []
    assert run("execjob_begin", a_job(Output_Path="head:/home/alice/magrathea-refused")).accepted


def test_a_refusal_sets_a_later_execution_time(agent: FakeAgent) -> None:
    agent.answers["claim"] = {"ok": False, "code": "host-busy", "text": "n2 runs 3.srv", "retry_after_s": 7}
    before = time.time()
    refused = run("execjob_begin", a_job())
    assert not refused.accepted
    assert "n2 runs 3.srv (host-busy)" in refused.message
    assert before + 6 <= refused.changes["Execution_Time"] <= time.time() + 9


@pytest.mark.parametrize(("counted", "left"), [(1, 0), (7, 6), (21, 20), (1000, 20), (0, 0), (None, 0)])
def test_a_refusal_takes_back_the_start_that_pbs_counted(configured: Path, counted: int | None, left: int) -> None:
    """PBS holds a job if a start fails and its count is above 20, however that came to be."""
    refused = run("execjob_begin", a_job(run_count=counted))
    assert not refused.accepted
    assert refused.changes["run_count"] == left


def test_a_granted_start_counts(agent: FakeAgent) -> None:
    assert run("execjob_begin", a_job(run_count=3)).changes == {}


def test_a_refused_subjob_does_not_wait_because_pbs_finishes_an_array_whose_last_subjobs_wait(configured: Path) -> None:
    refused = run("execjob_begin", a_job(id="12[3].srv", run_count=1))
    assert not refused.accepted
    assert refused.changes == {"run_count": 0}


LOG = "11/30/2026 22:40:57.3;0008;pbs_mom;Job;12.srv;job_start_error {code} from node 10.0.0.2:15003 could not JOIN_JOB"


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([LOG.format(code=15169)], 4),  # a hook there rejected it
        ([LOG.format(code=15023)], None),  # another failure, which PBS may count
        ([LOG.format(code=15169), LOG.format(code=15023)], None),  # the last one counts
        ([LOG.format(code=15169).replace("12.srv", "112.srv")], None),
        ([], None),
        (["x" * 20000, LOG.format(code=15169), "\xff"], 4),
    ],
)
def test_the_first_mom_takes_back_the_start_of_a_job_that_another_host_refused(
    agent: FakeAgent, tmp_path: Path, lines: list[str], left: int | None
) -> None:
    (tmp_path / "mom_logs").mkdir()
    (tmp_path / "mom_logs" / time.strftime("%Y%m%d")).write_text("\n".join(lines), encoding="latin-1")
    both = {"exec_vnode": "(n1:ncpus=2)+(n4:ncpus=2)", "exec_host2": "n1:15002/0*2+n4:15002/0*2"}
    done = run("execjob_abort", a_job(run_count=5, **both), pbs_home=tmp_path)
    assert [request["op"] for request in agent.heard] == ["release"]
    assert done.changes.get("run_count") == left
    alone = run("execjob_abort", a_job(run_count=5), pbs_home=tmp_path)
    sister = run("execjob_abort", a_job(run_count=5, mother_superior=False, **both), pbs_home=tmp_path)
    assert (alone.changes, sister.changes) == ({}, {})


def test_an_agent_that_is_not_there_refuses_with_a_later_execution_time(configured: Path) -> None:
    refused = run("execjob_begin", a_job())
    assert not refused.accepted
    assert "magrathea-agent" in refused.message
    assert refused.changes["Execution_Time"] > time.time() + 1


@pytest.mark.long
def test_an_agent_that_never_answers_is_given_up_within_two_seconds_and_the_claim_taken_back(agent: FakeAgent) -> None:
    agent.answers["claim"] = None
    refused = run("execjob_begin", a_job())
    assert not refused.accepted
    assert refused.changes["Execution_Time"] > time.time() + 1
    assert refused.ms < 2000 + 500  # the hook's own bound, and time for a busy machine
    assert [request["op"] for request in agent.heard] == ["claim", "release"]
    assert agent.heard[1]["job"] == {"id": "12.srv", "run": 2}


def test_a_claim_that_timed_out_behind_the_agent_is_taken_back(agent: FakeAgent) -> None:
    agent.answers["claim"] = {"ok": False, "code": "timeout", "text": "no answer", "retry_after_s": 5}
    assert not run("execjob_begin", a_job()).accepted
    assert [request["op"] for request in agent.heard] == ["claim", "release"]


@pytest.mark.parametrize("answer", [b"", b"\n", b"nonsense\n", b"[]\n", b'{"ok": 1}\n'])
def test_an_answer_that_makes_no_sense_refuses(agent: FakeAgent, answer: bytes) -> None:
    agent.answers["claim"] = answer
    refused = run("execjob_begin", a_job())
    assert not refused.accepted
    assert refused.changes["Execution_Time"] > time.time()


def test_an_answer_in_another_order_of_words_is_understood(agent: FakeAgent) -> None:
    agent.answers["claim"] = b'{"id": 3, "ok": true}\n'
    assert run("execjob_begin", a_job()).accepted


@pytest.mark.parametrize(
    ("schedselect", "cls"),
    [
        ("1:ncpus=1:magrathea_accepts=priority", "priority"),
        ("1:ncpus=1:magrathea_accepts=preemptible+2:ncpus=1:magrathea_accepts=preemptible", "preemptible"),
        ("1:ncpus=1:magrathea_accepts=protected", "protected"),
        ("1:ncpus=1", "protected"),
        ("1:ncpus=1:magrathea_accepts=priority+1:ncpus=1", "protected"),
        ("1:ncpus=1:magrathea_accepts=priority+1:ncpus=1:magrathea_accepts=preemptible", "protected"),
        ('1:ncpus=1:software="x:magrathea_accepts=priority"', "protected"),
        ("1:ncpus=1:magrathea_accepts=emperor", "protected"),
        ("1:ncpus=1:software='x+y':magrathea_accepts=priority", "priority"),
    ],
)
def test_the_class_is_the_one_of_all_chunks_else_protected(agent: FakeAgent, schedselect: str, cls: str) -> None:
    run("execjob_begin", a_job(schedselect=schedselect))
    assert agent.heard[0]["job"]["class"] == cls


@pytest.mark.parametrize(
    ("here", "cpus", "memory_mib"),
    [("n1", 3, 1025), ("n2", 4, 0), ("big", 2, 64)],
)
def test_a_job_on_several_vnodes_claims_this_moms_part_only(
    agent: FakeAgent, here: str, cpus: int, memory_mib: int
) -> None:
    job = a_job(
        exec_vnode="(n1:ncpus=3:mem=1gb:mem=1kb)+(n2:ncpus=4)+(big[0]:ncpus=1:mem=32mb+big[1]:ncpus=1:mem=32768kb)",
        exec_host2="n1.site:15002/0*3+n2.site:15002/0*4+big.site:15002/0*2",
    )
    run("execjob_begin", job, here=here)
    claimed = agent.heard[0]["job"]
    assert (claimed["cpus"], claimed["memory_mib"]) == (cpus, memory_mib)


@pytest.mark.parametrize(
    ("mem", "memory_mib"), [("100m", 100), ("100MB", 100), ("1gw", 8192), ("2097152w", 16), ("1", 1), ("1T", 2**20)]
)
def test_sizes_as_qrun_accepts_them(agent: FakeAgent, mem: str, memory_mib: int) -> None:
    """`qrun -H` puts an administrator's text into exec_vnode unchanged; the scheduler itself writes kb only."""
    assert run("execjob_begin", a_job(exec_vnode=f"(n1:NCPUS=1:mem={mem})")).accepted
    claimed = agent.heard[0]["job"]
    assert (claimed["cpus"], claimed["memory_mib"]) == (1, memory_mib)


@pytest.mark.parametrize("exec_vnode", ["(n1:ncpus=1x)", "(n1:ncpus=1:mem=1.5gb)", "(n1:ncpus=1", "(n1:ncpus)"])
def test_text_that_cannot_be_parsed_is_refused_and_never_guessed(agent: FakeAgent, exec_vnode: str) -> None:
    refused = run("execjob_begin", a_job(exec_vnode=exec_vnode))
    assert not refused.accepted
    assert refused.changes["Execution_Time"] > time.time()
    assert agent.heard == []


def test_vnodes_of_another_name_than_their_mom_are_found_by_host(agent: FakeAgent) -> None:
    run("execjob_begin", a_job(exec_vnode="(gpu7:ncpus=5)+(x:ncpus=1)", exec_host2="n1:15002/0*5+n9:15002/0"))
    assert agent.heard[0]["job"]["cpus"] == 5


@pytest.mark.parametrize("name", ["n1", "N1", "n1.cluster.example", "N1.Cluster.Example", "n1-ib", "192.0.2.11"])
@pytest.mark.parametrize("first", [True, False])
def test_a_vnode_may_have_another_name_than_its_mom(agent: FakeAgent, name: str, first: bool) -> None:
    vnodes, hosts = [f"({name}:ncpus=5)", "(x:ncpus=1)"], [f"{name}:15002/0*5", "n9:15002/0"]
    order = slice(None) if first else slice(None, None, -1)
    job = a_job(exec_vnode="+".join(vnodes[order]), exec_host2="+".join(hosts[order]), mother_superior=first)
    assert run("execjob_begin", job).accepted
    assert (agent.heard[0]["job"]["cpus"], agent.heard[0]["job"].get("sister", False)) == (5, not first)
    run("exechost_periodic", jobs=(job,))
    assert agent.heard[1]["jobs"][0]["cpus"] == 5


def test_a_sister_of_unknown_name_among_several_is_known_by_its_address(agent: FakeAgent) -> None:
    hosts = "n8:15002/0+n9:15002/0+127.0.0.1:15002/0"
    job = a_job(exec_vnode="(a:ncpus=1)+(b:ncpus=2)+(c:ncpus=4)", exec_host2=hosts, mother_superior=False)
    assert run("execjob_begin", job).accepted
    assert agent.heard[0]["job"]["cpus"] == 4


def test_two_hosts_of_one_short_name_are_not_counted_as_one(agent: FakeAgent) -> None:
    hosts = "n1.a.example:15002/0+n1.b.example:15002/0"
    for superior, cpus in ((True, 1), (False, 2)):
        job = a_job(exec_vnode="(a:ncpus=1)+(b:ncpus=2)", exec_host2=hosts, mother_superior=superior)
        run("execjob_begin", job)
        assert agent.heard[-1]["job"]["cpus"] == cpus


def test_a_job_none_of_whose_hosts_is_this_one_is_refused_with_the_fix(agent: FakeAgent) -> None:
    hosts = "n7:15002/0+n8.invalid:15002/0+n9.invalid:15002/0"
    job = a_job(exec_vnode="(a:ncpus=1)+(b:ncpus=2)+(c:ncpus=4)", exec_host2=hosts, mother_superior=False)
    refused = run("execjob_begin", job)
    assert not refused.accepted
    assert "PBS_MOM_NODE_NAME" in refused.message
    assert refused.changes["Execution_Time"] > time.time() + 50
    assert run("exechost_periodic", jobs=(job, a_job(id="13.srv"))).accepted
    assert [job["id"] for job in agent.heard[-1]["jobs"]] == ["13.srv"]


@pytest.mark.parametrize("chunk", ["n1:ncpus=0", "n1:mem=1mb", "n1"])
def test_a_chunk_without_cpus_claims_none(agent: FakeAgent, chunk: str) -> None:
    assert run("execjob_begin", a_job(exec_vnode=f"({chunk})")).accepted
    assert agent.heard[0]["job"]["cpus"] == 0


def test_a_subjobs_brackets_and_a_strange_owner_arrive_whole(agent: FakeAgent) -> None:
    run("execjob_begin", a_job(id="12[3].srv", euser='o"brian', Rerunable="False"))
    claimed = agent.heard[0]["job"]
    assert (claimed["id"], claimed["owner"], claimed["rerunnable"]) == ("12[3].srv", 'o"brian', False)


@pytest.mark.parametrize("event", ["execjob_end", "execjob_abort"])
def test_an_end_is_a_release(agent: FakeAgent, event: str) -> None:
    assert run(event, a_job()).accepted
    assert agent.heard == [{"op": "release", "job": {"id": "12.srv", "run": 2}}]


def test_a_release_without_an_agent_is_logged_and_stops_nothing(configured: Path) -> None:
    ended = run("execjob_end", a_job())
    assert ended.accepted
    assert any("release of 12.srv not delivered" in line for line in ended.log)


def test_the_list_has_every_job_with_its_substate(agent: FakeAgent) -> None:
    jobs = (a_job(id="1.srv", session_id=77), a_job(id="2.srv", substate=43, Rerunable="0"))
    assert run("exechost_periodic", jobs=jobs).accepted
    [request] = agent.heard
    assert (request["op"], request["home"]) == ("jobs", "/nowhere")
    assert [(j["id"], j["run"], j["substate"], j["rerunnable"]) for j in request["jobs"]] == [
        ("1.srv", 2, 42, True),
        ("2.srv", 2, 43, False),
    ]
    assert [j.get("session_id") for j in request["jobs"]] == [77, None]
    assert {j["owner"] for j in request["jobs"]} == {"alice"}


def test_an_empty_list_is_sent_too(agent: FakeAgent) -> None:
    assert run("exechost_periodic").accepted
    assert agent.heard == [{"op": "jobs", "jobs": [], "home": "/nowhere"}]


def test_a_starting_mom_reports_a_missing_agent(configured: Path) -> None:
    started = run("exechost_startup")
    assert started.accepted
    assert any("first contact" in line for line in started.log)


def test_the_socket_is_found_however_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: FakeAgent, configured: Path
) -> None:
    path = str(configured)
    written = [
        '{\n "socket" : "PATH"}'.replace("PATH", path),
        '{"socket": "PATH"}'.replace("PATH", path.replace("/", "\\/")),
        '{"scripts": "socket", "socket": "PATH", "state": "\\"socket\\""}'.replace("PATH", path),
    ]
    for number, text in enumerate(written):
        config = tmp_path / f"{number}.json"
        config.write_text(text)
        monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(config))
        assert run("execjob_begin", a_job()).accepted, text


def test_a_part_on_a_further_host_is_called_so(agent: FakeAgent) -> None:
    job = a_job(exec_vnode="(n1:ncpus=1)+(n2:ncpus=1)", exec_host2="n1.site:15002/0+n2.site:15002/0")
    for here in ("n1", "n2"):
        run("execjob_begin", job, here=here)
    run("exechost_periodic", jobs=(job,), here="n2")
    claimed_first, claimed_second, listed = agent.heard
    assert "sister" not in claimed_first["job"]
    assert claimed_second["job"]["sister"] is True
    assert listed["jobs"][0]["sister"] is True


@pytest.mark.parametrize("odd", [{"exec_vnode": "(n1:ncpus=2"}, {"exec_vnode": "(n1:ncpus=x)"}, {"Rerunable": "maybe"}])
def test_a_job_that_cannot_be_described_keeps_no_other_from_the_list(agent: FakeAgent, odd: dict[str, str]) -> None:
    assert run("exechost_periodic", jobs=(a_job(id="11.srv", **odd), a_job())).accepted
    [listed] = agent.heard
    assert [job["id"] for job in listed["jobs"]] == ["12.srv"]


def test_a_qdel_is_reported(agent: FakeAgent) -> None:
    assert run("execjob_preterm", a_job()).accepted
    assert agent.heard == [{"op": "ending", "job": {"id": "12.srv", "run": 2}}]


@pytest.mark.parametrize(("kept", "expected"), [("lic_a,lic_b", "lic_a,lic_b"), ("none", None), (None, None)])
def test_a_claim_tells_the_protected_resources_that_the_servers_hook_has_named(
    agent: FakeAgent, kept: str | None, expected: str | None
) -> None:
    assert run("execjob_begin", a_job(Resource_List={"magrathea_keeps": kept})).accepted
    assert agent.heard[-1]["job"].get("keeps") == expected
