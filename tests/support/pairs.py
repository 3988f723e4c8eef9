"""Combinations of options: enough of them by day that every two values meet, all of them at night."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import pytest


def pairwise(*options: Collection[Any]) -> list[Any]:
    """All combinations as parameters of a test; those that bring no new pair of values together are nightly."""
    combinations = list(itertools.product(*options))
    missing = set().union(*map(pairs_of, combinations))
    by_day = set()
    while missing:
        best = max(combinations, key=lambda each: len(pairs_of(each) & missing))
        missing -= pairs_of(best)
        by_day.add(best)
    return [pytest.param(*each, marks=[] if each in by_day else pytest.mark.nightly) for each in combinations]


def pairs_of(combination: Sequence[Any]) -> set[Any]:
    """Every two places of a combination, with their values."""
    return set(itertools.combinations(enumerate(combination), 2))
