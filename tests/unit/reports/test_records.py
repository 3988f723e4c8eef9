"""Optuna's studies as records: what is read, and what becomes of missing or malformed facts."""

import gc
import math
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from hpo_reports.records.names import (
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_RUN,
    TRIAL_SLOT,
)
from hpo_reports.records.study import Measurement, read_study
from tests.support.studies import BUDGET, EVALUATIONS, FACTS, evaluation, pruned, running, study_of, trial


def test_a_study_is_read_as_it_was_recorded():
    record = read_study(study_of(trial()))
    assert (record.name, record.directions, record.uid) == ("lambda_phi", ("minimize",), "5f0c")
    assert (record.created_at, record.last_run, record.profile) == (1763409600.0, 1763410500.0, "cpu")
    assert (record.planned_trials, record.description) == (40, FACTS["spec"]["description"])
    assert record.sampler["kind"] == "tpe"
    assert record.pruner["reduction_factor"] == 3
    assert (record.corpus.name, record.corpus.train_tokens) == ("python-docs", 512_345)
    assert (record.tokenizer.vocabulary, record.hardware) == (2048, "Intel Xeon, 2 cores")
    assert record.versions["torch"] == "2.13.0+cpu"
    assert [dimension.name for dimension in record.search] == ["lambda_phi", "dropout", "learning_rate"]
    assert record.search[0].log


def test_a_trial_is_read_as_it_was_recorded():
    attributes = {TRIAL_CONTINUED: 2, TRIAL_ROLE: "known"}
    (read,) = read_study(study_of(trial(5.0, slot=7, dropout=0.25, attributes=attributes))).trials
    assert (read.number, read.slot, read.role, read.outcome) == (0, 7, "enqueued", "complete")
    assert read.parameters["dropout"] == 0.25
    assert read.parameters["preset"] == "nano"  # from the study: a run's own record has no preset
    assert set(read.searched) == {"learning_rate", "lambda_phi", "dropout"}
    assert read.values == (5.0,)
    assert read.measured.val_ppl == pytest.approx(math.exp(5.0))
    assert (read.measured.tokens, read.measured.milestone) == (BUDGET, EVALUATIONS)
    assert (read.continued, read.device, read.budget_tokens) == (2, "cpu", BUDGET)
    assert len(read.curve) == EVALUATIONS
    assert not read.is_baseline


@pytest.mark.parametrize("attributes", [{TRIAL_SLOT: 0, TRIAL_ROLE: "search"}, {TRIAL_SLOT: 4, TRIAL_ROLE: "baseline"}])
def test_slot_zero_and_the_role_both_name_the_baseline(attributes):
    assert read_study(study_of(trial(attributes=attributes))).trials[0].is_baseline


def test_a_study_of_plain_optuna_has_no_facts_and_no_runs():
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    record = read_study(study)
    assert not record.is_ours
    assert record.directions == ("maximize",)
    assert (record.created_at, record.corpus.name, record.search, record.versions) == (None, None, (), {})
    assert record.trials[0].measured == Measurement()  # its objective need not be nats
    assert set(record.trials[0].parameters) == {"x"}


@pytest.mark.parametrize(
    ("state", "recorded", "outcome"),
    [
        (TrialState.PRUNED, "pruned", "pruned"),
        (TrialState.PRUNED, "diverged", "diverged"),
        (TrialState.PRUNED, "out_of_memory", "out_of_memory"),
        (TrialState.FAIL, "failed", "failed"),
        (TrialState.PRUNED, "complete", "pruned"),  # Optuna was told otherwise
        (TrialState.COMPLETE, "diverged", "diverged"),
        (TrialState.RUNNING, "complete", "running"),  # Optuna has not been told yet
        (TrialState.FAIL, "nonsense", "failed"),
        (TrialState.WAITING, None, "waiting"),
    ],
)
def test_outcome_is_the_recorded_one_where_optuna_agrees_that_it_ended(state, recorded, outcome):
    value = 1.0 if state is TrialState.COMPLETE else None
    study = study_of(create_trial(state=state, value=value, user_attrs={TRIAL_OUTCOME: recorded}))
    assert read_study(study).trials[0].outcome == outcome


def test_a_running_trial_shows_its_last_loss():
    (read,) = read_study(study_of(running(milestones=3))).trials
    assert read.outcome == "running"
    assert read.measured.milestone == 3
    assert read.measured.val_ppl == pytest.approx(math.exp(read.curve[-1]))
    assert read.measured.tokens is None  # known at its end


def test_a_trial_pruned_before_any_evaluation_has_no_measurements():
    (read,) = read_study(study_of(pruned(milestones=0))).trials
    assert (read.outcome, read.measured, read.curve) == ("pruned", Measurement(), ())


