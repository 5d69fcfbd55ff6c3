"""The questions to PBS's qstat, and how its answers are read; a program prints the answers as qstat does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from magrathea import qstat
from magrathea.core.model import JobClass

Answers = Callable[[bytes], None]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Makes a qstat that prints this; its locale and arguments go to a file `asked` beside it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def answers(output: bytes) -> None:
        (tmp_path / "output").write_bytes(output)
        script = f'echo "$LC_ALL $*" > {tmp_path}/asked; cat {tmp_path}/output'
        (tmp_path / "qstat").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "qstat").chmod(0o755)

    return answers


def test_a_job_with_any_bytes_in_its_environment(answers: Answers, tmp_path: Path) -> None:
    answers(
        b"Job Id: 12.srv\n    job_state = Q\n    comment = J\xfcrgen\n    Variable_List = CONTACT=J\xfcrgen,A=1\n\n"
    )
    id, attributes = qstat.job("12")
    assert (id, attributes["job_state"], attributes["comment"]) == ("12.srv", "Q", "J\udcfcrgen")
    assert (tmp_path / "asked").read_text() == "C -f -w -- 12\n"


@pytest.mark.parametrize("queue", ["null", "true", "007", "1e5", "[]"])
def test_a_queue_keeps_a_name_that_looks_like_a_number_or_null(answers: Answers, tmp_path: Path, queue: str) -> None:
    answers(f"Job Id: 12.srv\n    queue = {queue}\n".encode())
    assert qstat.job("12")[1]["queue"] == queue
    answers(f"Queue: {queue}\n    default_chunk.magrathea_accepts = priority\n".encode())
    assert qstat.class_of_queue(queue) is JobClass.PRIORITY
    assert (tmp_path / "asked").read_text() == f"C -f -w -Q -- {queue}\n"


def test_a_queue_without_a_class_protects(answers: Answers) -> None:
    answers(b"Queue: workq\n    enabled = True\n")
    assert qstat.class_of_queue("workq") is JobClass.PROTECTED


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"\xff\x00\n"])
def test_an_answer_without_the_job_is_reported(answers: Answers, answer: bytes) -> None:
    answers(answer)
    with pytest.raises(qstat.NoQstat, match="nothing about 12"):
        qstat.job("12")


@pytest.mark.parametrize("id", ["1\x002", "\udcff"])
def test_any_argument_is_answered(answers: Answers, id: str) -> None:
    answers(b"")
    with pytest.raises(qstat.NoQstat):
        qstat.job(id)


def test_qstats_error_message_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "qstat").write_text("#!/bin/sh\nprintf 'qstat: Unknown Job Id J\\374\\n' >&2\nexit 153\n")
    (tmp_path / "qstat").chmod(0o755)
    with pytest.raises(qstat.NoQstat, match=r"Unknown Job Id J\\udcfc"):
        qstat.job("12")


@pytest.mark.parametrize(
    ("select", "found"),
    [
        ("2:ncpus=4:mem=1gb+ncpus=1", [(2, 4, 1024), (1, 1, 0)]),
        ("1:NCPUS=2:Mem=100MW", [(1, 2, 800)]),
        ("1:mem=1kb", [(1, 1, 1)]),
        ("0:ncpus=4+1:ncpus=0", [(1, 0, 0)]),
        ("2:ncpus=1:note='a+b:c'", [(2, 1, 0)]),
    ],
)
def test_chunks_of_a_select(select: str, found: list[tuple[int, int, int]]) -> None:
    assert qstat.chunks(select) == found


@pytest.mark.parametrize("select", ["", "0", "0:ncpus=1", "1:ncpus=many", "1:mem=1.5gb", "1:ncpus=1:ncpus=2", "x"])
def test_a_select_that_asks_for_nothing_or_cannot_be_read_is_refused(select: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        qstat.chunks(select)


def test_a_class_counts_if_all_chunks_have_it() -> None:
    assert qstat.class_of_select("1:magrathea_accepts=priority+1:magrathea_accepts=priority") is JobClass.PRIORITY
    assert qstat.class_of_select("1:magrathea_accepts=priority+1:ncpus=1") is JobClass.PROTECTED
    assert qstat.class_of_select("1:note='x:magrathea_accepts=priority'") is JobClass.PROTECTED
