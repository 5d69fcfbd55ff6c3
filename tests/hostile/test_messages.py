"""Invalid bytes from a host with a valid key: only that message is lost, and everybody else is served as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_plugin.hub.vnode_attributes import STATE
from tests.embedded.real_hub import RealHub, run
from tests.fakes.reports import domain

NO_MESSAGES = {
    "no UTF-8": b'{"type":"\xff"}',
    "no UTF-8 in a field": b'{"type":"heartbeat","sender":"\xff","boot_id":"b","revision":1}',
    "nested objects": b'{"a":' * 1500,
    "nested lists in an unknown field": b'{"x":' + b"[" * 100_000,
    "a huge integer": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":' + b"9" * 5000 + b"}",
    "a huge number": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":1,"at":1e400}',
    "not a number": b'{"type":"heartbeat","sender":"h","boot_id":"b","revision":1,"at":NaN}',
    "half a surrogate": b'{"type":"heartbeat","sender":"\\ud800","boot_id":"b","revision":1}',
    "nothing": b"",
}


@pytest.mark.parametrize("attack", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_only_an_invalid_message_itself_is_lost(tmp_path: Path, attack: bytes) -> None:
    async def test(hub: RealHub) -> None:
        hostile, honest = hub.host("h1", "p1"), hub.host("h2", "n1")
        hub.start()
        await hostile.sends(attack)
        await hostile.sends(attack, attack)
        await hostile.says(domain("p1"))
        await hub.until(lambda: hub.shown("p1", STATE) == "free", "the hostile host's next message is heard")
        await honest.says(domain("n1"))
        await hub.until(lambda: hub.shown("n1", STATE) == "free", "the honest host is heard")

    run(tmp_path, test, tcp=True)
