"""Three chaos campaigns; `make test` has one shorter still, and `make chaos` the long ones."""

from __future__ import annotations

import pytest

from tests.nightly.chaos import Plan, can_mount, run_campaign
from tests.support.sweeps import ENGINES

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("storage", ENGINES)
def test_nothing_is_lost_among_kills_stops_and_outages(storage: str) -> None:
    full_disks = int(storage == "sqlite" and can_mount())
    tally = run_campaign(
        Plan(storage=storage, workers=6, trials=40, kills=20, outages=2, full_disks=full_disks, seed=7)
    )
    assert tally.lost == 0
    assert tally.kills >= 5
    assert tally.outages >= 1
    assert tally.highest_epoch >= 2, "no trial was ever taken over"


def test_loss_curves_are_those_of_undisturbed_runs() -> None:
    """On PostgreSQL; on SQLite killed runs of test_run.py show it, and `make chaos` does."""
    tally = run_campaign(Plan(storage="postgresql", workers=4, trials=8, kills=10, outages=1, seed=7), real=True)
    assert tally.kills >= 3
    assert tally.highest_epoch >= 2, "no trial was ever taken over"
