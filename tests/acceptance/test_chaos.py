"""The chaos campaign in its short form; `make nightly` has longer ones, and `make chaos` the long ones."""

from __future__ import annotations

import pytest

from tests.nightly.chaos import Plan, can_mount, run_campaign


@pytest.mark.timeout(600)
def test_nothing_is_lost_among_kills_stops_and_outages() -> None:
    plan = Plan(
        storage="sqlite", workers=4, trials=20, kills=10, outages=1, full_disks=int(can_mount()), seed=7
    )  # fmt: skip
    tally = run_campaign(plan)
    assert tally.lost == 0
    assert tally.kills >= 4
    assert tally.outages >= 1
    assert tally.highest_epoch >= 2, "no trial was ever taken over"
