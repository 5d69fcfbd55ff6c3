"""A defect at one end of the guest channel costs the line that meets it, and its request is answered."""

from __future__ import annotations

import pytest

from node_daemon.agent.lines import BadValue

from .pair import Doc, Pair


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.talk()
    return made


def defective(mark: tuple[str, int], op: str, doc: Doc) -> None:
    raise ZeroDivisionError(op)


def test_a_request_that_meets_a_defect_is_answered_and_the_next_line_is_read(pair: Pair) -> None:
    met: list[Exception] = []
    whole = pair.host.on_asked
    pair.host.on_asked = defective
    pair.host.on_defect = met.append
    first = pair.ask(pair.guest)
    pair.talk()
    pair.host.on_asked = whole
    second = pair.ask(pair.guest)
    pair.talk()
    pair.answer("host")
    pair.talk()
    assert [type(error) for error in met] == [ZeroDivisionError]
    assert first[0] is not None and (first[0]["ok"], first[0]["code"]) == (False, "failed")
    assert second[0] is not None and second[0]["ok"]
    assert not pair.host.at_work and not pair.guest.pending


def test_lines_that_come_together_with_it_are_read(pair: Pair) -> None:
    pair.host.on_asked = defective
    pair.host.on_defect = lambda error: setattr(pair.host, "on_asked", lambda mark, op, doc: heard.append(op))
    heard: list[str] = []
    pair.ask(pair.guest)
    pair.ask(pair.guest)
    pair.talk()
    assert heard == ["do"]


def test_a_defect_is_no_bad_line(pair: Pair) -> None:
    pair.host.on_asked = defective
    pair.host.on_defect = lambda error: None
    for _ in range(20):
        pair.ask(pair.guest)
    pair.talk()
    assert not pair.host.broken


def test_a_defect_is_not_hidden_from_a_shell_that_does_not_ask_for_it(pair: Pair) -> None:
    pair.host.on_asked = defective
    pair.ask(pair.guest)
    with pytest.raises(ZeroDivisionError):
        pair.talk()


def test_a_message_that_the_shell_refuses_is_a_bad_line(pair: Pair) -> None:
    def refusing(mark: tuple[str, int], op: str, doc: Doc) -> None:
        raise BadValue(op)

    pair.host.on_asked = refusing
    answers = pair.ask(pair.guest)
    pair.talk()
    assert pair.host.bad_lines == 1
    assert answers[0] is not None and not answers[0]["ok"]
