"""Verdicts on finalists: paired tests, the tied set, and how much a loss moves by its seed alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpo_reports.analysis import statistics
from hpo_reports.analysis.statistics import ALPHA, Interval, percent_of
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.finalists import CandidateRecord, FinalistsRecord, TestEvaluation
from hpo_reports.records.study import perplexity_of

MIN_DEGREES = 10  # of freedom, for the study's own seed noise to replace the assumed one: its error is a fifth then

CandidateStanding = Literal[
    "baseline",
    "better",
    "worse",
    "not_distinguishable",
    "too_few_seeds",  # no p can be small enough
    "pending",  # its runs or the baseline's have not all ended
    "unstable",  # lost under one of the seeds or more, so that it cannot be recommended
    "not_compared",  # there is no baseline to compare with, or no pair
]


@dataclass(frozen=True, kw_only=True)
class CandidateJudgement:
    """How a candidate did, and how it stands to the baseline. Losses and differences in nats per token."""

    trial: int  # number in the search
    is_baseline: bool
    parameters: Mapping[str, Scalar]
    complete: int  # replicates
    lost: int
    failed: int
    pending: int
    mean_val_loss: float | None  # over its complete replicates
    deviation: float | None  # of one replicate, by its seed; None: fewer than two
    shrunk_val_loss: float | None  # empirical Bayes, over the common seeds
    screening_val_loss: float | None
    screening_difference: float | None  # of its single run to the baseline's, under one seed: luck and choice included
    probability_best: float | None  # over the common seeds; None: fewer than two of them, or the candidate is unstable
    pairs: int  # seeds under which both it and the baseline are complete
    missing_pairs: int  # planned for both, and not there
    difference: float | None  # mean over the pairs, to the baseline; below 0: better
    interval: Interval | None  # of the difference, 95 %
    p: float | None  # two-sided sign-flip test of the pairs
    p_adjusted: float | None  # by Holm, over the candidates
    standing: CandidateStanding

    @property
    def mean_val_ppl(self) -> float | None:
        """Geometric mean of the replicates' perplexities."""
        return perplexity_of(self.mean_val_loss)

    @property
    def percent(self) -> float | None:
        """The difference as per cent of the baseline's perplexity; below 0: better."""
        return None if self.difference is None else percent_of(self.difference)


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """How much a loss moves by its seed alone, measured within the candidates of a study."""

    deviation: float  # standard deviation of one run, in nats per token: also of log-perplexity
    degrees: int  # of freedom
    candidates: int  # with two complete replicates or more
    paired_deviation: float | None  # what remains where runs share their seed; None: fewer than 2 candidates or seeds
    paired_degrees: int

    @property
    def percent(self) -> float:
        """The deviation as per cent of a perplexity."""
        return 100 * self.deviation

    @property
    def min_detectable_percent(self) -> float:
        """Two single runs closer than this may differ by their seeds alone; one pair in twenty is farther apart."""
        return percent_of(statistics.min_detectable_difference(self.deviation, self.degrees))

    @property
    def is_enough(self) -> bool:
        """Whether it is known well enough to replace an assumption."""
        return self.degrees >= MIN_DEGREES


@dataclass(frozen=True, kw_only=True)
class FinalistsJudgement:
    """What the finalists say."""

    candidates: tuple[CandidateJudgement, ...]  # stable ones first, then by mean loss over the common seeds
    is_complete: bool  # no run is pending; before that everything is provisional
    seeds: int  # planned
    rounds: int  # times that seeds were planned; beyond one, a look came between, which makes p smaller than it is
    common_seeds: tuple[int, ...]  # complete for every stable candidate: ranks and P(best) are theirs
    seeds_needed: int  # pairs without which no verdict on so many candidates is possible
    least_p_adjusted: float | None  # the smallest that so many seeds can give; None: nothing to compare
    winner: int | None  # number in the search: the lowest mean loss over the common seeds, among stable candidates
    tied: tuple[int, ...]  # stable candidates that the seeds cannot tell from the winner, without it
    noise: SeedNoise | None
    screened: int | None
    expected_optimism: float | None  # in nats: how far the best of the screened runs was to look better than it is
    test: TestEvaluation | None  # the first, whosever it is
    later_tests: tuple[TestEvaluation, ...]

    @property
    def verdict_possible(self) -> bool:
        """Whether the seeds are enough for a difference to be found, however large it is."""
        return self.least_p_adjusted is not None and self.least_p_adjusted <= ALPHA

    def of(self, trial: int) -> CandidateJudgement | None:
        """The candidate with this number in the search."""
        return next((each for each in self.candidates if each.trial == trial), None)


