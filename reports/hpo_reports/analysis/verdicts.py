"""Which complete trials may be compared, which of them is best, and how each stands to the baseline.

Compared are trials under one budget of training tokens, on the scale of log-perplexity, shown as per cent of the
baseline's perplexity. One run each is no evidence for a small difference, and no verdict says otherwise.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from hpo_reports.analysis.statistics import percent_of
from hpo_reports.records.study import StudyRecord, TrialRecord

# Assumed of every study until it has replicates of its own. Two configurations of `nano` (python-docs, 300,000 tokens)
# under five seeds each: standard deviation of the loss 3.8 % and 7.3 %, pooled 5.8 % (docs/decisions.md, 2026-11-21).
# Two such runs differ by 16 % or more in one case of twenty (1.96 · √2 · 5.8 %).
SEED_NOISE_PERCENT = 5.8
ASSUMED_MIN_DETECTABLE_PERCENT = 16.0

TrialStanding = Literal[
    "baseline",
    "better",
    "worse",
    "not_distinguishable",
    "not_compared",  # there is no baseline to compare with
    "suspicious",
    "infeasible",
    "not_causal",  # its network sees what it is to predict
    "causality_unknown",  # a table of past experiments does not say whether it does
    "budget_unknown",  # such a table does not say how much it was trained
    "other_budget",
    "not_finite",
    "on_front",  # of several objectives: no other is at least as good in all and better in one
    "dominated",
]


@dataclass(frozen=True, kw_only=True)
class TrialVerdict:
    """How a complete trial stands to the baseline."""

    standing: TrialStanding
    percent: float | None = None  # by which the trial's val PPL is above the baseline's; negative: below


@dataclass(frozen=True, kw_only=True)
class TrialComparison:
    """The complete trials, those that may be compared apart from those that may not.

    Several objectives give no ranking: then all trials are unranked, and some of them are on the front.
    """

    baseline: TrialRecord | None  # the study's, whether or not it can be compared with
    budget_tokens: int | None  # under which trials are compared
    ranked: tuple[TrialRecord, ...]  # best first; of equal ones the earlier first
    unranked: tuple[TrialRecord, ...]  # complete, but in no ranking
    front: tuple[TrialRecord, ...]  # of several objectives, best first by the first of them; of one empty
    verdicts: Mapping[int, TrialVerdict]  # of complete trials, by number
    min_detectable_percent: float = (
        ASSUMED_MIN_DETECTABLE_PERCENT  # differences of single runs under it may be their seeds'
    )

    @property
    def winner(self) -> TrialRecord | None:
        """The best of the comparable trials; none of a table of past experiments, where nothing was measured here."""
        return self.ranked[0] if self.ranked and not self.ranked[0].is_imported else None

    @property
    def tied(self) -> tuple[TrialRecord, ...]:
        """The trials whose objective equals the winner's."""
        return tuple(trial for trial in self.ranked[1:] if trial.values == self.ranked[0].values)

    @property
    def close(self) -> tuple[TrialRecord, ...]:
        """The trials that one run each cannot tell from the winner."""
        differences = ((trial, percent_above(trial, self.ranked[0])) for trial in self.ranked[1:])
        return tuple(
            trial
            for trial, percent in differences
            if percent is not None and _is_small(percent, self.min_detectable_percent)
        )


def compare(record: StudyRecord, *, min_detectable_percent: float = ASSUMED_MIN_DETECTABLE_PERCENT) -> TrialComparison:
    """Rank the complete trials that may be compared, and hold them against the baseline.

    Several objectives give neither rank nor verdict in per cent: there a trial is on the front or dominated.

    Args:
        record: a study.
        min_detectable_percent: what two seeds of one configuration can differ by; assumed, unless it was measured.
    """
    complete = [trial for trial in record.trials if trial.outcome == "complete"]
    baseline = _baseline(record)
    budget = _budget(baseline, complete)
    standings = {trial.number: _obstacle(trial, budget) for trial in complete}
    single = len(record.directions) == 1
    if single:
        complete.sort(key=lambda trial: _place(trial, record.directions[0]))
    comparable = [trial for trial in complete if standings[trial.number] is None]
    ranked = comparable if single else []
    front = [] if single else _front(comparable, record.directions)
    if not single:
        standings |= dict.fromkeys((trial.number for trial in comparable), "dominated")
        standings |= dict.fromkeys((trial.number for trial in front), "on_front")
    reference = next((trial for trial in ranked if trial is baseline), None)
    ranked_numbers = {trial.number for trial in ranked}
    return TrialComparison(
        baseline=baseline,
        budget_tokens=_tokens(budget, complete),
        ranked=tuple(ranked),
        unranked=tuple(trial for trial in complete if trial.number not in ranked_numbers),
        front=tuple(front),
        verdicts={t.number: _verdict(t, reference, standings[t.number], min_detectable_percent) for t in complete},
        min_detectable_percent=min_detectable_percent,
    )


