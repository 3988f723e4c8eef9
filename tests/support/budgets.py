"""Processor time per test and per tier: a tier over its budget fails the run and names its slowest tests.

Processor time and not the clock, so that a busy machine does not fail a run; that of child processes counts too. With
xdist each worker measures its own tests, and the controller adds them up.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

# Some 1.5 times what two quiet cores took on 2026-11-29: unit 234 s, contract 121, integration 71, acceptance 355.
# Contract has more: PostgreSQL's part of it differs most between machines.
BUDGETS_CPU_S = {"unit": 350, "contract": 240, "integration": 120, "acceptance": 520}
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SLOWEST = 10  # tests named in the summary, per tier that is over its budget
_measured: dict[str, float] = {}  # processor seconds by test, of this process and on the controller of all workers


def tier_of(test: str) -> str:
    """The folder below `tests` that a test lies in."""
    return test.split("/")[1]


def over_budget() -> dict[str, float]:
    """Tiers that took longer than they may, and how long they took."""
    return {tier: spent for tier, spent in _by_tier().items() if spent > BUDGETS_CPU_S.get(tier, float("inf"))}


def _by_tier() -> dict[str, float]:
    tiers: dict[str, float] = defaultdict(float)
    for test, spent in _measured.items():
        tiers[tier_of(test)] += spent
    return dict(tiers)


def cpu_s() -> float:
    """Of this process, its ended children and, where Linux tells, those that still run: servers that fork workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _descendants_cpu_s("self")


def _descendants_cpu_s(pid: str) -> float:
    spent = 0.0
    for listing in Path("/proc", pid, "task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for child in listing.read_text().split():
                fields = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
                spent += sum(map(int, fields[11:15])) / TICKS_PER_S + _descendants_cpu_s(child)
    return spent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    before = cpu_s()
    try:
        return (yield)
    finally:
        _measured[item.nodeid] = cpu_s() - before


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take over what a worker of xdist measured."""
    _measured.update(getattr(node, "workeroutput", {}).get("cpu_s", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    workeroutput = getattr(session.config, "workeroutput", None)
    if workeroutput is not None:
        workeroutput["cpu_s"] = _measured
    elif over_budget() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    late = over_budget()
    for tier, spent in sorted(_by_tier().items()):
        budget = f" of {BUDGETS_CPU_S[tier]}" if tier in BUDGETS_CPU_S else ""
        terminalreporter.write_line(f"{tier}: {spent:.0f}{budget} s of processor time", red=tier in late)
        if tier in late:
            tests = sorted((test for test in _measured if tier_of(test) == tier), key=lambda test: -_measured[test])
            for test in tests[:SLOWEST]:
                terminalreporter.write_line(f"    {_measured[test]:6.1f} s  {test}")
    path = os.environ.get("HPO_TEST_CPU_FILE")
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(
                f"{spent:.2f} {test}\n" for test, spent in sorted(_measured.items(), key=lambda each: -each[1])
            )
