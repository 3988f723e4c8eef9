"""What a study tells of each searched parameter: trend, best region, contrasts between two trials, interactions.

All of it comes from the trials that may be compared. Losses are in nats, of the first objective where it is ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo_reports.analysis.importance import Importance, importance
from hpo_reports.analysis.statistics import holm
from hpo_reports.analysis.verdicts import TrialComparison, percent_above
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import StudyRecord, TrialRecord

MIN_FOR_A_TREND = 8  # trials
MAX_FOR_INTERACTIONS = 1000  # drawn by a fixed seed
MIN_FOR_INTERACTIONS = 20
RESAMPLES = 1000
MAX_DRAWN = 500_000  # values over all resamples of a large study
MAX_PAIRED = 1000  # best trials among which pairs are looked for
MAX_CONTRASTS = 12
MAX_VALUES = 12  # different values of a parameter, beyond which its trials are not grouped by value

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Spearman's rank correlation of a parameter with the objective, and its 95 % bootstrap interval."""

    rho: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials with one value of a parameter."""

    value: Scalar
    trials: int
    mean: float  # of the objective


@dataclass(frozen=True, kw_only=True)
class Insight:
    """One searched parameter."""

    parameter: str
    trials: int  # compared ones with this parameter
    better_is: str  # lower or higher values of the objective
    trend: Trend | None  # of a number, from eight trials on
    best_values: tuple[Scalar, ...]  # of the best quarter: lowest and highest number, or the categories
    best_trials: int  # in the best quarter; 0: too few trials for one
    groups: tuple[Group, ...]  # of a parameter with few values, best mean first


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two trials that differ in nothing but one parameter."""

    parameter: str
    trials: tuple[int, int]
    values: tuple[Scalar, Scalar]
    difference: float  # of the objectives, second less first
    percent: float | None  # of perplexity, where both runs have one


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """Two parameters whose effects do not just add up."""

    parameters: tuple[str, str]
    rho: float  # of the product of ranks with what is left of the objective after either one's ranks and their squares
    p: float  # by permutation, after Holm over all pairs


@dataclass(frozen=True, kw_only=True)
class Insights:
    """What a study with one objective tells of its parameters."""

    parameters: tuple[Insight, ...]
    importance: Importance | None  # None: too few trials
    contrasts: tuple[Contrast, ...]
    interactions: tuple[Interaction, ...]
    pairs_tested: int  # for interactions
    pruned: int  # trials that are not in any of this


def insights(record: StudyRecord, comparison: TrialComparison) -> Insights | None:
    """Compute what the compared trials tell; None for several objectives or nothing to compare."""
    trials = [trial for trial in comparison.ranked if trial.values and trial.values[0] is not None]
    if len(record.directions) != 1 or len(trials) < 2:
        return None
    names = list(dict.fromkeys(name for trial in trials for name in trial.searched))
    interactions, tested = _interactions(trials, names)
    return Insights(
        parameters=tuple(_insight(name, trials, record.directions[0]) for name in names),
        importance=importance(record, comparison),
        contrasts=tuple(_contrasts(trials[:MAX_PAIRED], comparison.baseline)[:MAX_CONTRASTS]),
        interactions=tuple(interactions),
        pairs_tested=tested,
        pruned=sum(trial.outcome == "pruned" for trial in record.trials),
    )


