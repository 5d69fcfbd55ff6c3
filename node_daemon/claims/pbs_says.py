"""What PBS says about a job in a domain, as hubs pass it on."""

from __future__ import annotations

from dataclasses import dataclass

from magrathea.core.model import Amount


@dataclass(frozen=True, slots=True)
class PbsSays:
    """`given`: whether PBS has given the job to the domain; None if no hub could say. `size`: what PBS has given it
    there; None if that is unknown."""

    given: bool | None
    size: Amount | None = None
