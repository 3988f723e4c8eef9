"""Studies against each other."""

import copy
import json

import pytest

from hpo_reports.analysis.across import compare_studies
from hpo_reports.errors import IncomparableError
from hpo_reports.records.finalists import read_companion
from hpo_reports.records.names import STUDY_TABLE, TRIAL_SUSPICIOUS
from hpo_reports.records.study import read_study
from hpo_reports.sections.across import across_json, across_markdown
from tests.support.finalists import companion_study
from tests.support.studies import FACTS, study_of, trial


def side(name="a", *trials, finalists=None, facts=None, **options):
    record = read_study(
        study_of(*(trials or (trial(5.0, slot=0), trial(4.5))), study_name=name, facts=facts or FACTS, **options)
    )
    return record, None if finalists is None else read_companion(companion_study(finalists))


def facts(**changes):
    content = copy.deepcopy(FACTS)
    for section, values in changes.items():
        content[section] |= values
    return content


def test_single_runs_are_no_verdict():
    found = compare_studies([side("a"), side("b", trial(5.0, slot=0), trial(4.0))])
    (difference,) = found.differences
    assert (difference.evidence, difference.verdict, difference.p_adjusted) == ("one_run", "none", None)
    assert difference.difference == pytest.approx(-0.5)
    assert [each.winner for each in found.sides] == [1, 1]
    document = across_markdown(found)
    assert "- b against a: 39.3 % better. One of the two has a single run: no verdict." in document
    assert "| a     | bpe 2048  |      2 |" in document


def test_winners_under_the_same_seeds_are_paired():
    noise = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    first = {0: [5.0 + n for n in noise], 1: [4.9 + n for n in noise]}
    second = {0: [5.0 + n for n in noise], 1: [4.6 + 1.1 * n for n in noise]}
    found = compare_studies([side("a", finalists=first), side("b", finalists=second)])
    (difference,) = found.differences
    assert (difference.evidence, difference.pairs, difference.verdict) == ("paired", 7, "better")
    assert difference.p_adjusted == pytest.approx(2 / 2**7)
    assert [each.runs for each in found.sides] == [7, 7]


def test_winners_under_other_seeds_are_two_samples():
    first = {0: [5.0 + n / 100 for n in range(7)], 1: [4.9 + n / 100 for n in range(7)]}
    second = {0: [5.0 + n / 100 for n in range(5)], 1: [4.9 + n / 100 for n in range(5)]}
    found = compare_studies([side("a", finalists=first), side("b", finalists=second)])
    (difference,) = found.differences
    assert (difference.evidence, difference.pairs, difference.verdict) == ("two_samples", 5, "not_distinguishable")
    assert difference.interval is not None
    assert difference.interval.low < 0.0 < difference.interval.high


def test_across_tokenizers_words_are_compared():
    other = facts(tokenizer={"digest": "other", "vocabulary": 4096})
    found = compare_studies([side("a"), side("b", facts=other)])
    assert found.scale == "word"
    document = across_markdown(found)
    assert "Tokenizers differ" in document
    assert "Val PPL" not in document
    assert "Bits/byte" in document
    assert "different amounts of text" in document


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (lambda: side("b", facts=facts(corpus={"digest": "other"})), "equal texts, got a a1b2c3d4e5f60718, b other"),
        (lambda: side("b", facts=facts(corpus={"digest": None})), "equal texts, got a a1b2c3d4e5f60718, b unknown"),
        (
            lambda: side("b", trial(4.0, slot=0, budget_tokens=600_000)),
            "equal budgets, got a 300,000 tokens, b 600,000 tokens",
        ),
        (lambda: side("a"), "two studies or more, each once, got a, a"),
        (lambda: side("b--finalists"), "holds finalists; name 'b'"),
        (lambda: side("b", trial(4.0, attributes={TRIAL_SUSPICIOUS: True})), "no complete trial that can be compared"),
        (
            lambda: side(
                "b",
                trial(4.0, slot=0, measured={"val_bits_per_byte": None}),
                facts=facts(tokenizer={"digest": "words"}),
            ),
            "tokenizers differ, and study 'b' has no bits per byte",
        ),
    ],
)
def test_what_does_not_compare_is_refused_in_one_line(second, told):
    with pytest.raises(IncomparableError) as refused:
        compare_studies([side("a"), second()])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_programs_studies_and_imported_tables_are_refused():
    import optuna

    plain = optuna.create_study(study_name="plain")
    plain.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(IncomparableError, match="'plain' was made by another program"):
        compare_studies([side("a"), (read_study(plain), None)])
    plain.set_user_attr(STUDY_TABLE, {"file": "log.csv"})
    with pytest.raises(IncomparableError, match="'plain' is a table of past experiments"):
        compare_studies([side("a"), (read_study(plain), None)])


def test_one_study_is_no_comparison():
    with pytest.raises(IncomparableError, match="two studies or more"):
        compare_studies([side("a")])


def test_the_comparison_as_json_and_in_spanish():
    found = compare_studies([side("a"), side("b")])
    content = json.loads(across_json(found))
    assert [each["study"] for each in content["sides"]] == ["a", "b"]
    assert content["scale"] == "token"
    assert "Uno de los dos tiene una sola ejecución: sin veredicto." in across_markdown(found, "es")


def test_tokenizers_that_nobody_knows_are_not_taken_for_equal():
    unknown = facts(tokenizer={"digest": None})
    assert compare_studies([side("a", facts=unknown), side("b", facts=unknown)]).scale == "word"
