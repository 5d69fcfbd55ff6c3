"""The ids of PBS's jobs, as PBS itself makes them (`generate_objid`, req_quejob.c).

PBS's own calls take more than ids: `5[900,1-1000]@,7` is many subjobs, `@` is all jobs, `7@0` is another name of job 7.
So what comes from guests and hosts must match PATTERN, before it is believed and again before PBS is called. The agent
has its own copy (node_daemon/agent/values.py), because it imports nothing of this tree; a test compares them.
"""

from __future__ import annotations

import re

_NUMBER = r"[0-9]{1,12}"  # PBS_MAXSEQNUM
_SERVER = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[0-9]{1,5})?"  # the port is there if pbs_server was started with -p

PATTERN = rf"\A{_NUMBER}(\[[0-9]{{1,10}}\])?\.{_SERVER}\Z"
"""A job or a subjob. A MoM never runs an array itself (`5[].srv`), so that is no such id."""

MOST = 255
"""The length of the longest id: PBS_MAXSERVERNAME. PBS would take some more, but hosts' names are at most 64 long."""

_ID = re.compile(PATTERN)
_TYPED = re.compile(rf"{_NUMBER}(\[[0-9]{{0,10}}\])?(\.{_SERVER})?")


def is_job_id(text: str) -> bool:
    return len(text) <= MOST and _ID.match(text) is not None


def is_typed_id(text: str) -> bool:
    """True for what people type for a job: `12`, `12[3]`, `12[]`, each with or without its server."""
    return len(text) <= MOST and _TYPED.fullmatch(text) is not None
