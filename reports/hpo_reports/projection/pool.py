"""Four predictors of how a curve goes on, pooled in equal parts.

Shapes: N paths, G moments of the future, L library curves, C components, P points of the prefix.

Time is the share of the horizon that has passed: what a schedule of the learning rate goes by. A predictor answers
with paths (N, G) of the validation loss and their weights. Two know nothing but shapes of curves, two ask a library:

    shapes      Bayesian average over power, exponential and logarithmic falls, some of which turn up again at a hinge;
                of a run with fewer than three points it expects what a library's curves did
    ensemble    least squares of the same falls on resampled points; from three points on
    neighbours  library curves whose past is like this one's, their further change in proportion to the loss; of fewer
                than three points by regression on the level
    octaves     library curves, their further change in proportion to the change over the last doubling of time

Source: the pool follows the comparison of methods on 183 public curves that came before this program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpo_reports.projection.curves import Curve, Floats

PATHS = 240  # of each predictor that draws them
POWERS = (0.15, 0.3, 0.5, 0.8, 1.2, 2.0)
RATES = (2.0, 4.0, 8.0, 16.0, 32.0)  # of exponential falls, per horizon
HINGES = (0.0, 0.25, 0.5)  # shares of the remaining log-time at which a fall may end and a rise begin
NOISES = (0.01, 0.03, 0.1)  # standard deviations of a point about its shape, in nats
EFFECTIVE_NEIGHBOURS = 12.0
MIN_POINTS = 3  # of a prefix, from which on it is resampled and speaks for itself
MIN_TO_REGRESS = 8  # library curves
SPREAD = 0.1  # nats of spread among levels, at which a slope is half the library's and half proportion
SIBLING_WEIGHT = 1 / 6  # a single one may be unlike the run; three have
MAX_SIBLINGS_WEIGHT = 1 / 2
MIN_FALL = 0.02  # nats over an octave, under which the octave says nothing of what follows


Fall = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Paths:
    """How a curve may go on: (N, G) losses, and the N weights of the paths, which sum to 1."""

    losses_NG: Floats
    weights_N: Floats

    def until(self, now: float, level: float, share: float) -> Paths:
        """The paths from now, where the loss is at a level, to a share of the horizon: their value there last."""
        future_G = future_of(now)
        times = np.log(np.concatenate([[now], future_G]))
        whole_NG = np.column_stack([np.full(len(self.losses_NG), level), self.losses_NG])
        there_N = np.array([np.interp(np.log(share), times, path) for path in whole_NG])
        return Paths(np.column_stack([self.losses_NG[:, future_G < share], there_N]), self.weights_N)


def future_of(now: float) -> Floats:
    """Moments from now to the horizon, evenly spaced in log-time; the last is the horizon itself."""
    return np.geomspace(now, 1.0, 25)[1:]


def pooled(prefix: Curve, library: Sequence[Curve], siblings: Sequence[Curve]) -> Paths:
    """How a curve may go on, in equal parts by all predictors that have an answer, and by siblings.

    Args:
        prefix: what is known of the run.
        library: complete curves of other runs.
        siblings: complete curves of the same study.

    Returns:
        Paths at the moments of `future_of` the prefix's last point.
    """
    future_G = future_of(prefix.now)
    parts = [*_alone(prefix, _prior(prefix, library)), *_analogues(prefix, library, future_G)]
    mixture = _mixed(parts, np.full(len(parts), 1 / len(parts)))
    kin = _analogues(prefix, siblings, future_G)
    if not kin:
        return mixture
    weight = min(len(siblings) * SIBLING_WEIGHT, MAX_SIBLINGS_WEIGHT)
    return _mixed([mixture, *kin], np.array([1 - weight, *[weight / len(kin)] * len(kin)]))


def _mixed(parts: Sequence[Paths], shares: Floats) -> Paths:
    weights = [share * part.weights_N for share, part in zip(shares, parts, strict=True)]
    return Paths(np.concatenate([part.losses_NG for part in parts]), np.concatenate(weights))


# ---------------------------------------------------------------------------------------------- shapes alone


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is expected of the rest of a curve before it is looked at, as shares of the loss now: means and scales."""

    fall: float = 0.12
    fall_scale: float = 0.12
    rise: float = 0.04
    rise_scale: float = 0.06


