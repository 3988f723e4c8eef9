"""The figures of a study: what they show, what they leave out and say so, and that no name does more than be shown."""

from __future__ import annotations

import json
import math
import re
import time

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo_reports.analysis.importance import Importance, Share
from hpo_reports.analysis.verdicts import compare
from hpo_reports.document.catalogue import catalogue
from hpo_reports.figures import data as figure_data
from hpo_reports.figures.draw import escaped, figures
from hpo_reports.records.names import TRIAL_SUSPICIOUS
from hpo_reports.records.study import read_study
from tests.support.studies import HOSTILE, pruned, running, study_of, trial

TAG = re.compile(r"<(?!/?(?:br|sub|extra)>)")  # any that is not of our own making


def drawn(study: optuna.Study, **options: object) -> dict[str, go.Figure]:
    record = read_study(study)
    return dict(figures(record, compare(record), options.pop("t", catalogue("en")), **options))  # type: ignore[arg-type]


def named(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data}


def plain(*trials: FrozenTrial, **options: object) -> optuna.Study:
    """A study that plain Optuna made."""
    return study_of(*trials, facts=None, **options)


def free(value: float | None, state: TrialState = TrialState.COMPLETE, **parameters: object) -> FrozenTrial:
    """A trial of plain Optuna; text is one of some choices."""
    return create_trial(
        state=state,
        value=value,
        params=parameters,
        distributions={
            name: CategoricalDistribution((each,)) if isinstance(each, str | bool) else FloatDistribution(-1e9, 1e9)
            for name, each in parameters.items()
        },
    )


def test_a_study_of_runs_gets_each_figure() -> None:
    study = study_of(trial(5.2, slot=0), trial(5.0), pruned(), running(), trial(5.1, dropout=0.3))
    found = drawn(study)
    assert list(found) == ["history", "curves", "phi", "slice-1", "slice-2", "slice-3"]
    history = named(found["history"])
    assert list(history["baseline"].x) == [0]
    assert list(history["best"].x) == [1]
    assert history["best"].y[0] == pytest.approx(math.exp(5.0), rel=1e-5)
    assert list(history["pruned"].x) == [2]
    assert list(history["running"].x) == [3]
    assert history["best so far"].x[:2] == (0, 1)
    titles = [found[f"slice-{place}"].layout.xaxis.title.text for place in (1, 2, 3)]
    assert sorted(titles) == ["dropout", "lambda_phi", "learning_rate"]


def test_axes_are_logarithmic_where_the_search_was() -> None:
    found = drawn(study_of(trial(5.2, slot=0), trial(5.0, learning_rate=0.004)))
    kinds = {f.layout.xaxis.title.text: f.layout.xaxis.type for name, f in found.items() if name.startswith("slice")}
    assert kinds == {"learning_rate": "log", "lambda_phi": "log", "dropout": None}
    assert found["history"].layout.yaxis.type is None, "the perplexities are close together"
    assert found["curves"].layout.yaxis.type == "log", "perplexities compare by their ratio"
    learning_rate = next(f for f in found.values() if f.layout.xaxis.title.text == "learning_rate")
    assert "0.002" in learning_rate.layout.xaxis.ticktext


def test_a_value_that_has_no_logarithm_keeps_its_place() -> None:
    found = drawn(study_of(trial(5.2, slot=0, lambda_phi=0.0), trial(5.0)))
    figure = next(f for f in found.values() if f.layout.xaxis.title.text == "lambda_phi")
    assert figure.layout.xaxis.type is None
    assert sorted(x for trace in figure.data for x in trace.x) == [0.0, 0.05]


def test_the_best_so_far_counts_comparable_trials_alone() -> None:
    suspicious = trial(1.0, attributes={TRIAL_SUSPICIOUS: True}, constraints={"suspicious": 1.0})
    found = drawn(study_of(trial(5.2, slot=0), suspicious, trial(5.0)))
    assert set(named(found["history"])["best so far"].x) == {0, 2}
    assert list(named(found["history"])["complete, not compared"].x) == [1]


