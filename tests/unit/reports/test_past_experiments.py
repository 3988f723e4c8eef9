"""Tables of past experiments: what they leave unknown takes the verdicts that would rest on it."""

import json
import math

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from hpo_reports.analysis.verdicts import compare
from hpo_reports.records.names import (
    STUDY_TABLE,
    TRIAL_CAUSAL,
    TRIAL_HISTORY,
    TRIAL_IMPORTED,
    TRIAL_OUTCOME,
    TRIAL_ROLE,
    TRIAL_RUN,
)
from hpo_reports.records.study import StudyRecord, read_study
from hpo_reports.render import render
from tests.support.studies import study_of

FACTS = {"file": "log.csv", "digest": "0123456789abcdef", "imported_at": 1763409600.0, "rows": 3}


def row(val_ppl: float, *, role: str = "known", causal: bool | None = True, seed: int | None = None, **told: float):
    """An experiment as `hpo import-log` keeps it."""
    measured = {"val_ppl": val_ppl, **{name: told.pop(name) for name in ("epoch", "tokens") if name in told}}
    parameters = {"learning_rate": 1e-4, **told, **({} if seed is None else {"seed": seed})}
    return create_trial(
        value=math.log(val_ppl),
        params={"learning_rate": parameters["learning_rate"]},
        distributions={"learning_rate": FloatDistribution(0, 1)},
        user_attrs={
            TRIAL_IMPORTED: True,
            TRIAL_ROLE: role,
            TRIAL_RUN: parameters,
            TRIAL_HISTORY: [measured],
            TRIAL_OUTCOME: "complete",
            TRIAL_CAUSAL: causal,
        },
    )


def table(*rows: FrozenTrial) -> StudyRecord:
    study = study_of(*rows, facts=None)
    study.set_user_attr(STUDY_TABLE, FACTS)
    return read_study(study)


def standings(record: StudyRecord) -> list[str]:
    verdicts = compare(record).verdicts
    return [verdicts[trial.number].standing for trial in record.trials]


@pytest.mark.parametrize("template", ["experiments", "session"])
@pytest.mark.parametrize(("causal", "standing"), [(None, "causality_unknown"), (False, "not_causal")])
def test_nothing_is_ranked_unless_the_table_says_that_the_networks_are_causal(causal, standing, template):
    record = table(row(647, role="baseline", epoch=1, causal=causal), row(486, epoch=1, causal=causal))
    assert standings(record) == [standing] * 2
    assert {verdict.percent for verdict in compare(record).verdicts.values()} == {None}
    report = render(record, "markdown", template=template)
    assert ("**Causality unknown**" if causal is None else "**No language models**") in report
    for claim in ("24.9 %", "🏆", "✅", "❌", "better (", "Winner", "hpo train", "hpo run", "hpo replicate"):
        assert claim not in report


@pytest.mark.parametrize("template", ["experiments", "session"])
@pytest.mark.parametrize("language", ["en", "es"])
def test_of_causal_networks_there_are_differences_but_no_winner(language, template):
    record = table(row(647, role="baseline", epoch=1), row(486, epoch=1, learning_rate=2e-4))
    assert compare(record).winner is None
    assert json.loads(render(record, "json"))["winner"] is None
    for format in ("markdown", "html"):
        report = render(record, format, template=template, language=language)
        assert format == "html" or "❔ 24.9 %" in report
        for claim in ("🏆", "hpo train", "hpo run", "hpo replicate", "300,000 tokens each"):
            assert claim not in report


def test_without_tokens_or_epochs_nothing_is_compared():
    record = table(row(647, role="baseline"), row(486, epoch=1), row(500))
    assert standings(record) == ["budget_unknown", "other_budget", "budget_unknown"]
    assert "**Budget unknown**: the table gives neither tokens nor epochs of trials 0, 2." in render(record, "markdown")


@pytest.mark.parametrize("unit", ["epoch", "tokens", "budget_tokens"])
def test_unequal_budgets_are_not_compared(unit):
    record = table(row(647, role="baseline", **{unit: 2}), row(486, **{unit: 3}), row(500, **{unit: 2}))
    assert standings(record) == ["baseline", "other_budget", "better"]


def test_equal_epochs_of_unequal_tokens_are_not_compared():
    record = table(row(647, role="baseline", epoch=1, tokens=900), row(486, epoch=1, tokens=1000))
    assert standings(record) == ["baseline", "other_budget"]


def test_repeats_in_a_table_are_no_pairs():
    report = render(table(row(647, role="baseline", epoch=1, seed=1), row(486, epoch=1, seed=2)), "markdown")
    assert "**No pairs**" in report
    assert "One run each" not in report


def test_what_our_own_measurements_are_is_not_said_of_a_table():
    report = render(table(row(647, role="baseline", epoch=1), row(486, epoch=1)), "markdown")
    assert "Figures are given as in the table." in report
    for claim in ("fixed sample of the training text", "equal training tokens", "fixed weights"):
        assert claim not in report


def test_a_batch_size_of_zero_breaks_nothing():
    assert render(table(row(647, epoch=1, batch_size=0), row(486, epoch=1, batch_size=8)), "markdown")