def _prior(prefix: Curve, library: Sequence[Curve]) -> Prior:
    """What curves of a library did from this moment on, groups alike; enough points need no library's word."""
    if len(prefix.epochs) >= MIN_POINTS or not library:
        return Prior()
    here_L = np.array([float(curve.at(np.array(prefix.now))) for curve in library])
    low_L = np.minimum([min(curve.val_loss) for curve in library], here_L)
    fall_L, rise_L = (here_L - low_L) / here_L, (np.array([curve.val_loss[-1] for curve in library]) - low_L) / here_L
    weights_L = _group_weights(library)
    (fall, fall_scale), (rise, rise_scale) = (_mean_and_scale(each, weights_L) for each in (fall_L, rise_L))
    return Prior(fall=fall, fall_scale=fall_scale, rise=rise, rise_scale=rise_scale)


def _mean_and_scale(values: Floats, weights: Floats) -> tuple[float, float]:
    mean = float(weights @ values)
    return mean, max(float(np.sqrt(weights @ (values - mean) ** 2)), MIN_FALL)


@functools.lru_cache(maxsize=1024)  # a calibration asks for the same prefix under many libraries
def _alone(prefix: Curve, prior: Prior) -> tuple[Paths, ...]:
    """What the two predictors that know nothing but shapes answer."""
    future_G, random = future_of(prefix.now), np.random.default_rng(0)
    shapes = _shapes(prefix, prior, future_G, random)
    return (shapes, _ensemble(prefix, future_G, random)) if len(prefix.epochs) >= MIN_POINTS else (shapes,)


def _falls(now: float) -> list[Fall]:
    """Falls over time, 0 now and −1 at the horizon."""
    powers = [functools.partial(_power, power) for power in POWERS]
    exponentials = [functools.partial(_exponential, rate) for rate in RATES]
    falls: list[Fall] = [*powers, *exponentials, _logarithmic]
    return [_scaled(fall, now) for fall in falls]


def _power(power: float, time: Floats) -> Floats:
    return np.asarray(time**-power)


def _exponential(rate: float, time: Floats) -> Floats:
    return np.exp(-rate * time)


def _logarithmic(time: Floats) -> Floats:
    return -np.log(time)


def _scaled(fall: Fall, now: float) -> Fall:
    here, end = fall(np.array(now)), fall(np.array(1.0))
    return lambda t: (fall(t) - here) / max(float(here - end), 1e-9)


