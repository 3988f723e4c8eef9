"""What few runs can tell: tests, intervals and corrections on arrays of log-perplexities. Pure functions on numbers.

A score is a validation loss in nats per token, which is log-perplexity: the less the better. Pairs are runs of two
configurations under one seed, which begin with the same random numbers and read the same text in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpo_reports.projection.curves import MAX_NATS

Floats = NDArray[np.float64]

ALPHA = 0.05  # of every test and, as 1 - ALPHA, of every interval
EXACT_PAIRS = 16  # up to here all 2^n sign patterns are looked at, beyond it as many random ones as below
SIGN_PATTERNS = 100_000
DRAWS = 20_000  # of means


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a mean lies, with the given confidence."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """Scores moved towards their mean as far as noise explains their spread."""

    scores: Floats
    kept: float  # share of a score's distance from the mean that is left: 0 where all of the spread may be noise


def percent_of(difference: float) -> float:
    """A difference of log-perplexities as per cent of a perplexity."""
    return 100 * math.expm1(min(difference, MAX_NATS))


# ------------------------------------------------------------------------------------------------------------ tests


def sign_flip_p(differences: ArrayLike, *, seed: int = 1) -> float:
    """Two-sided p of the hypothesis that paired differences are as likely to have either sign.

    Exact up to `EXACT_PAIRS` pairs; beyond, random sign patterns, of which the observed one is counted as one.

    Args:
        differences: of the pairs, at least one, all finite.
        seed: of the random sign patterns.

    Returns:
        Share of sign patterns whose sum is at least as far from zero as the observed one; never under `least_p`.

    Raises:
        ValueError: no differences, or one that is not finite.

    Source: Fisher's permutation test (1935); the count of random patterns by Phipson and Smyth (2010).
    """
    values = _finite(differences)
    rounding = 1e-12 * np.abs(values).sum()  # sums of the same numbers in another order differ in their last bits
    observed = abs(values.sum()) - rounding
    if len(values) <= EXACT_PAIRS:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ values) >= observed))
    signs = np.random.default_rng(seed).integers(0, 2, (SIGN_PATTERNS, len(values)), dtype=np.int8) * 2 - 1
    return float((1 + np.sum(np.abs(signs @ values) >= observed)) / (1 + SIGN_PATTERNS))


def least_p(pairs: int) -> float:
    """The smallest two-sided p that so many pairs can give: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - pairs))


def pairs_needed(hypotheses: int, alpha: float = ALPHA) -> int:
    """Pairs without which no p is small enough, where Holm's procedure corrects for so many hypotheses."""
    pairs = 1
    while least_p(pairs) * hypotheses > alpha:
        pairs += 1
    return pairs


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the given order: the chance of any false claim stays under the level they are held to.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


# -------------------------------------------------------------------------------------------------------- intervals


