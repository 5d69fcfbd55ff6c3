"""Owners of jobs: their names in messages, and their uids in this guest."""

import os
import pwd
import time

from .lines import BadValue, field
from .parts import MAX_JOBS
from .values import is_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Tuple

    from .lines import Doc


def owner_of(doc: "Doc") -> str:
    """The user that a message names; empty if it names none. Raises BadValue."""
    owner = field(doc, "owner", str, "")
    if len(owner) > 255 or not is_text(owner):
        raise BadValue("field owner is %.60r, it must be the name of a user" % owner)
    return str(owner)


class Owners:
    """The uids of jobs' owners."""

    KNOWN_S = 600.0  # how long a user's uid is remembered: asking a directory server may take long
    UNKNOWN_S = 60.0  # the same for a name without a user
    MOST = 2 * MAX_JOBS

    def __init__(self) -> None:
        self.known: "Dict[str, Tuple[Optional[int], float]]" = {}  # uid, and until when it counts

    def uid_of(self, owner: str, new: bool = False) -> "Optional[int]":
        """The uid of a job's owner; None if there is no such user. `new`: the user may have been created just now.

        An agent of an ordinary user sees only its own processes, so it takes all jobs for that user's.
        """
        if os.geteuid() != 0:
            return os.geteuid()
        known = self.known.get(owner)
        now = time.monotonic()
        if known is not None and now < known[1] and not (new and known[0] is None):
            return known[0]
        if len(self.known) >= self.MOST:
            self.known.clear()
        try:
            uid: "Optional[int]" = pwd.getpwnam(owner).pw_uid
        except (KeyError, ValueError):
            uid = None  # no such user here, or no valid name
        self.known[owner] = uid, now + (self.UNKNOWN_S if uid is None else self.KNOWN_S)
        return uid
