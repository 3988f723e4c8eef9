"""How far the pool's intervals have to be scaled to hold what they promise.

A group of curves is projected with the others as library, at several shares of the horizon. The scale is the factor
by which the interval about the median, each side by its own, would have had to be multiplied to hold 80 or 90 of a
hundred truths, and 64 or 81 of any one group's (split conformal prediction, Vovk et al. 2005, with leave-one-group-out
residuals); groups count alike. Before it is scaled, each side is widened by a quarter of what the loss changed over
the last doubling of time: a curve that still moves may move otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpo_reports.projection.curves import Curve, Floats
from hpo_reports.projection.pool import Paths, pooled

Target = Literal["final", "best"]  # the loss at the horizon, or the lowest up to there
TARGETS: tuple[Target, ...] = ("final", "best")
LEVELS = (80, 90)  # per cent that an interval is to hold
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # of the horizon, at which scales are measured
NOISE = 0.01  # nats by which the noise of a single evaluation can move a median
MOVING = 0.25  # of the change over the last doubling; the best of 0, 1/4 and 1/2 on public curves
SIBLING_COUNTS = (0, 1, 3)  # siblings with which scales are measured


@dataclass(frozen=True, kw_only=True)
class Residual:
    """One projection whose truth is known, as the pool gave it."""

    group: str
    target: Target
    share: float
    error: float  # truth less median, nats
    scale: Mapping[int, float]  # by level: the factor at which the interval would just have held the truth


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scales by target and level, at shares of the horizon."""

    shares: tuple[float, ...]
    scales: Mapping[str, tuple[float, ...]]  # by "final-90" and the like, one for each share
    curves: int  # that it was measured on
    groups: int

    def scale(self, target: Target, level: int, share: float) -> float:
        """The scale at a share, between those measured by a line over log-share."""
        return float(np.interp(np.log(share), np.log(self.shares), self.scales[f"{target}-{level}"]))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A loss as it is expected, in nats."""

    median: float
    intervals: Mapping[int, tuple[float, float]]  # by level: lower and upper bound


# ------------------------------------------------------------------------------------------ what is expected


def expected(paths: Paths, prefix: Curve, calibration: Calibration, share: float) -> dict[Target, Expected]:
    """Median and calibrated intervals of the paths' ends and of their lowest losses.

    The best checkpoint is never worse than the last, nor than the best one seen; its bounds say so too.

    Args:
        paths: of the pool.
        prefix: that they go on from.
        calibration: scales.
        share: of the horizon that has been observed, by which a scale is chosen.
    """
    final, best = (_expected(paths, prefix, calibration, share, target) for target in TARGETS)
    seen = min(prefix.val_loss)
    lowered = {
        level: (min(low, final.intervals[level][0]), min(high, final.intervals[level][1], seen))
        for level, (low, high) in best.intervals.items()
    }
    return {"final": final, "best": Expected(median=best.median, intervals=lowered)}


def _expected(paths: Paths, prefix: Curve, calibration: Calibration, share: float, target: Target) -> Expected:
    values, weights = outcomes(paths, prefix)[target], paths.weights_N
    margin = margin_of(prefix)
    found = {level: bounds(values, weights, level, calibration.scale(target, level, share), margin) for level in LEVELS}
    (low_80, high_80), (low_90, high_90) = found[80], found[90]
    nested = {80: (max(low_80, low_90), min(high_80, high_90)), 90: (low_90, high_90)}
    return Expected(median=quantile(values, weights, 0.5), intervals=nested)


def outcomes(paths: Paths, prefix: Curve) -> dict[Target, Floats]:
    """Each path's loss at the horizon, and its lowest, the prefix included."""
    lowest = np.minimum(paths.losses_NG.min(axis=1), min(prefix.val_loss))
    return {"final": paths.losses_NG[:, -1], "best": lowest}


def margin_of(prefix: Curve) -> float:
    """Nats that each side of an interval has beyond the pool's quantile, before it is scaled."""
    before, now = prefix.at(np.array([prefix.now / 2, prefix.now]))
    return NOISE + MOVING * abs(float(before - now))


def bounds(values: Floats, weights: Floats, level: int, scale: float, margin: float) -> tuple[float, float]:
    """The interval that is to hold so many per cent, each side scaled about the median; no loss is below 0."""
    median = quantile(values, weights, 0.5)
    tail = (100 - level) / 200
    below = median - quantile(values, weights, tail) + margin
    above = quantile(values, weights, 1 - tail) - median + margin
    return max(median - scale * below, 0.0), median + scale * above


