"""The table: every entry point that reads bytes or text of somebody else, and the errors by which it refuses them.

A new reader of foreign bytes gets a row, and a folder of samples in tests/hostile/corpus/.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from zmq.utils import z85

from magrathea import control
from magrathea.configuration import ConfigurationError
from magrathea.control import Control, ControlRequest
from magrathea.core.refusals import RefusalCode
from magrathea.messages import BadMessage, decode_to_host, decode_to_hub, encode
from magrathea.move_messages import ParcelSent, parcel_of
from magrathea.pbs_text import amounts, conf, listing, placement, select, words
from node_daemon import configuration as noded
from node_daemon.agent.lines import BadValue
from node_daemon.agent.values import Unusable
from node_daemon.journal import JournalError, open_journal, salvage
from scheduler_plugin.hub import configuration as hub
from scheduler_plugin.hub import keys, ledger, ownership

from .daemon_targets import lines_to_daemon, requests_to_daemon
from .driver import Reader, Target
from .guest_targets import (
    agent_configuration,
    agent_state,
    daemon_to_agent,
    guest_to_daemon,
    mom_to_agent,
)
from .hook_targets import NotPbs, host_load, mom_hook, server_hook, vnodes_hook
from .hub_targets import messages_to_hub


class Aside(Exception):
    """The reader has put a damaged file aside."""


# Messages


def host_to_hub(folder: Path) -> Reader:
    def read(data: bytes) -> None:
        encode(decode_to_hub(data))

    return read


def hub_to_daemon(folder: Path) -> Reader:
    """The facts in a parcel, too."""

    def read(data: bytes) -> None:
        message = decode_to_host(data)
        encode(message)
        if isinstance(message, ParcelSent):
            encode(parcel_of(message.parcel, message.to))

    return read


def control_socket(folder: Path) -> Reader:
    """One line of a user to a control socket; a defect there is answered with a code of its own."""

    async def operation(request: ControlRequest) -> bytes:
        return control.granted(reason=request.reason, about=request.about, chunks=request.chunks)

    here = Control(folder / "sock", {"status": operation, "preview": operation}, {"drain": operation})
    defects = []
    here._complaints.say = lambda kind, text, error=None, level=0: defects.append(error)  # type: ignore[method-assign]

    def read(data: bytes) -> None:
        for is_entitled in (True, False):
            _, answer = _now(here._answer(data, os.getuid(), entitled=is_entitled))
            if defects:
                raise defects.pop() or AssertionError(answer)
            assert b"\n" not in answer
        if f'"code":"{RefusalCode.BAD_REQUEST}"'.encode() in answer:
            raise BadMessage("refused")

    return read


def _now(work: Coroutine[Any, Any, tuple[str, bytes]]) -> tuple[str, bytes]:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


# Text of PBS and of its users


def pbs_select(folder: Path) -> Reader:
    def read(data: bytes) -> None:
        text = listing.decoded(data)
        trouble = select.examined(text)[1]
        names, cls = select.resource_names(text), select.job_class(text)
        assert cls is None or cls in select.CLASSES
        found = select.chunks(text)
        assert names == {name for _, pairs in found for name, _ in pairs}
        if trouble:
            raise ValueError(trouble)

    return read


def pbs_amounts(folder: Path) -> Reader:
    readers: list[Callable[[str], object]] = [
        *(amounts.size_bytes, amounts.whole_number, amounts.duration_s, words.is_true),
    ]

    def read(data: bytes) -> None:
        text = listing.decoded(data)
        words.words(text), words.job_ids(text), words.user_of(text)
        refused = 0
        for reader in readers:
            try:
                reader(text)
            except ValueError:
                refused += 1
        if refused == len(readers):
            raise ValueError(text)

    return read


def pbs_placement(folder: Path) -> Reader:
    def read(data: bytes) -> None:
        text = listing.decoded(data)
        placement.hosts_of(text)
        assert all(chunk for chunk in placement.placed(text))
        placement.vnodes_of(text)

    return read


def pbs_listing(folder: Path) -> Reader:
    def read(data: bytes) -> None:
        listing.listed(listing.decoded(data), (listing.QSTAT_JOB, listing.QSTAT_QUEUE, "Node"))

    return read


def pbs_conf(folder: Path) -> Reader:
    path = folder / "pbs.conf"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        conf.read_conf(path)

    return read


# Files


def noded_configuration(folder: Path) -> Reader:
    path = folder / "noded.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = noded.read(path)
        found.reconfigured(1.0), found.memory_settings()

    return read


def hub_configuration(folder: Path) -> Reader:
    path = folder / "hub.toml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        hub.load(path)

    return read


def key_file(folder: Path) -> Reader:
    """A key of the hub or of a host: what is accepted is a key for ZeroMQ, too."""
    path = folder / "h1.key"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = keys.read(path)
        assert len(z85.decode(found.public)) == 32
        assert not found.secret or len(z85.decode(found.secret)) == 32

    return read


def journal_file(folder: Path) -> Reader:
    """A damaged database: it is opened, read and written, and what can be read is salvaged."""
    path = folder / "journal.sqlite"

    def read(data: bytes) -> None:
        for companion in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + companion).unlink(missing_ok=True)
        path.write_bytes(data)
        salvage(path)
        journal = open_journal(path)
        try:
            journal.states(), journal.preempted_s(), journal.history()
            if (facts := journal.facts()) is not None:
                journal.commit(facts, None, ())
            journal.tidy(1e12)
        finally:
            journal.close()

    return read


def journal_facts(folder: Path) -> Reader:
    """The one row of facts, in a database that is sound."""
    journal = open_journal(folder / "journal.sqlite")
    journal._connection.execute("PRAGMA synchronous = OFF")

    def read(data: bytes) -> None:
        journal._connection.execute("INSERT OR REPLACE INTO facts VALUES (1, 0, ?)", (data,))
        journal.facts()

    return read


def journal_moves(folder: Path) -> Reader:
    """The facts about moves, in a database that is sound."""
    journal = open_journal(folder / "moves.sqlite")
    journal._connection.execute("PRAGMA synchronous = OFF")

    def read(data: bytes) -> None:
        journal._connection.execute("INSERT OR REPLACE INTO moves VALUES (1, ?)", (data,))
        journal.moves()

    return read


def hub_ledger(folder: Path) -> Reader:
    path = folder / ledger.NAME

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for sleeper in ledger.load(folder).sleepers:
            assert sleeper.sentence and sleeper.return_
        if not path.exists():
            raise Aside(path)

    return read


def hub_ownership(folder: Path) -> Reader:
    def read(data: bytes) -> None:
        ownership.encoded(ownership.decoded(data))

    return read


TARGETS = (
    Target("guest-to-daemon", guest_to_daemon),
    Target("daemon-to-agent", daemon_to_agent),
    Target("mom-to-agent", mom_to_agent),
    Target("host-to-hub", host_to_hub, (BadMessage,)),
    Target("hub-to-daemon", hub_to_daemon, (BadMessage,)),
    Target("control-socket", control_socket, (BadMessage,), lines=1),  # a command of an entitled user is logged
    Target("pbs-select", pbs_select, (ValueError,)),
    Target("pbs-amounts", pbs_amounts, (ValueError,)),
    Target("pbs-placement", pbs_placement, (ValueError,)),
    Target("pbs-listing", pbs_listing),
    Target("pbs-conf", pbs_conf),
    Target("noded-toml", noded_configuration, (ConfigurationError,)),
    Target("hub-toml", hub_configuration, (ConfigurationError,)),
    Target("key-file", key_file, (keys.KeysError,)),
    Target("agent-json", agent_configuration, (Unusable,)),
    Target("agent-state", agent_state, (BadValue,), lines=1),
    Target("journal-file", journal_file, (JournalError,)),
    Target("journal-facts", journal_facts, (JournalError,)),
    Target("journal-moves", journal_moves, (JournalError,)),
    Target("hub-ledger", hub_ledger, (Aside,), lines=1),
    Target("hub-ownership", hub_ownership, (ownership.BadLedger,)),
    Target("messages-to-hub", messages_to_hub, (BadMessage,), lines=8, share=0.5),
    Target("lines-to-daemon", lines_to_daemon, lines=32, share=0.1),
    Target("requests-to-daemon", requests_to_daemon, (BadMessage,), lines=64, share=0.2),
    Target("server-hook", server_hook, (NotPbs,)),
    Target("host-load", host_load, (NotPbs,)),
    Target("mom-hook", mom_hook, (NotPbs,)),
    Target("vnodes-hook", vnodes_hook, (NotPbs,)),
)
