"""The configuration file: what is accepted, what is refused with name, line and fix, and what a reload changes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from magrathea.configuration import ConfigurationError, line_of
from magrathea.core.machine import handle
from magrathea.core.model import GiveWay, Host, Job, JobClass, JobKey, Kind, Lifecycle, Mode, Sleep, SleepCause
from magrathea.core.reconfiguration import UNKNOWN_HOST
from magrathea_lab.waiting import BOUND_S
from node_daemon.agent.configuration import Config as AgentConfiguration
from node_daemon.agent.values import Unusable
from node_daemon.configuration import NodedConfiguration, changes, read
from scheduler_plugin.hub.configuration import HubConfiguration
from scheduler_plugin.hub.configuration import load as read_hub
from scheduler_plugin.setup.pbs_commands import find_pbs
from scheduler_plugin.setup.sched_config import InstallError

GOOD = """\
[host]
name = "h1"
mode = "counted"
cpus = 8
memory_mib = 8192
reserve_mib = 512
[limits]
linger_s = 3
[domain.n1]
kind = "normal"
cpus = 4
local.pid_file = "/run/n1.pid"
[domain.p1]
kind = "priority"
vnode = "p1.cluster"
[domain.p1.local]
pid_file = "/run/p1.pid"
[domain.backup]
kind = "service"
cpus = 2
memory_mib = 1024
"""


def parsed(folder: Path, text: str) -> NodedConfiguration:
    path = folder / "noded.toml"
    path.write_text(text)
    return read(path)


def configured(c: NodedConfiguration) -> Host:
    """The host as its configuration describes it, without other facts."""
    return handle(UNKNOWN_HOST, c.reconfigured(1.0))[0]


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parsed(folder, text)
    return caught.value.problems


def test_a_good_file_becomes_a_host(tmp_path: Path) -> None:
    c = parsed(tmp_path, GOOD)
    host = configured(c)
    assert (host.name, host.mode, host.cpus, host.memory_mib) == ("h1", Mode.COUNTED, 8, 8192 - 512)
    assert [(d.name, d.kind, d.cpus) for d in host.domains] == [
        ("backup", Kind.SERVICE, 2),
        ("n1", Kind.NORMAL, 4),
        ("p1", Kind.PRIORITY, 8),
    ]
    assert (host.limits.linger_s, host.limits.preempted_cpu_percent) == (3, 10)
    assert (c.vnode("p1"), c.vnode("n1")) == ("p1.cluster", "n1")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("cpus = 8", "cpu = 8", 4, ("`cpu`", "did you mean `cpus`")),
        ('mode = "counted"', 'mode = "shared"', 3, ("'shared'", "exclusive", "counted")),
        ("linger_s = 3", "linger_s = -3", 8, ("`linger_s` in [limits]", "-3")),
        ("linger_s = 3", 'linger_s = "3"', 8, ("`linger_s`", "'3'")),
        ("linger_s = 3", "min_run_s = 1", 8, ("at least 5", "allow_short_min_run")),
        ("linger_s = 3", 'warn_signal = "SIGUSR1"', 8, ("`warn_signal`", "no longer exists", "MAGRATHEA_SIGNAL")),
        ("linger_s = 3", "warn_s = 1", 8, ("`warn_s`", "no longer exists", "longest_warning_s")),
        ("linger_s = 3", "longest_warning_s = 301", 8, ("`longest_warning_s`", "301")),
        ("linger_s = 3", 'give_way = "disk"', 8, ("`give_way` in [limits]", "local driver", 'only "swap"')),
        ("linger_s = 3", 'give_way = "tape"', 8, ("`give_way` in [limits]", "'tape'", "swap-then-disk")),
        ("[limits]", "[limit]", 7, ("`limit`", "did you mean `limits`")),
        ("cpus = 4", "cpus = 9", 11, ("`cpus` in [domain.n1]", "the host has 8")),
        ("cpus = 4", "cpus = 0", 11, ("`cpus` in [domain.n1]", "0")),
        ('kind = "normal"\n', "", 9, ("`kind` in [domain.n1] is missing",)),
        ('local.pid_file = "/run/n1.pid"', 'local.pid_fil = "/run/n1.pid"', 12, ("did you mean `pid_file`",)),
        ('local.pid_file = "/run/n1.pid"', "floor_mib = 1", 9, ("local.pid_file", "missing")),
        ('vnode = "p1.cluster"', 'vnode = "n1"', 15, ("n1 and p1 have the same vnode",)),
        ('vnode = "p1.cluster"', 'vnode = "N1"', 15, ("n1 and p1 have the same vnode",)),
        ('"/run/p1.pid"', '"/run/n1.pid"', 17, ("n1 and p1 have the same pid file",)),
        ('"/run/p1.pid"', '"/run/x/..//n1.pid"', 17, ("n1 and p1 have the same pid file",)),
        ("cpus = 2", "cpus = 8", 4, ("services take all",)),
        ("[limits]", '[shutdown]\ndomains = "sleep"\n[limits]', 7, ("n1, p1 cannot sleep", "local driver")),
        ("[limits]", '[shutdown]\ndomains = "nap"\n[limits]', 8, ("`domains` in [shutdown]", "'nap'", "sleep")),
        ("[limits]", "[shutdown]\nat_once = 0\n[limits]", 8, ("`at_once` in [shutdown]", "0")),
        ("[limits]", '[visitors]\nhosts = ["h2"]\n[limits]', 8, ("`hosts` in [visitors]", "driver is local")),
        ("[limits]", '[visitors]\nhosts = ["h2"]\n[limits]', 7, ("`address` in [visitors] is missing",)),
        ("[limits]", '[moves]\nhosts = ["h2"]\n[limits]', 8, ("one hub", "names 0")),
        ("[limits]", '[moves]\nhosts = ["h1"]\n[limits]', 8, ("names this host itself",)),
        ("[limits]", '[visitors]\naddress = "qemu+ext:///system"\n[limits]', 8, ("`address`", "qemu+tls://")),
        ("cpus = 2", "swap_mib = 2", 9, ("service domain needs its own `cpus`",)),
        ("memory_mib = 1024", "memory_mib = 1000000", 21, ("`memory_mib` in [domain.backup]", "7680 MiB")),
    ],
)
def test_a_mistake_is_named_with_line_and_fix(
    tmp_path: Path, old: str, new: str, line: int, words: tuple[str, ...]
) -> None:
    assert GOOD.count(old) == 1
    found = problems(tmp_path, GOOD.replace(old, new))
    matching = [p for p in found if all(w in p for w in words)]
    assert matching, found
    assert f"noded.toml, line {line}:" in matching[0]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("linger_s = -3", "a number, at least 0 and at most"),
        ('linger_s = "3"', "a number, at least 0"),
        ("longest_warning_s = -1", "a number, at least 0 and at most 300"),
        ("max_preemptions = 1.5", "a whole number, at least 0"),
        ("allow_short_min_run = 1", "true or false"),
        ('[paths]\nrun_dir = "run"', "a path in quotes that begins with /"),
        ('[hub]\nendpoints = ["hub:17017"]', 'each entry is "ipc:///PATH" or "tcp://HOST:PORT"'),
        ("[hub]\nendpoints = 3", "a list; each entry is"),
        ("[control]\ngroup = 0", "a text, with at most 64 letters"),
    ],
)
def test_a_wrong_value_is_answered_with_what_it_may_be(tmp_path: Path, key: str, words: str) -> None:
    [problem] = problems(tmp_path, GOOD.replace("linger_s = 3", key))
    assert words in problem and "regex" not in problem


def _types(schema: Any) -> Iterator[Any]:
    yield schema
    for one in get_args(schema):
        yield from _types(one)
    if isinstance(schema, type) and issubclass(schema, msgspec.Struct):
        for hint in get_type_hints(schema, include_extras=True).values():
            yield from _types(hint)


@pytest.mark.parametrize("schema", [NodedConfiguration, HubConfiguration])
def test_a_pattern_has_words_for_people(schema: Any) -> None:
    metas = [one for one in _types(schema) if isinstance(one, msgspec.Meta)]
    assert metas and all(meta.description for meta in metas if meta.pattern)


READERS: dict[str, Callable[[Path], object]] = {
    "node daemon": read,
    "hub": read_hub,
    "agent": lambda path: AgentConfiguration(str(path)),
    "pbs.conf": lambda path: find_pbs(path),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_directory_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path, reader: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path, words in (("folder", "directory"), ("pipe", "pipe"), ("/dev/zero", "device"), ("socket", ".")):
            with pytest.raises((ConfigurationError, Unusable, InstallError), match=words) as caught:
                READERS[reader](tmp_path / path)
            assert str(tmp_path / path) in str(caught.value)


@pytest.mark.parametrize("reader", ["node daemon", "hub", "agent"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(tmp_path: Path, reader: str, encoding: str) -> None:
    path = tmp_path / "configuration"
    path.write_text(GOOD, encoding=encoding)
    with pytest.raises((ConfigurationError, Unusable), match="byte order mark; save the file as UTF-8 without one"):
        READERS[reader](path)


def test_the_two_keys_of_a_host_are_two_files(tmp_path: Path) -> None:
    text = GOOD + '[hub]\nendpoints = ["tcp://hub:17017"]\nkey_file = "/etc/k"\nhub_key_file = "/etc/k"\n'
    [problem] = problems(tmp_path, text)
    assert "`key_file` and `hub_key_file`" in problem


def test_the_hubs_and_the_agents_files_are_their_own(tmp_path: Path) -> None:
    path = tmp_path / "hub.toml"
    path.write_text('[hub]\nlisten = ["ipc:///run/x/../hub"]\ncontrol_socket = "/run/hub"\n')
    with pytest.raises(ConfigurationError, match=r"hub\.toml, line 2: `control_socket` and `listen` .* same file"):
        read_hub(path)
    path = tmp_path / "agent.json"
    for text in ('{"socket": "/a", "state": "/a"}', '{"socket": "/a", "channel": "unix:/b/../a"}'):
        path.write_text(text)
        with pytest.raises(Unusable, match="three different files"):
            AgentConfiguration(str(path))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("cpus = 8", "cpu = 8").replace("linger_s = 3", "linger = 3").replace('"service"', '"servant"')
    assert len(problems(tmp_path, text)) == 3


@pytest.mark.parametrize("text", ["[host", "x = \x00", '[host]\nname = "a"\nname = "b"\n', "\ud800"])
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "noded.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigurationError):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: cannot be read"):
        read(tmp_path / "nowhere.toml")


def test_no_domain_that_takes_jobs_is_refused(tmp_path: Path) -> None:
    assert any("no domain takes jobs" in p for p in problems(tmp_path, '[host]\nname = "h"\nmode = "counted"\n'))


def test_tcp_without_keys_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + '[hub]\nendpoints = ["tcp://hub:17017"]\n')
    assert len(found) == 2 and all("never used without keys" in p for p in found)


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + f'[paths]\nrun_dir = "/{"x" * 100}"\n')
    assert any("control socket" in p and "shorten" in p for p in found)


def test_lines_are_found_in_headers_dotted_keys_and_quotes() -> None:
    text = '# c\n[a]\nb.c = 1\n["x.y"]\n"k" = 2\n[a.d]\n'
    assert [line_of(text, w) for w in (("a",), ("a", "b", "c"), ("x.y", "k"), ("a", "d"), ("a", "zz"))] == [
        2,
        3,
        5,
        6,
        2,
    ]
    assert line_of(text, ("nothing",)) is None


# Reading it again


def with_job(c: NodedConfiguration, name: str) -> Host:
    host = configured(c)
    domain = host.domain(name)
    assert domain
    return host.having(domain.having(Job(JobKey("1", 1), JobClass.PROTECTED, 1, 0, 1.0, 1.0)))


def test_a_reload_applies_limits_and_reports_what_needs_a_restart(tmp_path: Path) -> None:
    old = parsed(tmp_path, GOOD)
    new = parsed(tmp_path, GOOD.replace("linger_s = 3", "linger_s = 9").replace('"counted"', '"exclusive"'))
    change = changes(old, new, configured(old))
    assert change.configuration.limits.linger_s == 9
    assert change.configuration.host.mode is Mode.COUNTED
    assert len(change.kept) == 1 and "`mode` in [host]" in change.kept[0] and "restarted" in change.kept[0]


def test_a_reload_keeps_a_domain_that_has_jobs(tmp_path: Path) -> None:
    old = parsed(tmp_path, GOOD)
    without = GOOD[: GOOD.index("[domain.n1]")] + GOOD[GOOD.index("[domain.p1]") :]
    new = parsed(tmp_path, without)
    assert "n1" not in changes(old, new, configured(old)).configuration.domain
    change = changes(old, new, with_job(old, "n1"))
    assert "n1" in change.configuration.domain and "drain it first" in change.kept[0]


def test_a_reload_keeps_the_kind_of_a_domain_that_has_jobs(tmp_path: Path) -> None:
    old = parsed(tmp_path, GOOD)
    new = parsed(tmp_path, GOOD.replace('kind = "normal"', 'kind = "priority"'))
    change = changes(old, new, with_job(old, "n1"))
    assert change.configuration.domain["n1"].kind is Kind.NORMAL and "`kind`" in change.kept[0]


@pytest.mark.parametrize("change", ["removed", "another kind"])
def test_a_reload_keeps_a_domain_that_sleeps_with_or_without_jobs(tmp_path: Path, change: str) -> None:
    """The driver must know it, or nothing could bring it back."""
    old = parsed(tmp_path, GOOD)
    without = GOOD[: GOOD.index("[domain.n1]")] + GOOD[GOOD.index("[domain.p1]") :]
    new = parsed(tmp_path, without if change == "removed" else GOOD.replace('kind = "normal"', 'kind = "priority"'))
    host = configured(old)
    n1 = host.domain("n1")
    assert n1 is not None
    asleep = replace(n1, sleep=Sleep(1.0, "a new disk", SleepCause.ADMIN), lifecycle=Lifecycle.DOWN)
    kept = changes(old, new, host.having(asleep))
    assert kept.configuration.domain["n1"] == old.domain["n1"] and "defrost" in kept.kept[0]


# The command


def noded(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node_daemon.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)


@pytest.mark.long
def test_check_prints_good_or_the_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "noded.toml"
    path.write_text(GOOD)
    good = noded("--config", str(path), "--check")
    assert good.returncode == 0 and "good" in good.stdout
    path.write_text(GOOD.replace("cpus = 8", "cpu = 8"))
    bad = noded("--config", str(path), "--check")
    assert bad.returncode == 2 and "line 4" in bad.stderr and "did you mean" in bad.stderr


def test_help_names_signals_and_exit_codes() -> None:
    told = noded("--help").stdout
    assert "SIGHUP" in told and "exit codes" in told


@pytest.mark.parametrize(
    ("shutdown", "sleepers"),
    [
        ("", []),
        ('domains = "sleep"', ["n1", "p1"]),
        ('services = "sleep"', ["backup"]),
        ('domains = "sleep"\nservices = "sleep"', ["n1", "p1", "backup"]),
    ],
)
def test_what_sleeps_at_a_shutdown_is_configured_by_kind(tmp_path: Path, shutdown: str, sleepers: list[str]) -> None:
    text = GOOD.replace("[limits]", f"[shutdown]\n{shutdown}\n[limits]")
    (tmp_path / "noded.toml").write_text(text.replace("cpus = 8", 'cpus = 8\ndriver = "libvirt"'))
    c = read(tmp_path / "noded.toml")
    assert [name for name in c.domain if c.sleeps_at_shutdown(name)] == sleepers


@pytest.mark.parametrize("way", list(GiveWay))
def test_where_memory_goes_is_configured(tmp_path: Path, way: GiveWay) -> None:
    text = GOOD.replace("linger_s = 3", f'give_way = "{way}"').replace("cpus = 8", 'cpus = 8\ndriver = "libvirt"')
    assert configured(parsed(tmp_path, text)).limits.give_way is way
    assert configured(parsed(tmp_path, GOOD)).limits.give_way is GiveWay.SWAP


def test_a_domain_has_its_own_word_about_a_shutdown(tmp_path: Path) -> None:
    text = GOOD.replace("[limits]", '[shutdown]\ndomains = "sleep"\n[limits]')
    text = text.replace("cpus = 8", 'cpus = 8\ndriver = "libvirt"').replace(
        "cpus = 4", 'cpus = 4\nat_shutdown = "leave"'
    )
    (tmp_path / "noded.toml").write_text(text)
    c = read(tmp_path / "noded.toml")
    assert not c.sleeps_at_shutdown("n1") and c.sleeps_at_shutdown("p1")
