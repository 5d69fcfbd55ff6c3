"""The `magrathea` command: all forms and results of `status`, and sub-commands of other packages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from msgspec.structs import replace

from magrathea.cli import main, view
from magrathea.core.model import JobClass, SleepCause, State
from magrathea.messages import FarmView, HostView, MemoryMove, SleepReport, Snapshot, encode
from magrathea_lab.waiting import BOUND_S
from tests.fakes.control_socket import AT, PREEMPTION, answering, domain, job, snapshot

from ..signals import interruptible


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def magrathea(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, arguments, prog_name="magrathea")


def status(path: Path, answer: Snapshot, *options: str) -> Result:
    with answering(path, encode(answer) + b"\n"):
        return magrathea("status", "--socket", str(path), *options)


def test_the_table_shows_present_and_wanted_values_and_the_reason(path: Path) -> None:
    result = status(path, PREEMPTION)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "host h1: exclusive, 2 CPUs, 4096 MiB, driver local, hub connected"
    n1 = next(line for line in lines if line.startswith("n1"))
    assert n1.split("  ")[0] == "n1"
    assert "preempted" in n1
    assert "90 s" in n1
    assert "all → 10 %" in n1, "200 % of 2 CPUs is no cap"
    assert "job 12.srv is stopped for 13.srv" in n1
    stopped = next(line for line in lines if line.startswith("12.srv"))
    assert "stopped 35 s for 13.srv" in stopped
    assert lines[-1] == "note: memory is not moved"


def test_memory_on_its_way_is_shown_with_its_progress(path: Path) -> None:
    move = MemoryMove(what="gives", done_mib=640, of_mib=1808)
    n1 = domain("n1", State.PREEMPTED, memory_mib=1408, want_memory_mib=240, move=move)
    assert "1408 MiB → 240 MiB (gives 640 of 1808)" in status(path, snapshot(n1)).stdout
    told = json.loads(status(path.with_name("again.sock"), snapshot(n1), "--format", "json").stdout)
    assert told["domains"][0]["move"] == {"what": "gives", "done_mib": 640, "of_mib": 1808}


def test_without_a_terminal_there_are_no_colours_and_no_wrapped_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    result = status(path, PREEMPTION)
    assert "\x1b" not in result.stdout
    assert any("n1" in line and "is stopped for 13.srv" in line for line in result.stdout.splitlines())


def test_plain_has_the_columns_that_its_help_promises(path: Path) -> None:
    result = status(path, PREEMPTION, "--format", "plain")
    since = str(int(AT - 90))
    assert result.stdout == (
        f"h1\tn1\tnormal\tpreempted\t{since}\t-\t1\t12.srv\t1\t200\t10\t-\t-\t0\tyes\t0\tn1.cluster\t"
        "job 12.srv is stopped for 13.srv\tno\n"
        f"h1\tp1\tpriority\trunning-priority\t{since}\tpriority\t1\t13.srv\t0\t-\t-\t-\t-\t900\tyes\t0\t"
        "p1.cluster\tone job of class priority\tno\n"
    )


def test_a_preempted_domain_shows_since_when_and_how_much_of_its_jobs_time(path: Path) -> None:
    stopped = {"stop": True, "stopper": "us", "preempted_by": "13.srv in p1", "booked": True}
    jobs = [
        job(id, JobClass.PREEMPTIBLE, stopped_since=AT - since, **stopped)
        for id, since in (("12.srv", 35), ("14.srv", 25))
    ]
    why = "2 of 2 jobs stopped for 13.srv in p1"
    answer = snapshot(domain("n1", State.PREEMPTED, *jobs, why=why, preempted_s=40.0))
    line = next(line for line in status(path, answer).stdout.splitlines() if line.startswith("n1"))
    since = time.strftime("%H:%M:%S", time.localtime(AT - 35))
    assert line.endswith(f"{why}, since {since}; 100 s of its jobs' time preempted so far")


def test_another_days_time_has_its_date() -> None:
    assert view.clock(AT - 5, AT) == time.strftime("%H:%M:%S", time.localtime(AT - 5))
    assert view.clock(AT - 86400, AT) == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(AT - 86400))


def test_a_paused_host_shows_since_when_and_why(path: Path) -> None:
    paused = snapshot(domain("n1"), paused="new disk", paused_since=AT - 300, hub_connected=True)
    assert "paused for 5 min: new disk" in status(path, paused).stdout.splitlines()


def test_json_is_the_daemons_own_answer(path: Path) -> None:
    result = status(path, PREEMPTION, "--format", "json")
    assert json.loads(result.stdout) == json.loads(encode(PREEMPTION))


@pytest.mark.parametrize(
    ("state", "code"), [(State.FREE, 0), (State.PREEMPTED, 0), (State.DOWN, 0), (State.FAULT, 1), (State.UNKNOWN, 1)]
)
@pytest.mark.parametrize("form", list(view.FORMS))
def test_exit_code_1_is_trouble(path: Path, state: State, code: int, form: str) -> None:
    assert status(path, snapshot(domain("n1"), domain("n2", state)), "--format", form).exit_code == code


def test_exit_code_2_is_wrong_usage(path: Path) -> None:
    assert magrathea("status", "--format", "xml").exit_code == 2
    assert magrathea("status", "--watch", "0").exit_code == 2
    assert magrathea("no-such-command").exit_code == 2


def test_exit_code_3_is_no_daemon_with_cause_and_fix(path: Path) -> None:
    result = magrathea("status", "--socket", str(path))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "no such socket" in result.stderr
    assert "systemctl start magrathea-noded" in result.stderr


def test_the_environment_names_the_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGRATHEA_CONTROL", str(path))
    with answering(path, encode(PREEMPTION) + b"\n"):
        assert magrathea("status").exit_code == 0


def test_text_from_outside_cannot_steer_the_terminal(path: Path) -> None:
    result = status(path, snapshot(domain("n1", why="two\nlines and \x1b[31mred\x9b")))
    assert "two\\nlines and \\x1b[31mred\\x9b" in result.stdout


def test_a_terminal_gets_colours_and_the_same_columns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = view.table(PREEMPTION)
    assert "\x1b[33m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert click.unstyle(coloured) == view.table(PREEMPTION)


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (900_000, "10 d")]
)
def test_a_time_span_is_shown_in_its_largest_unit(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "running"),
        ({"confirmed": False}, "claimed"),
        ({"stop": True}, "to be stopped"),
        ({"stopped_since": AT - 5, "stopper": "pbs"}, "stopped 5 s by PBS"),
        ({"stopped_since": AT - 5, "stopper": "us"}, "stopped 5 s by us, not yet booked in PBS"),
        (
            {"stopped_since": AT - 5, "stopper": "us", "preempted_by": "9", "booked": True, "ready": True},
            "stopped 5 s for 9, PBS is about to resume it",
        ),
    ],
)
def test_the_state_of_a_job_in_words(fields: dict[str, object], text: str) -> None:
    assert view.job_state(job("1", JobClass.PREEMPTIBLE, **fields), AT) == text


def test_a_job_of_a_sleeping_domain_sleeps_with_it() -> None:
    asleep = SleepReport(since=AT - 7200, reason="new memory", cause=SleepCause.ADMIN, wakes=False)
    stopped = job("1", JobClass.PROTECTED, stopped_since=AT - 7200, stopper="us", booked=True)
    n1 = replace(domain("n1", State.ASLEEP, stopped), sleep=asleep)
    assert (
        view.part_state(n1, stopped, AT) == "asleep on disk with n1 for 2 h, until somebody brings it back: new memory"
    )
    waking = replace(n1, sleep=replace(asleep, wakes=True))
    assert "as soon as there is room" in view.part_state(waking, stopped, AT)
    assert "asleep on disk with n1" in view.table(snapshot(n1))
    awake = replace(n1, state=State.DRAINING)
    assert view.part_state(awake, stopped, AT).startswith("stopped 2 h")


def test_watch_continues_until_interrupted_and_ends_with_the_last_state(path: Path) -> None:
    answer = encode(snapshot(domain("n1", State.UNKNOWN))) + b"\n"
    command = [sys.executable, "-m", "magrathea.cli", "status", "--format", "plain", "--watch", "0.1"]
    environment = {**os.environ, "MAGRATHEA_CONTROL": str(path)}
    with (
        answering(path, answer),
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=interruptible,
        ) as watch,
    ):
        try:
            assert watch.stdout is not None
            assert [watch.stdout.readline().split("\t")[3] for _ in range(3)] == ["unknown"] * 3
            watch.send_signal(signal.SIGINT)
            assert watch.wait(BOUND_S) == 1
        finally:
            watch.kill()


def hub_view(*hosts: Snapshot, live: bool = True) -> bytes:
    views = [HostView(live=live, snapshot=host) for host in hosts]
    return encode(FarmView(at=AT, knows_pbs=True, hosts=views, booked=[])) + b"\n"


def test_watch_also_works_for_all_hosts_and_for_one_through_the_hub(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("magrathea.cli.status.time.sleep", sleep)
    with answering(path, hub_view(PREEMPTION)):
        result = magrathea("status", "h1", "--hub", str(path), "--format", "plain", "--watch", "7")
    assert (result.exit_code, looks) == (0, [7.0, 7.0])
    assert [line.split("\t")[1] for line in result.stdout.splitlines()] == ["n1", "p1"] * 2


def test_watch_on_a_terminal_paints_each_look_over_the_one_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("magrathea.cli.status.time.sleep", sleep)
    runner = CliRunner()
    with answering(path, encode(PREEMPTION) + b"\n"), runner.isolation(color=True) as (out, *_):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        with pytest.raises(SystemExit):
            main.cli(["status", "--watch", "--socket", str(path)], color=True)
        painted = out.getvalue().decode()
    assert painted.startswith("\x1b[2J\x1b[?7l\x1b[H")
    assert "every 2 s; Ctrl-C ends it" in painted
    assert painted.endswith("\x1b[J\x1b[?7h")


# In a guest

GUEST = {
    "ok": True,
    "agent": "0.1.0",
    "connected": True,
    "host": "h1",
    "domain": "n1",
    "jobs": [
        {"id": "12.srv", "run": 1, "order": "stop", "owner": "alice", "processes": 4, "stopped": 4, "since": AT - 35}
        | {"pending": 0, "listed": True},
        {"id": "14.srv", "run": 2, "order": None, "owner": "bob", "processes": 2, "stopped": 0, "since": None},
    ],
    "memory": {"total_mib": 2048, "available_mib": 1800, "swap_free_mib": 0},
    "load1": 0.5,
}


@pytest.fixture
def in_guest(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """There is no daemon and no hub here, but an agent."""
    monkeypatch.setattr("magrathea.client.DEFAULT_SOCKET", path.with_name("none"))
    monkeypatch.setattr("magrathea.client.HUB_SOCKET", path.with_name("none"))
    for name in ("MAGRATHEA_CONTROL", "MAGRATHEA_HUB_CONTROL"):
        monkeypatch.delenv(name, raising=False)
    file = path.with_name("agent.json")
    file.write_text(json.dumps({"socket": str(path)}), encoding="utf-8")
    monkeypatch.setenv("MAGRATHEA_AGENT_CONF", str(file))
    monkeypatch.setattr("magrathea.cli.guest_status.time.time", lambda: AT)
    return path


def in_a_guest(path: Path, form: str, **changes: object) -> Result:
    with answering(path, json.dumps(GUEST | changes).encode() + b"\n"):
        return magrathea("status", "--format", form)


def test_in_a_guest_status_shows_its_own_domain(in_guest: Path) -> None:
    result = in_a_guest(in_guest, "table")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0] == "domain n1 of host h1: agent 0.1.0, connected to its host's daemon"
    assert lines[1] == "memory 2048 MiB, 1800 MiB available; load 0.50"
    assert [" ".join(line.split()) for line in lines[4:]] == [
        "12.srv alice 4 4 stopped 35 s",
        "14.srv bob 2 0 running",
    ]


def test_in_a_guest_status_tells_of_processes_that_cannot_be_read(in_guest: Path) -> None:
    line = in_a_guest(in_guest, "table", unread=3).stdout.splitlines()[2]
    assert line.startswith("3 processes cannot be read")


@pytest.mark.parametrize(
    ("stopped", "pending", "state"), [(4, 0, "stopped"), (3, 1, "stopped"), (2, 1, "being stopped")]
)
def test_in_a_guest_a_process_that_cannot_run_before_it_stops_counts_as_stopped(
    in_guest: Path, stopped: int, pending: int, state: str
) -> None:
    """A shell whose new child was stopped before its exec sleeps uninterruptibly as long as the stop stands."""
    job = {"id": "12.srv", "run": 1, "order": "stop", "owner": "alice", "processes": 4, "since": None}
    line = in_a_guest(in_guest, "table", jobs=[{**job, "stopped": stopped, "pending": pending}]).stdout.splitlines()[-1]
    assert line.split() == ["12.srv", "alice", "4", str(stopped), *state.split()]


def test_in_a_guest_plain_and_json_have_the_same(in_guest: Path) -> None:
    since = str(int(AT - 35))
    assert [line.split("\t") for line in in_a_guest(in_guest, "plain").stdout.splitlines()] == [
        ["h1", "n1", "yes", "12.srv", "1", "alice", "stop", "4", "4", since],
        ["h1", "n1", "yes", "14.srv", "2", "bob", "-", "2", "0", "-"],
    ]
    in_guest.unlink()
    assert in_a_guest(in_guest, "plain", jobs=[]).stdout == "h1\tn1\tyes" + "\t-" * 7 + "\n"
    in_guest.unlink()
    assert json.loads(in_a_guest(in_guest, "json").stdout)["domain"] == "n1"


def test_in_a_guest_an_agent_without_its_daemon_is_trouble(in_guest: Path) -> None:
    result = in_a_guest(in_guest, "table", connected=False, host="", domain="")
    assert result.exit_code == 1
    assert "domain not known yet of host not known yet" in result.stdout
    assert "NOT connected" in result.stdout


def test_in_a_guest_only_root_may_ask(in_guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", connect)
    result = magrathea("status")
    assert result.exit_code == 3
    assert "only root may ask it" in result.stderr


def test_in_a_guest_an_agent_that_does_not_answer_is_exit_code_3(in_guest: Path) -> None:
    result = magrathea("status")
    assert result.exit_code == 3
    assert "systemctl start magrathea-agent" in result.stderr


def test_status_imports_neither_entry_points_nor_modules_of_other_commands(path: Path) -> None:
    program = (
        "import sys\nfrom magrathea.cli.main import cli\ntry: cli(['status', '--format', 'plain'])\n"
        "except SystemExit: print(sorted({'importlib.metadata', 'rich', 'zmq', 'asyncio', 'magrathea.core.model'}"
        " & set(sys.modules)))"
    )
    with answering(path, encode(PREEMPTION) + b"\n"):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "MAGRATHEA_CONTROL": str(path)},
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=True,
        )
    assert result.stdout.splitlines()[-1] == "[]"


# Sub-commands of other packages


@click.command()
def good() -> None:
    """A command that works."""
    click.echo("good")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "good": f"{__name__}:good",
        "absent": "no_such_package.at_all:x",
        "nested": "scheduler_plugin.no_such_module:x",
        "nothing": f"{__name__}:no_such_name",
        "number": f"{__name__}:AT",
    }
    points = [EntryPoint(name, value, main.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(main, "_entry_points", lambda: points)


@pytest.mark.usefixtures("plugins")
def test_a_broken_command_reports_it_and_does_not_break_the_others() -> None:
    listing = magrathea("--help")
    assert listing.exit_code == 0
    assert "A command that works." in listing.stdout
    assert "status" in listing.stdout
    assert listing.stdout.count("cannot be loaded") == 4
    assert magrathea("good").stdout == "good\n"
    for name in ("absent", "nested", "nothing", "number"):
        result = magrathea(name, "--some", "argument")
        assert result.exit_code == main.BROKEN
        assert f"magrathea {name}: cannot be loaded" in result.stderr


def test_the_commands_of_the_package_are_found() -> None:
    points = {point.name: point for point in main._entry_points()}
    if not points:
        pytest.skip("NOT RUN: entry points; the package is not installed (`make setup`)")
    assert {"demo", "keys", "pbs"} <= set(points)
    for name in ("demo", "keys", "pbs"):
        assert isinstance(points[name].load(), click.Command)


def test_version() -> None:
    assert magrathea("--version").stdout.startswith("magrathea, version ")


# The help of each command


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command, info_name=name)
    for word in command.list_commands(context):
        child = command.get_command(context, word)
        assert child is not None
        yield from leaves(child, f"{name} {word}")


@pytest.mark.parametrize(("name", "command"), list(leaves(main.cli, "magrathea")), ids=str)
def test_every_command_has_examples_exit_codes_and_a_word_on_each_option(name: str, command: click.Command) -> None:
    text = command.help or ""
    assert re.search(r"Examples:\n(.*\n)*? +.*" + name, text), "an example that calls it"
    assert "Exit codes: 0 " in text
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_shells_complete_commands_and_the_names_of_this_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(*words: str) -> list[str]:
        *before, last = words
        made = ShellComplete(main.cli, {}, "magrathea", "_MAGRATHEA_COMPLETE")
        return [item.value for item in made.get_completions(list(before), last)]

    monkeypatch.setenv("MAGRATHEA_CONTROL", str(path))
    assert completed("un") == ["undrain", "unpause"]
    assert completed("drain", "") == [], "nobody answers"
    with answering(path, encode(PREEMPTION) + b"\n"):
        assert completed("drain", "") == ["h1", "n1", "p1"]
        assert completed("explain", "1") == ["12.srv", "13.srv"]
        assert completed("status", "") == ["h1"]
    for shell in ("bash", "zsh", "fish"):
        assert "_MAGRATHEA_COMPLETE" in magrathea("completion", shell).stdout


def test_the_list_of_commands_is_in_sections_and_names_each_once() -> None:
    listed = re.findall(r"^  ([a-z-]+)  +\S", magrathea("--help").stdout.partition("Look:")[2], re.MULTILINE)
    context = click.Context(main.cli)
    assert sorted(listed) == main.cli.list_commands(context)
    assert listed[0] == "status"


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["status", "--watch", "0.01"], "give a number from 0.1 to 86400"),
        (["status", "--watch", "nan"], "give a number from 0.1 to 86400"),
        (["status", "--watch", "soon"], "give a number from 0.1 to 86400"),
        (["history", "-n", "0"], "give a whole number from 1 to "),
        (["history", "-n", "1.5"], "give a whole number from 1 to "),
        (["history", "-n", "9" * 5000], "give a whole number from 1 to "),
        (["history", "--since", "0001-01-01"], "is not a time like"),
        (["history", "--since", f"{'9' * 400}d"], ""),
        (["pbs", "install", "--heartbeat-max-age", "-1"], "give a number from 1 to 86400"),
        (["pbs", "check", "--format", "xml"], "'table', 'json', 'plain'"),
    ],
)
def test_a_number_out_of_bounds_is_answered_with_the_bounds(words: list[str], right: str) -> None:
    result = magrathea(*words)
    assert result.exit_code == (2 if right else 3), result.output
    assert right in result.stderr and "range" not in result.stderr
