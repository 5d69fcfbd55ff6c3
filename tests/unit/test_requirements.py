"""What is installed as root is pinned with hashes (deploy/requirements*.txt), in the versions that everything is tested
with. `make requirements` writes these files."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


def pins(text: str) -> dict[str, str]:
    """Name and version of each line of the form name==version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def entries(file: Path) -> list[str]:
    """The requirements of a file, each with its hashes in one line."""
    joined = file.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith(("#", "--"))]


def needed(*roots: str) -> set[str]:
    """What these requirements need, with what that needs in turn, as installed here."""
    found: set[str] = set()
    rest = [Requirement(root) for root in roots]
    while rest:
        requirement = rest.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        rest += [Requirement(text) for text in metadata.requires(name) or ()]
    return found


FILES = {
    "requirements.txt": [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]],
    "requirements-libvirt.txt": PROJECT["project"]["optional-dependencies"]["libvirt"],
}


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_has_the_tested_version_and_a_hash(name: str) -> None:
    file = ROOT / "deploy" / name
    constraints = pins((ROOT / "constraints.txt").read_text())
    assert entries(file)
    for entry in entries(file):
        assert HASH.search(entry), entry
    for package, version in pins(file.read_text()).items():
        assert constraints.get(package) == version, f"{package}: run `make requirements`"


def test_nothing_that_the_package_needs_is_missing() -> None:
    pinned = pins((ROOT / "deploy" / "requirements.txt").read_text())
    assert needed(*FILES["requirements.txt"]) <= pinned.keys()
    for text in FILES["requirements.txt"]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_binding_of_libvirt_is_pinned_and_what_builds_it_is_installed_before() -> None:
    """It exists as source only, and pip does not check the hashes of what it would fetch to build it."""
    pytest.importorskip("libvirt", reason="the libvirt binding is not installed here; `make libvirt` does it")
    pinned = pins((ROOT / "deploy" / "requirements-libvirt.txt").read_text())
    (text,) = FILES["requirements-libvirt.txt"]
    assert pinned.keys() == {"libvirt-python"} == needed(text)
    assert pinned["libvirt-python"] in Requirement(text).specifier
    assert {"setuptools", "wheel"} <= pins((ROOT / "deploy" / "requirements.txt").read_text()).keys()


def test_of_all_else_only_wheels_are_installed() -> None:
    """A source package would bring build requirements of its own, without hashes."""
    assert "--only-binary :all:" in (ROOT / "deploy" / "requirements.txt").read_text().splitlines()


@pytest.mark.parametrize("page", ["deploy/README.md", "docs/walk-through.md"])
def test_the_pages_install_with_hashes(page: str) -> None:
    lines = [line for line in (ROOT / page).read_text().splitlines() if "pip install" in line]
    assert len(lines) >= 2
    for line in lines:
        hashed = "--require-hashes" in line and "-r deploy/requirements" in line
        assert hashed or "--no-deps --no-build-isolation ." in line, line
