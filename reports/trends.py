"""How a loss goes with each searched parameter, over complete trials: a rank correlation, a region, clean contrasts.

Trials that a sampler chose and a pruner spared are neither independent nor spread evenly: the intervals are too narrow,
and a report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from reports.attributes import Scalar
from reports.records import TrialRecord

LEAST_TRIALS = 6  # for a correlation; with fewer its interval says nothing
BEST_SHARE = 3  # one in so many are the best
MOST_CONTRASTS = 3
MOST_PAIRED = 500  # of the best trials, among which pairs are looked for
_OWN = ("seed",)  # of a run, and no choice


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Spearman's rank correlation of a parameter with the loss: below 0, larger values go with lower losses."""

    rho: float
    low: float  # 95 %
    high: float
    trials: int

    @property
    def is_clear(self) -> bool:
        """Whether no trend at all is outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two trials that differ in one parameter alone."""

    before: TrialRecord
    after: TrialRecord
    difference: float  # of the objective: after less before


@dataclass(frozen=True, kw_only=True)
class ParameterTrend:
    """What the complete trials say of one parameter."""

    name: str
    trend: Trend | None  # None: too few trials, or no numbers
    best: tuple[Scalar, ...]  # its values in the best third, in order of size where they are numbers
    contrasts: tuple[Contrast, ...]  # the largest first
    trials: int


def trends(ranked: Sequence[TrialRecord]) -> tuple[ParameterTrend, ...]:
    """Look at each searched parameter.

    Args:
        ranked: the comparable complete trials of one objective, best first.
    """
    names = dict.fromkeys(name for trial in ranked for name in trial.searched)
    return tuple(_parameter(name, ranked) for name in names)


def _parameter(name: str, ranked: Sequence[TrialRecord]) -> ParameterTrend:
    best = [trial.parameters.get(name) for trial in ranked[: math.ceil(len(ranked) / BEST_SHARE)]]
    numbers = [value for value in best if _is_number(value)]
    return ParameterTrend(
        name=name,
        trend=_trend([(trial.parameters.get(name), trial.values[0]) for trial in ranked]),
        best=tuple(sorted(numbers) if len(numbers) == len(best) else best),  # type: ignore[type-var]
        contrasts=_contrasts(name, ranked[:MOST_PAIRED]),
        trials=len(ranked),
    )


def _trend(pairs: Sequence[tuple[Scalar, float | None]]) -> Trend | None:
    """Fieller's interval by Fisher's transformation (1957)."""
    numbers = [(x, y) for x, y in pairs if _is_number(x) and y is not None]
    if len(numbers) < LEAST_TRIALS or any(len(set(values)) < 2 for values in zip(*numbers, strict=True)):
        return None
    rho = float(stats.spearmanr(*zip(*numbers, strict=True)).statistic)
    center, half = math.atanh(max(min(rho, 0.999999), -0.999999)), 1.96 * math.sqrt(1.06 / (len(numbers) - 3))
    return Trend(rho=rho, low=math.tanh(center - half), high=math.tanh(center + half), trials=len(numbers))


def _contrasts(name: str, ranked: Sequence[TrialRecord]) -> tuple[Contrast, ...]:
    """Pairs that share all other values; from the smaller value to the larger."""
    groups: dict[tuple[object, ...], list[TrialRecord]] = {}
    for trial in ranked:
        rest = tuple(sorted((key, repr(value)) for key, value in trial.parameters.items() if key not in (name, *_OWN)))
        groups.setdefault((rest, repr(trial.parameters.get("seed"))), []).append(trial)
    found = [pair for group in groups.values() if 1 < len(group) <= 20 for pair in _pairs(name, group)]
    return tuple(sorted(found, key=lambda contrast: -abs(contrast.difference))[:MOST_CONTRASTS])


def _pairs(name: str, group: Sequence[TrialRecord]) -> list[Contrast]:
    ordered = sorted(group, key=lambda trial: _order(trial.parameters.get(name)))
    pairs = [(one, other) for place, one in enumerate(ordered) for other in ordered[place + 1 :]]
    return [
        Contrast(before=one, after=other, difference=other.values[0] - one.values[0])
        for one, other in pairs
        if one.parameters.get(name) != other.parameters.get(name)
        and one.values[0] is not None
        and other.values[0] is not None
    ]


def _order(value: Scalar) -> tuple[bool, float, str]:
    return (False, float(value), "") if _is_number(value) else (True, 0.0, str(value))  # type: ignore[arg-type]


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
