import math
import re

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial
from toy_studies import study_of, trial

from reports.findings import find
from reports.records import read_study
from reports.render import render
from reports.trends import trends


def of(*trials, **options):
    return {each.name: each for each in trends(find(read_study(study_of(*trials, **options))).comparison.ranked)}


def test_a_monotone_relation_is_a_clear_trend():
    trend = of(*(trial(5.0 - place / 10, dropout=place / 20) for place in range(8)))["dropout"].trend
    assert trend.rho == pytest.approx(-1.0)
    assert trend.is_clear
    assert (trend.trials, trend.high < -0.9) == (8, True)


def test_what_goes_up_and_down_is_no_clear_trend():
    losses = [5.0, 4.7, 4.9, 4.6, 5.1, 4.8, 5.0, 4.75]
    assert not of(*(trial(loss, dropout=p / 20) for p, loss in enumerate(losses)))["dropout"].trend.is_clear


def test_few_trials_or_one_value_give_no_trend():
    assert of(trial(5.0, dropout=0.1), trial(4.0, dropout=0.2))["dropout"].trend is None
    assert of(*(trial(5.0 + p / 10) for p in range(8)))["dropout"].trend is None


def test_the_interval_is_fiellers():
    losses = [5.0, 4.9, 4.7, 4.8, 4.6, 4.5, 4.55, 4.4]
    trend = of(*(trial(loss, dropout=p / 20) for p, loss in enumerate(losses)))["dropout"].trend
    half = 1.96 * math.sqrt(1.06 / 5)
    assert math.atanh(trend.high) - math.atanh(trend.rho) == pytest.approx(half)
    assert math.atanh(trend.rho) - math.atanh(trend.low) == pytest.approx(half)


def test_the_best_region_is_that_of_the_best_third():
    found = of(*(trial(5.0 - place / 10, dropout=place / 20) for place in range(9)))["dropout"]
    assert found.best == (0.3, 0.35, 0.4)


def test_contrasts_are_pairs_that_differ_in_one_value():
    alone, both = trial(4.5, dropout=0.3), trial(4.0, dropout=0.3, learning_rate=0.004)
    found = of(trial(5.0, slot=0), alone, both)
    (contrast,) = found["dropout"].contrasts
    assert (contrast.before.number, contrast.after.number, contrast.difference) == (0, 1, -0.5)
    (rate,) = found["learning_rate"].contrasts
    assert (rate.before.number, rate.after.number) == (1, 2)


def test_other_seeds_make_no_contrast():
    assert of(trial(5.0, slot=0), trial(4.5, dropout=0.3, seed=2))["dropout"].contrasts == ()


def test_categories_have_a_region_and_no_trend():
    choices = CategoricalDistribution(["a", "b|c"])
    trials = [
        create_trial(value=float(p), params={"x": "b|c" if p < 4 else "a"}, distributions={"x": choices})
        for p in range(9)
    ]
    found = of(*trials, facts=None)["x"]
    assert (found.trend, found.best) == (None, ("b|c",) * 3)
    text = render(read_study(study_of(*trials, facts=None)), "markdown")
    assert "Best region: b\\|c in the best 3 of 9." in text


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "0.1 → 0.3, all else equal: −0.5 nats, PPL 39.3 % better (trials 0 and 1, one run each)."),
        ("es", "0.1 → 0.3, con todo lo demás igual: −0.5 nats, PPL 39.3 % mejor (pruebas 0 y 1, una ejecución"),
    ],
)
def test_insights_are_said(language, sentence):
    record = read_study(study_of(trial(5.0, slot=0), trial(4.5, dropout=0.3)))
    text = render(record, "markdown", language=language)
    assert sentence in text


def test_larger_is_better_or_worse_by_the_direction():
    trials = [create_trial(value=float(p), params={"x": p}, distributions=_floats()) for p in range(8)]
    for direction, sentence in (("minimize", "worse"), ("maximize", "better")):
        text = render(read_study(study_of(*trials, facts=None, direction=direction)), "markdown")
        assert f"Larger values go with {sentence} results." in text


def _floats():
    from optuna.distributions import FloatDistribution

    return {"x": FloatDistribution(0, 10)}


def test_one_objective_is_asked_for():
    trials = [create_trial(values=[1.0, 2.0]), create_trial(values=[2.0, 1.0])]
    text = render(read_study(study_of(*trials, facts=None, directions=["minimize", "maximize"])), "markdown")
    assert not re.search("^## Insights", text, re.MULTILINE)
