"""What the sections of the experiment log say, by facts."""

import math
import re

import pytest
from optuna.trial import TrialState, create_trial

from hpo_reports.analysis.findings import Findings, analyse
from hpo_reports.document.catalogue import catalogue
from hpo_reports.document.layout import markdown_of
from hpo_reports.records.names import TRIAL_ROLE, TRIAL_SLOT
from hpo_reports.records.study import read_study
from hpo_reports.render import render
from hpo_reports.sections.analysis import analysed
from hpo_reports.sections.documents import document
from hpo_reports.sections.phrases import describe_percent_change
from tests.support.studies import FACTS, HOSTILE, pruned, study_of, trial

NUMBER = r"[+-]?\d+(\.\d+)?"


def markdown(*trials, **options) -> str:
    return render(read_study(study_of(*trials, **options)), "markdown", plain=True)


def findings_of(*trials, **options) -> Findings:
    record = read_study(study_of(*trials, **options))
    return analyse(record)


def section(document: str, title: str) -> str:
    found = re.search(rf"^## {title}.*?\n(.*?)(?=^## |\Z)", document, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def mermaid(document: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"^```mermaid\n(.*?)\n```$", document, re.DOTALL | re.M)]


# ------------------------------------------------------------------------------------------------ charts


def test_charts_keep_to_the_grammar_that_github_draws():
    history, curves, outcomes = mermaid(markdown(trial(5.0, slot=0), pruned(), trial(4.8), trial(4.9)))
    for chart in (history, curves):
        assert re.fullmatch(r"%%\{init: \{.*\}\}%%", chart[0])
        assert chart[1] == "xychart-beta"
        assert re.fullmatch(r'    title "[^"]+"', chart[2])
        assert re.fullmatch(r'    x-axis "[^"]+" \d+ --> \d+', chart[3])
        assert re.fullmatch(rf"    y-axis {NUMBER} --> {NUMBER}", chart[4])
        for line in chart[5:]:
            assert re.fullmatch(rf"    line \[{NUMBER}(, {NUMBER})*\]", line)
    assert len(curves) == 5 + 3
    assert outcomes == ["pie showData title How trials ended", '    "complete" : 3', '    "pruned" : 1']


def test_the_history_has_a_value_for_every_trial_from_the_first_complete_one():
    (history, *_) = mermaid(markdown(pruned(), trial(5.0, slot=0), pruned(), trial(4.8), trial(4.9)))
    assert '    x-axis "trial" 1 --> 4' in history
    assert "    line [5.0000, 5.0000, 4.8000, 4.8000]" in history


def test_long_lines_are_thinned_with_their_ends():
    (history, *_) = mermaid(markdown(*(trial(9.0 - place / 1000, slot=place) for place in range(200))))
    values = history[-1].removeprefix("    line [").removesuffix("]").split(", ")
    assert (len(values), values[0], values[-1]) == (50, "9.0000", "8.8010")


@pytest.mark.parametrize("value", [1e300, -1e12])
def test_what_mermaid_cannot_write_has_no_chart(value):
    assert mermaid(markdown(create_trial(value=value), create_trial(value=1.0), facts=None)) == []


def test_the_lines_are_told_by_color():
    document = markdown(trial(5.0, slot=0), trial(4.8))
    assert "Lines: blue trial 1, orange trial 0." in document


@pytest.mark.parametrize("text", HOSTILE)
def test_charts_hold_nothing_that_a_user_gave(text):
    facts = {**FACTS, "spec": {**FACTS["spec"], "description": text}}
    trials = [trial(5.0, slot=0), trial(4.8), pruned()]
    assert mermaid(markdown(*trials, facts=facts, study_name=text)) == mermaid(markdown(*trials))


# ---------------------------------------------------------------------------------------------- analysis


def test_an_analysis_tells_what_changed_what_moved_and_why_no_verdict():
    text = section(markdown(trial(5.0, slot=0), trial(4.99, learning_rate=0.004, dropout=0.3)), "Analysis")
    assert "Against the baseline: LR 0.002 → 0.004 (× 2), Dropout 0.1 → 0.3 (× 3)." in text
    assert "2 values changed at once" in text
    assert "Val PPL 148.41 → 146.94 (−1.0 %)" in text
    assert "1.0 % is less than the 16.0 %" in text


def test_a_single_change_may_explain_the_difference():
    text = section(markdown(trial(5.0, slot=0), trial(4.5, dropout=0.3)), "Analysis")
    assert "at once" not in text
    assert "39.3 % is more than the 16.0 %" in text
    assert "Repeat it and the baseline under fresh seeds." in text


def test_a_repeated_baseline_has_changed_nothing():
    assert "It repeats the baseline" in markdown(trial(5.0, slot=0), trial(5.1))


def test_confounders_are_told():
    text = markdown(trial(5.0, slot=0), trial(4.5, batch_size=4, lambda_phi=0.3, measured={"step": 586}))
    assert "Updates: 293 → 586." in text
    assert "λ_phi is a factor of the ΔΦ loss" in text


def test_a_curve_that_turns_is_told_from_one_that_falls():
    turning = trial(5.0, slot=0)
    turning.intermediate_values = dict(enumerate([9.0, 6.0, 5.0, 5.5, 5.6, 5.7, 5.8, 5.9, 6.0, 5.0], 1))
    text = section(markdown(turning, trial(4.8)), "Analysis")
    assert "lowest at evaluation 3 of the 9 on the same sample; it rose again" in text
    assert "the last of the 9 evaluations on the same sample is the lowest" in text


