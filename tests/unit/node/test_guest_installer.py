"""The installer for guests: which files it installs where, in an image and in a running guest without systemd."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from magrathea.cli.main import cli
from magrathea_lab.waiting import BOUND_S
from node_daemon.setup import guest_installer

AGENT = Path(guest_installer.__file__).parents[1] / "agent"


def run(*words: str, script: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-s", "--", *words] if script else list(words),
        input=script or None,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
        env={**os.environ, **more},
    )


@pytest.fixture(scope="module")
def script() -> str:
    done = CliRunner().invoke(cli, ["guest", "script"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_an_image_gets_agent_configuration_and_init_script(script: str, tmp_path: Path) -> None:
    done = run("--root", str(tmp_path), script=script)
    assert done.returncode == 0, done.stderr
    for module in AGENT.glob("*.py"):
        assert (tmp_path / "usr/lib/magrathea/agent" / module.name).read_bytes() == module.read_bytes()
    assert json.loads((tmp_path / "etc/magrathea/agent.json").read_text()) == {"channel": guest_installer.CHANNEL}
    init = tmp_path / "etc/init.d/magrathea-agent"
    assert os.access(init, os.X_OK)
    assert re.search(r"^PYTHON=/.*python", init.read_text(), re.MULTILINE)
    assert not (tmp_path / "etc/systemd").exists()


def test_an_image_with_systemd_gets_an_enabled_unit(script: str, tmp_path: Path) -> None:
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    assert run("--root", str(tmp_path), script=script).returncode == 0
    wanted = tmp_path / "etc/systemd/system/multi-user.target.wants/magrathea-agent.service"
    assert "ExecStart=/usr" in wanted.read_text()
    assert not (tmp_path / "etc/init.d").exists()


@pytest.mark.long
def test_a_second_time_keeps_the_admins_configuration(script: str, tmp_path: Path) -> None:
    run("--root", str(tmp_path), "--channel", "unix:/run/magrathea-host/n1.sock", script=script)
    file = tmp_path / "etc/magrathea/agent.json"
    before = file.read_text()
    assert "unix:/run/magrathea-host/n1.sock" in before
    done = run("--root", str(tmp_path), script=script)
    assert (done.returncode, file.read_text()) == (0, before)
    assert "stays as it is" in done.stdout


def test_the_agent_of_one_file_is_replaced(script: str, tmp_path: Path) -> None:
    old = tmp_path / "usr/lib/magrathea"
    (old / "__pycache__").mkdir(parents=True)
    (old / "agent.py").write_text("")
    (old / "__pycache__" / "agent.cpython-36.pyc").write_text("")
    assert run("--root", str(tmp_path), script=script).returncode == 0
    assert [path.name for path in old.iterdir()] == ["agent"]


@pytest.mark.long
def test_a_module_that_a_new_agent_lacks_is_gone(script: str, tmp_path: Path) -> None:
    run("--root", str(tmp_path), script=script)
    folder = tmp_path / "usr/lib/magrathea/agent"
    (folder / "of_an_older_agent.py").write_text("")
    assert run("--root", str(tmp_path), script=script).returncode == 0
    assert {path.name for path in folder.glob("*.py")} == {path.name for path in AGENT.glob("*.py")}
    assert {path.name.partition(".")[0] for path in (folder / "__pycache__").iterdir()} == {
        path.stem for path in AGENT.glob("*.py")
    }


def test_uninstalling_leaves_the_configuration_and_explains_that(script: str, tmp_path: Path) -> None:
    run("--root", str(tmp_path), script=script)
    done = run("--uninstall", "--root", str(tmp_path), script=script)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["agent.json"]
    assert "remove /etc/magrathea/agent.json last" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--channel", "tcp:1"], 2, "port:PATH"),
        (["--channel", 'unix:/a"b'], 2, "only letters"),
        (["--channel"], 2, "needs a value"),
        (["--colour"], 2, "not known"),
        (["--python", "/bin/false"], 1, "older than 3.6"),
        (["--python", "python3"], 2, "give a path"),
        (["--python", "/bin/a|b"], 2, "only letters"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(
    words: list[str], code: int, says: str, script: str, tmp_path: Path
) -> None:
    done = run("--root", str(tmp_path), *words, script=script)
    assert done.returncode == code
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", ["script", "cloud-init"])
@pytest.mark.parametrize(
    "words",
    [
        ["--channel", "tcp:host"],
        ["--channel", "port:dev/x"],
        ["--channel", "unix:/a b"],
        ["--channel", 'port:/"'],
        ["--channel", f"unix:/{'x' * 107}"],
        ["--channel", "port:/x\n"],
        ["--channel", "port:/\udcff"],
        ["--python", "python3"],
        ["--python", "/usr/bin/python3 -u"],
        ["--python", "/a|b"],
    ],
)
def test_an_option_that_the_guest_would_refuse_makes_no_script(make: str, words: list[str]) -> None:
    done = CliRunner().invoke(cli, ["guest", make, *words])
    assert done.exit_code == 2
    assert re.search("give (a path|port:)|at most 107", done.stderr)
    assert done.stdout == ""


def test_a_broken_configuration_is_reported_not_replaced(script: str, tmp_path: Path) -> None:
    file = tmp_path / "etc/magrathea/agent.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"chanel": "port:/dev/x"}')
    done = run("--root", str(tmp_path), script=script)
    assert done.returncode == 1
    assert "chanel" in done.stderr
    assert file.read_text() == '{"chanel": "port:/dev/x"}'


def test_cloud_init_writes_and_runs_the_very_script() -> None:
    done = CliRunner().invoke(cli, ["guest", "cloud-init", "--channel", "unix:/run/x.sock"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "#cloud-config"
    at = lines.index("    content: |")
    packed = [line for line in lines[at + 1 :] if line.startswith("      ")]
    assert base64.b64decode("".join(packed)).decode() == guest_installer.script(("--channel", "unix:/run/x.sock"))
    assert lines[at + 1 + len(packed) :] == ["runcmd:", f"  - [sh, {guest_installer.PLACE}]"]


def test_cloud_init_itself_accepts_the_fragment(tmp_path: Path) -> None:
    if not shutil.which("cloud-init"):
        pytest.skip("cloud-init is not installed, which checks its own files")
    file = tmp_path / "user-data"
    file.write_text(guest_installer.cloud_init())
    done = run("cloud-init", "schema", "--config-file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


LIVING = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
mount -t proc none "$1/root/proc"
mount -t tmpfs none "$1/root/run"
cp "$2" "$1/root/run/install.sh"
exec chroot "$1/root" sh -ec '
    sh /run/install.sh --channel unix:/run/host.sock
    for try in $(seq 100); do [ -S /run/magrathea/agent.sock ] && break; sleep 0.1; done
    /etc/init.d/magrathea-agent status
    before=$(cat /run/magrathea/agent-loop.pid)
    sh /run/install.sh
    [ "$(cat /run/magrathea/agent-loop.pid)" != "$before" ]
    for try in $(seq 100); do [ -S /run/magrathea/agent.sock ] && break; sleep 0.1; done
    sh /run/install.sh --uninstall
    [ ! -e /run/magrathea/agent-loop.pid ]
    ! ls /proc/[0-9]*/cmdline | xargs cat 2>/dev/null | tr "\\\\0" " " | grep -q "[m]agrathea/agent --config"
'
"""


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="a guest of its own needs mount namespaces: root")
def test_a_guest_without_systemd_runs_it_again_after_an_update_and_not_after_its_end(
    script: str, tmp_path: Path
) -> None:
    installer = tmp_path / "install.sh"
    installer.write_text(script)
    (tmp_path / "guest").mkdir()
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
    done = run(*unshare, "sh", "-c", LIVING, "guest", str(tmp_path / "guest"), str(installer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the agent is installed") == 2
    assert "magrathea-agent is running" in done.stdout


@pytest.mark.parametrize("systemd", [True, False])
def test_a_link_in_the_shared_folder_of_the_installer_is_not_written_to(tmp_path: Path, systemd: bool) -> None:
    shared, image, precious = tmp_path / "shared", tmp_path / "image", tmp_path / "precious"
    for name, data in guest_installer.parts().items():
        path = shared / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    precious.write_text("somebody else's")
    for name in ("unit.new", "init.new"):
        (shared / name).symlink_to(precious)
    before = sorted(shared.iterdir())
    for folder, name in (
        ("etc/systemd/system", "magrathea-agent.service"),
        ("etc/init.d", "magrathea-agent"),
        ("etc/magrathea", "agent.json"),
    ):
        (image / folder).mkdir(parents=True)
        (image / folder / f"{name}.new").symlink_to(precious)
    if systemd:
        (image / "usr/lib/systemd/system").mkdir(parents=True)
    done = run("sh", str(shared / "install.sh"), "--root", str(image))
    assert done.returncode == 0, done.stderr
    assert precious.read_text() == "somebody else's"
    assert sorted(shared.iterdir()) == before, "nothing is written beside the installer"
    assert json.loads((image / "etc/magrathea/agent.json").read_text()) == {"channel": guest_installer.CHANNEL}
