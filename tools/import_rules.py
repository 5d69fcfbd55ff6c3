"""A rule for import-linter (pyproject.toml, [tool.importlinter]): packages import only each other and what is listed.

A list of forbidden libraries would miss the next one, and the core and the agent must not get any.
"""

from __future__ import annotations

import sys

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

STANDARD_LIBRARY = "the standard library"


class OnlyContract(Contract):
    """`packages` (or modules) import only each other and `allowed`: names of modules, or "the standard library"."""

    packages = fields.SetField(subfield=fields.StringField())
    allowed = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        packages, allowed = set(self.packages), set(self.allowed)  # type: ignore[call-overload]
        if STANDARD_LIBRARY in allowed:
            allowed |= sys.stdlib_module_names
        own = packages.union(*(graph.find_descendants(package) for package in packages))
        foreign = [
            f"{importer} -> {imported}"
            for importer in sorted(own)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if imported not in own and imported not in allowed
        ]
        return ContractCheck(kept=not foreign, metadata={"foreign": foreign})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["foreign"]:
            output.print_error(line)
        output.new_line()
