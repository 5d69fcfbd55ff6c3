"""A vnode of PBS's module, as the hook for vnodes sees it."""

from __future__ import annotations

from typing import Any


class HookVnode:
    """Takes every text for `maintenance_jobs`, and raises for an empty one, as PBS does. `set`: all these texts."""

    def __init__(self, name: str, state: int, siblings: Any) -> None:
        self.name, self.state = name, state
        self.resources_available = {"magrathea_siblings": siblings}
        self.set: list[str] = []

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "maintenance_jobs":
            self.set.append(value)
            if not value:
                raise AssertionError("mark_vnode_set: bad parameter!")
