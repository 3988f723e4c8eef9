"""What a study keeps of its long runs: curves, projections made on the way, and nothing of a run that is gone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from hpo.long_run.record import FolderStore, RunRecord, StudyStore
from hpo_model.training.history import Evaluation
from hpo_reports.records.long_runs import LongRunRecord, read_long_runs
from tests.support.sweeps import make_evaluation


def evaluations(epochs: int, *, sampled: bool = False) -> list[Evaluation]:
    """A run of twenty epochs up to one of them; the last evaluation of all reads the full split."""
    return [
        make_evaluation(
            n, epoch=float(n), val_loss=5.6 - 0.3 * math.log(n), train_loss=5.5 - 0.4 * math.log(n),
            whole_split=not sampled or n == 20,
        )
        for n in range(1, epochs + 1)
    ]  # fmt: skip


def record_of(study: optuna.Study, epochs: int = 20) -> RunRecord:
    return RunRecord(StudyStore(study), "third", trial=3, epochs=epochs, parameters={"dropout": 0.1})


def only_run(study: optuna.Study) -> LongRunRecord:
    (run,) = read_long_runs(study)
    return run


def test_a_run_is_projected_after_doublings_of_its_epochs_and_each_time_once() -> None:
    study = optuna.create_study()
    record = record_of(study)
    made = [n for n in range(1, 21) if record.add(evaluations(n)) is not None]
    assert made == [1, 2, 4, 8, 16]
    assert record_of(study).add(evaluations(16)) is None, "a run that goes on was projected there already"
    record.end("complete", "all of it")
    run = only_run(study)
    assert [each.observed_epochs for each in run.projections] == made
    assert run.curve is not None
    assert run.curve.epochs == tuple(range(1, 21))
    assert len(run.scores) == 5
    json.dumps(study.user_attrs, allow_nan=False)


def test_a_complete_run_of_the_study_is_a_sibling_of_the_next() -> None:
    study = optuna.create_study()
    record = record_of(study)
    record.add(evaluations(20))
    record.end("complete", "all of it")
    second = RunRecord(StudyStore(study), "fourth", trial=4, epochs=20, parameters={})
    projection = second.add(evaluations(1))
    assert projection is not None
    assert projection.siblings == 1


def test_short_runs_and_samples_of_the_text_are_not_projected() -> None:
    study = optuna.create_study()
    assert record_of(study, epochs=4).add(evaluations(1)) is None
    record = record_of(study)
    assert record.add(evaluations(20, sampled=True)) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_that_diverged_is_kept_and_not_projected(loss: float) -> None:
    study = optuna.create_study()
    record = record_of(study)
    assert record.add([make_evaluation(1, epoch=1.0, val_loss=loss, whole_split=True)]) is None
    assert only_run(study).curve is None


def test_a_run_that_begins_anew_forgets_what_the_lost_one_did() -> None:
    study = optuna.create_study()
    record = record_of(study)
    record.add(evaluations(20))
    record.end("complete", "all of it")
    again = record_of(study)
    again.begin([])
    assert again.add(evaluations(1)) is not None
    run = only_run(study)
    assert not run.is_complete
    assert len(run.projections) == 1


def test_a_database_that_is_away_costs_the_record_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study()
    record = record_of(study)

    def away(name: str, value: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("gone"))

    with monkeypatch.context() as outage:
        outage.setattr(study, "set_user_attr", away)
        record.add(evaluations(1))
    assert "there is no record of this run" in caplog.text
    assert read_long_runs(study) == ()
    record.add(evaluations(2))
    assert [each.observed_epochs for each in only_run(study).projections] == [1, 2]


def test_runs_of_no_study_keep_their_records_beside_each_other(tmp_path: Path) -> None:
    shelf = FolderStore(tmp_path / "text")
    record = RunRecord(shelf, "first", trial=None, epochs=20, parameters={"dropout": 0.1})
    made = [n for n in range(1, 21) if record.add(evaluations(n)) is not None]
    assert made == [1, 2, 4, 8, 16]
    assert record.scores == (), "it has not ended"
    record.end("complete", "all of it")
    assert [score.projection.observed_epochs for score in record.scores] == made
    (tmp_path / "text" / "torn.json").write_text("{", encoding="utf-8")
    (tmp_path / "text" / "list.json").write_text("[1]", encoding="utf-8")
    second = RunRecord(shelf, "second", trial=None, epochs=20, parameters={})
    projection = second.add(evaluations(1))
    assert projection is not None
    assert projection.siblings == 1
    again = RunRecord(shelf, "first", trial=None, epochs=20, parameters={})
    assert again.content == json.loads(json.dumps(record.content))


def test_a_run_that_stopped_early_scores_no_projection() -> None:
    record = record_of(optuna.create_study())
    record.add(evaluations(16))
    record.end("stopped", "no progress")
    assert record.scores == ()
    record.add(evaluations(17))
    assert "outcome" not in record.content, "it went on"


def test_what_a_process_did_not_live_to_record_is_there_after_the_next() -> None:
    study = optuna.create_study()
    record_of(study).add(evaluations(19))
    record = record_of(study)
    record.begin(evaluations(20))
    record.end("complete", "all of it")
    run = only_run(study)
    assert run.is_complete
    assert run.curve is not None
    assert run.curve.epochs[-1] == 20


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": 1}', '{"trial": 1, "epochs": 20}', "3", "null"])
def test_a_file_that_is_no_record_is_written_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / "first.json").write_text(content, encoding="utf-8")
    record = RunRecord(FolderStore(tmp_path), "first", trial=None, epochs=20, parameters={})
    assert record.add(evaluations(1)) is not None