def test_of_many_trials_the_most_telling_are_analysed():
    known = trial(6.0, attributes={TRIAL_ROLE: "known"})
    findings = findings_of(trial(7.0, slot=0), known, *(trial(5.0 + place / 10) for place in range(25)))
    assert [trial.number for trial in analysed(findings)] == [2, 3, 4, 1, 0, 26]
    document = markdown(trial(7.0, slot=0), known, *(trial(5.0 + place / 10) for place in range(25)))
    assert "6 of 27 trials that may be compared: the best, the baseline" in document


def test_all_of_few_trials_are_analysed():
    document = markdown(trial(5.0, slot=0), trial(4.9), trial(5.2))
    assert "All trials that may be compared, best first." in document
    assert re.findall(r"^### Trial (\d+)", document, re.MULTILINE) == ["1", "0", "2"]


# ------------------------------------------------------------------------ recommendation, lessons, success


def test_the_expected_time_follows_from_the_measured_speed():
    text = section(markdown(trial(5.0, slot=0), trial(4.8)), "Recommendation")
    assert "at the 10,909 tokens/s that trial 1 reached on cpu, evaluations included" in text  # 300,000 in 27.5 s
    assert "**Long run**, 20 epochs. Expected time: 15 min 39 s" in text  # 20 · 512,345 tokens
    assert "**Quick run**, 1 epoch" in text
    assert "hpo train --from lambda_phi --trial 1 --epochs 1\n" in text


def test_an_unmeasured_speed_gives_no_time():
    text = section(markdown(trial(5.0, slot=0, measured={"seconds": None})), "Recommendation")
    assert "Expected time: unknown" in text


def test_lessons_are_numbers():
    text = section(markdown(trial(5.0, slot=0), trial(4.99), trial(4.0), pruned(milestones=2)), "Lessons")
    assert "Pruning ended 1 of 4 trials early and saved 20.0 % of the tokens, about 22 s" in text
    assert "the best of 4 equally good configurations looks" in text
    assert "other compared trials cannot be told" not in text


def test_train_above_val_is_no_sign_of_generalisation():
    text = section(markdown(trial(5.0, slot=0, measured={"train_ppl": 200.0}), trial(4.9)), "Lessons")
    assert "In 1 of 2 compared trials train PPL is above val PPL." in text


@pytest.mark.parametrize(
    ("rate", "lesson"),
    [
        (0.02, "1 trial diverged, at a learning rate of 0.02; all complete trials stayed at or below 0.002."),
        (0.001, "1 of 2 trials diverged."),
    ],
)
def test_divergence_is_blamed_on_the_learning_rate_only_where_one_parts_them(rate, lesson):
    diverged = trial(9.0, state=TrialState.PRUNED, outcome="diverged", learning_rate=rate)
    assert lesson in section(markdown(trial(5.0, slot=0), diverged), "Lessons")


def test_success_is_baseline_against_winner():
    text = section(markdown(trial(5.0, slot=0), trial(4.8)), "Success metrics")
    assert re.search(r"\| Val PPL +\| 148\.41 +\| 121\.51 +\| −18\.1 % +\|", text)
    assert "Evidence: 18.1 % better (one run, no verdict)." in text


@pytest.mark.parametrize(
    ("trials", "sentence"),
    [
        ([trial(4.0, slot=0), trial(5.0)], "the search has improved nothing"),
        ([trial(5.0)], "There are no winner and baseline that may be compared"),
    ],
)
def test_no_success_is_said_plainly(trials, sentence):
    assert sentence in section(markdown(*trials), "Success metrics")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100.0, 90.0, "−10.0 %"), (100.0, 100.01, "±0.0 %"), (2.0, 3.0, "+50.0 %"), (0.0, 1.0, "–"), (None, 1.0, "–")],
)
def test_changes_in_per_cent(before, after, text):
    assert describe_percent_change(before, after) == text


def test_a_study_of_plain_optuna_has_charts_and_no_advice():
    document = markdown(create_trial(value=2.0), create_trial(value=1.0), facts=None)
    titles = re.findall(r"^## (\w+)", document, re.MULTILINE)
    assert titles == ["Comparison", "Charts", "Winner", "Totals"]


@pytest.mark.parametrize("language", ["en", "es"])
def test_missing_numbers_are_dashes_in_every_section(language):
    bare = create_trial(value=4.5, user_attrs={TRIAL_SLOT: 1})
    broken = trial(5.0, slot=0, measured={"val_ppl": math.nan, "seconds": None, "tokens": None, "step": None})
    record = read_study(study_of(broken, bare))
    text = render(record, "markdown", language=language)
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_documents_are_pieces_with_blank_lines_between():
    document = markdown_of_parts()
    assert document == "# T\n\na\n\n## S\n\nb\n"


def markdown_of_parts() -> str:
    from hpo_reports.document.layout import Document, Section
    from hpo_reports.document.markdown import Markdown

    sections = (
        Section(title=None, blocks=(Markdown("a"),)),
        Section(title=Markdown("S"), blocks=(Markdown("b"),)),
    )
    return markdown_of(Document(title=Markdown("T"), sections=sections))


def test_catalogues_are_read_once():
    assert catalogue("en") is catalogue("en")


def test_diagrams_can_be_left_out_with_what_explains_them():
    record = read_study(study_of(trial(5.0, slot=0), trial(4.8), pruned()))
    text = markdown_of(document("experiments", analyse(record), catalogue("en")), diagrams=False)
    assert "mermaid" not in text
    assert "## Charts" not in text
    assert "Lines: " not in text
