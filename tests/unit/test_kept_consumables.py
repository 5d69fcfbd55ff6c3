"""What `magrathea pbs install --keep-consumables`, `--release` and `--protect` do, and what `check` warns of."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_plugin.setup import kept_resources
from scheduler_plugin.setup.kept_resources import ATTRIBUTE, KEEPS, TARGET
from scheduler_plugin.setup.setup_model import InstallOptions, Present
from tests.fakes.qmgr import FakeQmgr, magrathea

LICENCE = {"lic_a": {"type": "long", "flag": "q"}}
AVAILABLE = "resources_available.lic_a"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQmgr:
    """A server with a licence."""
    one = FakeQmgr(tmp_path)
    one.objects["server"]["srv"] = {"default_queue": "workq", AVAILABLE: "1"}
    one.objects["queue"]["workq"] = {"queue_type": "Execution"}
    one.objects["resource"] |= {name: dict(resource) for name, resource in LICENCE.items()}
    return one.serving(monkeypatch)


def attribute(server: FakeQmgr) -> str | None:
    return server.objects["server"]["srv"].get(ATTRIBUTE)


def present(release: str = "", **more: object) -> Present:
    attributes = {AVAILABLE: "1"} | ({ATTRIBUTE: release} if release else {})
    return Present(**{"resources": LICENCE, "server": attributes, **more})  # type: ignore[arg-type]


def told(now: Present, options: InstallOptions = InstallOptions()) -> list[str]:  # noqa: B008
    return [sentence for sentence, fix in kept_resources.warnings(now, options) if fix]


def test_an_unset_attribute_is_left_alone_and_the_right_value_is_offered_with_its_reason(server: FakeQmgr) -> None:
    installed = magrathea(server, "install")
    assert installed.exit_code == 0 and attribute(server) is None
    for output in (installed.output, magrathea(server, "check").output):
        assert f"{TARGET}: it is unset" in " ".join(output.split()) or f"{TARGET}  it is unset" in output
        assert "lic_a of a stopped job to others" in output
        assert f"install --keep-consumables sets {ATTRIBUTE} = ncpus,mem" in output
    assert magrathea(server, "check").exit_code == 1


@pytest.mark.parametrize("before", [None, "lic_a", "mem"])
def test_the_attribute_is_set_on_request_and_uninstall_brings_the_old_value_back(
    server: FakeQmgr, before: str | None
) -> None:
    if before:
        server.objects["server"]["srv"][ATTRIBUTE] = before
    was = server.picture()
    for undo in (("uninstall",), ("install", "--no-keep-consumables")):
        done = magrathea(server, "install", "--keep-consumables")
        assert done.exit_code == 0 and "keeps its licences" in done.output
        assert attribute(server) == "ncpus,mem" and magrathea(server, "check").exit_code == 0
        assert magrathea(server, "install", "--release", "lic_a").exit_code == 0
        assert attribute(server) == "ncpus,mem,lic_a" and magrathea(server, "check").exit_code == 0
        assert magrathea(server, "uninstall", "--resource", "lic_a").exit_code == 0
        assert attribute(server) == "ncpus,mem"
        assert magrathea(server, *undo).exit_code == 0
        assert attribute(server) == before
    assert magrathea(server, "uninstall").exit_code == 0 and server.picture() == was


def test_a_value_that_somebody_has_set_since_stays(server: FakeQmgr) -> None:
    assert magrathea(server, "install", "--keep-consumables").exit_code == 0
    server.objects["server"]["srv"][ATTRIBUTE] = "ncpus"
    assert magrathea(server, "check").exit_code == 2
    assert magrathea(server, "uninstall").exit_code == 0
    assert attribute(server) == "ncpus"


def test_a_protected_resource_is_in_the_hooks_configuration_until_it_is_taken_back(server: FakeQmgr) -> None:
    was = server.picture()
    assert magrathea(server, "install", "--protect", "lic_a").exit_code == 0
    config = "magrathea_server", "application/x-config"
    assert '"lic_a"' in server.contents[config] and server.objects["resource"][KEEPS]["flag"] == "rm"
    assert magrathea(server, "uninstall", "--resource", "lic_a").exit_code == 0
    assert '"lic_a"' not in server.contents[config]
    assert magrathea(server, "uninstall").exit_code == 0 and server.picture() == was


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--protect", "lic_x"), "no such resource"),
        (("--keep-consumables", "--release", "lic_x"), "no such resource"),
        (("--protect", "magrathea_rank"), "no such resource"),
        (("--keep-consumables", "--protect", "lic_a", "--release", "lic_a"), "not both"),
        (("--release", "lic_a"), "together with --keep-consumables"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_changed(
    server: FakeQmgr, options: tuple[str, ...], word: str
) -> None:
    refused = magrathea(server, "install", *options)
    assert refused.exit_code == 1 and word in refused.output and not server.steps


def test_a_resource_of_the_site_with_the_name_of_ours_is_refused(server: FakeQmgr) -> None:
    server.objects["resource"][KEEPS] = {"type": "long", "flag": "q"}
    assert "string, rm is needed" in magrathea(server, "install", "--protect", "lic_a").output


def test_warnings_are_given_only_where_something_is_given_away() -> None:
    assert told(Present()) == [] and told(present("ncpus,mem")) == []
    assert told(Present(resources=LICENCE)) == [], "it has no limit"
    on_a_queue = Present(resources=LICENCE, queues={"low": {AVAILABLE: "1"}})
    shared = Present(
        resources={"tok": {"type": "long", "flag": "nh"}}, vnodes={"n1": {"resources_available.tok": "@store"}}
    )
    for now in (present(), on_a_queue, shared):
        [sentence] = told(now)
        assert "unset" in sentence
    own = Present(resources={"tok": {"flag": "nh"}}, vnodes={"n1": {"resources_available.tok": "2"}})
    assert told(own) == [], "its vnode is in maintenance meanwhile"


def test_a_value_of_the_site_that_does_harm_is_named() -> None:
    [lacking] = told(present("mem"))
    assert "lacks ncpus" in lacking
    [given] = told(present("ncpus,mem,lic_a"))
    assert "names lic_a" in given
    assert told(present("ncpus,mem,lic_a"), InstallOptions(keep_consumables=True, released=("lic_a",))) == []