def judge(record: FinalistsRecord) -> FinalistsJudgement:
    """Hold the candidates against the baseline and each other.

    Differences are paired by seed. A replicate that was lost makes its candidate unstable: it is named and cannot win.
    One that failed or is pending is a missing pair.

    Args:
        record: the finalists, as `read_finalists` gives them.
    """
    baseline = next((each for each in record.candidates if each.is_baseline), None)
    stable = _stable(record)
    common, table = _common(stable, record.seeds), _table(stable, record.seeds)
    pairs = {each.trial: _pairs(each, baseline) for each in record.candidates if baseline and each is not baseline}
    adjusted = _adjusted(pairs)
    judged = _Shared(
        baseline=baseline,
        pairs=pairs,
        adjusted=adjusted,
        best=_by_trial(stable, statistics.probability_best(table) if table and common else None),
        shrunk=_by_trial(stable, _shrunk(table) if common else None),
        means=_by_trial(stable, [sum(row) / len(row) for row in table] if common else None),
    )
    ranked = sorted(record.candidates, key=lambda each: (judged.means.get(each.trial, math.inf), each.trial))
    winner = ranked[0] if common else None
    noise = seed_noise(record)
    least = statistics.least_p(len(record.seeds)) * len(pairs) if pairs else None
    return FinalistsJudgement(
        candidates=tuple(_judgement(each, judged) for each in ranked),
        is_complete=record.pending_runs == 0,
        seeds=len(record.seeds),
        rounds=record.rounds,
        common_seeds=tuple(common),
        seeds_needed=statistics.pairs_needed(max(len(pairs), 1)),
        least_p_adjusted=None if least is None else min(least, 1.0),
        winner=None if winner is None else winner.trial,
        tied=() if winner is None else _tied(winner, stable),
        noise=noise,
        screened=record.screened,
        expected_optimism=_optimism(record, noise),
        test=record.tests[0] if record.tests else None,
        later_tests=record.tests[1:],
    )


def seed_noise(record: FinalistsRecord) -> SeedNoise | None:
    """The study's own seed noise, pooled within its candidates; None where none has two complete replicates."""
    groups = [list(each.losses().values()) for each in record.candidates]
    pooled = statistics.pooled_deviation(groups)
    if pooled is None:
        return None
    paired, degrees = statistics.paired_deviation(_table(_stable(record), record.seeds)) or (None, 0)
    return SeedNoise(
        deviation=pooled[0],
        degrees=pooled[1],
        candidates=sum(len(group) > 1 for group in groups),
        paired_deviation=paired,
        paired_degrees=degrees,
    )


def _stable(record: FinalistsRecord) -> list[CandidateRecord]:
    return [each for each in record.candidates if each.losses() and not each.count("lost")]


def _common(stable: list[CandidateRecord], seeds: Sequence[int]) -> list[int]:
    return [seed for seed in seeds if stable and all(seed in each.losses() for each in stable)]


