"""What reports say of long runs and their projections."""

import dataclasses
import json
import math

import pytest

from hpo_reports.analysis.findings import analyse
from hpo_reports.analysis.outlook import NoOutlook, ProjectedEpoch, TrialOutlook
from hpo_reports.document.catalogue import catalogue
from hpo_reports.document.layout import markdown_of
from hpo_reports.projection.calibration import calibrate, residuals_of
from hpo_reports.projection.project import Projection, project
from hpo_reports.records.long_runs import read_long_runs
from hpo_reports.records.names import STUDY_LONG_RUN
from hpo_reports.records.study import read_study
from hpo_reports.render import render
from hpo_reports.sections.documents import document
from tests.support.curves import toy_curve, toy_library
from tests.support.studies import pruned, study_of, trial


def report(outlook=None, *, language="en", trials=None) -> str:
    findings = analyse(read_study(study_of(*(trials or [trial(5.0, slot=0), trial(4.8)]))))
    if outlook is not None:
        findings = dataclasses.replace(findings, outlook=outlook)
    return markdown_of(document("experiments", findings, catalogue(language, emoji=False)))


def study_with_a_long_run(*, epochs: int = 20, outcome: str | None = None, reached: int | None = None):
    """A study whose best trial, number 1, is being trained for longer, and was projected after four epochs."""
    study = study_of(trial(5.0, slot=0), trial(4.8))
    curve = toy_curve("run", "lambda_phi", epochs=epochs)
    library = toy_library()
    answer = project(
        curve.until(4),
        horizon=float(epochs),
        library=library,
        calibration=calibrate(residuals_of(library, shares=(0.2,))),
    )
    assert isinstance(answer, Projection)
    history = [
        {"epoch": epoch, "val_loss": val, "train_loss": train}
        for epoch, val, train in zip(curve.epochs, curve.val_loss, curve.train_loss, strict=True)
    ]
    content = {"trial": 1, "epochs": epochs, "history": history[:reached], "projections": [answer.as_json()]}
    study.set_user_attr(f"{STUDY_LONG_RUN}trial-00001-epochs-{epochs}", {**content, "outcome": outcome})
    return study, answer, curve


def test_the_long_run_of_the_winner_is_shown_as_it_was_projected():
    study, answer, curve = study_with_a_long_run(reached=6)
    text = render(read_study(study), "markdown", long_runs=read_long_runs(study), plain=True)
    assert f"**Best checkpoint up to epoch 20**: PPL {answer.best.median:.2f}" in text
    assert f"| {math.exp(curve.val_loss[0]):.2f} " in text
    assert "No earlier projection of this study has been scored against its run yet." in text


def test_projections_of_runs_that_ended_are_scored():
    study, answer, curve = study_with_a_long_run(outcome="complete")
    (run,) = read_long_runs(study)
    (score,) = run.scores
    assert score.best_ppl == pytest.approx(math.exp(min(curve.val_loss)))
    covered = int(answer.best.low_90 <= score.best_ppl <= answer.best.high_90)
    text = render(read_study(study), "markdown", long_runs=(run,), plain=True)
    assert f"Of {1} earlier projection whose run has ended, {covered} lay within its 90 % range." in text
    (last,) = (line for line in text.splitlines() if line.startswith("|    20 |"))
    assert last.split("|")[2].strip() == f"{math.exp(curve.val_loss[-1]):.2f}", "what came of it stands beside"


@pytest.mark.parametrize(
    "content",
    [None, 3, "x", [], {}, {"trial": 1}, {"trial": "1", "epochs": 20}, {"trial": 1, "epochs": -1}],
)
def test_what_is_no_record_of_a_run_is_passed_over(content):
    study = study_of(trial(5.0, slot=0))
    study.set_user_attr(f"{STUDY_LONG_RUN}x", content)
    assert read_long_runs(study) == ()


@pytest.mark.parametrize(
    "part",
    [
        {"history": 3},
        {"history": [{"epoch": 1}]},
        {"history": [{"epoch": 2, "val_loss": 5.0}, {"epoch": 1, "val_loss": 4.0}]},
        {"projections": [{"made_at": 3}, 4]},
        {"projections": [{"outlooks": [{}]}]},
    ],
)
def test_damaged_parts_of_a_record_are_missing_ones(part):
    study = study_of(trial(5.0, slot=0))
    study.set_user_attr(f"{STUDY_LONG_RUN}x", {"trial": 0, "epochs": 20, "outcome": "complete", **part})
    (run,) = read_long_runs(study)
    assert (run.projections, run.scores) == ((), ())
    assert run.curve is None
    assert "Nothing can be projected" in render(read_study(study), "markdown", long_runs=(run,))


def projected(**options) -> TrialOutlook:
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
    return TrialOutlook(trial=1, epochs=(first, last), best=last, references=48, siblings=3, **options)


def test_a_curve_whose_learning_rate_ended_is_no_beginning_of_a_longer_one():
    text = report(trials=[trial(5.0, slot=0, learning_rate_schedule="cosine")])
    assert "## Projection\n" in text
    assert "the learning rate of trial 0 fell over its own 0.585 epochs" in text


@pytest.mark.parametrize("reason", ["thin", "diverged", "none_made"])
def test_a_refusal_gives_its_reason(reason):
    assert "Nothing can be projected because" in report(NoOutlook(trial=1, reason=reason))
    assert "No se puede proyectar nada porque" in report(NoOutlook(trial=1, reason=reason), language="es")


def test_a_projection_shows_ranges_and_what_was_observed():
    text = report(projected())
    assert "|     1 | 486.00 " in text
    assert "| 180.00 " in text
    assert "150.00 to 220.00" in text
    assert "| 25 % |" in text
    assert "**Best checkpoint up to epoch 20**: PPL 180.00, 90 % range 140.00 to 240.00." in text
    assert "Learned from 48 complete curves, 3 of them from this study" in text
    assert "No earlier projection of this study has been scored against its run yet." in text


def test_a_target_and_past_coverage_are_told():
    text = report(projected(target_ppl=80.0, below_target=0.004, scored=10, covered=9))
    assert "The chance that it gets below 80.00: 0.4 %." in text
    assert "Of 10 earlier projections whose runs have ended, 9 lay within their 90 % ranges." in text


def test_a_study_without_a_winner_has_no_projection():
    assert "## Projection" not in report(trials=[pruned()])


def test_json_carries_the_projection_or_the_refusal():
    study, answer, _ = study_with_a_long_run(reached=6)
    record = read_study(study)
    content = json.loads(render(record, "json", long_runs=read_long_runs(study)))
    assert content["projection"]["best"]["median_ppl"] == pytest.approx(answer.best.median)
    assert json.loads(render(record, "json"))["projection"]["reason"] == "schedule"
