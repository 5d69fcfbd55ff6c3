"""A program for a machine of a private cluster: makes calls on libpbs connections, as lines of JSON request.

    {"connection": 1, "op": "set_vnode", "arguments": ["n1", {...}]}
    -> {"value": ..., "seconds": ...} or {"code": ..., "text": ..., "transient": ..., "seconds": ...}

Further operations: `become` (a user id), `connect` (with a deadline in seconds), and `threads` (count, rounds).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from typing import Any

from magrathea_lab.waiting import BOUND_S
from scheduler_plugin.pbs.base import Pbs, PbsError
from scheduler_plugin.pbs.libpbs import connector

_connections: dict[int, Pbs] = {}


def carry_out(connection: int, op: str, arguments: list[Any]) -> Any:
    if op == "connect":
        _connections[connection] = connector(deadline_s=arguments[0])()
        return None
    if op == "become":
        os.setgid(arguments[0])
        return os.setuid(arguments[0])
    if op == "threads":
        return side_by_side(*arguments)
    return getattr(_connections[connection], op)(*arguments)


def side_by_side(threads: int, rounds: int) -> list[str]:
    """Errors of threads that set and read vnodes at the same time, each on its own connection."""
    connect = connector()
    errors: list[str] = []

    def work(number: int) -> None:
        try:
            pbs = connect()
            for turn in range(rounds):
                pbs.set_vnode("n1", {"Priority": str(number)})
                if {vnode.name for vnode in pbs.vnodes()} < {"n1"}:
                    raise PbsError(0, f"round {turn}: no n1")
                try:
                    pbs.set_vnode(f"nosuch{number}", {"Priority": "1"})
                except PbsError as error:
                    if f"nosuch{number}" not in error.text or error.code != 15062:
                        raise
            pbs.close()
        except PbsError as error:
            errors.append(str(error))

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(BOUND_S)
    return errors + [f"{thread.name} hangs" for thread in working if thread.is_alive()]


def plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return dict(value)
    raise TypeError(type(value))


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.monotonic()
        try:
            value = carry_out(asked["connection"], asked["op"], asked["arguments"])
            if isinstance(value, list):
                value = [dataclasses.asdict(one) if dataclasses.is_dataclass(one) else one for one in value]  # type: ignore[arg-type]
            elif dataclasses.is_dataclass(value):
                value = dataclasses.asdict(value)  # type: ignore[arg-type]
            answer = {"value": value}
        except PbsError as error:
            answer = {"code": error.code, "text": error.text, "transient": error.transient}
        answer["seconds"] = time.monotonic() - started
        print(json.dumps(answer, default=plain), flush=True)  # noqa: T201  the answer


main()
