"""What reports say of the finalists."""

import json
import re

import pytest

from hpo_reports.records.finalists import read_companion
from hpo_reports.records.study import read_study
from hpo_reports.render import render
from tests.support.finalists import companion_study
from tests.support.studies import pruned, study_of, trial


def report(losses, format="markdown", tests=None, language="en", plain=True, **options) -> str:
    record = read_study(study_of(trial(5.0, slot=0), trial(4.7), trial(4.8), pruned()))
    finalists = read_companion(companion_study(losses, tests=tests, **options))
    return render(record, format, finalists=finalists, language=language, plain=plain)


def around(mean: float, seeds: int = 7) -> list[float]:
    """Losses of a candidate: what moves a seed moves all candidates alike, but for a little."""
    return [mean + 0.05 * (seed % 3) + 0.001 * seed * mean for seed in range(seeds)]


def section(document: str) -> str:
    return document.split("## Finalists under fresh seeds\n")[1].split("\n## ")[0]


def test_without_finalists_the_command_that_makes_them_is_given():
    record = read_study(study_of(trial(5.0, slot=0), trial(4.7)))
    text = section(render(record, "markdown"))
    assert "nothing here is a verdict" in text
    assert "hpo replicate lambda_phi" in text


def test_a_verdict_names_its_evidence():
    document = report({0: around(5.0), 1: around(4.6), 2: around(4.99)})
    text = section(document)
    assert "3 configurations, the baseline among them, under the same 7 fresh seeds each." in text
    rows = {cells[1].strip(" *"): cells for cells in (line.split("|") for line in text.splitlines() if "/7" in line)}
    assert rows["1"][-2].strip().endswith("better (7 pairs of seeds, p 0.031)")
    assert rows["0"][-2].strip() == "baseline"
    assert re.search(r"−33\.\d % \(−33\.\d % to −3\d\.\d %\)", rows["1"][7])
    assert "**1**" in text


def test_the_document_goes_on_with_the_winner_of_the_finalists():
    document = report({0: around(5.0), 1: around(4.9), 2: around(4.6)})
    assert "## Winner: trial 2\n" in document
    assert "Trial 1 led the search by its single run." in document
    assert "hpo train --from lambda_phi --trial 2 --epochs 20" in document
    assert "trial 1 --epochs" not in document
    assert "Against the baseline under fresh seeds" in document


def test_unfinished_finalists_decide_nothing():
    document = report({0: around(5.0), 1: [*around(4.9, 6), None], 2: around(4.6)})
    assert "everything here is provisional" in section(document)
    assert "## Winner: trial 1\n" in document


def test_a_lead_that_seeds_can_explain_is_not_established():
    noisy = [5.0, 4.5, 5.2, 4.6, 5.1, 4.4, 5.3]
    document = report({0: noisy, 1: [noisy[-1 - place] - 0.001 for place in range(7)]})
    assert "not distinguishable" in section(document)
    assert "Its lead over the baseline is not established" in document


def test_too_few_seeds_give_no_verdict_however_large_the_difference():
    text = section(report({0: [5.0, 5.0, 5.0], 1: [3.0, 3.0, 3.0]}))
    assert "no verdict: too few seeds" in text
    assert "3 seeds cannot give a verdict, however large the difference: 6 are needed." in text
    assert "hpo replicate lambda_phi" in text


def test_the_studys_own_noise_replaces_the_assumed_one():
    document = report({0: around(5.0), 1: around(4.6), 2: around(4.99)})
    assert "measured on 3 configurations of this study under fresh seeds" in document
    assert "python-docs, not in this study" not in document


def test_few_degrees_of_freedom_do_not_replace_the_assumption():
    assert "python-docs, not in this study" in report({0: [5.0, 5.1], 1: [4.7, 4.8]})


def test_a_candidate_that_was_lost_is_named():
    text = section(report({0: around(5.0), 1: [*around(4.5, 6), "diverged"], 2: around(4.9)}))
    assert "unstable" in text
    assert "Trial 1: 1 of its runs were lost through its own fault, 0 through the machine's." in text


def test_the_test_split_is_told_or_said_to_be_untouched():
    losses = {0: around(5.0), 1: around(4.6)}
    assert "The test split has not been used." in section(report(losses))


def test_lessons_tell_how_much_the_search_flattered():
    document = report({0: around(5.0), 1: around(4.95), 2: around(4.99)})
    assert "trial 1, was 1.0 % worse than the baseline in its single run; under 7 fresh seeds it is 4.9 %" in document


def test_success_has_the_mean_of_the_fresh_seeds():
    document = report({0: around(5.0), 1: around(4.6)})
    assert re.search(r"\| Mean PPL under fresh seeds +\| 157\.25 +\| 105\.28 +\| −33\.0 % +\|", document)


@pytest.mark.parametrize("language", ["en", "es"])
def test_signs_of_verdicts(language):
    document = report({0: around(5.0), 1: around(4.6), 2: around(5.4)}, language=language, plain=False)
    for sign in "⭐🏆✅❌":
        assert sign in document


def test_json_carries_the_judgement():
    content = json.loads(report({0: around(5.0), 1: around(4.6)}, format="json"))
    assert content["finalists"]["winner"] == 1
    assert content["finalists"]["candidates"][0]["standing"] == "better"
