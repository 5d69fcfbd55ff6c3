"""How OpenPBS itself reads a select, against how magrathea/pbs_text does: its own functions, in its own library."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from magrathea.pbs_text.select import chunks, examined, job_class, resource_names

Chunks = list[tuple[int, list[tuple[str, str]]]]


class KeyValue(ctypes.Structure):
    _fields_ = [("word", ctypes.c_char_p), ("value", ctypes.c_char_p)]


class Parser:
    """`parse_plus_spec_r` and `parse_chunk_r` of libpbs."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("/opt/pbs/lib/libpbs.so")
        self.library.parse_plus_spec_r.restype = ctypes.c_void_p

    def chunks(self, select: str) -> Chunks | None:
        """As `do_schedselect` of the server takes it to pieces; None if it does not."""
        data = select.encode("latin-1")
        if data.startswith(b"+"):
            return None
        text = ctypes.create_string_buffer(data)  # of its own: it is written to
        last, parens = ctypes.c_void_p(), ctypes.c_int()
        found: Chunks = []
        chunk = self.library.parse_plus_spec_r(text, ctypes.byref(last), ctypes.byref(parens))
        while chunk:
            pairs = self._chunk(ctypes.c_void_p(chunk))
            if pairs is None:
                return None
            found.append(pairs)
            if ctypes.string_at(last.value or 0).startswith(b"+"):
                return None
            chunk = self.library.parse_plus_spec_r(last, ctypes.byref(last), ctypes.byref(parens))
        return found or None

    def _chunk(self, text: ctypes.c_void_p) -> tuple[int, list[tuple[str, str]]] | None:
        count, used, room, by_default = (ctypes.c_int() for _ in range(4))
        pairs = ctypes.POINTER(KeyValue)()
        failed = self.library.parse_chunk_r(
            *(text, ctypes.byref(count), ctypes.byref(used), ctypes.byref(room), ctypes.byref(pairs)),
            ctypes.byref(by_default),
        )
        if failed:
            return None
        return count.value, [
            ((pairs[i].word or b"").decode("latin-1").lower(), (pairs[i].value or b"").decode("latin-1"))
            for i in range(used.value)
        ]


@pytest.fixture(scope="module")
def pbs() -> Parser:
    return Parser()


PIECES = (
    *("1", "2", "ncpus=1", "mem=1gb", "note", "NOTE", "software", "magrathea_accepts", "Magrathea_Accepts", "priority"),
    *(":", ":", ":", "=", "=", "+", "+", "'", "'", '"', '"', " ", "(", ")", ",", "x", "\t"),
)
selects = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
values = st.lists(st.sampled_from(["'", '"', "x", ":", "+", "=", "magrathea_accepts=priority"]), max_size=6).map(
    "".join
)
likely = st.builds("1:ncpus=1:note={}:software={}+2:note={}".format, *[values] * 3)
"""So that long ones can be read at all."""


def ours(select: str) -> Chunks | None:
    try:
        return chunks(select)
    except ValueError:
        return None


def stripped(found: Chunks) -> Chunks:
    """Blanks at the end of a quoted value are kept by PBS if it is the chunk's last."""
    return [(count, [(name, value.rstrip()) for name, value in pairs]) for count, pairs in found]


@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(selects | likely)
@example("1:ncpus=1:accelerator_model=\"x'y:mag''rathea_accepts=protected\"")
@example("1:ncpus=1:MAGRATHEA_ACCEPTS=priority")
@example("1:note='a':b=\"c+1:magrathea_accepts=priority'\"")
def test_what_we_can_read_of_a_select_pbs_reads_in_the_same_way(pbs: Parser, select: str) -> None:
    mine, theirs = ours(select), pbs.chunks(select)
    if mine is not None and theirs is not None:
        assert stripped(mine) == stripped(theirs)


def written_by_the_server(found: Chunks) -> str:
    """What `do_schedselect` writes for the scheduler, if all resources are strings, with a queue's class at the end."""
    return "+".join(
        ":".join([str(count), *map(_pair, pairs), "magrathea_accepts=preemptible"]) for count, pairs in found
    )


def _pair(pair: tuple[str, str]) -> str:
    name, value = pair
    quote = "" if not set(value) & set("\"'+:=()") else "'" if '"' in value else '"'
    return f"{name}={quote}{value}{quote}"


@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(selects | likely)
@example("""1:note="a':magrathea_accepts=priority:software='x"\"""")
@example("""1:note="a':magrathea_accepts=priority:software='x""" + '"""')
def test_what_the_hook_lets_through_has_its_queues_class_for_pbs_and_for_us(pbs: Parser, select: str) -> None:
    theirs = pbs.chunks(select)
    if theirs is None or any(name.startswith("magrathea") for name in resource_names(select)):
        return
    again = written_by_the_server(theirs)
    if examined(select)[1]:
        assert job_class(again) in ("preemptible", None), "not refused in time, it starts nowhere"
        return
    with_class = [(count, [*pairs, ("magrathea_accepts", "preemptible")]) for count, pairs in theirs]
    assert pbs.chunks(again) == stripped(with_class)
    assert job_class(again) == "preemptible"


def test_a_value_with_both_kinds_of_quotes_is_what_pbs_reads_differently_afterwards(pbs: Parser) -> None:
    """Why such a value is refused: for the scheduler it holds a class, and the queue's is a second one."""
    select = """1:note="a':magrathea_accepts=priority:software='x""" + '""'
    theirs = pbs.chunks(select)
    assert theirs is not None and len(theirs[0][1]) == 1
    again = pbs.chunks(written_by_the_server(theirs))
    assert again is not None
    assert [name for name, _ in again[0][1]] == ["note", "magrathea_accepts", "software", "magrathea_accepts"]
    assert examined(select)[1]
