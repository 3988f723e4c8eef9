import json

import pytest
from toy_studies import pruned, study_of, trial

from reports.outlook import Outlook, ProjectedEpoch, Refused
from reports.records import read_study
from reports.render import render


def report(outlook=None, *, format="markdown", language="en", trials=None) -> str:
    record = read_study(study_of(*(trials or [trial(5.0, slot=0), trial(4.8)])))
    return render(record, format, outlook=outlook, language=language, plain=True)


def projected(**options) -> Outlook:
    last = ProjectedEpoch(
        epoch=20,
        median_ppl=180.0,
        low_80_ppl=150.0,
        high_80_ppl=220.0,
        low_90_ppl=140.0,
        high_90_ppl=240.0,
        past_best=0.25,
    )
    first = ProjectedEpoch(epoch=1, observed_ppl=486.0)
    return Outlook(trial=1, epochs=(first, last), best=last, references=48, siblings=3, **options)


def test_a_curve_whose_learning_rate_ended_is_no_beginning_of_a_longer_one():
    text = report(trials=[trial(5.0, slot=0, learning_rate_schedule="cosine")])
    assert "## Projection\n" in text
    assert "the learning rate of trial 0 fell to the end of its own 0.585 epochs" in text


@pytest.mark.parametrize("reason", ["thin", "diverged", "none_made"])
def test_a_refusal_gives_its_reason(reason):
    assert "Nothing can be projected because" in report(Refused(trial=1, reason=reason))
    assert "No se puede proyectar nada porque" in report(Refused(trial=1, reason=reason), language="es")


def test_a_projection_shows_ranges_and_what_was_observed():
    text = report(projected())
    assert "|     1 | 486.00 " in text
    assert "| 180.00 " in text
    assert "150.00 to 220.00" in text
    assert "| 25 % |" in text
    assert "**Best checkpoint up to epoch 20**: PPL 180.00, 90 % range 140.00 to 240.00." in text
    assert "Learned from 48 whole curves, 3 of them of this study" in text
    assert "No earlier projection of this study has been held against its run yet." in text


def test_a_target_and_past_coverage_are_told():
    text = report(projected(target_ppl=80.0, below_target=0.004, scored=10, covered=9))
    assert "The chance that it gets below 80.00: 0.4 %." in text
    assert "Of 10 earlier projections whose runs have ended, 9 lay within their 90 % ranges." in text


def test_a_study_without_a_winner_has_no_projection():
    assert "## Projection" not in report(trials=[pruned()])


def test_json_carries_the_projection_or_the_refusal():
    assert json.loads(report(projected(), format="json"))["projection"]["epochs"][1]["median_ppl"] == 180.0
    assert json.loads(report(format="json"))["projection"]["reason"] == "schedule"
