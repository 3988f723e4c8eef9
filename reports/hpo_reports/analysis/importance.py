"""How much each searched parameter matters: PED-ANOVA, with the range that resamples of the trials give it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import Direction, SearchRecord, StudyRecord, TrialRecord

MIN_TRIALS = 30  # complete ones; fewer give shares that the next trial overturns
MAX_TRIALS = 500  # that are evaluated, drawn by a fixed seed
RESAMPLES = 50
EVALUATOR = "PED-ANOVA"  # what separates the best tenth of the trials from the others
GRID = 50  # cells into which the range of a number is divided, as in Optuna
BEST_TENTH = 0.1
NARROWEST_KERNEL = 0.5 / 1.64  # of a cell: 90 % of the kernel lies within its own
MIN_DENSITY = 1e-12  # so that no ratio of densities is infinite

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A parameter's part of the whole, and the range of nine in ten resamples of the trials."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Parts that sum to 1, largest first."""

    evaluator: str
    trials: int  # complete and comparable, that were evaluated
    shares: Mapping[str, Share]


def importance(record: StudyRecord, comparison: TrialComparison) -> Importance | None:
    """Evaluate the searched parameters of a study with one objective.

    Only complete trials count: pruning hides the worst regions, and a sampler that learns crowds the best. The shares
    say what told good trials of this search apart, not what matters in general.

    Returns:
        None where fewer than thirty trials can be compared, no parameter differs between them, or their objectives
        tell no best tenth from the others.
    """
    trials = [trial for trial in comparison.ranked if trial.values and trial.values[0] is not None]
    names = _common(trials)
    if len(trials) < MIN_TRIALS or not names:
        return None
    random = np.random.default_rng(0)
    if len(trials) > MAX_TRIALS:
        trials = [trials[place] for place in sorted(random.permutation(len(trials))[:MAX_TRIALS])]
    if trials[-(-len(trials) // 10) - 1].values[0] == trials[-1].values[0]:  # they come best first
        return None
    axes = {name: _Axis.of([trial.parameters[name] for trial in trials], _range(record, name)) for name in names}
    losses_N = _losses(trials, record.directions[0])
    whole = _shares(axes, losses_N)
    drawn = (random.integers(len(trials), size=len(trials)) for _ in range(RESAMPLES))
    resamples = [_shares({name: axis.at(rows_N) for name, axis in axes.items()}, losses_N[rows_N]) for rows_N in drawn]
    shares = {}
    for name, value in sorted(whole.items(), key=lambda share: -share[1]):
        low, high = np.quantile([each[name] for each in resamples], (0.05, 0.95))
        shares[name] = Share(value=value, low=float(low), high=float(high))
    return Importance(evaluator=EVALUATOR, trials=len(trials), shares=shares)


def _common(trials: Sequence[TrialRecord]) -> list[str]:
    """Parameters that every trial was given and that differ between trials, all numbers or all of other kinds."""
    names = [name for name in (trials[0].searched if trials else ()) if all(name in each.searched for each in trials)]
    return [name for name in names if len({repr(trial.parameters.get(name)) for trial in trials}) > 1]


def _range(record: StudyRecord, name: str) -> SearchRecord | None:
    return next((each for each in record.search if each.name == name), None)


def _losses(trials: Sequence[TrialRecord], direction: Direction) -> Floats:
    """The objective of each trial, so that less is better."""
    sign = -1.0 if direction == "maximize" else 1.0
    return sign * np.array([trial.values[0] for trial in trials], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A parameter's values as cells: of a grid over the range of its numbers, or a cell for each category."""

    cells_N: Integers  # of each trial
    size: int  # cells in all
    ordered: bool  # whether cells side by side are alike

    @staticmethod
    def of(values: Sequence[Scalar], searched: SearchRecord | None) -> _Axis:
        """The cells of some values; all but numbers are categories."""
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) < len(values):
            places = {category: place for place, category in enumerate(sorted({str(value) for value in values}))}
            return _Axis(cells_N=np.array([places[str(value)] for value in values]), size=len(places), ordered=False)
        places_N = np.array(numbers, dtype=np.float64)
        if searched is not None and searched.log and places_N.min() > 0:
            places_N = np.log(places_N)
        else:
            places_N = places_N / (np.abs(places_N).max() or 1.0)  # no difference overflows then
        low, high = places_N.min(), places_N.max()
        if low == high:  # numbers that are written otherwise and yet equal
            return _Axis(cells_N=np.zeros(len(places_N), dtype=np.int64), size=1, ordered=True)
        cells_N = np.ceil((places_N - low) / ((high - low) / (GRID - 1)) - 0.5).astype(np.int64)
        return _Axis(cells_N=np.clip(cells_N, 0, GRID - 1), size=GRID, ordered=True)

    def at(self, rows_N: Integers) -> _Axis:
        """The same axis for a resample of the trials."""
        return _Axis(cells_N=self.cells_N[rows_N], size=self.size, ordered=self.ordered)

    def density(self, chosen_N: NDArray[np.bool_]) -> Floats:
        """Probability of each cell, as the chosen trials have it."""
        counts_G = np.bincount(self.cells_N[chosen_N], minlength=self.size)
        density_G = _smoothed(counts_G) if self.ordered else _mixed(counts_G)
        return density_G + MIN_DENSITY


def _shares(axes: Mapping[str, _Axis], losses_N: Floats) -> dict[str, float]:
    """PED-ANOVA: how far the best tenth's density of each parameter is from that of all trials, as parts of the whole.

    The estimate is that of `optuna.importance.PedAnovaImportanceEvaluator` with its defaults, to rounding errors. It is
    written out because Optuna's takes a study for each resample, and imports scikit-learn, SciPy and pandas.

    Source: Watanabe, Bansal and Hutter, PED-ANOVA (2023), https://arxiv.org/abs/2304.10255.
    """
    cutoff = np.sort(losses_N)[math.ceil(BEST_TENTH * len(losses_N)) - 1]
    best_N, all_N = losses_N <= cutoff, np.ones(len(losses_N), dtype=np.bool_)
    distances = {}
    for name, axis in axes.items():
        best_G, all_G = axis.density(best_N), axis.density(all_N)
        distances[name] = float(all_G @ (best_G / all_G - 1) ** 2)
    total = sum(distances.values())
    return {name: distance / total if total else 1 / len(distances) for name, distance in distances.items()}


def _smoothed(counts_G: Integers) -> Floats:
    """Density over the cells of a grid: a normal kernel on each occupied cell, and one as wide as the grid.

    Source: Scott, Multivariate Density Estimation (1992), for the width of the kernels.
    """
    cells_K = np.flatnonzero(counts_G)
    counts_K = counts_G[cells_K]
    total, reached_K = int(counts_K.sum()), counts_K.cumsum()
    mean = cells_K @ counts_K / total
    deviation = math.sqrt((cells_K - mean) ** 2 @ counts_K / max(1, total - 1))
    first = cells_K[np.searchsorted(reached_K, total // 4, side="left")]
    third = cells_K[min(int(np.searchsorted(reached_K, total * 3 // 4, side="right")), len(cells_K) - 1)]
    width = max(1.059 * min((third - first) / 1.34, deviation) * total**-0.2, NARROWEST_KERNEL)
    size = len(counts_G)
    reached_T = _erf((np.arange(1 - size, size + 1) - 0.5) / (width * math.sqrt(2)))  # by distance from the centre
    kernels_GK = _cut_off(reached_T[np.arange(size + 1)[:, None] - cells_K + size - 1])
    broad_G = _cut_off(_erf((np.arange(size + 1) - size / 2) / (size * math.sqrt(2))))
    return np.asarray((kernels_GK @ counts_K + broad_G) / (total + 1))


def _cut_off(reached_E: Floats) -> Floats:
    """Mass of each cell under normal distributions that end with the grid, from their integrals up to the edges."""
    return np.asarray(np.diff(reached_E, axis=0) / (reached_E[-1] - reached_E[0]))


def _erf(values: NDArray[np.floating]) -> Floats:
    return np.array([math.erf(value) for value in values])


def _mixed(counts_C: Integers) -> Floats:
    """Density over categories: a kernel on each that occurs, and one that knows nothing."""
    occurs_C, kernels = counts_C > 0, np.count_nonzero(counts_C) + 1
    spread = 1 / (len(counts_C) + kernels)  # what a kernel gives to each category but, on top, its own
    total = counts_C.sum()
    own_C = np.where(occurs_C, counts_C * (1 - len(counts_C) * spread), 0.0)
    return np.asarray((own_C + total * spread + 1 / len(counts_C)) / (total + 1))
