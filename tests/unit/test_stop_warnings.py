"""What a job writes to be warned before a stop. Whatever is wrong warns nobody."""

from __future__ import annotations

import pytest

from magrathea.core.model import StopWarning
from magrathea.stop_warnings import LONGEST_S, asked, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("USR1", StopWarning("SIGUSR1", 1.0)),
        ("SIGUSR1", StopWarning("SIGUSR1", 1.0)),
        ("USR2@30", StopWarning("SIGUSR2", 30.0)),
        ("B:TERM@120", StopWarning("SIGTERM", 120.0, first_only=True)),
        ("USR1@0", StopWarning("SIGUSR1", 0.0)),
        ("USR1@999999", StopWarning("SIGUSR1", LONGEST_S)),
    ],
)
def test_a_good_text(text: str, found: StopWarning) -> None:
    assert parse(text) == found
    assert asked(text, prologue=True) == found


def test_without_the_prologue_hook_nobody_waits_for_a_long_warning() -> None:
    assert asked("B:USR1@30", prologue=False) == StopWarning("SIGUSR1", 1.0, first_only=True)


@pytest.mark.parametrize("text", ["", "KILL", "STOP@5", "CONT", "usr1", "10", "R:USR1", "USR1@", "USR1@-1", "USR1@1.5"])
def test_a_wrong_text_warns_nobody_and_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"SIGNAL|signal"):
        parse(text)
    assert asked(text, prologue=True) is None
