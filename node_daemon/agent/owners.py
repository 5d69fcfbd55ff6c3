"""Owners of jobs: their names in messages, and their uids here."""

import os
import pwd
import time

from .lines import BadValue, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional, Tuple

    from .lines import Doc


def owner_of(doc: "Doc") -> str:
    """The user that a message names; empty where it names none. Raises BadValue."""
    owner = field(doc, "owner", str, "")
    if len(owner) > 255 or "\0" in owner:
        raise BadValue("owner %.60r is no user" % owner)
    return str(owner)


class Owners:
    """The uids of jobs' owners."""

    KNOWN_S = 600.0  # how long a user's uid is remembered: asking a directory server may take long

    def __init__(self) -> None:
        self.known: "Dict[str, Tuple[int, float]]" = {}

    def uid_of(self, owner: str) -> "Optional[int]":
        """uid of a job's owner. As an ordinary user the agent sees its own processes only: then all jobs are its."""
        if os.geteuid() != 0:
            return os.geteuid()
        known = self.known.get(owner)
        now = time.monotonic()
        if known is not None and now - known[1] < self.KNOWN_S:
            return known[0]
        if len(self.known) > 4096:
            self.known.clear()
        try:
            uid = pwd.getpwnam(owner).pw_uid
        except (KeyError, ValueError, UnicodeError):
            return None
        self.known[owner] = (uid, now)
        return uid
