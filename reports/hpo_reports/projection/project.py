"""A run's projection to the end of its schedule, or the reason why there is none; its score once the run has ended."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from hpo_reports.projection.calibration import (
    SIBLING_COUNTS,
    Calibration,
    Expected,
    calibrate,
    expected,
    outcomes,
    residuals_of,
)
from hpo_reports.projection.curves import MAX_NATS, Curve, reference_curves
from hpo_reports.projection.horizon import PROJECTED_EPOCHS
from hpo_reports.projection.pool import Paths, pooled

CALIBRATION = "calibration.json"
MIN_LIBRARY = 12  # curves, fewer of which calibrate nothing
SCHEDULE_TOLERANCE = 0.02  # of the horizon, by which a schedule's end may miss the one that is asked for
MAX_WIDTH_TO_RANK = 2.0  # ratio of the bounds of the 90 % interval, beyond which a projection ranks nothing

Obstacle = Literal["no_points", "diverged", "schedule_mismatch", "ended", "no_library"]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why nothing is projected."""

    obstacle: Obstacle
    schedule_epochs: float | None = None  # where the run's schedule ends, if that is the obstacle


@dataclass(frozen=True, kw_only=True)
class Range:
    """A perplexity as it is expected."""

    median: float
    low_80: float
    high_80: float
    low_90: float
    high_90: float

    @property
    def width(self) -> float:
        """Upper by lower bound of the 90 % interval."""
        return self.high_90 / self.low_90


