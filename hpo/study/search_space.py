"""From a study's specification to Optuna: distributions, sampler, pruner."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import optuna

from hpo.database.optuna_private import COMPLETED_RUNG, SnapshotStudy
from hpo.study.former_names import role_of
from hpo.study.sections import Dimension
from hpo.study.spec import PLANNED, StudySpec
from hpo_model.config import Scalar, parameter_type
from hpo_reports.records.names import TRIAL_ROLE


def suggest(spec: StudySpec, trial: optuna.Trial) -> dict[str, Scalar]:
    """Ask the sampler for every searched value; a trial that has values already keeps them."""
    return {name: _suggest(trial, name, dimension) for name, dimension in spec.search.items()}


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> Scalar:
    if dimension.choices is not None:
        chosen = trial.suggest_categorical(name, dimension.choices)
        assert chosen is not None
        return chosen
    assert dimension.low is not None
    assert dimension.high is not None
    if parameter_type(name) is int:
        low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
        return trial.suggest_int(name, low, high, log=dimension.log, step=step)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def make_sampler(spec: StudySpec, slot: int) -> optuna.samplers.BaseSampler:
    """The sampler of one slot's trial.

    Its seed comes from the study's seed and the slot: workers never draw the same random numbers, and a study that was
    interrupted does not draw the first ones again.
    """
    seed = int(np.random.SeedSequence((spec.sampler.seed, slot)).generate_state(1)[0])
    if spec.sampler.kind == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=spec.sampler.startup_trials)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The pruner, on a scale of evaluation milestones.

    Percentile and median compare with complete trials alone, so `n_min_trials` counts complete ones: of two trials, the
    lower quartile is hardly more than the better one.
    """
    pruner = spec.pruner
    if pruner.kind == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=pruner.min_resource, reduction_factor=pruner.reduction_factor
        )
    if pruner.kind in ("percentile", "median"):
        return optuna.pruners.PercentilePruner(
            50.0 if pruner.kind == "median" else pruner.percentile,
            n_startup_trials=0,
            n_warmup_steps=pruner.min_resource,
            n_min_trials=pruner.n_min_trials,
        )
    return optuna.pruners.NopPruner()


def should_prune(spec: StudySpec, trial: optuna.Trial, milestone: int) -> bool:
    """Whether to prune the trial, which has just reported at this milestone.

    The pruner is asked wherever its answer can be yes, because asking is how successive halving takes note of a trial.
    The answer counts only with enough peers, and never against the baseline and other planned trials: verdicts need
    them whole. A question is asked again as if for the first time: a crash can come between answer and consequence, or
    a trial may have had to start over, and the note that the first question left would make the second answer no.
    """
    if not _may_prune(spec, milestone):
        return False
    study = SnapshotStudy(trial.study.study_name, trial.storage, pruner=trial.study.pruner)
    study.refresh()
    frozen = copy.copy(study.trials_read[trial.number])
    study.trials_read = study.trials_read[: trial.number] + study.trials_read[trial.number + 1 :]
    frozen.intermediate_values = {at: loss for at, loss in frozen.intermediate_values.items() if at <= milestone}
    frozen.system_attrs = {
        key: value for key, value in frozen.system_attrs.items() if not key.startswith(COMPLETED_RUNG)
    }
    behind = study.pruner.prune(study, frozen)
    if not behind or role_of(frozen.user_attrs.get(TRIAL_ROLE)) in PLANNED:
        return False
    return sum(milestone in other.intermediate_values for other in study.trials_read) >= spec.pruner.n_min_trials


def _may_prune(spec: StudySpec, milestone: int) -> bool:
    """Whether the pruner ever says yes at a milestone: successive halving only at its rungs."""
    pruner = spec.pruner
    if pruner.kind != "successive_halving":
        return pruner.kind != "none" and milestone >= pruner.min_resource
    rung = pruner.min_resource
    while rung < milestone:
        rung *= pruner.reduction_factor
    return rung == milestone
