"""Tables of plain values, and totals."""

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from hpo_reports.analysis.totals import sum_up
from hpo_reports.analysis.verdicts import compare
from hpo_reports.document.tables import Table, comparison_table, incomplete_table, trial_table
from hpo_reports.records.names import TRIAL_CONTINUED, TRIAL_REASON, TRIAL_SLOT, TRIAL_SUSPICIOUS
from hpo_reports.records.study import read_study
from tests.support.studies import BUDGET, pruned, running, study_of, trial


def record_of(*trials, **options):
    return read_study(study_of(*trials, **options))


def compared(record) -> list[dict]:
    return comparison_table(record, compare(record), lambda verdict: verdict.standing).dicts()


def test_a_table_hands_out_its_rows_by_name():
    table = Table(("number", "val_ppl"), ((0, None), (1, 2.5)))
    assert table.dicts() == [{"number": 0, "val_ppl": None}, {"number": 1, "val_ppl": 2.5}]


def test_the_comparison_has_the_columns_of_the_log_and_what_else_was_searched():
    other = create_trial(
        value=5.0,
        params={"memory_slots": 64},
        distributions={"memory_slots": IntDistribution(0, 128)},
        user_attrs={TRIAL_SLOT: 3},
    )
    record = record_of(trial(slot=0), other)
    parameters = ["learning_rate", "batch_size", "lambda_phi", "dropout", "memory_slots"]
    measured = [
        "epoch",
        "val_ppl",
        "val_word_ppl",
        "val_bits_per_byte",
        "train_ppl",
        "phi",
        "train_phi",
        "delta_phi_loss",
    ]
    measured += ["seconds"]
    names = ["number", *(f"params_{name}" for name in parameters), *measured, "curve", "verdict"]
    assert list(compared(record)[0]) == names


def test_the_comparison_holds_complete_trials_alone_best_first():
    record = record_of(
        trial(5.0, slot=0), pruned(), trial(4.5), running(), trial(1.0, attributes={TRIAL_SUSPICIOUS: True})
    )
    assert [row["number"] for row in compared(record)] == [2, 0, 4]


def test_a_missing_value_stays_missing():
    record = record_of(trial(slot=0, measured={"train_phi": None, "delta_phi_loss": None}))
    assert compared(record)[0]["train_phi"] is None
    assert trial_table(record, compare(record)).dicts()[0]["delta_phi_loss"] is None


def test_a_parameter_may_be_called_as_a_column_of_ours():
    options = {"distributions": {"number": IntDistribution(0, 9)}, "value": 1.0}
    record = record_of(create_trial(params={"number": 7}, **options), facts=None)
    assert compared(record)[0] | {"number": 0, "params_number": 7} == compared(record)[0]


def test_the_incomplete_are_listed_by_outcome_with_reason_and_tokens():
    diverged = trial(
        9.0, milestones=4, state=TrialState.PRUNED, outcome="diverged", attributes={TRIAL_REASON: "loss 9"}
    )
    waiting = create_trial(state=TrialState.WAITING)
    record = record_of(trial(slot=0), running(), diverged, pruned(milestones=2), waiting, pruned(milestones=0))
    rows = incomplete_table(record).dicts()
    assert [(row["number"], row["outcome"]) for row in rows] == [
        (3, "pruned"),
        (5, "pruned"),
        (2, "diverged"),
        (1, "running"),
    ]
    assert [row["tokens"] for row in rows] == [BUDGET // 5, None, BUDGET * 4 // 10, None]
    assert rows[2]["reason"] == "loss 9"
    assert "verdict" not in rows[0]


def test_every_trial_is_in_the_raw_table_in_order():
    record = record_of(trial(5.0, slot=0), pruned(), running(), trial(4.0))
    rows = trial_table(record, compare(record)).dicts()
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert [row["verdict"] for row in rows] == ["baseline", None, None, "better"]
    assert rows[1]["objective"] is None  # what Optuna calls its value is a loss at another budget
    assert rows[3]["percent_vs_baseline"] < -60


def test_the_raw_table_has_the_energy_where_a_meter_was_read():
    record = record_of(trial(slot=0, measured={"energy_joules": 1.8e6}), trial())
    assert [row["energy_joules"] for row in trial_table(record, compare(record)).dicts()] == [1.8e6, None]


def test_several_objectives_have_a_column_each():
    record = record_of(create_trial(values=[1.0, 2.0]), facts=None, directions=["minimize", "maximize"])
    row = compared(record)[0]
    assert (row["objective_0"], row["objective_1"]) == (1.0, 2.0)


def test_totals_add_up_tokens_time_and_outcomes():
    continued = trial(slot=1, attributes={TRIAL_CONTINUED: 2})
    totals = sum_up(record_of(trial(slot=0), continued, pruned(milestones=2), pruned(milestones=6), running()))
    assert totals.outcomes == {"complete": 2, "pruned": 2, "running": 1}
    assert totals.tokens_spent == BUDGET * 2.8
    assert totals.trials_without_tokens == 1
    assert totals.tokens_saved == 2 * 300_032 - BUDGET * 0.8  # of whole updates: 293 of 8 · 128 tokens
    assert totals.saved_percent == pytest.approx(30.0, abs=0.01)
    assert totals.training_s == 2.75 * 28
    assert (totals.continued_trials, totals.continuations) == (1, 2)


def test_totals_of_nothing_recorded_are_missing_not_zero():
    totals = sum_up(record_of(create_trial(value=1.0), pruned(milestones=0), facts=None))
    assert (totals.tokens_spent, totals.tokens_saved, totals.saved_percent, totals.training_s) == (None,) * 4


def test_diverged_trials_save_nothing_by_pruning():
    diverged = trial(9.0, milestones=4, state=TrialState.PRUNED, outcome="diverged")
    assert sum_up(record_of(trial(slot=0), diverged)).tokens_saved is None