@dataclass(frozen=True, kw_only=True)
class EpochOutlook:
    """What is expected at one epoch."""

    epoch: float
    observed_ppl: float | None  # where the run has been there
    at_epoch: Range | None  # the perplexity there; None where it was observed
    best_until: Range  # that of the best checkpoint up to there
    beats_target: float | None  # probability that the best checkpoint up to there does
    past_best: float | None  # probability that the lowest loss lies before


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A run as it is expected to go on; plain data, so that it can be stored and scored later."""

    run: str
    observed_epochs: float  # how far the run was
    points: int  # evaluations known
    horizon_epochs: float
    target_ppl: float | None
    outlooks: tuple[EpochOutlook, ...]
    siblings: int  # complete runs of the same study that were asked
    library: int  # reference runs that were asked
    groups: int  # into which these fall

    @property
    def best(self) -> Range:
        """The headline: the best checkpoint by the horizon."""
        return self.outlooks[-1].best_until

    @property
    def final(self) -> Range:
        """The last checkpoint."""
        final = self.outlooks[-1].at_epoch
        assert final is not None, "the horizon lies ahead"
        return final

    @property
    def ranks(self) -> bool:
        """Whether the range is narrow enough to rank runs by."""
        return self.best.width <= MAX_WIDTH_TO_RANK

    def as_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ProjectionScore:
    """A projection held against what happened."""

    projection: Projection
    best_ppl: float
    final_ppl: float
    best_inside: Mapping[int, bool]  # by level
    final_inside: Mapping[int, bool]

    @property
    def best_log_error(self) -> float:
        """Truth less median, of log-perplexity."""
        return math.log(self.best_ppl) - math.log(self.projection.best.median)


def project(
    run: Curve,
    *,
    horizon: float,
    siblings: Sequence[Curve] = (),
    library: Sequence[Curve] | None = None,
    calibration: Calibration | None = None,
    target_ppl: float | None = None,
) -> Projection | Refusal:
    """Project a run that has begun.

    Args:
        run: what is known of it; its own horizon says where its learning-rate schedule ends.
        horizon: epochs at which the answer is wanted.
        siblings: complete curves of the same study, of the same horizon.
        library: complete curves of other runs; default: the reference runs that come with the program.
        calibration: of that library; default: the one that comes with the program.
        target_ppl: perplexity of which it is asked whether the run beats it.

    Returns:
        A projection; or a refusal where the data are too thin, the run has diverged, or it follows another schedule: a
        run whose learning rate has fallen by epoch 1 is no beginning of one whose rate falls by epoch 20.
    """
    library = reference_curves() if library is None else library
    obstacle = _obstacle(run, horizon, library)
    if obstacle is not None:
        return obstacle
    alike = [
        each for each in siblings if each.is_finite and abs(each.horizon - horizon) <= SCHEDULE_TOLERANCE * horizon
    ]
    calibration = calibration or shipped_calibration(len(alike))
    paths = pooled(run, library, alike)
    epochs = [*(e for e in PROJECTED_EPOCHS if e < horizon * (1 - SCHEDULE_TOLERANCE)), horizon]
    log_target = None if target_ppl is None else math.log(target_ppl)
    return Projection(
        run=run.name,
        observed_epochs=run.epochs[-1],
        points=len(run.epochs),
        horizon_epochs=horizon,
        target_ppl=target_ppl,
        outlooks=tuple(_outlook(run, e, e / horizon, paths, calibration, log_target) for e in epochs),
        siblings=len(alike),
        library=len(library),
        groups=len({each.group for each in library}),
    )


def score(projection: Projection, run: Curve) -> ProjectionScore | None:
    """Hold a projection against the run as it ended; None while it has not."""
    if run.epochs[-1] < projection.horizon_epochs * (1 - SCHEDULE_TOLERANCE) or not run.is_finite:
        return None
    best, final = math.exp(min(run.val_loss)), math.exp(run.val_loss[-1])
    return ProjectionScore(
        projection=projection,
        best_ppl=best,
        final_ppl=final,
        best_inside=_inside(projection.best, best),
        final_inside=_inside(projection.final, final),
    )


def projection_from(content: Mapping[str, Any]) -> Projection:
    """A projection from its JSON.

    Raises:
        KeyError, TypeError: it is none.
    """
    outlooks = tuple(
        EpochOutlook(
            epoch=each["epoch"],
            observed_ppl=each["observed_ppl"],
            at_epoch=None if each["at_epoch"] is None else Range(**each["at_epoch"]),
            best_until=Range(**each["best_until"]),
            beats_target=each["beats_target"],
            past_best=each["past_best"],
        )
        for each in content["outlooks"]
    )
    return Projection(**{**content, "outlooks": outlooks})


@functools.cache
def shipped_calibration(siblings: int) -> Calibration:
    """The scales of the reference runs that come with the program, measured with at most so many siblings."""
    text = importlib.resources.files("hpo_reports.projection").joinpath(CALIBRATION).read_text(encoding="utf-8")
    content = json.loads(text)[str(max(count for count in SIBLING_COUNTS if count <= siblings))]
    scales = {name: tuple(values) for name, values in content.pop("scales").items()}
    return Calibration(**{**content, "shares": tuple(content["shares"])}, scales=scales)


def calibration_json(curves: Sequence[Curve]) -> str:
    """What `shipped_calibration` reads, measured anew on these curves."""
    content = {n: dataclasses.asdict(calibrate(residuals_of(curves, n_siblings=n))) for n in SIBLING_COUNTS}
    return json.dumps({"curves": digest(curves), **content}, indent=1, default=dict) + "\n"


def digest(curves: Sequence[Curve]) -> str:
    """What tells these curves from others."""
    content = json.dumps([dataclasses.asdict(curve) for curve in curves], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _obstacle(run: Curve, horizon: float, library: Sequence[Curve]) -> Refusal | None:
    if not run.is_finite:
        return Refusal(obstacle="diverged")
    if abs(run.horizon - horizon) > SCHEDULE_TOLERANCE * horizon:
        return Refusal(obstacle="schedule_mismatch", schedule_epochs=run.horizon)
    if run.epochs[-1] >= horizon * (1 - SCHEDULE_TOLERANCE):
        return Refusal(obstacle="ended")
    if len(library) < MIN_LIBRARY:
        return Refusal(obstacle="no_library")
    return None


def _outlook(
    run: Curve, epoch: float, share: float, paths: Paths, calibration: Calibration, log_target: float | None
) -> EpochOutlook:
    if share <= run.now:
        return _observed(run, epoch, log_target)
    until = paths.until(run.now, run.val_loss[-1], share)
    found = expected(until, run, calibration, run.now)
    values = outcomes(until, run)
    risen_N = values["final"] > values["best"] + 1e-9
    return EpochOutlook(
        epoch=epoch,
        observed_ppl=None,
        at_epoch=_range(found["final"]),
        best_until=_range(found["best"]),
        beats_target=None if log_target is None else _below(found["best"], log_target, min(run.val_loss)),
        past_best=float(paths.weights_N[risen_N].sum()),
    )


def _observed(run: Curve, epoch: float, log_target: float | None) -> EpochOutlook:
    """What was seen at an epoch that has passed."""
    lowest = min(run.until(epoch).val_loss)
    best = math.exp(lowest)
    return EpochOutlook(
        epoch=epoch,
        observed_ppl=math.exp(float(run.at(np.array(epoch / run.horizon)))),
        at_epoch=None,
        best_until=Range(median=best, low_80=best, high_80=best, low_90=best, high_90=best),
        beats_target=None if log_target is None else float(lowest < log_target),
        past_best=None,
    )


def _range(loss: Expected) -> Range:
    edges = (loss.median, *loss.intervals[80], *loss.intervals[90])
    median, low_80, high_80, low_90, high_90 = (math.exp(min(edge, MAX_NATS)) for edge in edges)
    return Range(median=median, low_80=low_80, high_80=high_80, low_90=low_90, high_90=high_90)


def _below(loss: Expected, log_target: float, seen: float) -> float:
    """Probability of a loss under a target: normal on each side of the median, through the bounds of 90 per cent."""
    if seen < log_target:
        return 1.0
    bound = loss.intervals[90][0 if log_target < loss.median else 1]
    distance = abs(log_target - loss.median) / max(abs(bound - loss.median), 1e-9)
    above = NormalDist().cdf(distance * NormalDist().inv_cdf(0.95))
    return 1 - above if log_target < loss.median else above


def _inside(range_: Range, truth: float) -> dict[int, bool]:
    return {80: range_.low_80 <= truth <= range_.high_80, 90: range_.low_90 <= truth <= range_.high_90}
