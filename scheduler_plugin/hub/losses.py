"""An admin tells the hub that a host is switched off: `magrathea host lost`. What follows is in lost_hosts.py.

Rule 1: the hub takes this word only about a host that it has not heard for a whole lease. A host that is heard is not
off, and a hub that has just started may hear it yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from magrathea.control import ControlRequest, Denied, granted
from magrathea.core.refusals import RefusalCode
from magrathea.move_reports import RUN_COPIES, LostMove

from . import farm as farms
from .farm import Farm
from .lost_hosts import Ending
from .move_log import stage
from .owners import OwnersFile

log = logging.getLogger(__name__)


class Losses:
    """`follow`: called when something was booked."""

    def __init__(self, owners: OwnersFile, farm: Farm, follow: Callable[[], None]) -> None:
        self._owners, self._farm, self._follow = owners, farm, follow
        self._heard_at: dict[str, float] = {}

    def heard(self, host: str) -> None:
        """The host has just been heard, whatever it says."""
        self._heard_at[host] = asyncio.get_running_loop().time()

    async def plan(self, request: ControlRequest) -> bytes:
        """What would follow. Nothing is changed. Raises Denied."""
        self._check(request.about)
        return _answer(self._owners.endings(request.about, run_copies=request.do == RUN_COPIES))

    async def book(self, request: ControlRequest) -> bytes:
        """Book that the host is lost. Raises Denied."""
        self._check(request.about)
        endings = self._owners.host_lost(request.about, run_copies=request.do == RUN_COPIES)
        for one in endings:
            log.warning("an admin says that %s is lost; %s: %s", request.about, one.before.domain, one.text)
        self._follow()
        return _answer(endings)

    def _check(self, host: str) -> None:
        """Raises Denied unless the host may be lost."""
        now, lease_s = asyncio.get_running_loop().time(), farms.LEASE_S
        heard_s, started_s = now - self._heard_at.get(host, -lease_s), now - self._farm.started
        if host in self._heard_at and heard_s <= lease_s:
            text = f"{host} is not lost: its daemon was heard {heard_s:.0f} s ago"
            raise Denied(RefusalCode.HOST_HEARD, f"{text}; switch that machine off, and ask again in {lease_s:.0f} s")
        if started_s <= lease_s:
            text = f"this hub has just started, and may hear {host} yet"
            raise Denied(RefusalCode.HOST_HEARD, f"{text}; ask again in {lease_s - started_s:.0f} s")


def _answer(endings: list[Ending]) -> bytes:
    return granted(moves=[_move(one) for one in endings])


def _move(one: Ending) -> LostMove:
    transfer = one.before.transfer
    assert transfer is not None, "a domain that rests has no ending"
    return LostMove(
        domain=one.before.domain,
        source=transfer.source,
        target=transfer.target,
        stage=stage(transfer),
        text=one.text,
        booked=one.record is not None,
    )
