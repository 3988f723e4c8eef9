"""A tier that takes longer than its budget fails the run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import budgets


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    measured = {
        "tests/unit/test_a.py::test_a": 30.0,
        "tests/unit/test_b.py::test_b": 40.0,
        "tests/nightly/t.py::c": 999.0,
    }
    monkeypatch.setattr(budgets, "_measured", measured)
    return measured


def test_tiers_are_added_up_and_night_has_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.BUDGETS_CPU_S, "unit", 70)
    assert budgets.over_budget() == {}
    monkeypatch.setitem(budgets.BUDGETS_CPU_S, "unit", 69)
    assert budgets.over_budget() == {"unit": 70.0}


def test_what_a_child_computes_counts_while_it_runs_and_when_it_has_ended() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = budgets.cpu_s()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert round(budgets.cpu_s() - before, 2) >= 0.29 or sys.platform != "linux"
    child.communicate(b"\n")
    assert round(budgets.cpu_s() - before, 2) >= 0.29
