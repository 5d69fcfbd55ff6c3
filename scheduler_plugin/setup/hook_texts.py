"""The full text of each hook for PBS. It must be one file, because PBS's interpreters cannot import our modules.

A hook's file in hooks/ imports from magrathea.pbs_text like any other module of the tree. Here the imports are replaced
by the definitions that the hook needs, and by no others, because MoM compiles the whole text at each event. `magrathea
pbs install` writes this text, `pbs check` compares with it, and the laboratory and the tests run it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

HOOKS = Path(__file__).parents[1] / "hooks"
SHARED = "magrathea.pbs_text."
SHARED_FILES = Path(__file__).parents[2] / "magrathea" / "pbs_text"

Needed = dict[str, set[str]]
"""Names of definitions by module of magrathea.pbs_text."""


@functools.cache
def hook_text(name: str) -> str:
    """The full text of hook `name`, a file in hooks/. Its docstring stays at the top: `pbs install` recognises our
    hooks by it. It is put together once: the files do not change while a program runs.
    """
    source = (HOOKS / f"{name}.py").read_text(encoding="utf-8")
    imports = list(_shared_imports(ast.parse(source)))
    needed: Needed = {}
    for node in imports:
        _need(_module(node), (alias.name for alias in node.names), needed)
    lines = source.splitlines()
    for node in reversed(imports):
        lines[node.lineno - 1 : node.end_lineno] = []
    if imports:
        at = imports[0].lineno - 1
        lines[at:at] = ["", *(line for module in sorted(needed) for line in _part(module, needed[module]))]
    return "\n".join(lines) + "\n"


def written(name: str, directory: Path) -> Path:
    """Write the same text to a file in this directory, for programs that load hooks from files; return its path."""
    path = directory / f"{name}.py"
    path.write_text(hook_text(name), encoding="utf-8")
    return path


def _source(module: str) -> str:
    return (SHARED_FILES / f"{module}.py").read_text(encoding="utf-8")


def _module(node: ast.ImportFrom) -> str:
    return (node.module or "").removeprefix(SHARED)


def _shared_imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(SHARED):
            yield node


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return set()


def _need(module: str, names: Iterable[str], needed: Needed) -> None:
    """Add these definitions of a module to `needed`, and all definitions that they use."""
    tree = ast.parse(_source(module))
    origin = {alias.name: _module(node) for node in _shared_imports(tree) for alias in node.names}
    here = {name: node for node in tree.body for name in _defined(node)}
    left = list(names)
    while left:
        name = left.pop()
        if name in origin:
            _need(origin[name], [name], needed)
        elif name in here and name not in needed.setdefault(module, set()):
            needed[module].add(name)
            left += [part.id for part in ast.walk(here[name]) if isinstance(part, ast.Name)]


def _part(module: str, names: set[str]) -> list[str]:
    """The source lines of these definitions of a module."""
    source = _source(module)
    lines = source.splitlines()
    found = ["", f"# From magrathea/pbs_text/{module}.py"]
    for node in ast.parse(source).body:
        if names & _defined(node):
            blank = [""] if isinstance(node, ast.FunctionDef) else []
            found += [*blank, *lines[node.lineno - 1 : node.end_lineno]]
    return found
