"""Words that a guest may choose are names and nothing else. What is no name never gets past the channel's door."""

from __future__ import annotations

import json
from typing import Any

import pytest

from node_daemon.agent.lines import BadValue
from node_daemon.guest_channel.messages import Answer, Hello, Unknown, decode

SESSION = "0123456789abcdef"
NO_WORDS = ("two words", "line\nERROR of its own", "\x1b[2J", "\u202e", "caf\u00e9", "%s", "a/b", "x" * 65, "end\n")


def hello(**fields: Any) -> dict[str, Any]:
    return {"type": "hello", "protocol": 1, "session": SESSION, **fields}


def answer(**fields: Any) -> dict[str, Any]:
    return {"type": "answer", "id": 1, "session": SESSION, "ok": False, **fields}


def ordered(word: str) -> dict[str, Any]:
    return answer(jobs=[{"id": "7.srv", "run": 1, "order": word}])


def request(word: str) -> dict[str, Any]:
    return {"type": "request", "id": 1, "session": SESSION, "op": word}


PLACES = {
    "agent": lambda word: hello(agent=word),
    "can": lambda word: hello(can=["pidfd", word]),
    "code": lambda word: answer(code=word),
    "order": ordered,
    "op": request,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("word", NO_WORDS)
def test_what_is_no_word_is_refused_at_the_door(place: str, word: str) -> None:
    with pytest.raises(BadValue):
        decode(json.dumps(PLACES[place](word)).encode())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("word", ["push-out", "0.1.0", "1.0.0+g12ab_dirty", "NOT-PERMITTED"])
def test_words_of_agents_of_any_version_are_read(place: str, word: str) -> None:
    message = decode(json.dumps(PLACES[place](word)).encode()).message
    assert isinstance(message, Hello | Answer | Unknown)
    assert word in str(message)