def _table(stable: list[CandidateRecord], seeds: Sequence[int]) -> list[list[float]]:
    """A row for each candidate, a column for each seed that all of them have."""
    return [[each.losses()[seed] for seed in _common(stable, seeds)] for each in stable]


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What judging one candidate takes from all of them; mappings by number in the search."""

    baseline: CandidateRecord | None
    pairs: Mapping[int, list[float]]  # differences to the baseline
    adjusted: Mapping[int, float]
    best: Mapping[int, float]
    shrunk: Mapping[int, float]
    means: Mapping[int, float]


def _judgement(candidate: CandidateRecord, judged: _Shared) -> CandidateJudgement:
    losses = list(candidate.losses().values())
    spread = statistics.pooled_deviation([losses])
    pairs = judged.pairs.get(candidate.trial, [])
    planned = len({each.seed for each in candidate.replicates} & _seeds(judged.baseline))
    return CandidateJudgement(
        trial=candidate.trial,
        is_baseline=candidate.is_baseline,
        parameters=candidate.parameters,
        complete=len(losses),
        lost=candidate.count("lost"),
        failed=candidate.count("failed"),
        pending=candidate.count("pending"),
        mean_val_loss=sum(losses) / len(losses) if losses else None,
        deviation=None if spread is None else spread[0],
        shrunk_val_loss=judged.shrunk.get(candidate.trial),
        screening_val_loss=candidate.screening_val_loss,
        screening_difference=_screening_difference(candidate, judged.baseline),
        probability_best=judged.best.get(candidate.trial),
        pairs=len(pairs),
        missing_pairs=0 if candidate.is_baseline else planned - len(pairs),
        difference=sum(pairs) / len(pairs) if pairs else None,
        interval=statistics.paired_interval(pairs) if pairs else None,
        p=statistics.sign_flip_p(pairs) if pairs else None,
        p_adjusted=judged.adjusted.get(candidate.trial),
        standing=_standing(candidate, pairs, judged),
    )


def _screening_difference(candidate: CandidateRecord, baseline: CandidateRecord | None) -> float | None:
    if candidate.screening_val_loss is None or baseline is None or baseline.screening_val_loss is None:
        return None
    return candidate.screening_val_loss - baseline.screening_val_loss


def _standing(candidate: CandidateRecord, pairs: list[float], judged: _Shared) -> CandidateStanding:
    if candidate.is_baseline:
        return "baseline"
    if candidate.count("lost"):
        return "unstable"
    if candidate.count("pending") or (judged.baseline is not None and judged.baseline.count("pending")):
        return "pending"
    if not pairs:
        return "not_compared"
    if judged.adjusted[candidate.trial] <= ALPHA:
        return "better" if sum(pairs) < 0 else "worse"
    possible = statistics.least_p(len(pairs)) * len(judged.adjusted) <= ALPHA
    return "not_distinguishable" if possible else "too_few_seeds"


def _pairs(candidate: CandidateRecord, reference: CandidateRecord) -> list[float]:
    """Differences in loss under the seeds that both have, in order."""
    mine, theirs = candidate.losses(), reference.losses()
    return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]


def _adjusted(pairs: Mapping[int, list[float]]) -> dict[int, float]:
    """Holm's p of every candidate that there was to compare; one without a pair counts as a test that found nothing."""
    raw = [statistics.sign_flip_p(each) if each else 1.0 for each in pairs.values()]
    return dict(zip(pairs, statistics.holm(raw), strict=True))


def _tied(winner: CandidateRecord, stable: list[CandidateRecord]) -> tuple[int, ...]:
    pairs = {each.trial: _pairs(each, winner) for each in stable if each is not winner}
    adjusted = _adjusted(pairs)
    return tuple(trial for trial in pairs if adjusted[trial] > ALPHA)


def _shrunk(table_CS: list[list[float]]) -> list[float] | None:
    """Means over the common seeds, shrunk by the noise of pairs: what moves all candidates alike is none."""
    paired = statistics.paired_deviation(table_CS)
    if paired is None:
        return None
    means = [sum(row) / len(row) for row in table_CS]
    return [float(score) for score in statistics.shrink(means, paired[0] ** 2 / len(table_CS[0])).scores]


def _optimism(record: FinalistsRecord, noise: SeedNoise | None) -> float | None:
    if noise is None or record.screened is None:
        return None
    return statistics.expected_optimism(record.screened, noise.paired_deviation or noise.deviation)


def _by_trial(candidates: list[CandidateRecord], values: Sequence[float] | None) -> dict[int, float]:
    return {} if values is None else {each.trial: value for each, value in zip(candidates, values, strict=True)}


def _seeds(candidate: CandidateRecord | None) -> set[int]:
    return set() if candidate is None else {each.seed for each in candidate.replicates}