def _insight(name: str, trials: Sequence[TrialRecord], direction: str) -> Insight:
    """The trials come best first."""
    having = [trial for trial in trials if name in trial.searched]
    numbers = _numbers(name, having)
    best = having[: len(having) // 4] if len(having) >= MIN_FOR_A_TREND else []
    values = [trial.parameters[name] for trial in best]
    if numbers is not None:
        edges = numbers[: len(best)]
        values = [having[int(place)].parameters[name] for place in (edges.argmin(), edges.argmax())] if best else []
    return Insight(
        parameter=name,
        trials=len(having),
        better_is="lower" if direction == "minimize" else "higher",
        trend=None if numbers is None else _trend(numbers, _objectives(having)),
        best_values=tuple(dict.fromkeys(values)),
        best_trials=len(best),
        groups=_groups(name, having, direction),
    )


def _numbers(name: str, trials: Sequence[TrialRecord]) -> Floats | None:
    """A parameter's values where all of them are numbers."""
    values = [trial.parameters.get(name) for trial in trials]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return np.array(numbers, dtype=float) if numbers and len(numbers) == len(values) else None


def _objectives(trials: Sequence[TrialRecord]) -> Floats:
    return np.array([trial.values[0] for trial in trials], dtype=float)


def _trend(numbers: Floats, objectives: Floats) -> Trend | None:
    if len(numbers) < MIN_FOR_A_TREND or len(set(numbers)) < 2 or len(set(objectives)) < 2:
        return None
    resamples = min(max(MAX_DRAWN // len(numbers), 200), RESAMPLES)
    counts_RN = np.ones((1 + resamples, len(numbers)))  # how often each trial was drawn; in the first row once
    drawn_RN = np.random.default_rng(0).integers(len(numbers), size=(resamples, len(numbers)))
    for counts_N, drawn_N in zip(counts_RN[1:], drawn_RN, strict=True):
        counts_N[:] = np.bincount(drawn_N, minlength=len(numbers))
    rhos = _rank_correlations(numbers, objectives, counts_RN)
    low, high = np.nanquantile(rhos[1:], (0.025, 0.975))
    return Trend(rho=float(rhos[0]), low=float(low), high=float(high))


def _rank_correlations(first_N: Floats, second_N: Floats, counts_RN: Floats) -> Floats:
    """Spearman's correlation in resamples that hold each place so many times; NaN where one has but one value."""
    first_RN, second_RN = (_ranks(each, counts_RN) for each in (first_N, second_N))
    norm = np.sqrt(_products(first_RN, first_RN, counts_RN) * _products(second_RN, second_RN, counts_RN))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations: Floats = _products(first_RN, second_RN, counts_RN) / norm
    return correlations


def _ranks(values_N: Floats, counts_RN: Floats) -> Floats:
    """Mean rank of each place's value in each resample, less the middle one, from counts: no resample is sorted."""
    distinct_D, place_N, times_D = np.unique(values_N, return_inverse=True, return_counts=True)
    counts_RD = np.take(counts_RN, np.argsort(place_N, kind="stable"), axis=1)
    if len(distinct_D) < len(values_N):
        counts_RD = np.add.reduceat(counts_RD, times_D.cumsum() - times_D, axis=1)
    ranks_RD = counts_RD.cumsum(axis=1)
    counts_RD /= 2
    ranks_RD -= counts_RD
    ranks_RD -= len(values_N) / 2
    return np.take(ranks_RD, place_N, axis=1)


def _products(first_RN: Floats, second_RN: Floats, counts_RN: Floats) -> Floats:
    """Sums over each resample."""
    sums_R: Floats = np.einsum("rn,rn,rn->r", first_RN, second_RN, counts_RN)
    return sums_R


def _groups(name: str, trials: Sequence[TrialRecord], direction: str) -> tuple[Group, ...]:
    by_value: dict[Scalar, list[float]] = {}
    for trial in trials:
        by_value.setdefault(trial.parameters[name], []).append(trial.values[0] or 0.0)
    if not 2 <= len(by_value) <= MAX_VALUES or len(by_value) > len(trials) / 2:
        return ()
    groups = [Group(value=value, trials=len(each), mean=_mean(each)) for value, each in by_value.items()]
    return tuple(sorted(groups, key=lambda group: group.mean, reverse=direction == "maximize"))


def _mean(values: Sequence[float]) -> float:
    """The mean of numbers whose sum may be beyond the largest float."""
    return math.fsum(value / len(values) for value in values)


def _contrasts(trials: Sequence[TrialRecord], baseline: TrialRecord | None) -> Sequence[Contrast]:
    """Pairs with one difference, those with the baseline first; others only between the few values of a parameter."""
    names = {name for trial in trials for name in trial.searched}
    few = {name for name in names if len({repr(trial.parameters.get(name)) for trial in trials}) <= MAX_VALUES}
    buckets: dict[tuple[str, str], list[TrialRecord]] = {}
    for trial in trials:
        for name in trial.searched:
            rest = repr(sorted((key, value) for key, value in _settings(trial).items() if key != name))
            buckets.setdefault((name, rest), []).append(trial)
    found = []
    for (name, _), alike in buckets.items():
        for pair in itertools.islice(itertools.combinations(alike, 2), 50):
            first, second = sorted(pair, key=lambda trial: (trial is not baseline, trial.number))
            if first.parameters[name] != second.parameters[name] and (first is baseline or name in few):
                found += _contrast(name, first, second)
    anchor = None if baseline is None else baseline.number
    return sorted(found, key=lambda each: (each.trials[0] != anchor, each.trials))


def _settings(trial: TrialRecord) -> Mapping[str, Scalar]:
    return {name: value for name, value in trial.parameters.items() if value is not None}


def _contrast(name: str, first: TrialRecord, second: TrialRecord) -> list[Contrast]:
    """One, unless the difference is beyond the largest float."""
    (one,), (other,) = first.values[:1], second.values[:1]
    assert one is not None
    assert other is not None
    contrast = Contrast(
        parameter=name,
        trials=(first.number, second.number),
        values=(first.parameters[name], second.parameters[name]),
        difference=other - one,
        percent=percent_above(second, first),
    )
    return [contrast] if math.isfinite(contrast.difference) else []


def _interactions(trials: Sequence[TrialRecord], names: Sequence[str]) -> tuple[list[Interaction], int]:
    """Pairs of numbers whose product of ranks explains what each one's ranks do not, and how many were tested."""
    if len(trials) > MAX_FOR_INTERACTIONS:
        drawn = np.random.default_rng(0).permutation(len(trials))[:MAX_FOR_INTERACTIONS]
        trials = [trials[place] for place in sorted(drawn)]
    numbers = {name: _numbers(name, trials) for name in names}
    usable = [name for name, each in numbers.items() if each is not None and len(set(each)) >= 4]
    pairs = list(itertools.combinations(usable, 2))
    if len(trials) < MIN_FOR_INTERACTIONS or not pairs:
        return [], 0
    objectives = _objectives(trials)
    objectives = objectives / (np.abs(objectives).max() or 1.0)  # no square of them overflows then
    ranks = {name: _ranked(numbers[name]) for name in usable}
    random = np.random.default_rng(0)
    orders_RN = np.array([random.permutation(len(trials)) for _ in range(RESAMPLES)])
    tested = [_product(ranks[a], ranks[b], objectives, orders_RN) for a, b in pairs]
    adjusted = holm([p for _, p in tested])
    found = [
        Interaction(parameters=pair, rho=rho, p=float(p))
        for pair, (rho, _), p in zip(pairs, tested, adjusted, strict=True)
        if p < 0.05
    ]
    return sorted(found, key=lambda each: each.p), len(pairs)


def _ranked(values: Floats | None) -> Floats:
    """Ranks with mean 0 and deviation 1."""
    assert values is not None
    ranks = _mean_ranks(values)
    spread = float(ranks.std())
    return np.asarray((ranks - ranks.mean()) / (spread if not math.isclose(spread, 0.0) else 1.0))


def _mean_ranks(values: Floats) -> Floats:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, places, times = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((times.cumsum() - (times - 1) / 2)[places])


def _product(first: Floats, second: Floats, objectives: Floats, orders_RN: NDArray[np.int64]) -> tuple[float, float]:
    """Partial correlation of the product with the objective, and its p where what is left of the objective is permuted.

    The objective keeps its scale: ranks of a sum are no sum of ranks, and would show interactions where there are none.
    """
    plain = np.stack([np.ones_like(first), first, second, first**2, second**2], axis=1)
    left = [each - plain @ np.linalg.lstsq(plain, each, rcond=None)[0] for each in (first * second, objectives)]
    norm = float(np.linalg.norm(left[0]) * np.linalg.norm(left[1])) or 1.0
    rho = float(left[0] @ left[1]) / norm
    shuffled = left[1][orders_RN] @ left[0] / norm
    return rho, float((1 + (np.abs(shuffled) >= abs(rho) - 1e-12).sum()) / (1 + RESAMPLES))
