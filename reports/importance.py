"""How much each searched parameter matters, by Optuna's evaluator; with records, the only room that knows Optuna."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from reports.attributes import Scalar
from reports.records import Direction, SearchRecord, StudyRecord, TrialRecord
from reports.verdicts import Comparison

LEAST_TRIALS = 30  # complete ones; fewer give shares that the next trial overturns
MOST_TRIALS = 500  # that are evaluated, drawn by a fixed seed
RESAMPLES = 50
EVALUATOR = "PED-ANOVA"  # Optuna's default since 5.0: what separates the best tenth of the trials from the others


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


def importance(record: StudyRecord, comparison: Comparison) -> Importance | None:
    """Evaluate the searched parameters of a study with one objective.

    Only complete trials count: pruning hides the worst regions, and a sampler that learns crowds the best. The shares
    say what told good trials of this search apart, not what matters in general.

    Returns:
        None where fewer than thirty trials can be compared, or nothing was searched.
    """
    trials = [trial for trial in comparison.ranked if trial.values and trial.values[0] is not None]
    names = _common(trials)
    if len(trials) < LEAST_TRIALS or not names:
        return None
    random = np.random.default_rng(0)
    if len(trials) > MOST_TRIALS:
        trials = [trials[place] for place in sorted(random.permutation(len(trials))[:MOST_TRIALS])]
    spaces = {name: _space([trial.parameters[name] for trial in trials], _range(record, name)) for name in names}
    with _silent():
        whole = _evaluate(trials, spaces, record.directions[0])
        resamples = [
            _evaluate(
                [trials[place] for place in random.integers(len(trials), size=len(trials))],
                spaces,
                record.directions[0],
            )
            for _ in range(RESAMPLES)
        ]
    shares = {}
    for name, value in whole.items():
        low, high = np.quantile([each.get(name, 0.0) for each in resamples], (0.05, 0.95))
        shares[name] = Share(value=value, low=float(low), high=float(high))
    return Importance(evaluator=f"{EVALUATOR}, Optuna {optuna.__version__}", trials=len(trials), shares=shares)


def _common(trials: Sequence[TrialRecord]) -> list[str]:
    """Parameters that every trial was given and that differ between trials, all numbers or all of other kinds."""
    names = [name for name in (trials[0].searched if trials else ()) if all(name in each.searched for each in trials)]
    return [name for name in names if len({repr(trial.parameters.get(name)) for trial in trials}) > 1]


def _range(record: StudyRecord, name: str) -> SearchRecord | None:
    return next((each for each in record.search if each.name == name), None)


def _space(values: Sequence[Scalar], searched: SearchRecord | None) -> BaseDistribution:
    """The values' own range, on the scale on which they were searched; all but numbers are categories."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted({str(value) for value in values}))
    log = searched is not None and searched.log and min(numbers) > 0
    return FloatDistribution(float(min(numbers)), float(max(numbers)), log=log)


def _evaluate(
    trials: Sequence[TrialRecord], spaces: Mapping[str, BaseDistribution], direction: Direction
) -> dict[str, float]:
    study = optuna.create_study(direction=direction)
    study.add_trials([_frozen(trial, spaces) for trial in trials])
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _frozen(trial: TrialRecord, spaces: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    values = {
        name: str(trial.parameters[name]) if isinstance(space, CategoricalDistribution) else trial.parameters[name]
        for name, space in spaces.items()
    }
    return optuna.trial.create_trial(params=values, distributions=dict(spaces), value=trial.values[0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Studies in memory come and go without a word."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
