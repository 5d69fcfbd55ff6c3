"""Every code word that a claim or a command can be refused with, found in the code itself.

What counts: a word in the place of a parameter called `code`, in a call of a function or class that has one; a word
under the key "code" of a dict; in a table of tuples whose loop variable is called `code`; and, since the server's hook
has no such parameter, the word before the colon of its refusals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORD = re.compile(r"[a-z]+(-[a-z]+)*")
SERVER_HOOK = ROOT / "scheduler_plugin/hooks/magrathea_server.py"


def sources() -> list[Path]:
    tops = ("magrathea", "node_daemon", "scheduler_plugin")
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def refusal_codes() -> dict[str, set[str]]:
    """By code: the files that say it."""
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    places = {name: at for tree in trees.values() for name, at in _with_code(tree)}
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for word in _words(node, places):
                found.setdefault(word, set()).add(str(path.relative_to(ROOT)))
    for word in re.findall(r'(?:MayNotStart\(\s*"|"magrathea: )([a-z-]+): ', SERVER_HOOK.read_text()):
        found.setdefault(word, set()).add(str(SERVER_HOOK.relative_to(ROOT)))
    return found


def _with_code(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Callables with a parameter `code`, and at which place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
            if "code" in names and node.name != "__init__":
                yield node.name, names.index("code")
        elif isinstance(node, ast.ClassDef):
            fields = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    fields = [argument.arg for argument in method.args.args[1:]]
            if "code" in fields:
                yield node.name, fields.index("code") + len(_base_fields(node, tree))


def _base_fields(node: ast.ClassDef, tree: ast.Module) -> list[str]:
    """Fields of dataclasses that this one extends come first (events.Refused(domain, code, ...) has none such)."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    found = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and c.name in bases]
    return [
        f.target.id for c in found for f in c.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
    ]


def _words(node: ast.AST, places: dict[str, int]) -> Iterator[str]:
    given: list[ast.expr] = []
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if name in places:
            given += node.args[places[name] : places[name] + 1]
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        given += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code"]
    elif isinstance(node, ast.FunctionDef):
        given += _of_tables(node)
    for expression in given:
        options = [expression.body, expression.orelse] if isinstance(expression, ast.IfExp) else [expression]
        for one in options:
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and WORD.fullmatch(one.value):
                yield one.value


def _of_tables(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """`for holds, code, text in ((..., "word", ...), ...)`: the words at that place of the function's tuples."""
    for loop in ast.walk(function):
        if isinstance(loop, ast.comprehension) and isinstance(loop.target, ast.Tuple):
            names = [getattr(element, "id", "") for element in loop.target.elts]
            if "code" in names:
                tuples = (t for t in ast.walk(function) if isinstance(t, ast.Tuple) and len(t.elts) == len(names))
                yield from (t.elts[names.index("code")] for t in tuples)