def _shapes(prefix: Curve, prior: Prior, future_G: Floats, random: np.random.Generator) -> Paths:
    """Posterior paths of level + fall · shape + rise · hinge; shapes, hinges and noises count by their evidence."""
    time_P, loss_P = _points(prefix)
    now, level = float(time_P[-1]), float(loss_P[-1])
    prior_mean = np.array([0.0, prior.fall * level, prior.rise * level])
    prior_scale = np.array([0.05, prior.fall_scale * level, prior.rise_scale * level])
    span = max(-np.log(now), 1e-3)
    designs, futures = [], []
    for fall in _falls(now):
        for hinge in HINGES:
            turn = now * np.exp(hinge * span)
            columns = [(np.ones_like(t), fall(t), np.maximum(np.log(t / turn), 0.0) / span) for t in (time_P, future_G)]
            designs.append(np.stack(columns[0], -1))
            futures.append(np.stack(columns[1], -1))
    design_CPK, future_CGK = np.stack(designs), np.stack(futures)
    recency_P = np.clip((time_P / now) ** 0.5, 0.05, 1.0)  # what is long past says less of what comes
    log_evidence, means, factors = [], [], []
    for noise in NOISES:
        variance_P = (noise**2 + 0.005**2) / recency_P**2
        precision_CKK = np.einsum("cpk,p,cpl->ckl", design_CPK, 1 / variance_P, design_CPK) + np.diag(prior_scale**-2)
        residual_P = loss_P - level
        right_CK = np.einsum("cpk,p->ck", design_CPK, residual_P / variance_P) + prior_mean / prior_scale**2
        mean_CK = np.linalg.solve(precision_CKK, right_CK[..., None])[..., 0]
        fit = residual_P @ (residual_P / variance_P) + prior_mean @ (prior_mean / prior_scale**2)
        fit = fit - np.einsum("ck,ck->c", right_CK, mean_CK)
        log_evidence.append(-0.5 * (np.linalg.slogdet(precision_CKK)[1] + fit + np.log(variance_P).sum()))
        means.append(mean_CK)
        factors.append(np.linalg.cholesky(np.linalg.inv(precision_CKK)))
    logs = np.concatenate(log_evidence)
    share = np.exp(logs - logs.max())
    picked_N = random.choice(len(share), PATHS, p=share / share.sum())
    drawn = np.einsum("nkl,nl->nk", np.concatenate(factors)[picked_N], random.standard_normal((PATHS, 3)))
    coefficients_NK = np.concatenate(means)[picked_N] + drawn
    coefficients_NK[:, 1:] = np.maximum(coefficients_NK[:, 1:], 0.0)  # falls fall, rises rise
    losses_NG = level + np.einsum("nk,ngk->ng", coefficients_NK, future_CGK[picked_N % len(designs)])
    return Paths(np.maximum(losses_NG, 0.0), np.full(PATHS, 1 / PATHS))


