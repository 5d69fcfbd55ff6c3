"""Follows a page of commands on a real OpenPBS without Magrathea: a server, a host and its two domains.

Three things of a real site are replaced. `systemctl` starts what the unit files name (a namespace has no systemd).
`scp` copies between the machines' directories. `pip install` is a copy of the files (there is no network). Files
outside /etc and /run are written to overlays that vanish afterwards.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from magrathea import __version__
from magrathea_lab.clusters import openpbs_machine
from magrathea_lab.clusters.private_openpbs import HEAD, HOST, PrivateOpenPbs
from magrathea_lab.waiting import BOUND_S
from tests.documents import ROOT, Block, says

MACHINES = {"server": HEAD, "host": HOST, "user": HEAD, "n1": "n1", "p1": "p1"}
"""The words of a block that say where it is run."""
DOMAINS = ("n1", "p1")
PATIENCE_S = BOUND_S
PIP = re.compile(r"/opt/magrathea/bin/pip install .*-r deploy/requirements.txt\n/opt/magrathea/bin/pip install .* \.")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

SCP = """#!/bin/sh
cp "$1" "{base}/m/host${{2#host1:}}"
"""


@contextmanager
def bare_site() -> Iterator[PrivateOpenPbs]:
    """A server, a host and its two domains, as the pages assume them."""
    with PrivateOpenPbs(list(DOMAINS)) as cluster:
        _host(cluster)
        for name in (HEAD, HOST, *DOMAINS):
            _own(cluster, name)
        guests = cluster.base / "m/host/run/magrathea/guest"
        guests.mkdir(parents=True)
        pids = cluster.base / "m/host/run/domains"
        pids.mkdir()
        for name in DOMAINS:
            inside = cluster.base / "m" / name / "run/magrathea/guest"
            inside.mkdir(parents=True)
            cluster.run(name, ["mount", "--bind", str(guests), "/run/magrathea/guest"])
            shutil.copy(cluster.base / "m" / name / "pid", pids / f"{name}.pid")
        _site_packages(cluster.base / "package")
        yield cluster


def _host(cluster: PrivateOpenPbs) -> None:
    """Give the host its own /etc and /run, as each machine has."""
    here = cluster.base / "m/host"
    (here / "run").mkdir(parents=True)
    openpbs_machine.command("cp", "-a", "/etc", str(here))
    shutil.rmtree(here / "etc/magrathea", ignore_errors=True)
    shutil.copy(cluster.base / "etc/hosts", here / "etc/hosts")
    shutil.copy(cluster.base / "m" / HEAD / "etc/nsswitch.conf", here / "etc/nsswitch.conf")
    for directory in ("etc", "run"):
        cluster.run(HOST, ["mount", "--bind", str(here / directory), f"/{directory}"])


def _own(cluster: PrivateOpenPbs, name: str) -> None:
    """Let a machine write anywhere in /usr, /opt and /var/lib, and add the replacements for a real site's programs."""
    for tree in ("/usr", "/opt", "/var/lib"):
        above = cluster.base / "overlay" / name / tree.replace("/", "_")
        (above / "upper").mkdir(parents=True)
        (above / "work").mkdir()
        options = f"lowerdir={tree},upperdir={above}/upper,workdir={above}/work"
        done = cluster.run(name, ["mount", "-t", "overlay", "overlay", "-o", options, tree], check=False)
        if done.returncode != 0:
            pytest.skip(f"NOT RUN: the walk-through; no overlay can be mounted here: {done.stderr.strip()}")
    (cluster.base / "scp").write_text(SCP.format(base=cluster.base))
    stand_in = Path(__file__).with_name("systemctl_stand_in.py")
    prefix = Path(sys.base_prefix)
    lines = [f"install -m 0755 {stand_in} /usr/local/bin/systemctl", f"install {cluster.base}/scp /usr/local/bin/scp"]
    if prefix != Path("/usr"):  # only root may be able to read it
        lines += ["mkdir /opt/python", f"mount --bind {prefix} /opt/python"]
        (cluster.base / "python3").write_text(f'#!/bin/sh\nexec /opt/python/bin/{PYTHON} "$@"\n')
        lines += [f"install {cluster.base}/python3 /usr/local/bin/python3"]
    lines += ["[ -e /usr/bin/python3 ] || ln -s /usr/local/bin/python3 /usr/bin/python3"]
    cluster.run(name, ["sh", "-e", "-c", "\n".join(lines)])


def _site_packages(where: Path) -> None:
    """The `lib` and `bin` that `pip install` would put into a virtual environment."""
    library = where / "lib"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package in ("magrathea", "magrathea_lab", "node_daemon", "scheduler_plugin"):
        shutil.copytree(ROOT / package, library / package, ignore=shutil.ignore_patterns("__pycache__"))
    needed = list(project["dependencies"])
    done: set[str] = set()
    while needed:
        requirement = Requirement(needed.pop())
        if requirement.name in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(requirement.name)
        found = distribution(requirement.name)
        needed += found.requires or []
        for file in found.files or []:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = library / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)
    info = library / f"magrathea-{__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: magrathea\nVersion: {__version__}\n")
    points = {"console_scripts": project["scripts"], **project["entry-points"]}
    text = "".join(
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()
    )
    (info / "entry_points.txt").write_text(text)
    (where / "bin").mkdir()
    for name, point in project["scripts"].items():
        module, _, function = point.partition(":")
        script = where / "bin" / name
        text = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        script.write_text(f"#!/opt/magrathea/bin/python\n{text}")
        script.chmod(0o755)


def _script(cluster: PrivateOpenPbs, block: Block) -> str:
    instead = f"cp -a {cluster.base}/package/lib/. /opt/magrathea/lib/{PYTHON}/site-packages/\n"
    instead += f"cp -a {cluster.base}/package/bin/. /opt/magrathea/bin/"
    text = PIP.sub(lambda _: instead, block.text)
    if "user" not in block.words:
        text = f"cd {ROOT}\n{text}"
    return "set -e\n" + text


def follow(cluster: PrivateOpenPbs, block: Block, expected: str | None) -> None:
    """Run a block on the machines that it names, on several at the same time."""
    places = [word for word in block.words if word in MACHINES]
    with ThreadPoolExecutor(len(places)) as pool:
        for done in [pool.submit(_follow_on, cluster, block, place, expected) for place in places]:
            done.result()


def _follow_on(cluster: PrivateOpenPbs, block: Block, place: str, expected: str | None) -> None:
    """Run the block there and compare its output; repeat it if the block asks for that."""
    user = "alice" if place == "user" else "root"
    home = {} if user == "alice" else {"HOME": str(cluster.base)}  # this machine's root has his own profile
    argv = ["bash", "-l", "-c", _script(cluster, block)]
    until = time.monotonic() + PATIENCE_S
    while True:
        done = cluster.run(MACHINES[place], argv, user=user, env=home, check=False, timeout=120)
        if done.returncode == 0 and (expected is None or says(expected, done.stdout)):
            return
        if "again" not in block.words or time.monotonic() > until:
            logs = "".join(f"\n--- {log}:\n{log.read_text()[-3000:]}" for log in cluster.base.glob("m/*/run/*.log"))
            pytest.fail(
                f"{block.place} on {place}: exit code {done.returncode}\n{block.text}{done.stderr}\n"
                f"printed:\n{done.stdout}\nexpected:\n{expected}\n{cluster.picture()}{logs}"
            )
        time.sleep(0.3)
