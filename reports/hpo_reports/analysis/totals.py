"""What a study has cost, and what pruning has saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hpo_reports.records.attributes import finite
from hpo_reports.records.study import OUTCOMES, Outcome, StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a study's trials. A trial that did not record a number is in no sum of it."""

    trials: int
    outcomes: Mapping[Outcome, int]  # those that occur
    tokens_spent: float | None  # None: no trial recorded any
    trials_without_tokens: int  # begun, but their tokens are unknown
    tokens_saved: float | None  # what they would have read less what they read, over the pruned trials
    saved_percent: float | None  # of spent and saved together
    training_s: float | None  # training and evaluations
    energy_joules: float | None  # of GPUs while trials trained; trials side by side on one each count all of it
    continued_trials: int  # went on after an interruption
    continuations: int


def sum_up(record: StudyRecord) -> Totals:
    """Add up tokens, time, outcomes and continuations of a study's trials."""
    trials = record.trials
    counts = Counter(trial.outcome for trial in trials)
    spent = _sum([trial.measured.tokens for trial in trials])
    saved = _sum([_saved(trial) for trial in trials])
    return Totals(
        trials=len(trials),
        outcomes={outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]},
        tokens_spent=spent,
        trials_without_tokens=sum(t.outcome != "waiting" and t.measured.tokens is None for t in trials),
        tokens_saved=saved,
        saved_percent=100 * saved / (spent + saved) if spent and saved is not None else None,
        training_s=_sum([trial.measured.seconds for trial in trials]),
        energy_joules=_sum([trial.measured.energy_joules for trial in trials]),
        continued_trials=sum(trial.continued > 0 for trial in trials),
        continuations=sum(trial.continued for trial in trials),
    )


def _saved(trial: TrialRecord) -> float | None:
    """Tokens that a pruned trial did not read."""
    planned, tokens = trial.planned_tokens, trial.measured.tokens
    if trial.outcome != "pruned" or planned is None or tokens is None:
        return None
    return max(planned - tokens, 0)


def _sum(values: list[float | None]) -> float | None:
    """The sum of the values that are there; None where there are none."""
    present = [value for value in values if value is not None]
    return finite(sum(present)) if present else None
