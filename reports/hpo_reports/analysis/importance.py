"""How much each searched parameter matters, by Optuna's evaluator; with records, the only room that knows Optuna."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from hpo_reports.analysis.verdicts import Comparison
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import Direction, SearchRecord, StudyRecord, TrialRecord

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
        None where fewer than thirty trials can be compared, no parameter differs between them, or their objectives
        tell no best tenth from the others.
    """
    trials = [trial for trial in comparison.ranked if trial.values and trial.values[0] is not None]
    names = _common(trials)
    if len(trials) < LEAST_TRIALS or not names:
        return None
    random = np.random.default_rng(0)
    if len(trials) > MOST_TRIALS:
        trials = [trials[place] for place in sorted(random.permutation(len(trials))[:MOST_TRIALS])]
    if trials[-(-len(trials) // 10) - 1].values[0] == trials[-1].values[0]:  # they come best first
        return None
    axes = {name: _Axis.of([trial.parameters[name] for trial in trials], _range(record, name)) for name in names}
    frozen = [_frozen(trial, axes) for trial in trials]
    with _silent():
        drawn = _Drawn(record.directions[0])
        whole = drawn.evaluate(frozen)
        resamples = [
            drawn.evaluate([frozen[place] for place in random.integers(len(frozen), size=len(frozen))])
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


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A parameter as the evaluator sees it."""

    space: BaseDistribution  # of the values' own range, on the scale on which they were searched
    largest: float | None = None  # by which numbers on a linear scale are divided, so that no difference overflows

    @staticmethod
    def of(values: Sequence[Scalar], searched: SearchRecord | None) -> _Axis:
        """All but numbers are categories."""
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) < len(values):
            return _Axis(space=CategoricalDistribution(sorted({str(value) for value in values})))
        low, high = float(min(numbers)), float(max(numbers))
        if searched is not None and searched.log and low > 0:
            return _Axis(space=FloatDistribution(low, high, log=True))
        largest = max(abs(low), abs(high))
        return _Axis(space=FloatDistribution(low / largest, high / largest), largest=largest)

    def place(self, value: Scalar) -> Scalar:
        """A value on it."""
        if isinstance(self.space, CategoricalDistribution):
            return str(value)
        return value if self.largest is None else float(value) / self.largest  # type: ignore[arg-type]


class _Drawn(optuna.Study):
    """A study whose trials are given to it; one that stores them copies each, which took most of a report's time."""

    def __init__(self, direction: Direction) -> None:
        empty = optuna.create_study(direction=direction)
        super().__init__(empty.study_name, empty._storage)
        self.given: list[FrozenTrial] = []

    def evaluate(self, trials: list[FrozenTrial]) -> dict[str, float]:
        """How much each parameter matters among complete trials, the same one perhaps more than once."""
        self.given = [copy.copy(trial) for trial in trials]
        for place, trial in enumerate(self.given):
            trial._trial_id = place  # by which the evaluator tells them apart
        return get_param_importances(self, evaluator=PedAnovaImportanceEvaluator())

    def get_trials(self, deepcopy: bool = True, states: object = None) -> list[FrozenTrial]:  # noqa: ARG002
        """All of them are complete, and nobody writes to them."""
        return self.given


def _frozen(trial: TrialRecord, axes: Mapping[str, _Axis]) -> FrozenTrial:
    values = {name: axis.place(trial.parameters[name]) for name, axis in axes.items()}
    spaces = {name: axis.space for name, axis in axes.items()}
    return optuna.trial.create_trial(params=values, distributions=spaces, value=trial.values[0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Studies in memory come and go without a word; where a resample has too many ties, Optuna would warn."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Target and region quantiles", category=UserWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
