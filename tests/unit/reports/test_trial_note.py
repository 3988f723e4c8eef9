"""A trial's note, and a long report cut to a note."""

from __future__ import annotations

import re

import optuna
import pytest
from markdown_it import MarkdownIt
from optuna.trial import create_trial

from hpo_reports.analysis.verdicts import compare
from hpo_reports.document.catalogue import Language, catalogue
from hpo_reports.records.names import TRIAL_REASON, TRIAL_SUSPICIOUS
from hpo_reports.records.study import read_study
from hpo_reports.sections.trial_note import MAX_CHARACTERS, MAX_ROWS, shortened, trial_note
from tests.support.studies import HOSTILE, pruned, running, study_of, trial


def note(study: optuna.Study, number: int, language: Language = "en") -> str:
    record = read_study(study)
    return trial_note(record, compare(record), record.trials[number], catalogue(language))


def test_a_complete_trial_says_what_it_did_otherwise_and_how_it_stands() -> None:
    text = note(study_of(trial(5.2, slot=0), trial(4.0, dropout=0.3)), 1)
    assert text.startswith("**Trial 1: complete.** The best of 2 comparable trials. 69.9 % better than the baseline")
    assert "one run, no verdict" in text
    assert re.search(r"\| dropout +\| +0.3 \| +0.1 \|", text)
    assert "| lambda_phi" not in text, "it is the baseline's"
    assert "54.60" in text
    assert "Ended: all of 300,000 tokens" in text
    assert "hpo train --from lambda_phi --trial 1 --epochs 20" in text
    assert "Curve: ▅" in text


def test_a_small_difference_is_none() -> None:
    text = note(study_of(trial(5.2, slot=0), trial(5.19, dropout=0.3)), 1)
    assert "Not distinguishable from the baseline with one run" in text


def test_the_baseline_says_that_it_is_it() -> None:
    text = note(study_of(trial(5.2, slot=0), trial(5.0)), 0)
    assert "It is the baseline." in text
    assert "| learning_rate | 0.002 " in text


def test_a_pruned_trial_says_why_and_offers_no_long_run() -> None:
    text = note(study_of(trial(5.2, slot=0), pruned(6.0, milestones=2, dropout=0.3)), 1)
    assert text.startswith("**Trial 1: pruned.**")
    assert "Ended: behind its peers at 60,000 tokens" in text
    assert "hpo train" not in text


def test_what_is_implausibly_low_offers_no_long_run() -> None:
    strange = trial(1.0, attributes={TRIAL_SUSPICIOUS: True}, constraints={"suspicious": 1.0})
    text = note(study_of(trial(5.2, slot=0), strange), 1)
    assert "implausibly low for text" in text
    assert "hpo train" not in text


def test_a_trial_of_plain_optuna_has_its_parameters_and_values() -> None:
    study = study_of(facts=None)
    study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=2)
    assert "| x         | " in note(study, 0)
    assert "Objective: " in note(study, 0)


def test_missing_values_are_dashes() -> None:
    text = note(study_of(trial(5.2, slot=0), trial(5.0, measured={"val_word_ppl": None, "phi": float("nan")})), 1)
    assert re.search(r"\| – +\|", text)
    assert "nan" not in text


def test_a_trial_of_which_nothing_is_known() -> None:
    study = study_of(facts=None)
    study.add_trial(create_trial(state=optuna.trial.TrialState.FAIL))
    assert note(study, 0) == "**Trial 0: failed.**"
    assert note(study_of(running()), 0).startswith("**Trial 0: running.**")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_typed_is_shown_and_does_nothing(text: str) -> None:
    study = study_of(
        trial(5.2, slot=0), trial(5.0, lambda_schedule=text, attributes={TRIAL_REASON: text}), study_name=text
    )
    html = MarkdownIt("gfm-like", {"linkify": False}).render(note(study, 1))
    assert html.count("<table>") == 2
    assert html.count("<pre>") == 1
    assert "<script" not in html
    assert "<img" not in html
    assert "<a " not in html


def test_a_long_table_is_cut_and_says_so() -> None:
    rows = "".join(f"| {n} | x |\n" for n in range(500))
    text = shortened(f"# Title\n\n| a | b |\n| --- | --- |\n{rows}\nAfter.\n", catalogue("en"))
    assert text.count("| x |") == MAX_ROWS
    assert f"{500 - MAX_ROWS} more rows are in `hpo report`" in text
    assert text.endswith("After.\n")


def test_a_short_report_stays_as_it_is() -> None:
    text = "# Title\n\n| a |\n| --- |\n| 1 |\n\n```bash\nhpo run\n```\n"
    assert shortened(text, catalogue("en")) == text


def test_no_note_is_longer_than_a_browser_bears() -> None:
    text = shortened("words and words\n" * 10_000, catalogue("en"))
    assert len(text) <= MAX_CHARACTERS + 10
    assert text.endswith("\n\n…\n")


def test_notes_are_in_the_language_of_the_reader() -> None:
    study = study_of(trial(5.2, slot=0), trial(4.0, dropout=0.3), pruned())
    text = note(study, 1, "es")
    assert text.startswith(
        "**Prueba 1: completa.** La mejor de 2 pruebas comparables. 69.9 % mejor que la referencia en"
    )
    assert re.search(r"\| Parámetro +\| Prueba 1 \| Referencia \(prueba 0\)", text)
    assert note(study, 0, "es").startswith("**Prueba 0: completa.** Es la referencia.")
    assert note(study, 2, "es").startswith("**Prueba 2: podada.**")
    rows = "".join(f"| {n} | x |\n" for n in range(500))
    assert "filas más en `hpo report`" in shortened(f"| a | b |\n| --- | --- |\n{rows}\n", catalogue("es"))
