"""What a long run may reach, as a report shows it; or why nothing is said of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpo_reports.projection import project as projected
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.attributes import whole
from hpo_reports.records.long_runs import LongRunRecord
from hpo_reports.records.study import TrialRecord, perplexity_of

NoOutlookReason = Literal[
    "schedule",  # its learning rate ended: the curve is no beginning of a longer run's
    "thin",  # too few points, and no other run to learn from
    "diverged",
    "none_made",  # nothing was computed
]


@dataclass(frozen=True, kw_only=True)
class ProjectedEpoch:
    """Validation perplexity after an epoch: observed, or where it is expected to lie."""

    epoch: float
    observed_ppl: float | None = None
    median_ppl: float | None = None
    low_80_ppl: float | None = None
    high_80_ppl: float | None = None
    low_90_ppl: float | None = None
    high_90_ppl: float | None = None
    past_best: float | None = None  # probability that the best epoch lies before this one


@dataclass(frozen=True, kw_only=True)
class TrialOutlook:
    """A projection of one run."""

    trial: int
    epochs: tuple[ProjectedEpoch, ...]
    best: ProjectedEpoch | None  # of the best checkpoint up to the last epoch
    references: int  # curves that it was learned from
    siblings: int  # of them from this study
    target_ppl: float | None = None
    below_target: float | None = None  # probability that the best checkpoint gets below the target
    scored: int = 0  # earlier projections whose runs have ended
    covered: int = 0  # of them within their 90 % range


@dataclass(frozen=True, kw_only=True)
class NoOutlook:
    """Nothing can be projected."""

    trial: int
    reason: NoOutlookReason


def outlook_of(trial: TrialRecord, runs: Sequence[LongRunRecord]) -> TrialOutlook | None:
    """The latest projection of a trial's long run, with how earlier ones came out; None where none was made.

    Args:
        trial: whose configuration the run has.
        runs: all long runs of the study.
    """
    made = [(run, run.projections[-1]) for run in runs if run.trial == trial.number and run.projections]
    if not made:
        return None
    run, projection = max(made, key=lambda each: (each[0].epochs, each[1].observed_epochs))
    scores = [each for run in runs for each in run.scores]
    return TrialOutlook(
        trial=trial.number,
        epochs=tuple(_observed(_epoch(each), run) for each in projection.outlooks),
        best=_expected(projection.horizon_epochs, projection.best),
        references=projection.library + projection.siblings,
        siblings=projection.siblings,
        target_ppl=projection.target_ppl,
        below_target=projection.outlooks[-1].beats_target,
        scored=len(scores),
        covered=sum(each.best_inside[90] for each in scores),
    )


def _epoch(outlook: projected.EpochOutlook) -> ProjectedEpoch:
    """An epoch of the projection: what was seen there, or what the last checkpoint is expected to have."""
    if outlook.at_epoch is None:
        return ProjectedEpoch(epoch=outlook.epoch, observed_ppl=outlook.observed_ppl)
    return dataclasses.replace(_expected(outlook.epoch, outlook.at_epoch), past_best=outlook.past_best)


def _observed(projected: ProjectedEpoch, run: LongRunRecord) -> ProjectedEpoch:
    """With what has been seen there since."""
    seen = () if run.curve is None else zip(run.curve.epochs, run.curve.val_loss, strict=True)
    losses = [loss for epoch, loss in seen if math.isclose(epoch, projected.epoch, rel_tol=0.01)]
    if not losses or projected.observed_ppl is not None:
        return projected
    return dataclasses.replace(projected, observed_ppl=perplexity_of(losses[-1]))


def _expected(epoch: float, expected: projected.Range) -> ProjectedEpoch:
    return ProjectedEpoch(
        epoch=epoch,
        median_ppl=expected.median,
        low_80_ppl=expected.low_80,
        high_80_ppl=expected.high_80,
        low_90_ppl=expected.low_90,
        high_90_ppl=expected.high_90,
    )


def no_outlook(trial: TrialRecord) -> NoOutlook:
    """Why a run of the search is no beginning of a long one.

    Its learning rate fell to the end of its own budget; over twenty epochs it would have been higher at that point.
    """
    if trial.is_imported:
        return NoOutlook(trial=trial.number, reason="thin")
    epochs, decays = trial.measured.epoch, trial.parameters.get("learning_rate_schedule") != "constant"
    ended = epochs is not None and epochs < LONG_RUN_EPOCHS and whole(trial.parameters, "budget_tokens") is not None
    return NoOutlook(trial=trial.number, reason="schedule" if decays and ended else "none_made")
