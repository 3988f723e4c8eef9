"""Which trials are compared, how they rank, and how they stand to the baseline."""

import math

import pytest
from optuna.trial import create_trial

from hpo_reports.analysis.verdicts import TrialComparison, compare, expected_optimism_percent
from hpo_reports.document.catalogue import catalogue
from hpo_reports.records.names import TRIAL_SUSPICIOUS
from hpo_reports.records.study import read_study
from hpo_reports.sections.phrases import describe_verdict
from tests.support.studies import pruned, running, study_of, trial


def compared(*trials, **options) -> TrialComparison:
    return compare(read_study(study_of(*trials, **options)))


def texts(comparison: TrialComparison) -> list[str]:
    return [
        describe_verdict(comparison.verdicts[number], catalogue("en", emoji=False))
        for number in sorted(comparison.verdicts)
    ]


def loss(ratio: float) -> float:
    """The loss whose perplexity is this many times that of a loss of 5."""
    return 5.0 + math.log(ratio)


def test_large_differences_are_shown_without_a_verdict():
    comparison = compared(trial(5.0, slot=0), trial(loss(0.821)), trial(loss(1.31)))
    assert texts(comparison) == [
        "baseline",
        "17.9 % better (one run, no verdict)",
        "31.0 % worse (one run, no verdict)",
    ]


def test_the_figures_of_the_log_come_out():
    losses = [math.log(ppl) for ppl in (647.45, 847.53, 485.99, 535.42, 647.57)]
    comparison = compared(*(trial(value, slot=slot) for slot, value in enumerate(losses)))
    assert texts(comparison) == [
        "baseline",
        "30.9 % worse (one run, no verdict)",
        "24.9 % better (one run, no verdict)",
        "17.3 % better (one run, no verdict)",
        "not distinguishable (0.0 % worse, one run)",
    ]
    assert comparison.winner.number == 2


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "not distinguishable (equal, one run)"),
        (0.958, "not distinguishable (4.2 % better, one run)"),
        (1.1594, "not distinguishable (15.9 % worse, one run)"),
        (0.8406, "not distinguishable (15.9 % better, one run)"),
        (1.1596, "16.0 % worse (one run, no verdict)"),  # as printed, it is not under 16 %
        (0.84, "16.0 % better (one run, no verdict)"),
        (1e150, "1e+152 % worse (one run, no verdict)"),
    ],
)
def test_differences_that_seed_noise_makes_are_not_distinguishable(ratio, text):
    assert texts(compared(trial(5.0, slot=0), trial(loss(ratio))))[1] == text


def test_ranked_by_loss_and_of_equal_ones_the_earlier_first():
    comparison = compared(trial(5.2, slot=0), trial(5.0), trial(5.1), trial(5.0))
    assert [ranked.number for ranked in comparison.ranked] == [1, 3, 2, 0]
    assert [tied.number for tied in comparison.tied] == [3]


def test_trials_close_to_the_winner_are_named():
    comparison = compared(trial(5.0, slot=0), trial(loss(1.05)), trial(loss(1.5)))
    assert [close.number for close in comparison.close] == [1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attributes": {TRIAL_SUSPICIOUS: True}}, "IMPLAUSIBLY LOW, not compared"),
        ({"constraints": {"memory": 1.0}}, "breaks a constraint, not compared"),
        ({"budget_tokens": 600_000}, "other budget, not compared"),
    ],
)
def test_what_cannot_be_compared_cannot_win(options, text):
    comparison = compared(trial(5.0, slot=0), trial(1.0, **options))
    assert texts(comparison) == ["baseline", text]
    assert comparison.winner.number == 0
    assert [trial.number for trial in comparison.unranked] == [1]


def test_an_infinite_loss_cannot_win():
    infinite = create_trial(value=-math.inf)
    comparison = compared(infinite, create_trial(value=1.0), facts=None)
    assert comparison.winner.number == 1
    assert texts(comparison)[0] == "no finite value, not compared"


@pytest.mark.parametrize("options", [{"attributes": {TRIAL_SUSPICIOUS: True}}, {"constraints": {"memory": 1.0}}])
def test_without_a_usable_baseline_there_is_no_verdict(options):
    comparison = compared(trial(5.0, slot=0, **options), trial(4.0))
    assert texts(comparison)[1] == "–"
    assert comparison.winner.number == 1


def test_a_baseline_that_is_not_complete_gives_no_verdict():
    comparison = compared(pruned(slot=0), trial(4.0))
    assert comparison.baseline.number == 0
    assert texts(comparison) == ["–"]


def test_without_a_baseline_the_commonest_budget_is_compared():
    comparison = compared(trial(4.0, budget_tokens=900_000), trial(5.0), trial(5.1))
    assert [ranked.number for ranked in comparison.ranked] == [1, 2]
    assert comparison.budget_tokens == 300_000


def test_a_missing_perplexity_gives_no_verdict():
    comparison = compared(trial(5.0, slot=0), trial(4.0, measured={"val_ppl": None}))
    assert texts(comparison)[1] == "–"


def test_maximised_objectives_rank_the_highest_first():
    comparison = compared(*(create_trial(value=v) for v in (1.0, 3.0, 2.0)), facts=None, direction="maximize")
    assert [ranked.number for ranked in comparison.ranked] == [1, 2, 0]


def test_several_objectives_are_not_ranked():
    trials = [create_trial(values=[1.0, 2.0]), create_trial(values=[0.0, 3.0])]
    comparison = compared(*trials, facts=None, directions=["minimize", "maximize"])
    assert comparison.winner is None
    assert [trial.number for trial in comparison.unranked] == [0, 1]


@pytest.mark.parametrize(
    ("values", "front"),
    [
        ([(1.0, 1.0), (2.0, 2.0), (3.0, 1.5)], [0, 1]),
        ([(2.0, 2.0), (1.0, 1.0), (1.0, 1.5)], [2, 0]),  # lowest first objective first
        ([(1.0, 1.0), (1.0, 1.0)], [0, 1]),  # neither is better in anything
        ([(1.0, 2.0), (1.0, 1.0), (2.0, 2.0)], [0]),
        ([(math.inf, 9.0), (1.0, 1.0)], [1]),
        ([], []),
    ],
)
def test_the_front_holds_what_no_other_dominates(values, front):
    comparison = compared(*(create_trial(values=v) for v in values), facts=None, directions=["minimize", "maximize"])
    assert [trial.number for trial in comparison.front] == front
    dominated = {number for number, verdict in comparison.verdicts.items() if verdict.standing == "dominated"}
    assert dominated == {n for n, v in enumerate(values) if math.isfinite(v[0])} - set(front)


def test_three_objectives_have_a_front_too():
    trials = [create_trial(values=v) for v in ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [2.0, 2.0, 3.0])]
    assert [t.number for t in compared(*trials, facts=None, directions=["minimize"] * 3).front] == [0, 1]


def test_a_single_objective_has_no_front():
    assert compared(trial(5.0, slot=0), trial(4.0)).front == ()


def test_without_complete_trials_there_is_no_winner():
    comparison = compared(pruned(), running())
    assert (comparison.winner, comparison.tied, comparison.close, comparison.verdicts) == (None, (), (), {})


@pytest.mark.parametrize(("runs", "sigmas"), [(1, 0.0), (5, 1.16), (10, 1.54), (20, 1.87)])
def test_optimism_of_the_best_grows_with_the_number_of_runs(runs, sigmas):
    assert expected_optimism_percent(runs) == pytest.approx(5.8 * sigmas, abs=0.14)
