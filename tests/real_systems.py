"""The suites on real systems: what each needs, and the one line that explains why it did not run.

Their tests have the mark `real`; tests that also have `first` belong to `make test`. If this machine lacks something,
the suite is left out of the run. The run fails if the suite was required (`MAGRATHEA_REQUIRE_OPENPBS=1`,
`MAGRATHEA_REQUIRE_LIBVIRT=1`, as `make test-openpbs` and `make test-guests` set them). It also fails if the system is
installed but broken. So no run passes because a suite was skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from magrathea_lab.clusters import openpbs_needs
from magrathea_lab.guests import needs

HERE = Path(__file__).parent


@dataclass(frozen=True)
class RealSuite:
    """A folder of tests, or one file of a folder that needs more than the others. `missing`: checks this machine."""

    path: Path
    missing: Callable[[], str | None]
    requirement: str
    broken: Callable[[], str | None] = lambda: None

    @property
    def lacks(self) -> str | None:
        """Why the suite cannot run here; None if it can."""
        return _asked(self.missing)

    @property
    def name(self) -> str:
        return str(self.path.relative_to(HERE.parent))

    @property
    def required(self) -> bool:
        """True if the run must not leave it out."""
        return os.environ.get(self.requirement) == "1" or _asked(self.broken) is not None

    def has(self, path: Path) -> bool:
        return path == self.path or self.path in path.parents

    def wanted(self, config: pytest.Config) -> bool:
        """True if the paths on the command line include some of this suite."""
        words = [Path(config.invocation_params.dir, word.partition("::")[0]).resolve() for word in config.args]
        return any(self.has(path) or path in self.path.parents for path in words)


@cache
def _asked(missing: Callable[[], str | None]) -> str | None:
    return missing()


OPENPBS = RealSuite(HERE / "openpbs", openpbs_needs.missing, "MAGRATHEA_REQUIRE_OPENPBS", openpbs_needs.broken)
SUITES: tuple[RealSuite, ...] = (
    RealSuite(HERE / "libvirt", partial(needs.missing, ("qemu", "lxc")), "MAGRATHEA_REQUIRE_LIBVIRT"),
    OPENPBS,
    *(
        RealSuite(HERE / "openpbs" / f"test_{name}.py", needs.missing, "MAGRATHEA_REQUIRE_LIBVIRT")
        for name in ("guests", "migrate", "reboot", "sleep_guests")
    ),
)


def left_out(config: pytest.Config) -> list[RealSuite]:
    """Suites that belong to this run but cannot run. A file of a suite is listed only if the rest of the suite can
    run."""
    out = [suite for suite in SUITES if suite.wanted(config) and suite.lacks is not None]
    return [suite for suite in out if not any(other.path in suite.path.parents for other in out)]