def _ensemble(prefix: Curve, future_G: Floats, random: np.random.Generator) -> Paths:
    """Least-squares falls on resampled points, each fitted with the shape that suits the sample best."""
    time_P, loss_P = _points(prefix)
    now, level = float(time_P[-1]), float(loss_P[-1])
    falls = _falls(now)
    shape_CP, shape_CG = (np.stack([fall(t) for fall in falls]) for t in (time_P, future_G))
    recency_P = np.clip(time_P / now, 0.05, 1.0)
    losses = np.empty((PATHS // 2, len(future_G)))
    for row in range(len(losses)):
        weight_P = recency_P * random.exponential(size=len(time_P))  # a Bayesian bootstrap
        weight_P /= weight_P.sum()
        x_CP, y_P = shape_CP - (shape_CP @ weight_P)[:, None], loss_P - loss_P @ weight_P
        slope_C = np.maximum((x_CP * y_P) @ weight_P / np.maximum((x_CP**2) @ weight_P, 1e-12), 0.0)
        misfit_C = ((y_P - slope_C[:, None] * x_CP) ** 2) @ weight_P
        odds_C = np.exp(-(misfit_C - misfit_C.min()) / (2 * max(float(misfit_C.min()), 1e-5)))
        best = random.choice(len(falls), p=odds_C / odds_C.sum())
        losses[row] = level + slope_C[best] * shape_CG[best]
    return Paths(np.maximum(losses, 0.0), np.full(len(losses), 1 / len(losses)))


def _points(prefix: Curve) -> tuple[Floats, Floats]:
    """Times and losses, at most forty of them, evenly spaced in log-time: a dense log is no more evidence."""
    time_P, loss_P = np.array(prefix.epochs) / prefix.horizon, np.array(prefix.val_loss)
    if len(time_P) <= 40:
        return time_P, loss_P
    wanted = np.geomspace(time_P[0], time_P[-1], 40)
    kept = np.unique(np.searchsorted(time_P, wanted * (1 - 1e-12)).clip(0, len(time_P) - 1))
    return time_P[kept], loss_P[kept]


# ---------------------------------------------------------------------------------------------- from a library


def _analogues(prefix: Curve, library: Sequence[Curve], future_G: Floats) -> list[Paths]:
    """What the two predictors that ask a library answer; nothing without one."""
    if not library:
        return []
    now, level = prefix.now, prefix.val_loss[-1]
    here_L = np.array([curve.at(np.array(now)) for curve in library])
    change_LG = np.stack([curve.at(future_G) for curve in library]) - here_L[:, None]
    weights_L = _likeness(prefix, library, now, here_L)
    if len(prefix.epochs) < MIN_POINTS and len(library) >= MIN_TO_REGRESS:
        carried_LG = _regressed(level, here_L, change_LG + here_L[:, None], weights_L)
    else:
        carried_LG = level * (1 + change_LG / here_L[:, None])
    neighbours = Paths(np.maximum(carried_LG, 0.0), weights_L)
    before = now / 2
    fall = float(prefix.at(np.array(before))) - level
    if prefix.epochs[0] / prefix.horizon > before * 1.3 or fall < MIN_FALL:
        return [neighbours]
    fall_L = np.array([curve.at(np.array(before)) for curve in library]) - here_L
    usable_L = fall_L >= MIN_FALL
    if not usable_L.any():
        return [neighbours]
    ratio_LG = np.clip(change_LG[usable_L] / fall_L[usable_L, None], -5.0, 5.0)
    kept_L = weights_L[usable_L] + 1e-9
    return [neighbours, Paths(np.maximum(level + ratio_LG * fall, 0.0), kept_L / kept_L.sum())]


def _regressed(level: float, here_L: Floats, loss_LG: Floats, weights_L: Floats) -> Floats:
    """Library curves moved by as much as their losses tell that a run from another level ends elsewhere.

    One reading says little of the end where slow and fast beginners end alike. Few curves say little of that: the slope
    is drawn towards proportion, where the levels of the library differ by little the more.
    """
    deviation_L = here_L - weights_L @ here_L
    mean_G = weights_L @ loss_LG
    slope_G = (weights_L * deviation_L) @ (loss_LG - mean_G) + SPREAD**2 * mean_G / (weights_L @ here_L)
    slope_G /= weights_L @ deviation_L**2 + SPREAD**2
    return loss_LG + np.clip(slope_G, 0.0, 1.0) * (level - here_L)[:, None]


def _likeness(prefix: Curve, library: Sequence[Curve], now: float, here_L: Floats) -> Floats:
    """Weights of library curves by how like their past is to the prefix's; groups count alike before that."""
    distance_L = ((np.log(here_L) - np.log(prefix.val_loss[-1])) / 0.35) ** 2
    for share in (0.5, 0.25, 0.125):
        moment = np.array(now * share)
        if prefix.epochs[0] / prefix.horizon > float(moment) * 1.3:
            break
        own = float(prefix.at(moment)) / prefix.val_loss[-1]
        others_L = np.array([curve.at(moment) for curve in library]) / here_L
        distance_L += ((others_L - own) / 0.05) ** 2
    if prefix.gap is not None:
        gaps = [curve.gap_at(now) for curve in library]
        differences = [0.0 if gap is None else (gap - prefix.gap) / 0.15 for gap in gaps]
        distance_L += np.array(differences) ** 2
    return _tempered(distance_L, _group_weights(library))


def _group_weights(library: Sequence[Curve]) -> Floats:
    """Weights that sum to 1, each group's alike."""
    sizes = {group: sum(each.group == group for each in library) for group in {each.group for each in library}}
    return np.array([1 / sizes[curve.group] / len(sizes) for curve in library])


def _tempered(distance_L: Floats, prior_L: Floats) -> Floats:
    """Weights exp(−distance / 2h), h just so large that about twelve curves count, of a small library a third."""
    wanted = min(EFFECTIVE_NEIGHBOURS, max(len(distance_L) / 3, 1.0))
    weights_L = prior_L
    for width in np.geomspace(0.3, 3000.0, 40):
        weights_L = prior_L * np.exp(-(distance_L - distance_L.min()) / (2 * width))
        weights_L = weights_L / weights_L.sum()
        if 1 / float((weights_L**2).sum()) >= wanted:
            break
    return weights_L
