"""What a study tells of its hyperparameters: trends, regions, contrasts, interactions, importances."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import stats

from hpo_reports.analysis.importance import MIN_TRIALS, importance
from hpo_reports.analysis.insights import Insights, insights
from hpo_reports.analysis.verdicts import compare
from hpo_reports.records.names import STUDY_RECORD
from hpo_reports.records.study import read_study
from tests.support.studies import pruned, study_of, trial


def found(study: optuna.Study) -> Insights:
    record = read_study(study)
    answer = insights(record, compare(record))
    assert answer is not None
    return answer


def plain_study(loss, n: int = 40, direction: str = "minimize", seed: int = 1) -> optuna.Study:
    """Random trials over x and y in (0, 1) and a category k, as plain Optuna stores them."""
    study = optuna.create_study(direction=direction)
    random = np.random.default_rng(seed)
    spaces = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1), "k": CategoricalDistribution(["a", "b"])}
    for _ in range(n):
        values = {"x": float(random.random()), "y": float(random.random()), "k": str(random.choice(["a", "b"]))}
        value = float(loss(**values) + 0.01 * random.standard_normal())
        study.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=value))
    return study


def by_name(answer: Insights):
    return {each.parameter: each for each in answer.parameters}


def test_a_trend_is_spearmans_with_an_interval_around_it():
    study = plain_study(lambda x, y, k: x)
    trials = study.get_trials()
    expected = stats.spearmanr([t.params["x"] for t in trials], [t.value for t in trials]).statistic
    trend = by_name(found(study))["x"].trend
    assert trend.rho == pytest.approx(expected)
    assert trend.low < trend.rho < trend.high
    assert trend.is_clear


def test_ties_share_their_ranks_in_the_trend_and_in_every_resample():
    random = np.random.default_rng(4)
    layers_N = random.integers(1, 5, size=60)
    values_N = np.round(0.2 * layers_N + random.random(60), 1)
    study = optuna.create_study()
    for layers, value in zip(layers_N, values_N, strict=True):
        space = {"layers": IntDistribution(1, 4)}
        study.add_trial(
            optuna.trial.create_trial(params={"layers": int(layers)}, distributions=space, value=float(value))
        )
    trend = by_name(found(study))["layers"].trend
    drawn = [random.integers(60, size=60) for _ in range(4000)]
    rhos = [stats.spearmanr(layers_N[each], values_N[each]).statistic for each in drawn]
    assert trend.rho == pytest.approx(stats.spearmanr(layers_N, values_N).statistic)
    assert (trend.low, trend.high) == pytest.approx(np.quantile(rhos, (0.025, 0.975)), abs=0.025)


def test_a_parameter_without_effect_has_no_clear_trend():
    clear = [by_name(found(plain_study(lambda x, y, k: x, seed=seed)))["y"].trend.is_clear for seed in range(20)]
    assert sum(clear) <= 3


def test_what_is_better_follows_the_direction():
    study = plain_study(lambda x, y, k: x, direction="maximize")
    insight = by_name(found(study))["x"]
    assert insight.better_is == "higher"
    low, high = insight.best_values
    assert low > 0.6 < high  # the best quarter has large x


def test_the_best_region_is_that_of_the_best_quarter():
    study = plain_study(lambda x, y, k: (x - 0.5) ** 2)
    insight = by_name(found(study))["x"]
    best = sorted(study.get_trials(), key=lambda t: t.value)[:10]
    assert insight.best_trials == 10
    assert insight.best_values == (min(t.params["x"] for t in best), max(t.params["x"] for t in best))


def test_categories_have_means_best_first():
    insight = by_name(found(plain_study(lambda x, y, k: 1.0 if k == "a" else 0.0)))["k"]
    assert insight.trend is None
    assert [group.value for group in insight.groups] == ["b", "a"]
    assert insight.groups[0].mean == pytest.approx(0, abs=0.02)
    assert sum(group.trials for group in insight.groups) == 40


def test_few_trials_give_neither_trend_nor_region():
    insight = by_name(found(plain_study(lambda x, y, k: x, n=7)))["x"]
    assert (insight.trend, insight.best_trials, insight.best_values) == (None, 0, ())


def test_an_interaction_is_found_and_none_where_effects_add_up():
    both = found(plain_study(lambda x, y, k: 4 * (x - 0.5) * (y - 0.5), n=60))
    assert [each.parameters for each in both.interactions] == [("x", "y")]
    assert found(plain_study(lambda x, y, k: x + y, n=60)).interactions == ()
    assert both.pairs_tested == 1


@pytest.mark.parametrize(("studies", "most"), [(8, 1), pytest.param(30, 4, marks=pytest.mark.nightly)])
def test_additive_studies_rarely_show_an_interaction(studies, most):
    shown = [bool(found(plain_study(lambda x, y, k: x + 0.3 * y, n=30, seed=s)).interactions) for s in range(studies)]
    assert sum(shown) <= most


def test_contrasts_are_pairs_that_differ_in_one_parameter():
    answer = found(study_of(trial(5.0, slot=0), trial(4.7, dropout=0.3), trial(4.9, dropout=0.3, lambda_phi=0.01)))
    pairs = {(each.parameter, each.trials) for each in answer.contrasts}
    assert pairs == {("dropout", (0, 1)), ("lambda_phi", (1, 2))}
    dropout = next(each for each in answer.contrasts if each.parameter == "dropout")
    assert dropout.values == (0.1, 0.3)
    assert dropout.difference == pytest.approx(-0.3)
    assert dropout.percent == pytest.approx(100 * (np.exp(-0.3) - 1), abs=0.1)


def test_pruned_trials_are_counted_and_left_out():
    answer = found(study_of(trial(5.0, slot=0), trial(4.7, dropout=0.3), pruned(), pruned()))
    assert answer.pruned == 2
    assert {each.trials for each in answer.parameters} == {2}


def test_an_importance_needs_thirty_trials():
    for n, known in ((MIN_TRIALS - 1, False), (MIN_TRIALS, True)):
        record = read_study(plain_study(lambda x, y, k: x, n=n))
        assert (importance(record, compare(record)) is not None) == known


def test_an_importance_names_its_evaluator_and_puts_what_matters_first():
    record = read_study(plain_study(lambda x, y, k: 3 * x + 0.1 * y, n=80))
    answer = importance(record, compare(record))
    assert answer is not None
    assert answer.evaluator == "PED-ANOVA"
    assert next(iter(answer.shares)) == "x"
    assert sum(each.value for each in answer.shares.values()) == pytest.approx(1)
    for each in answer.shares.values():
        assert 0 <= each.low <= each.high <= 1


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", range(4))
def test_importances_are_those_of_optunas_evaluator(direction, seed):
    random = np.random.default_rng(seed)
    values = [
        {
            "x": float(random.random()),
            "y": float(10 ** random.uniform(-4, -1)),
            "n": int(random.integers(1, 9)),
            "k": str(random.choice(["a", "b", "c"])),
        }
        for _ in range(50 + 30 * seed)
    ]
    numbers = {name: [each[name] for each in values] for name in ("x", "y", "n")}
    spaces = {name: FloatDistribution(min(each), max(each), log=name == "y") for name, each in numbers.items()}
    spaces["k"] = CategoricalDistribution(["a", "b", "c"])
    study = optuna.create_study(direction=direction)
    search = {"y": {"low": 1e-5, "high": 1.0, "log": True}}
    study.set_user_attr(STUDY_RECORD, {"spec": {"search": search}})
    for each in values:
        loss = round(each["x"] + np.log(each["y"]) + 0.2 * each["n"] + 2.0 * (each["k"] == "a"), seed)  # with ties
        study.add_trial(optuna.trial.create_trial(params=each, distributions=spaces, value=float(loss)))
    record = read_study(study)
    answer = importance(record, compare(record))
    assert answer is not None
    expected = optuna.importance.get_param_importances(study)
    assert {name: each.value for name, each in answer.shares.items()} == pytest.approx(expected, abs=1e-9)
    assert list(answer.shares) == list(expected)


def test_several_objectives_and_single_trials_tell_nothing():
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    for each in (study, study_of(trial(5.0, slot=0))):
        record = read_study(each)
        assert insights(record, compare(record)) is None


@pytest.mark.parametrize(("direction", "first"), [("minimize", "y"), ("maximize", "x")])
def test_an_importance_is_of_what_makes_trials_good_not_bad(direction, first):
    study = plain_study(lambda x, y, k: (x > 0.8) - (y > 0.8), n=120, direction=direction)
    record = read_study(study)
    answer = importance(record, compare(record))
    assert answer is not None
    assert next(iter(answer.shares)) == first
    assert answer.shares[first].value > 0.6
