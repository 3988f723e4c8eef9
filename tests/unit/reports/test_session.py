"""The summary of a session."""

import re
import tomllib

import pytest

from hpo_reports.records.finalists import read_companion
from hpo_reports.records.study import SearchRecord, TrialRecord, read_study
from hpo_reports.render import render
from hpo_reports.sections.next_steps import at_edge
from tests.support.finalists import companion_study
from tests.support.studies import HOSTILE, pruned, running, study_of, trial


def session(*trials, finalists=None, language="en", **options) -> str:
    record = read_study(study_of(*trials, **options))
    read = None if finalists is None else read_companion(finalists)
    return render(record, "markdown", template="session", finalists=read, language=language, plain=True)


def lines(document: str, title: str) -> list[str]:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", document, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return [line for line in found[1].splitlines() if line]


def test_objectives_have_a_status_and_a_number_each():
    document = session(trial(5.0, slot=0), trial(4.8), pruned(), running())
    assert lines(document, "Objectives") == [
        "1. **partly done** · Search the space: 3 of 40 trials finished, 2 of them complete and comparable.",
        "2. **done** · Measure the baseline: trial 0, val PPL 148.41.",
        "3. **partly done** · Beat the baseline: trial 1, 18.1 % better (one run, no verdict).",
        "4. **open** · Repeat the best under fresh seeds: not done.",
        "5. **open** · Measure the winner on the test split: not done.",
        "6. **open** · Project the long run: refused, there is nothing to project from.",
        "7. **open** · Measure the quality of generated text: not done.",
    ]


def test_fresh_seeds_fulfil_objectives():
    finalists = companion_study({0: [5.0 + s / 100 for s in range(7)], 1: [4.5 + s / 100 for s in range(7)]})
    document = session(trial(5.0, slot=0), trial(4.4), finalists=finalists)
    found = lines(document, "Objectives")
    assert found[2] == "3. **done** · Beat the baseline: trial 1, 39.3 % better (7 pairs of seeds, p 0.016)."
    assert found[3] == "4. **done** · Repeat the best under fresh seeds: 2 configurations, 7 seeds each."
    assert "hpo replicate" not in document


def test_a_baseline_that_wins_is_no_improvement():
    document = session(trial(4.0, slot=0), trial(5.0))
    assert lines(document, "Objectives")[2] == "3. **open** · Beat the baseline: no other trial has a lower loss."
    assert "the search has improved nothing" in document


def test_results_are_those_of_the_chosen_trial():
    document = session(trial(5.0, slot=0), trial(4.8, dropout=0.3, measured={"phi": 0.6}))
    text = "\n".join(lines(document, "Results in numbers"))
    assert "Chosen: trial 1, val PPL 121.51" in text
    assert "Against the baseline: Dropout 0.1 → 0.3 (× 3)." in text
    assert "6.825 → 4.800 nats per token (−29.7 %)" in text
    assert "baseline to chosen, one run each: 0.7100 → 0.6000 (−15.5 %)" in text


def test_no_generation_was_measured_and_that_is_said():
    text = "\n".join(lines(session(trial(5.0, slot=0)), "Quality of generated text"))
    assert text.startswith("Not measured")
    assert 'hpo evaluate lambda_phi:0\nhpo generate lambda_phi:0 --prompt " The"\n' in text


def test_the_final_configuration_can_be_pasted():
    document = session(trial(5.0, slot=0), trial(4.8, dropout=0.3))
    (configuration,) = re.findall(r"^```toml\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    assert tomllib.loads(configuration)["dropout"] == 0.3


def test_next_steps_finish_repeat_and_train():
    steps = lines(session(trial(5.0, slot=0), trial(4.8)), "Next steps")
    assert steps[0].startswith("1. Finish the search, 38 trials are missing: `hpo run --study lambda_phi`")
    assert steps[1].endswith("`hpo replicate lambda_phi`")
    assert steps[-1].endswith("about 15 min 39 s: `hpo train --from lambda_phi --trial 1 --epochs 20`")


@pytest.mark.parametrize(
    ("value", "log", "edge"),
    [
        (0.001, True, 0.001),
        (0.29, True, 0.3),
        (0.02, True, None),
        (0.02, False, None),
        (0.29, False, 0.3),
        (0.01, False, 0.001),
        (0.0, True, None),
        ("x", False, None),
        (None, False, None),
    ],
)
def test_a_value_at_the_end_of_its_range_is_noticed(value, log, edge):
    searched = SearchRecord(name="x", low=0.001, high=0.3, step=None, log=log, choices=())
    assert at_edge(searched, TrialRecord(number=0, outcome="complete", parameters={"x": value})) == edge


def test_a_study_without_a_winner_has_a_session_too():
    document = session(pruned(slot=0), running())
    assert re.findall(r"^## (.*)$", document, re.MULTILINE) == [
        "Objectives",
        "Charts",
        "Discoveries",
        "Success metrics",
        "Next steps",
    ]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("language", ["en", "es"])
def test_hostile_names_keep_the_sections(text, language):
    trials = [trial(5.0, slot=0), trial(4.8)]
    hostile, calm = session(*trials, study_name=text, language=language), session(*trials, language=language)
    assert re.findall(r"^#+ \w+", hostile, re.MULTILINE) == re.findall(r"^#+ \w+", calm, re.MULTILINE)