def quantile(values: Floats, weights: Floats, q: float) -> float:
    """The value below which a share q of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(q, reached / weights.sum(), values[order]))


# ------------------------------------------------------------------------------------ how far projections missed before


def calibrate(residuals: Iterable[Residual]) -> Calibration:
    """Scales from projections whose truths are known."""
    residuals = list(residuals)
    shares = tuple(sorted({residual.share for residual in residuals}))
    groups = {residual.group for residual in residuals}
    scales = {}
    for target in TARGETS:
        of_target = [each for each in residuals if each.target == target]
        at = {share: [each for each in of_target if each.share == share] for share in shares}
        for level in LEVELS:
            scales[f"{target}-{level}"] = tuple(_quantile_of(at[share], level) for share in shares)
    final = Counter(each.share for each in residuals if each.target == "final")
    curves = max(final.values(), default=0)
    return Calibration(shares=shares, scales=scales, curves=curves, groups=len(groups))


def _quantile_of(residuals: Sequence[Residual], level: int) -> float:
    """The scale that holds so many per cent of all truths, and of no group's fewer than the level squared."""
    names = sorted({each.group for each in residuals})
    groups = [np.array([each.scale[level] for each in residuals if each.group == name]) for name in names]
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(each), 1 / len(each)) for each in groups])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / (weights.sum() * (1 + 1 / len(values)))
    overall = values[order][min(int(np.searchsorted(reached, level / 100)), len(values) - 1)]
    least = (level / 100) ** 2  # a new group is as unlike these as they are unlike each other
    return float(max(overall, *(np.quantile(each, least, method="higher") for each in groups)))


def residuals_of(
    curves: Sequence[Curve], *, n_siblings: int = 0, shares: Sequence[float] = SHARES, without: str | None = None
) -> Iterable[Residual]:
    """Project every curve from parts of itself, with the curves of other groups as library.

    Args:
        curves: complete ones.
        n_siblings: siblings out of the curve's own group that are given too.
        shares: of the horizon.
        without: a group that is in no library and is not projected.
    """
    for curve in curves:
        if curve.group == without:
            continue
        library = [each for each in curves if each.group not in (curve.group, without)]
        siblings = siblings_of(curve, curves, n_siblings)
        if len(siblings) < n_siblings:
            continue
        for share in shares:
            prefix = observed(curve, share)
            if prefix is not None:
                yield from residuals_at(curve, prefix, share, pooled(prefix, library, siblings))


def siblings_of(curve: Curve, curves: Sequence[Curve], n_siblings: int) -> list[Curve]:
    """Curves of other configurations of the group, the same for every run of this program."""
    own = curve.configuration or curve.name
    others = [each for each in curves if each.group == curve.group and (each.configuration or each.name) != own]
    chosen = np.random.default_rng(len(curve.name) + sum(map(ord, curve.name))).permutation(len(others))[:n_siblings]
    return [others[place] for place in sorted(chosen)]


def observed(curve: Curve, share: float) -> Curve | None:
    """The curve up to a share of its horizon. None: its first point comes much later."""
    prefix = curve.until(share * curve.horizon)
    return None if prefix.now > min(2.2 * share, 0.9) else prefix


def residuals_at(curve: Curve, prefix: Curve, share: float, paths: Paths) -> list[Residual]:
    """The pool's projection of a prefix held against the rest of the curve."""
    truths = truths_of(curve)
    margin = margin_of(prefix)
    return [
        Residual(
            group=curve.group,
            target=target,
            share=share,
            error=truths[target] - quantile(values, paths.weights_N, 0.5),
            scale={level: _needed(values, paths.weights_N, truths[target], level, margin) for level in LEVELS},
        )
        for target, values in outcomes(paths, prefix).items()
    ]


def truths_of(curve: Curve) -> dict[Target, float]:
    """What a complete curve came to."""
    return {"final": curve.val_loss[-1], "best": min(curve.val_loss)}


def _needed(values: Floats, weights: Floats, truth: float, level: int, margin: float) -> float:
    median = quantile(values, weights, 0.5)
    tail = (100 - level) / 200
    bound = quantile(values, weights, 1 - tail if truth > median else tail)
    return abs(truth - median) / (abs(bound - median) + margin)