def paired_interval(differences: ArrayLike, *, level: float = 1 - ALPHA) -> Interval | None:
    """Student's interval of the mean difference of pairs.

    Not a bootstrap: few pairs know little of their own spread, and resampling them does not teach them more. In
    simulations a percentile bootstrap that promised 95 % covered 75 % at 3 pairs, 86 % at 6 and 92 % at 20, Student's
    94 to 95 % at every number, though it takes the differences for normal (docs/decisions.md, 2026-11-26).

    Args:
        differences: of the pairs, all finite.
        level: of confidence.

    Returns:
        None for fewer than two pairs, which say nothing of their spread.
    """
    values = _finite(differences)
    if len(values) < 2:
        return None
    reach = _student_quantile(level, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(low=float(values.mean() - reach), high=float(values.mean() + reach), level=level)


# ---------------------------------------------------------------------------------------------------------- the best


def probability_best(losses_CS: ArrayLike, *, seed: int = 1) -> list[float] | None:
    """How likely each candidate is to have the lowest mean loss over all seeds, judged by the seeds at hand.

    Seeds count for all candidates at once, so that pairs stay pairs. Means are drawn as Student's interval has them,
    around the observed ones with the observed covariance: of two candidates, one has the probability 1 − p/2 of a
    paired t test. A bootstrap of few seeds would be too sure of itself, as in `paired_interval`.

    Args:
        losses_CS: a row for each candidate, a column for each seed.
        seed: of the draws.

    Returns:
        For each candidate; of ties each takes its share. None for fewer than two seeds.
    """
    losses = np.atleast_2d(np.asarray(losses_CS, dtype=np.float64))
    seeds = losses.shape[1]
    if seeds < 2:
        return None
    random = np.random.default_rng(seed)
    deviations_CS = losses - losses.mean(axis=1, keepdims=True)
    moves_CR = deviations_CS @ random.standard_normal((seeds, DRAWS)) / math.sqrt(seeds)
    drawn_CR = losses.mean(axis=1, keepdims=True) + moves_CR / np.sqrt(random.chisquare(seeds - 1, DRAWS))
    best_CR = np.isclose(drawn_CR, drawn_CR.min(axis=0), rtol=0, atol=1e-12)
    return [float(share) for share in (best_CR / best_CR.sum(axis=0)).mean(axis=1)]


def shrink(scores: ArrayLike, noise_variance: float) -> Shrunk:
    """Empirical-Bayes scores: each moved towards their mean by the share of their variance that is noise.

    Args:
        scores: of the candidates, at least one.
        noise_variance: of each score, by seeds alone.

    Source: Efron and Morris (1975), with the plain moment estimate of the variance between candidates.
    """
    values = _finite(scores)
    spread = values.var(ddof=1) if len(values) > 1 else 0.0
    kept = max(0.0, 1 - noise_variance / spread) if spread > 0 else 0.0
    mean = values.mean()
    return Shrunk(scores=mean + kept * (values - mean), kept=float(kept))


def expected_largest(draws: int) -> float:
    """Expected largest of so many independent standard normal draws: 1.16 of 5, 1.54 of 10, 1.87 of 20."""
    from scipy import special

    x = np.linspace(-9.0, 9.0, 4001)
    density = draws * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * special.ndtr(x) ** (draws - 1)
    return float(np.trapezoid(x * density, x))


def expected_optimism(draws: int, noise: float, spread: float = 0.0) -> float:
    """How far the best of so many single runs is expected to look better than it is, in nats.

    Args:
        draws: runs among which the best was chosen.
        noise: standard deviation of one run by its seed.
        spread: standard deviation of the configurations' true losses; 0 takes all of them for equally good, which
            expects most.
    """
    total = math.hypot(noise, spread)
    return expected_largest(draws) * noise**2 / total if total > 0 else 0.0


# ------------------------------------------------------------------------------------------------------------- noise


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation within groups and its degrees of freedom; None where no group has two values."""
    arrays = [_finite(group) for group in groups if len(group) > 1]
    degrees = sum(len(array) - 1 for array in arrays)
    if degrees == 0:
        return None
    return math.sqrt(sum(float(((array - array.mean()) ** 2).sum()) for array in arrays) / degrees), degrees


def paired_deviation(losses_CS: ArrayLike) -> tuple[float, int] | None:
    """Standard deviation of runs that share their seed, and its degrees of freedom.

    It is what is left when each candidate's and each seed's mean are taken off; a difference of two runs under one seed
    deviates by √2 times as much.

    Args:
        losses_CS: a row for each candidate, a column for each seed.

    Returns:
        None for fewer than two candidates or two seeds.
    """
    losses = np.atleast_2d(np.asarray(losses_CS, dtype=np.float64))
    degrees = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    if degrees < 1:
        return None
    rest_CS = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    return math.sqrt(float((rest_CS**2).sum()) / degrees), degrees


def min_detectable_difference(deviation: float, degrees: int, level: float = 1 - ALPHA) -> float:
    """How far apart two single runs must be before their seeds are no likely reason, in nats.

    Args:
        deviation: of a run by its seed, as `pooled_deviation` measures it.
        degrees: of freedom of that measurement; the fewer, the farther.
        level: of confidence.
    """
    return _student_quantile(level, degrees) * math.sqrt(2) * deviation


def _student_quantile(level: float, degrees: int) -> float:
    """Student's t that a two-sided interval of this confidence reaches to."""
    from scipy import special  # takes longer to import than many a report to write: only where a test needs it

    return float(special.stdtrit(degrees, (1 + level) / 2))


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"needs finite numbers, at least one, got {array.tolist()[:8]}")
    return array
