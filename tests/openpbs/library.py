"""A user's own program that calls PBS's library, for the tests of this folder. It leaves out the library's checks."""

from __future__ import annotations

import json

from magrathea_lab.clusters.openpbs import OpenPbsCluster
from magrathea_lab.clusters.private_openpbs import HEAD

Attribute = tuple[str, str, str]
"""Name, resource (or ""), value."""

PROGRAM = """
import ctypes, json, sys
class Attribute(ctypes.Structure):
    pass
Attribute._fields_ = [
    ("next", ctypes.POINTER(Attribute)), ("name", ctypes.c_char_p), ("resource", ctypes.c_char_p),
    ("value", ctypes.c_char_p), ("op", ctypes.c_int),
]
pbs = ctypes.CDLL("/opt/pbs/lib/libpbs.so")
unchecked = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
for name in ("pbs_submit", "pbs_submit_resv", "pbs_modify_resv", "pbs_geterrmsg"):
    getattr(pbs, name).restype = ctypes.c_char_p
link = pbs.pbs_connect(None)
check = ctypes.c_void_p.in_dll(pbs, "pfn_pbs_verify_attributes")  # the library's own, which an attacker leaves out
check.value = ctypes.cast(unchecked, ctypes.c_void_p).value
what, whom, wishes = sys.argv[1], sys.argv[2].encode(), json.loads(sys.argv[3])
first = None
for name, resource, value in reversed(wishes):
    following = None if first is None else ctypes.pointer(first)
    first = Attribute(following, name.encode(), resource.encode() or None, value.encode("utf-8", "surrogateescape"), 0)
asked = ctypes.byref(first)
if what == "submit":
    done = pbs.pbs_submit(link, asked, b"/dev/null", whom, None)
elif what == "alter":
    done = not pbs.pbs_alterjob(link, whom, asked, None) and whom
elif what == "asyalter":
    done = not pbs.pbs_asyalterjob(link, whom, asked, None) and whom
elif what == "reserve":
    done = pbs.pbs_submit_resv(link, asked, None)
elif what == "alter-reservation":
    done = pbs.pbs_modify_resv(link, whom, asked, None)
if not done:
    sys.exit((pbs.pbs_geterrmsg(link) or b"refused without a word").decode())
print(done.decode())
"""

HELD: Attribute = ("Hold_Types", "", "u")


def select(text: str) -> Attribute:
    return ("Resource_List", "select", text)


def call(fleet: OpenPbsCluster, what: str, whom: str, *attributes: Attribute) -> tuple[str, str]:
    """(answer, error) for alice's call: one of them is empty. `whom`: a queue, job or reservation."""
    program = ["python3", "-c", PROGRAM, what, whom, json.dumps(attributes)]
    done = fleet.pbs.run(HEAD, program, user="alice", check=False)
    return (done.stdout.strip(), "") if done.returncode == 0 else ("", done.stderr.strip())
