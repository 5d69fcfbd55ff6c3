"""What moves have cost, and when domains moved last: by the records of owners, and over restarts of the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from magrathea import files
from magrathea.core.moves import Letting, Ownership, Transfer
from scheduler_plugin.hub import trips
from scheduler_plugin.hub.trips import KEPT_OF_A_PAIR, NAME, REFUSED_S, Trips

REST_S = 600.0
RESTING = Ownership("n1", 1, "h1", 1)
GRANTED = replace(RESTING, transfer=Transfer(2, "h1", "h2"))
READY = replace(RESTING, transfer=Transfer(2, "h1", "h2", ready=True))
DECLINED = replace(RESTING, transfer=Transfer(2, "h1", "h2", declined="no room"))
MOVED = Ownership("n1", 2, "h2", 9)
STAYED = Ownership("n1", 3, "h1", 9)


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


class Books:
    """A hub's trips, and its restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.records: dict[str, Ownership] = {}
        self.restart()

    def restart(self) -> None:
        self.trips = Trips(self.folder, self.records, self.clock)

    def follow(self, *records: Ownership, after_s: float = 0.0, mib: int = 1024) -> None:
        for record in records:
            self.clock.at += after_s
            self.records[record.domain] = record
            self.trips.follow(record.domain, record, mib)
            if (data := self.trips.unwritten()) is not None:
                self.trips.write(data)

    def rests(self, domain: str = "n1") -> str:
        return self.trips.rests(domain, REST_S, self.clock.at)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_a_domain_that_moved_rests_and_then_may_move_again(books: Books) -> None:
    books.follow(RESTING)
    assert books.rests() == ""
    books.follow(GRANTED, READY, MOVED, after_s=5.0)
    assert "it moved 0 s ago" in books.rests()
    books.clock.at += REST_S
    assert books.rests() == ""


def test_a_restart_of_the_hub_forgets_no_rest_and_no_cost(books: Books) -> None:
    books.follow(RESTING, GRANTED, READY, MOVED, after_s=5.0)
    books.clock.at += 100
    books.restart()
    assert "it moved 100 s ago" in books.rests()
    assert books.trips.cost_s("h1", "h2", 1024) == 10.0


def test_a_move_under_way_over_a_restart_costs_its_whole_time(books: Books) -> None:
    books.follow(RESTING, GRANTED, READY)
    books.clock.at += 30
    books.restart()
    books.follow(MOVED, after_s=10.0)
    assert books.trips.cost_s("h1", "h2", 1024) == 40.0


def test_if_the_hub_dies_before_it_writes_a_moved_domain_rests_from_its_start(books: Books) -> None:
    books.follow(RESTING, GRANTED)
    books.records["n1"] = MOVED
    books.clock.at += 50
    books.restart()
    assert "it moved 0 s ago" in books.rests()


@pytest.mark.parametrize("damage", [b"", b"{}x", b'{"version": 2}'])
def test_a_damaged_or_lost_file_lets_moved_domains_rest_once_more(books: Books, damage: bytes) -> None:
    books.follow(RESTING, GRANTED, READY, MOVED)
    books.clock.at += REST_S
    if damage:
        files.replace(books.folder / NAME, damage)
    else:
        (books.folder / NAME).unlink()
    books.restart()
    assert "it moved 0 s ago" in books.rests()


def test_lost_books_of_owners_forget_no_rest(books: Books) -> None:
    books.follow(RESTING, GRANTED, READY, MOVED)
    books.records.clear()
    books.restart()
    assert books.rests()
    books.follow(MOVED)
    assert books.rests()


def test_a_move_that_came_to_nothing_counts_as_one_if_something_was_copied(books: Books) -> None:
    books.follow(RESTING, GRANTED, READY, STAYED, after_s=4.0)
    assert "a move of it came to nothing" in books.rests()
    assert books.trips.cost_s("h1", "h2", 1024) == 8.0


def test_a_domain_that_was_declined_does_not_rest_and_that_host_is_not_asked_again_soon(books: Books) -> None:
    books.follow(RESTING, GRANTED, DECLINED, STAYED)
    assert books.rests() == ""
    assert "no room" in books.trips.refused("n1", "h2", books.clock.at)
    assert books.trips.refused("n1", "h3", books.clock.at) == ""
    assert books.trips.refused("n1", "h2", books.clock.at + REST_S + REFUSED_S) == ""


def test_a_request_that_was_never_granted_lets_nobody_rest(books: Books) -> None:
    books.follow(RESTING, replace(RESTING, number=2))
    assert books.rests() == ""
    books.follow(replace(RESTING, number=3))
    assert books.rests() == ""


def test_a_domain_that_comes_and_goes_on_at_once_is_noted_for_both_moves(books: Books) -> None:
    back = Ownership("n1", 2, "h2", 9, Transfer(3, "h2", "h3"))
    books.follow(RESTING, GRANTED, READY, back, after_s=5.0)
    books.follow(Ownership("n1", 3, "h3", 12), after_s=7.0)
    assert books.trips.cost_s("h1", "h2", 1024) == 10.0 and books.trips.cost_s("h2", "h3", 1024) == 7.0


def test_what_a_move_costs_is_the_slowest_of_the_last_ones_there(books: Books) -> None:
    books.trips.follow("n1", RESTING, 0)
    for number in range(1, 2 * KEPT_OF_A_PAIR, 2):
        seconds = 50.0 if number == 1 else 4.0
        books.follow(Ownership("n1", number, "h1", 1, Transfer(number + 1, "h1", "h2", letting=Letting.GONE)))
        books.follow(Ownership("n1", number + 1, "h2", 1), after_s=seconds)
        books.follow(Ownership("n1", number + 1, "h2", 1, Transfer(number + 2, "h2", "h1")))
        books.follow(Ownership("n1", number + 2, "h1", 1), after_s=1.0)
    assert books.trips.cost_s("h1", "h2", 1024) == 50.0
    assert books.trips.cost_s("h2", "h1", 1024) == 1.0
    assert books.trips.cost_s("h5", "h6", 1024) == 50.0, "without a move between two hosts, the slowest of all"
    books.follow(Ownership("n1", 99, "h1", 1, Transfer(100, "h1", "h2")))
    books.follow(Ownership("n1", 100, "h2", 1), after_s=3.0)
    assert books.trips.cost_s("h1", "h2", 1024) == 4.0, "old ones are forgotten"


def test_more_memory_takes_longer_and_less_is_not_cheaper(books: Books) -> None:
    assert books.trips.cost_s("h1", "h2", 2048) == 20.0, "nothing was measured yet"
    assert books.trips.cost_s("h1", "h2", 0) == trips.LEAST_S
    books.follow(RESTING, GRANTED, READY, MOVED, after_s=5.0)
    assert books.trips.cost_s("h1", "h2", 4096) == 40.0
    assert books.trips.cost_s("h1", "h2", 16) == 10.0


def test_a_domain_that_was_given_up_is_forgotten(books: Books) -> None:
    books.follow(RESTING, GRANTED, READY, MOVED)
    books.trips.follow("n1", None, 0)
    assert books.rests() == ""


def test_a_disk_that_fails_is_reported_and_written_to_again(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space")

    books.trips.follow("n1", GRANTED, 1)
    data = books.trips.unwritten()
    assert data is not None
    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", full)
        books.trips.write(data)
    assert books.trips.unwritten() is not None
