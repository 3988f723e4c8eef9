"""The program within a test's own process: loading torch anew for each call would take seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Hpo = Callable[..., Answer]


def refused(answer: Answer, *words: str) -> None:
    """One line, exit code 1, nothing else."""
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("hpo: ")
    for word in words:
        assert word in answer.err
