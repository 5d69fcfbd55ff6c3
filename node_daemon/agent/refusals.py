"""Codes of refusals by the agent and the guest channel, and after how many seconds PBS should try again.

The product's table of codes is magrathea/core/refusals.py, which a guest's Python cannot import; a test compares the
two. Like `lines` and `wire`, the node daemon uses this module too.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

AGENT_BUSY = "agent-busy"
BAD_REQUEST = "bad-request"
BUSY = "busy"
DELETED = "deleted"
FAILED = "failed"
NO_DAEMON = "no-daemon"
NOT_PERMITTED = "not-permitted"
NOT_STOPPED = "not-stopped"
NOT_SUPPORTED = "not-supported"
SUPERSEDED = "superseded"
TIMEOUT = "timeout"
TOO_LARGE = "too-large"
TOO_SLOW = "too-slow"
UNKNOWN_OP = "unknown-op"

CODES = {word for name, word in list(globals().items()) if name.isupper() and isinstance(word, str)}

RETRY_AFTER_S = {AGENT_BUSY: 5, BUSY: 5, NO_DAEMON: 5, TIMEOUT: 5, BAD_REQUEST: 600}
"""For other refusals of a claim the hook decides when to try again."""
OWNER_RETRY_AFTER_S = 60
"""For a job whose owner is no user of the domain: the directory of users may have been away for a moment."""
FULL_RETRY_AFTER_S = 60
"""For an agent whose table is full: some jobs must end first."""


def refusal(code: str, text: str, retry_after_s: "Optional[int]" = None) -> "Dict[str, Any]":
    answer: "Dict[str, Any]" = {"ok": False, "code": code, "text": text}
    after_s = RETRY_AFTER_S.get(code) if retry_after_s is None else retry_after_s
    if after_s is not None:
        answer["retry_after_s"] = after_s
    return answer
