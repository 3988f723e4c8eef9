"""Verdicts on finalists: what pairs of runs say, what they cannot say, and what became of runs that were lost."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from hpo_reports.analysis.judging import FinalistsJudgement, judge, seed_noise
from hpo_reports.records.finalists import FinalistsRecord, read_companion, read_finalists
from hpo_reports.records.names import STUDY_RECORD
from tests.support.finalists import Ending, companion_facts, companion_study
from tests.support.studies import FACTS, study_of

BASELINE = [5.00, 5.04, 4.98, 5.01, 5.03, 4.97, 5.02]
NOISE = [0.004, -0.003, 0.002, -0.001, 0.003, -0.002, 0.001]


def shifted(by: float, seeds: int = 7) -> list[Ending]:
    """A candidate that differs from the baseline by so much, and a little luck."""
    return [loss + by + luck for loss, luck in zip(BASELINE[:seeds], NOISE, strict=False)]


def record_of(losses: dict[int, list[Ending]], **options: object) -> FinalistsRecord:
    record = read_companion(companion_study(losses, **options))
    assert record is not None
    return record


def judged(losses: dict[int, list[Ending]], **options: object) -> FinalistsJudgement:
    return judge(record_of(losses, **options))


def standings(judgement: FinalistsJudgement) -> dict[int, str]:
    return {each.trial: each.standing for each in judgement.candidates}


def test_seven_pairs_of_one_sign_are_a_verdict() -> None:
    judgement = judged({0: [*BASELINE], 3: shifted(-0.05), 4: shifted(-0.0005), 8: shifted(0.06)})
    assert standings(judgement) == {3: "better", 4: "not_distinguishable", 0: "baseline", 8: "worse"}
    best = judgement.of(3)
    assert best is not None
    assert best.difference == pytest.approx(-0.05 + sum(NOISE) / 7)
    assert best.percent == pytest.approx(100 * math.expm1(best.difference))
    assert best.interval is not None
    assert best.interval.high < 0
    assert best.p == 2 / 2**7
    assert best.p_adjusted == pytest.approx(3 * 2 / 2**7)
    assert best.mean_val_ppl == pytest.approx(math.exp(best.mean_val_loss or 0))
    assert best.probability_best == pytest.approx(1.0, abs=0.001)
    assert best.screening_difference == pytest.approx(0.01)
    assert judgement.winner == 3
    assert judgement.tied == ()
    assert judgement.is_complete
    assert judgement.verdict_possible
    assert judgement.common_seeds == tuple(range(2, 9))


def test_candidates_that_the_seeds_cannot_tell_from_the_winner_are_tied_with_it() -> None:
    judgement = judged({0: [*BASELINE], 3: shifted(-0.05), 5: [5.02 - 0.05, *shifted(-0.05)[1:]]})
    assert judgement.winner == 3
    assert judgement.tied == (5,)


def test_three_seeds_allow_no_verdict_and_say_how_many_would() -> None:
    judgement = judged({0: BASELINE[:3], 3: shifted(-0.5, 3), 4: shifted(-0.4, 3)})
    assert standings(judgement) == {3: "too_few_seeds", 4: "too_few_seeds", 0: "baseline"}
    assert not judgement.verdict_possible
    assert judgement.least_p_adjusted == 0.5
    assert judgement.seeds_needed == 7
    assert judgement.winner == 3
    assert judgement.tied == (0, 4), "nothing is told apart"


def test_one_candidate_needs_six_seeds() -> None:
    assert judged({0: BASELINE[:6], 3: shifted(-0.05, 6)}).of(3).standing == "better"  # type: ignore[union-attr]
    assert judged({0: BASELINE[:5], 3: shifted(-0.05, 5)}).seeds_needed == 6


def test_a_candidate_that_diverged_once_cannot_win_and_is_named() -> None:
    lucky: list[Ending] = [*shifted(-0.5)[:6], "diverged"]
    judgement = judged({0: [*BASELINE], 3: lucky, 4: shifted(-0.02)})
    assert standings(judgement) == {4: "better", 0: "baseline", 3: "unstable"}
    unstable = judgement.of(3)
    assert unstable is not None
    assert (unstable.complete, unstable.lost, unstable.pairs, unstable.missing_pairs) == (6, 1, 6, 1)
    assert unstable.probability_best is None
    assert judgement.winner == 4
    assert len(judgement.common_seeds) == 7, "who cannot win takes no seed from the others"


@pytest.mark.parametrize("ending", ["out_of_memory", "suspicious"])
def test_other_faults_of_a_configuration_count_like_divergence(ending: str) -> None:
    judgement = judged({0: [*BASELINE], 3: [*shifted(-0.5)[:6], ending]})
    assert standings(judgement) == {0: "baseline", 3: "unstable"}


def test_a_failed_run_is_a_missing_pair_and_no_fault() -> None:
    judgement = judged({0: [*BASELINE], 3: [*shifted(-0.05)[:6], "failed"]})
    candidate = judgement.of(3)
    assert candidate is not None
    assert (candidate.standing, candidate.pairs, candidate.missing_pairs, candidate.failed) == ("better", 6, 1, 1)
    assert judgement.common_seeds == tuple(range(2, 8)), "means are compared over the same seeds"


def test_a_baseline_that_diverges_costs_its_pairs_and_cannot_win() -> None:
    judgement = judged({0: ["diverged", *BASELINE[1:]], 3: shifted(0.02)})
    candidate = judgement.of(3)
    assert candidate is not None
    assert (candidate.standing, candidate.pairs, candidate.missing_pairs) == ("worse", 6, 1)
    assert judgement.of(0).lost == 1  # type: ignore[union-attr]
    assert judgement.winner == 3, "the only stable one"


def test_while_runs_are_pending_there_is_no_verdict() -> None:
    judgement = judged({0: [*BASELINE], 3: [*shifted(-0.05)[:6], None], 4: [*shifted(-0.05)[:6], "running"]})
    assert standings(judgement) == {3: "pending", 4: "pending", 0: "baseline"}
    assert not judgement.is_complete
    nothing = judged({0: [None] * 7, 3: [None] * 7})
    assert nothing.winner is None
    assert nothing.noise is None
    assert set(standings(nothing).values()) == {"baseline", "pending"}


def test_without_a_baseline_candidates_are_compared_among_each_other() -> None:
    judgement = judged({3: shifted(-0.05), 4: shifted(0.05)}, baseline=None)
    assert set(standings(judgement).values()) == {"not_compared"}
    assert judgement.winner == 3
    assert judgement.tied == ()
    assert judgement.least_p_adjusted is None


def test_all_lost_means_no_winner() -> None:
    judgement = judged({0: ["diverged"] * 7, 3: ["diverged"] * 7})
    assert judgement.winner is None
    assert judgement.common_seeds == ()
    assert judgement.of(3).interval is None  # type: ignore[union-attr]


def test_the_studys_own_noise_is_pooled_within_candidates_and_says_whether_it_is_enough() -> None:
    noise = seed_noise(record_of({0: [*BASELINE], 3: shifted(-0.5)}))
    assert noise is not None
    groups = np.array([BASELINE, shifted(-0.5)], dtype=float)
    assert noise.deviation == pytest.approx(math.sqrt(groups.var(axis=1, ddof=1).mean()))
    assert (noise.degrees, noise.candidates, noise.is_enough) == (12, 2, True)
    assert noise.min_detectable_percent == pytest.approx(
        100 * math.expm1(2.179 * math.sqrt(2) * noise.deviation), rel=1e-3
    )
    few = seed_noise(record_of({0: BASELINE[:3], 3: shifted(-0.5, 3)}))
    assert few is not None
    assert not few.is_enough


def test_shrunk_scores_lie_between_the_means_and_their_mean() -> None:
    judgement = judged({0: [*BASELINE], 3: shifted(-0.002), 4: shifted(0.002)})
    means = {each.trial: each.mean_val_loss or 0.0 for each in judgement.candidates}
    center = sum(means.values()) / 3
    for each in judgement.candidates:
        assert each.shrunk_val_loss is not None
        assert abs(each.shrunk_val_loss - center) <= abs(means[each.trial] - center)


def test_noise_that_moves_all_candidates_alike_is_none_between_pairs() -> None:
    noise = seed_noise(record_of({0: [*BASELINE], 3: shifted(-0.5)}))
    assert noise is not None
    assert noise.paired_deviation == pytest.approx(np.std(NOISE, ddof=1) / math.sqrt(2))
    assert noise.paired_deviation < noise.deviation / 5
    assert noise.paired_degrees == 6


def test_optimism_is_that_of_the_best_of_all_screened_runs_under_one_seed() -> None:
    judgement = judged({0: [*BASELINE], 3: shifted(-0.05)}, screened=10)
    assert judgement.noise is not None
    assert judgement.noise.paired_deviation is not None
    assert judgement.expected_optimism == pytest.approx(1.5388 * judgement.noise.paired_deviation, rel=1e-3)


def test_the_first_look_at_the_test_split_counts_and_later_ones_are_named() -> None:
    first = {"candidate": 3, "evaluated_at": 1.0, "scores": [{"seed": 2, "trial": 1, "loss": 5.0, "ppl": 148.4}]}
    second = {**first, "candidate": 0}
    judgement = judged({0: [*BASELINE], 3: shifted(-0.05)}, tests=[first, second])
    assert judgement.test is not None
    assert judgement.test.candidate == 3
    assert judgement.test.mean_loss == 5.0
    assert [each.candidate for each in judgement.later_tests] == [0]


def test_the_search_finds_its_companion_and_no_other_studys() -> None:
    storage = optuna.storages.InMemoryStorage()
    search = study_of(storage=storage)
    assert read_finalists(search, storage) is None
    companion = optuna.create_study(study_name="lambda_phi--finalists", storage=storage)
    companion.set_user_attr(STUDY_RECORD, companion_facts([0, 3], [2, 3]))
    record = read_finalists(search, storage)
    assert record is not None
    assert (record.study, record.seeds, record.pending_runs) == ("lambda_phi", (2, 3), 4)
    search.set_user_attr(STUDY_RECORD, {**FACTS, "created_at": 9.0})
    assert read_finalists(search, storage) is None, "the search was made anew"


def test_what_another_program_wrote_is_no_companion() -> None:
    study = optuna.create_study(study_name="x--finalists")
    assert read_companion(study) is None
    study.set_user_attr(STUDY_RECORD, {"spec": {"replication": {"candidates": [7, {"trial": "x"}], "seeds": "many"}}})
    assert read_companion(study) is None
    study.set_user_attr(
        STUDY_RECORD,
        {"spec": {"replication": {"candidates": [{"trial": 1}, {"trial": None}], "seeds": [2, True, "x"]}}},
    )
    record = read_companion(study)
    assert record is not None
    assert [each.trial for each in record.candidates] == [1]
    assert judge(record).winner is None