def percent_above(trial: TrialRecord, reference: TrialRecord) -> float | None:
    """Per cent by which a trial's val PPL is above the reference's: their difference in log-perplexity, exponentiated.

    Returns:
        Negative where the trial is better; None where either perplexity is missing.
    """
    ppl, reference_ppl = trial.measured.val_ppl, reference.measured.val_ppl
    if not ppl or not reference_ppl or min(ppl, reference_ppl) < 0:
        return None
    return percent_of(math.log(ppl) - math.log(reference_ppl))


def expected_optimism_percent(runs: int, noise_percent: float = SEED_NOISE_PERCENT) -> float:
    """Per cent by which seed noise alone puts the best of equally good runs below their mean.

    Source: the expected extreme of a normal sample by Blom's approximation (1958).
    """
    return noise_percent * NormalDist().inv_cdf((runs - 0.375) / (runs + 0.25))


def _place(trial: TrialRecord, direction: str) -> tuple[bool, float, int]:
    """Sorts the best first, of equal ones the earlier, and those without a finite value last."""
    value = trial.values[0]
    if value is None:
        return True, 0.0, trial.number
    return False, -value if direction == "maximize" else value, trial.number


def _front(trials: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """The trials that no other dominates, best first by the first objective."""
    front: list[tuple[tuple[float, ...], TrialRecord]] = []
    for costs, _, trial in sorted((_costs(trial, directions), trial.number, trial) for trial in trials):
        if not any(other != costs and all(map(operator.le, other, costs)) for other, _ in front):  # an earlier one
            front.append((costs, trial))
    return [trial for _, trial in front]


def _costs(trial: TrialRecord, directions: Sequence[str]) -> tuple[float, ...]:
    """A comparable trial's values, each so that less is better."""
    values = [value for value in trial.values if value is not None]
    return tuple(-value if way == "maximize" else value for value, way in zip(values, directions, strict=True))


def _baseline(record: StudyRecord) -> TrialRecord | None:
    """The baseline, a complete one before any other."""
    candidates = [trial for trial in record.trials if trial.is_baseline]
    return min(candidates, key=lambda trial: (trial.outcome != "complete", trial.number), default=None)


def _budget(baseline: TrialRecord | None, complete: list[TrialRecord]) -> float | None:
    """The baseline's budget; without a baseline the commonest."""
    if baseline is not None:
        return _budget_of(baseline)
    counts = Counter(_budget_of(trial) for trial in complete)
    return counts.most_common(1)[0][0] if counts else None


def _tokens(budget: float | None, complete: list[TrialRecord]) -> int | None:
    """The budget where it is one of tokens."""
    return next((trial.budget_tokens for trial in complete if trial.budget_tokens == budget), None)


def _budget_of(trial: TrialRecord) -> float | None:
    """Training tokens that a run was allowed; of a table of past experiments what it tells, if only the epochs."""
    if not trial.is_imported or trial.budget_tokens is not None:
        return trial.budget_tokens
    return trial.measured.epoch if trial.measured.tokens is None else trial.measured.tokens


def _obstacle(trial: TrialRecord, budget: float | None) -> TrialStanding | None:
    """Why a complete trial may not be compared."""
    if trial.is_imported and trial.causal is not True:
        return "causality_unknown" if trial.causal is None else "not_causal"
    if trial.is_imported and _budget_of(trial) is None:
        return "budget_unknown"
    if trial.suspicious:
        return "suspicious"
    if not trial.feasible:
        return "infeasible"
    if None in trial.values:
        return "not_finite"
    return "other_budget" if _budget_of(trial) != budget else None


def _verdict(
    trial: TrialRecord, reference: TrialRecord | None, standing: TrialStanding | None, limit: float
) -> TrialVerdict:
    if standing is not None:
        return TrialVerdict(standing=standing)
    if trial is reference:
        return TrialVerdict(standing="baseline")
    percent = None if reference is None else percent_above(trial, reference)
    if percent is None:
        return TrialVerdict(standing="not_compared")
    if _is_small(percent, limit):
        return TrialVerdict(standing="not_distinguishable", percent=percent)
    return TrialVerdict(standing=_better_or_worse(percent), percent=percent)


def _is_small(percent: float, min_detectable_percent: float) -> bool:
    """Whether the difference as printed is under the limit as printed."""
    return round(abs(percent), 1) < round(min_detectable_percent, 1)


def _better_or_worse(percent: float) -> Literal["better", "worse"]:
    return "better" if percent < 0 else "worse"
