"""Tests that share a fixture which takes seconds, or must not run twice at once, share a process."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.schedule import SPREAD, TESTS, TOGETHER, scope_of


@pytest.mark.parametrize(
    ("test", "scope"),
    [
        ("tests/unit/model/test_phi.py::test_a[x@y]", "trained"),
        ("tests/unit/model/test_training.py::test_b", "trained"),
        ("tests/unit/model/test_step.py::test_c[a::b]", "tests/unit/model/test_step.py"),
        ("tests/acceptance/test_run.py::TestBadInput::test_d", "tests/acceptance/test_run.py::TestBadInput::test_d"),
    ],
)
def test_a_scope_is_a_group_a_file_or_one_test(test: str, scope: str) -> None:
    assert scope_of(test) == scope
    assert "_split_scope" in vars(LoadScopeScheduling), "what xdist asks for a test's scope has another name now"


def test_files_that_are_named_are_there() -> None:
    found = {path.stem for path in TESTS.rglob("test_*.py")}
    assert {*SPREAD, *TOGETHER} <= found
