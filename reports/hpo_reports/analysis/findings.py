"""All that a report is written from: the study and what was computed from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from hpo_reports.analysis.importance import Importance
from hpo_reports.analysis.insights import Insights, insights
from hpo_reports.analysis.judging import CandidateJudgement, FinalistsJudgement, SeedNoise, judge
from hpo_reports.analysis.outlook import NoOutlook, TrialOutlook, no_outlook, outlook_of
from hpo_reports.analysis.totals import Totals, sum_up
from hpo_reports.analysis.verdicts import ASSUMED_MIN_DETECTABLE_PERCENT, SEED_NOISE_PERCENT, TrialComparison, compare
from hpo_reports.records.finalists import FinalistsRecord
from hpo_reports.records.long_runs import LongRunRecord
from hpo_reports.records.study import StudyRecord, TrialRecord


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A study with its comparison and, where there are any, its finalists."""

    record: StudyRecord
    comparison: TrialComparison
    judgement: FinalistsJudgement | None = None
    outlook: TrialOutlook | NoOutlook | None = None  # of the trial to go on with; None: there is none that we can train

    @property
    def single(self) -> bool:
        """Whether one objective ranks the trials."""
        return len(self.record.directions) == 1

    @functools.cached_property
    def totals(self) -> Totals:
        """What the study has cost."""
        return sum_up(self.record)

    @functools.cached_property
    def insights(self) -> Insights | None:
        """What the study tells of its hyperparameters."""
        return insights(self.record, self.comparison)

    @property
    def importance(self) -> Importance | None:
        """How much each searched parameter matters, where enough trials tell."""
        return None if self.insights is None else self.insights.importance

    @property
    def measured_noise(self) -> SeedNoise | None:
        """The study's own seed noise, where its finalists tell it well enough."""
        noise = None if self.judgement is None else self.judgement.noise
        return noise if noise is not None and noise.is_enough else None

    @property
    def noise_percent(self) -> float:
        """Standard deviation between seeds: the study's own, or the assumed one."""
        return SEED_NOISE_PERCENT if self.measured_noise is None else self.measured_noise.percent

    @property
    def chosen(self) -> TrialRecord | None:
        """The trial to go on with: the finalists' winner once all of them have run, before that the search's."""
        final = self.final_winner
        if final is None:
            return self.comparison.winner
        return next((trial for trial in self.record.trials if trial.number == final.trial), self.comparison.winner)

    @property
    def final_winner(self) -> CandidateJudgement | None:
        """The finalists' winner; None before all of them have run."""
        judgement = self.judgement
        if judgement is None or judgement.winner is None or not judgement.is_complete:
            return None
        return judgement.of(judgement.winner)


def analyse(
    record: StudyRecord, finalists: FinalistsRecord | None = None, long_runs: Sequence[LongRunRecord] = ()
) -> Findings:
    """Compute what a report is written from.

    Args:
        record: the study.
        finalists: its companion study, if it has one. Its own seed noise, once known, replaces the assumed one.
        long_runs: of the study; a projection of the one with the configuration to go on with is shown.
    """
    judgement = None if finalists is None else judge(finalists)
    noise = None if judgement is None else judgement.noise
    limit = noise.min_detectable_percent if noise is not None and noise.is_enough else ASSUMED_MIN_DETECTABLE_PERCENT
    findings = Findings(record=record, comparison=compare(record, min_detectable_percent=limit), judgement=judgement)
    chosen = findings.chosen
    if chosen is None or not chosen.is_ours:
        return findings
    return dataclasses.replace(findings, outlook=outlook_of(chosen, long_runs) or no_outlook(chosen))
