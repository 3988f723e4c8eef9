"""Which configuration a long run has. Nothing here trains; `hpo train` itself is in tests/acceptance/test_train.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import StudyError
from hpo.executors.resources import ResourceRequest
from hpo.home import Home
from hpo.long_run.request import TrialRequest, prepare_trial_run
from hpo.long_run.run import LongRun
from hpo.search.prepare import prepare
from hpo.search.request import Request
from hpo.sweep.sweep import Sweep, open_sweep
from hpo_model.config import SEMANTICS_VERSION, build_run
from hpo_reports.records.names import TRIAL_RUN
from tests.support.sweeps import FAIL, complete, rewrite_record, run_slot
from tests.support.texts import TOPICS, write_text

STUDY = """
name = "small"
[text]
vocabulary = 300
[run]
preset = "nano"
[search]
dropout = { low = 0.0, high = 0.4 }
"""
RECORDED = build_run({"preset": "nano", "dropout": 0.3, "learning_rate": 0.0007, "width": 64}).parameters()


class Study:
    """A study without trials, and its text."""

    def __init__(self, folder: Path) -> None:
        self.url, self.home = f"sqlite:///{folder}/studies.db", Home(folder / "home")
        self.text = write_text(folder / "text", {"train": TOPICS[:6], "valid": TOPICS[:6]})
        (folder / "small.toml").write_text(STUDY, encoding="utf-8")
        request = Request(study=str(folder / "small.toml"), data=self.text, resources=ResourceRequest(workers=0))
        self.sweep: Sweep = prepare(request, self.url, self.home).sweep

    def long_run(self, trial: int | None = None, epochs: int = 3) -> LongRun:
        request = TrialRequest(study="small", trial=trial, epochs=epochs)
        return prepare_trial_run(self.url, self.home, request)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = Study(tmp_path)
    yield made
    made.sweep.database.engine.dispose()


def add_trial(study: Study, recorded: dict[str, Any] | None) -> int:
    number = run_slot(study.sweep, complete(4.0) if recorded else FAIL)
    if recorded:
        trial_id = study.sweep.study.get_trials()[number]._trial_id
        study.sweep.database.set_user_attributes(trial_id, {TRIAL_RUN: recorded})
    return number


def test_a_long_run_has_the_values_that_the_trial_was_run_with_but_for_its_budget(study: Study, log: list[str]) -> None:
    add_trial(study, RECORDED)
    run = study.long_run()
    kept = {name: value for name, value in run.config.parameters().items() if name in RECORDED}
    budget = {"budget_tokens": 3 * run.corpus.tokens("train"), "evaluations": 12}
    assert kept == {**RECORDED, **budget}
    assert log == []


def test_a_trial_without_a_record_of_its_run_is_refused(study: Study) -> None:
    number = add_trial(study, None)
    with pytest.raises(StudyError, match=rf"\Atrial {number} of study 'small' is FAIL and has no record of its run"):
        study.long_run(trial=number)


def without_fingerprint(record: dict[str, Any]) -> dict[str, Any]:
    del record["meaning"]
    return record


def test_a_study_whose_values_meant_something_else_is_told(study: Study, log: list[str]) -> None:
    add_trial(study, RECORDED)
    rewrite_record(study.sweep, without_fingerprint)
    study.sweep = open_sweep(study.sweep.database, study.sweep.spec.name)
    assert study.long_run().config.training.learning_rate == 0.0007
    assert SEMANTICS_VERSION > 1
    assert log == ["the study's runs are of version 1; with equal values this program trains otherwise"]