def test_the_direction_of_the_search_decides_what_is_best() -> None:
    found = drawn(plain(free(1.0, x=0.1), free(3.0, x=0.2), free(2.0, x=0.3), direction="maximize"))
    assert named(found["history"])["best so far"].y == (1.0, 3.0, 3.0)
    assert list(named(found["history"])["best"].x) == [1]


def test_curves_have_gaps_between_trials_and_where_a_value_is_missing() -> None:
    found = drawn(study_of(trial(5.2, slot=0), pruned(6.0, milestones=2), pruned(6.1, milestones=3)))
    trace = named(found["curves"])["pruned"]
    assert trace.x == (1, 2, 3, None, 1, 2, None), "the longer one first"
    assert trace.customdata == (2, 2, 2, None, 1, 1, None)


def test_of_many_curves_the_best_are_drawn_and_the_title_says_so() -> None:
    study = study_of(trial(5.2, slot=0), *(trial(6.0 - place / 100) for place in range(60)))
    figure = drawn(study)["curves"]
    assert "40 most informative of 61" in figure.layout.title.text
    numbers = {number for trace in figure.data for number in trace.customdata if number is not None}
    assert numbers == {0, *range(22, 61)}, "the baseline and the best"


def test_categories_and_truth_values_are_an_axis_of_their_own() -> None:
    found = drawn(
        plain(free(1.0, kind="b", flag=True), free(2.0, kind="a", flag=False), free(3.0, kind="a", flag=True))
    )
    assert found["slice-1"].layout.xaxis.type == "category"
    assert found["slice-1"].layout.xaxis.categoryarray == ("a", "b")
    assert found["slice-2"].layout.xaxis.categoryarray == ("false", "true")


def test_of_many_categories_the_most_frequent_are_drawn_and_the_title_says_so() -> None:
    figure = drawn(plain(*(free(float(n), kind=f"kind {n % 50:02}") for n in range(80))))["slice-1"]
    assert "30 most frequent of 50 values" in figure.layout.title.text
    assert figure.layout.xaxis.categoryarray == tuple(f"kind {n:02}" for n in range(30))


def test_two_objectives_show_their_front() -> None:
    study = plain(directions=["minimize", "maximize"])
    for values in ([1.0, 1.0], [2.0, 2.0], [3.0, 1.5]):
        study.add_trial(create_trial(values=values))
    found = drawn(study)
    assert list(found) == ["history-1", "history-2", "front"]
    front = named(found["front"])["Pareto front"]
    assert list(zip(front.x, front.y, strict=True)) == [(1.0, 1.0), (2.0, 2.0)]


def test_our_front_is_of_perplexity_and_phi() -> None:
    study = study_of(directions=["minimize", "maximize"])
    for loss, phi in ((5.0, 0.7), (5.2, 0.8)):
        each = trial(loss, measured={"phi": phi})
        study.add_trial(create_trial(values=[loss, phi], user_attrs=each.user_attrs))
    found = drawn(study)
    assert found["front"].layout.xaxis.title.text == "validation perplexity per token"
    assert "phi" not in found, "the front has these axes already"


def test_three_objectives_have_no_front() -> None:
    study = plain(directions=["minimize"] * 3)
    study.add_trial(create_trial(values=[1.0, 2.0, 3.0]))
    assert list(drawn(study)) == ["history-1", "history-2", "history-3"]


def test_an_empty_study_and_one_without_values_have_no_figures() -> None:
    assert drawn(plain()) == {}
    assert drawn(plain(free(None, TrialState.FAIL, x=0.5))) == {}


def test_without_a_complete_trial_there_is_the_way_of_the_others() -> None:
    found = drawn(study_of(pruned(), running()))
    assert list(found) == ["history", "curves"]


