"""Numbers and texts that are none: each is refused by name, and nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node_daemon.agent.configuration import Config
from node_daemon.agent.lines import BadValue, field, parse
from node_daemon.agent.loop import Loop
from node_daemon.agent.mom_server import MomServer
from node_daemon.agent.values import Unusable, count, seconds, words

HUGE = 10**400


@pytest.mark.parametrize("value", [HUGE, -HUGE, float("inf"), float("-inf"), float("nan")])
def test_a_number_that_no_float_can_be_is_refused_by_name(value: float) -> None:
    with pytest.raises(BadValue, match="deadline_s"):
        field({"deadline_s": value}, "deadline_s", float)
    with pytest.raises(BadValue, match="deadline_s"):
        seconds({"deadline_s": value}, "deadline_s", 1.0, 0, 60)


def test_an_integer_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BadValue, match="cpus"):
        count({"cpus": HUGE}, "cpus")


@pytest.mark.parametrize("digits", [2_000, 4_000_000])
def test_a_number_of_very_many_digits_is_not_even_read(digits: int) -> None:
    with pytest.raises(BadValue, match="digits"):
        parse(b'{"n":' + b"7" * digits + b"}")


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "a\0b", "", "x" * 256, 5, None])
def test_a_name_that_cannot_be_sent_on_is_refused(name: object) -> None:
    with pytest.raises(BadValue, match="vnodes"):
        words({"vnodes": ["n1", name]}, "vnodes", 10)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("socket", "/\ud800"),
        ("state", "/\ud800"),
        ("channel", "unix:/\ud800"),
        ("job_cgroups", ["/\ud800/{job}"]),
        ("job_cgroups", ["/a\0b/{job}"]),
        ("power_off", ["/bin/sh", "\ud800"]),
        ("power_off", ["/bin/sh", "a\0b"]),
        ("environment", {"A": "\ud800"}),
        ("environment", {"\ud800": "a"}),
        ("script_time_limit_s", HUGE),
    ],
)
def test_a_configuration_that_the_system_cannot_take_is_refused_by_key(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "agent.json"
    path.write_text(json.dumps({key: value}))
    with pytest.raises(Unusable, match=key):
        Config(str(path))


# the lock beside the socket


def server(path: Path) -> MomServer:
    return MomServer(Loop(), str(path), lambda doc, client: None, lambda pid: None)


def test_the_lock_is_no_link_to_another_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "sock.lock").symlink_to(other)
    with pytest.raises(Unusable, match=r"sock\.lock"):
        server(tmp_path / "sock").open()
    assert not (tmp_path / "sock").exists()


def test_the_lock_is_its_owners_alone_even_if_others_could_open_it_before(tmp_path: Path) -> None:
    lock = tmp_path / "sock.lock"
    lock.touch()
    lock.chmod(0o666)
    opened = server(tmp_path / "sock")
    opened.open()
    try:
        assert lock.stat().st_mode & 0o777 == 0o600
    finally:
        opened.close()