def test_numbers_that_are_not_finite_are_missing():
    infinite = create_trial(value=math.inf, intermediate_values={1: math.nan, 2: math.inf, 3: 4.0})
    broken = trial(measured={"val_ppl": math.nan, "seconds": math.inf, "train_ppl": None, "tokens": "many"})
    first, second = read_study(study_of(infinite, broken)).trials
    assert (first.values, first.curve) == ((None,), (None, None, 4.0))
    measured = second.measured
    assert (measured.val_ppl, measured.seconds, measured.train_ppl, measured.tokens) == (None,) * 4


def test_a_loss_beyond_the_largest_perplexity_is_missing():
    attributes = {TRIAL_SLOT: 1}
    (read,) = read_study(study_of(create_trial(value=1e6, user_attrs=attributes))).trials
    assert read.measured.val_ppl is None


@pytest.mark.parametrize("content", [None, 3, "text", [], {"spec": None}, {"spec": {"run": 1, "search": {"x": 2}}}])
def test_malformed_facts_are_missing_facts(content):
    attributes = {TRIAL_SLOT: "one", TRIAL_RUN: 7, TRIAL_HISTORY: [1, None], TRIAL_CONTINUED: 1.5, TRIAL_MACHINE: []}
    record = read_study(study_of(create_trial(value=1.0, user_attrs=attributes), facts=content))
    assert record.sampler == {}
    assert (record.trials[0].slot, record.trials[0].parameters, record.trials[0].continued) == (None, {}, 0)


def test_text_that_utf8_cannot_write_is_replaced():
    (read,) = read_study(study_of(trial(attributes={TRIAL_REASON: "no file \udcff.txt"}))).trials
    assert read.reason == "no file ?.txt"


def test_constraints_tell_feasible_trials():
    trials = [trial(constraints={"memory": limit}) for limit in (-1.0, 0.0, 0.5)]
    assert [read.feasible for read in read_study(study_of(*trials)).trials] == [True, True, False]


def test_several_objectives_are_all_read():
    study = study_of(create_trial(values=[1.0, 2.0]), facts=None, directions=["minimize", "maximize"])
    record = read_study(study)
    assert record.directions == ("minimize", "maximize")
    assert record.trials[0].values == (1.0, 2.0)


def test_of_two_objectives_the_first_is_the_loss():
    study = study_of(create_trial(values=[2.0, 0.7], user_attrs={TRIAL_SLOT: 1}), directions=["minimize", "maximize"])
    assert read_study(study).trials[0].measured.val_ppl == math.exp(2.0)


def test_categories_of_any_kind_become_plain_values():
    choices = (None, True, 3, 0.5, "text", math.nan)
    options = {"distributions": {"x": CategoricalDistribution(choices)}, "value": 1.0}
    record = read_study(study_of(*(create_trial(params={"x": choice}, **options) for choice in choices), facts=None))
    assert [read.parameters["x"] for read in record.trials] == [None, True, 3, 0.5, "text", None]


def test_trials_are_read_once_without_copies(monkeypatch):
    study = study_of(trial(), trial())
    calls = []
    original = study.get_trials
    monkeypatch.setattr(study, "get_trials", lambda **options: calls.append(options) or original(**options))
    read_study(study)
    assert calls == [{"deepcopy": False}]


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_left_as_it_was(monkeypatch, collects):
    (gc.enable if collects else gc.disable)()
    try:
        read_study(study_of(trial(5.0)))
        assert gc.isenabled() is collects
        monkeypatch.setattr(optuna.Study, "get_trials", lambda *_, **__: 1 / gc.isenabled())  # it is off meanwhile
        with pytest.raises(ZeroDivisionError):
            read_study(study_of())
        assert gc.isenabled() is collects
    finally:
        gc.enable()


def test_reading_changes_nothing():
    study = study_of(trial(), pruned())
    before = study.get_trials()
    read_study(study)
    assert study.get_trials() == before


def test_what_is_read_of_a_history_is_what_training_writes():
    from hpo_model.training.history import Evaluation  # here alone: reports run without hpo_model

    written = set(Evaluation.__dataclass_fields__)
    assert set(Measurement.__dataclass_fields__) - {"full_split"} <= written
    assert written & {"full_split", "whole_split"}
    assert set(evaluation(1, 5.0)) <= set(Evaluation.__dataclass_fields__)


def test_reports_load_neither_torch_nor_our_other_packages():
    program = "import hpo_reports.render, sys; print({'torch', 'hpo_model', 'hpo', 'hpo_studies'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["whole_split", "full_split"])
def test_both_names_of_the_split_that_was_read_are_known(name):
    history = [{"milestone": 10, "val_ppl": 20.0, name: False}]
    (read,) = read_study(study_of(trial(attributes={TRIAL_HISTORY: history}))).trials
    assert read.measured.full_split is False
