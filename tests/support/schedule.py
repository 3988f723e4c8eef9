"""Which process runs which tests where several run them side by side (`make test`), and in which order.

xdist's own groups are not enough: it hands a group's name on within the ids of tests, which pytest does not let it
change since 9.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import REPOSITORY

TESTS = REPOSITORY / "tests"
# In this order tests are handed out: those that take longest, or mostly wait, first; short ones fill up the end.
TIERS = ("integration", "acceptance", "contract", "unit", "nightly")
# Their tests take long and share little: each goes to the process that is free. Other files' tests stay together.
SPREAD = ("test_compose", "test_run", "test_slurm", "test_train")
# Files that share a fixture which takes seconds to make, or what must not run twice at once.
TOGETHER = {
    **dict.fromkeys(("test_phi", "test_training", "test_transformer"), "trained"),
    **dict.fromkeys(("test_dashboard_pages", "test_page"), "browser"),
}


def tier_of(item: pytest.Item) -> str:
    """The folder below `tests` that a test lies in."""
    return item.path.relative_to(TESTS).parts[0]


def scope_of(nodeid: str) -> str:
    """What a test shares its process with: the name of a group, a file, or itself alone."""
    file = nodeid.partition("::")[0]
    stem = Path(file).stem
    return nodeid if stem in SPREAD else TOGETHER.get(stem, file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if tier_of(item) == "nightly":
            item.add_marker(pytest.mark.nightly)
    items.sort(key=lambda item: (TIERS.index(tier_of(item)), item.path.stem not in TOGETHER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """`--dist loadscope` with scopes of ours."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Schedule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return Schedule(config, log)
