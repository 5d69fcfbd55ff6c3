"""What an admin asks about an evacuation: the operations of the control socket."""

from __future__ import annotations

from magrathea.control import ControlRequest, Denied, granted
from magrathea.core.evacuation import WAYS, Fate
from magrathea.core.refusals import RefusalCode

from .evacuation import Evacuation


class EvacuationRequests:
    def __init__(self, evacuation: Evacuation) -> None:
        self._evacuation = evacuation

    async def plan(self, request: ControlRequest) -> bytes:
        """What would become of each domain. Nothing is changed. Raises Denied."""
        self._only_here(request)
        return granted(evacuation=await self._evacuation.plan(_wish(request)))

    async def report(self, request: ControlRequest) -> bytes:
        """How far the evacuation is."""
        return granted(evacuation=self._evacuation.report())

    async def evacuate(self, request: ControlRequest) -> bytes:
        """Begin. The answer does not wait until the host is empty. Raises Denied."""
        self._only_here(request)
        return granted(evacuation=await self._evacuation.begin(_wish(request), request.reason))

    async def take_back(self, request: ControlRequest) -> bytes:
        self._only_here(request)
        return granted(said=self._evacuation.back())

    def _only_here(self, request: ControlRequest) -> None:
        host = self._evacuation.host_name
        if request.domain != host:
            text = f"this is host {host}, and only it is evacuated from here, not {request.domain or 'nothing'}"
            raise Denied(RefusalCode.WRONG_HOST, text)


def _wish(request: ControlRequest) -> Fate:
    """Raises Denied."""
    if request.do not in [wish.value for wish in WAYS]:
        text = f"`do` is {request.do[:64]!r}; known: {', '.join(wish.value for wish in WAYS)}"
        raise Denied(RefusalCode.BAD_REQUEST, text)
    return Fate(request.do)
