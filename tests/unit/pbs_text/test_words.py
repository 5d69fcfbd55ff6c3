"""Lists with commas, booleans, owners."""

from __future__ import annotations

import pytest

from magrathea.pbs_text.words import is_true, job_ids, user_of, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("free", ["free"]),
        ("down, offline,maintenance", ["down", "offline", "maintenance"]),
        ('"execjob_begin,execjob_end"', ["execjob_begin", "execjob_end"]),
        (",a,, b ,", ["a", "b"]),
    ],
)
def test_elements_of_a_list(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_booleans_as_pbs_accepts_them() -> None:
    assert all(is_true(word) for word in ("True", "TRUE", "true", "t", "T", "1", "y", "Y"))
    assert not any(is_true(word) for word in ("False", "FALSE", "false", "f", "F", "0", "n", "N"))
    for word in ("", "yes", "tRUE", "None", "2"):
        with pytest.raises(ValueError, match="neither"):
            is_true(word)


def test_jobs_of_a_vnode_once_each_in_their_order() -> None:
    assert job_ids("12.srv/0, 12.srv/1, 3[7].srv/2,12.srv/3") == ["12.srv", "3[7].srv"]


def test_the_user_of_an_owner_with_an_at_in_its_name() -> None:
    assert user_of("alice@login1") == "alice"
    assert user_of("DOM\\al@corp.example@login1.site") == "DOM\\al@corp.example"
    assert user_of("alice") == "alice"