def test_trials_without_a_value_are_counted_in_the_title() -> None:
    values = [free(1.0, x=0.1), free(math.inf, x=0.2), free(None, TrialState.FAIL, x=0.3)]
    assert "2 without a value left out" in drawn(plain(*values))["history"].layout.title.text


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308, 10**400, 5e-324])
def test_values_beyond_every_axis_are_drawn_or_left_out(value: float) -> None:
    study = plain(free(1.0, x=0.1), free(2.0, x=0.2))
    study.add_trial(create_trial(value=1.5, params={"x": 0.3}, distributions={"x": FloatDistribution(0, 1)}))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: value}))
    strange = trial(5.0, measured={"val_ppl": value, "phi": value}, learning_rate=0.002)
    for each in (study, study_of(trial(5.2, slot=0), strange)):
        for figure in drawn(each).values():
            json.loads(figure.to_json(), parse_constant=lambda constant: pytest.fail(f"not JSON: {constant}"))


@pytest.mark.parametrize(
    "text", [*HOSTILE, "%{customdata}", "$\\href{javascript:1}{x}$", "<a href='javascript:1'>x</a>"]
)
def test_names_are_shown_and_do_nothing(text: str) -> None:
    study = plain(free(1.0, **{text: "a"}), free(2.0, **{text: "a"}))
    study.add_trial(free(3.0, kind=text))
    found = drawn(
        study, importance=Importance(evaluator=text, trials=30, shares={text: Share(value=1.0, low=0.9, high=1.0)})
    )
    content = json.dumps([json.loads(figure.to_json()) for figure in found.values()])
    assert not TAG.search(content), "a tag that is not ours"
    assert "%{customdata}<" not in content.replace("trial %{customdata}<br>", "")
    assert "$" not in content.replace("&#36;", "")


def test_escaped_text_is_short_and_on_one_line() -> None:
    assert escaped("a\nb\u2028c") == "a b c"
    assert escaped("a" * 100) == "a" * 59 + "…"
    assert escaped("<b>&amp;$%") == "&lt;b&gt;&amp;amp;&#36;&#37;"


def test_ten_thousand_trials_are_thinned_and_the_best_are_kept() -> None:
    trials = [free(abs(n - 5000.5), x=float(n), kind=f"k{n % 3}") for n in range(10_000)]
    record = read_study(plain(*trials))
    began = time.process_time()
    found = figures(record, compare(record), catalogue("en"))
    assert time.process_time() - began < 5
    for name in ("history", "slice-1", "slice-2"):
        points = sum(len(trace.x) for trace in found[name].data if trace.mode == "markers")
        assert points == figure_data.MAX_POINTS
        assert "1,000 of 10,000 trials drawn" in found[name].layout.title.text
        assert len(found[name].to_json()) < 100_000
    assert list(named(found["history"])["best"].x) == [5000]
    numbers = {number for trace in found["slice-1"].data for number in trace.customdata}
    assert set(range(4951, 5051)) <= numbers


def test_importance_is_drawn_if_given_with_its_evaluator() -> None:
    study = study_of(trial(5.2, slot=0))
    assert "importance" not in drawn(study)
    shares = {"a": Share(value=0.2, low=0.1, high=0.4), "b": Share(value=0.8, low=0.6, high=0.9)}
    two = Importance(evaluator="fANOVA", trials=30, shares=shares)
    figure = drawn(study, importance=two)["importance"]
    assert "fANOVA" in figure.layout.title.text
    assert figure.data[0].y == ("a", "b")


def test_another_language_replaces_all_texts() -> None:
    figure = drawn(study_of(trial(5.2, slot=0)), t=catalogue("es"))["history"]
    assert figure.layout.title.text == "Lo que alcanzó cada prueba; si terminó antes de tiempo, su último valor"
    assert figure.layout.yaxis.title.text == "perplejidad de validación por token"


def test_figures_name_their_kinds_by_colour_and_by_shape() -> None:
    study = study_of(trial(5.2, slot=0), trial(5.0), trial(5.1), pruned(), running())
    markers = [trace.marker for trace in drawn(study)["history"].data if trace.mode == "markers"]
    assert len({marker.symbol for marker in markers}) == len({marker.color for marker in markers}) == len(markers) == 5


def test_numbers_are_lists_that_any_version_reads() -> None:
    for figure in drawn(study_of(trial(5.2, slot=0), trial(5.0))).values():
        assert "bdata" not in figure.to_json()
