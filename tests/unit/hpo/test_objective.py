"""One trial, without processes: pruning decisions, interruptions, outcomes."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch

import hpo.worker.objective
from hpo.sweep.checkpoints import delete_after_end, newest_checkpoint
from hpo.sweep.slots import LeaseLost
from hpo.worker.objective import (
    Interrupted,
    TrialSetting,
    crash_loop,
    reached_before,
    run_trial,
)
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.training.checkpoint import load_checkpoint, save_checkpoint
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import TrainingResult
from hpo_reports.records.names import (
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_REASON,
    TRIAL_REPEATED,
    TRIAL_RUN,
)
from tests.support.sweeps import TINY_RUN, make_evaluation, make_spec


@pytest.fixture
def setting(small_corpus: TokenizedCorpus, tmp_path: Path) -> Callable[[int], TrialSetting]:
    spec = make_spec(run=TINY_RUN)

    def lease(fencing_token: int) -> TrialSetting:
        folder = tmp_path / "trial"
        return TrialSetting(spec=spec, corpus=small_corpus, folder=folder, fencing_token=fencing_token, device="cpu")

    return lease


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take the cores of other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trial() -> optuna.Trial:
    return optuna.create_study().ask()


def behind_at(milestone: int, asked: list[int]) -> Callable[..., bool]:
    def should_prune(spec: object, trial: optuna.Trial, at: int) -> bool:
        asked.append(at)
        return at == milestone

    return should_prune


def until(milestone: int) -> Callable[[Evaluation], bool]:
    return lambda evaluation: evaluation.milestone < milestone


def test_a_complete_trial_reports_each_milestone_and_its_final_loss(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    outcome = run_trial(trial, {"dropout": 0.1}, setting(1), until(99))
    losses = trial.study.trials[0].intermediate_values
    assert sorted(losses) == [1, 2, 3, 4, 5]
    assert outcome.state == "COMPLETE"
    assert outcome.values == (losses[5],)
    assert [each["val_loss"] for each in outcome.attributes[TRIAL_HISTORY]] == list(losses.values())
    assert outcome.attributes[TRIAL_RUN]["dropout"] == 0.1


def test_a_stop_does_not_take_a_pruning_decision_away(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.worker.objective, "should_prune", behind_at(3, asked := []))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(1), until(3))
    assert (outcome.state, asked) == ("PRUNED", [1, 2, 3])


def test_a_milestone_whose_pruning_was_never_asked_for_is_asked_for_on_return(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(spec: object, trial: optuna.Trial, milestone: int) -> bool:
        if milestone == 3:
            raise OSError("killed between checkpoint and decision")
        return False

    monkeypatch.setattr(hpo.worker.objective, "should_prune", crash)
    with pytest.raises(OSError, match="killed"):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(99))
    monkeypatch.setattr(hpo.worker.objective, "should_prune", behind_at(3, asked := []))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(2), until(99))
    assert (outcome.state, asked, len(outcome.attributes[TRIAL_HISTORY])) == ("PRUNED", [3], 3)


def test_an_interrupted_trial_goes_on_from_its_newest_checkpoint(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    with pytest.raises(Interrupted, match="stopped at"):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(2), until(99))
    assert outcome.attributes[TRIAL_CONTINUED] == 1
    assert [each["milestone"] for each in outcome.attributes[TRIAL_HISTORY]] == [1, 2, 3, 4, 5]
    folder = setting(2).folder
    delete_after_end(folder, outcome)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2.pt"]


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))
    folder = setting(1).folder
    (folder / "checkpoint-2.pt").write_bytes(b"garbage")
    path, history = newest_checkpoint(folder, "cpu")
    assert path == folder / "checkpoint-1.pt"
    assert len(history) == 2
    assert (folder / "checkpoint-2.pt.damaged").is_file()


def test_a_checkpoint_of_another_kind_of_device_is_left_for_that_and_the_trial_starts_over(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))
    path = setting(1).folder / "checkpoint-1.pt"
    content = load_checkpoint(path)
    save_checkpoint(path, {**content, "identity": {**content["identity"], "device": "cuda"}})
    theirs = path.read_bytes()
    outcome = run_trial(again(trial), {"dropout": 0.1}, setting(2), until(99))
    assert outcome.state == "COMPLETE"
    assert [each["milestone"] for each in outcome.attributes[TRIAL_HISTORY]] == [1, 2, 3, 4, 5]
    assert path.read_bytes() == theirs


def test_a_checkpoint_for_which_there_is_no_memory_now_stays_where_it_is(
    setting: Callable[[int], TrialSetting], trial: optuna.Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))

    def fail(*positional: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        run_trial(trial, {"dropout": 0.1}, setting(2), until(99))
    assert [path.name for path in setting(2).folder.iterdir()] == ["checkpoint-1.pt"]


def test_values_that_do_not_go_together_are_an_outcome(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    outcome = run_trial(trial, {"dropout": 0.1, "heads": 3}, setting(1), until(99))
    assert (outcome.state, outcome.violations) == ("PRUNED", ("invalid",))
    assert "heads must divide width" in outcome.attributes[TRIAL_REASON]


def test_a_trial_over_which_processes_die_is_avoided() -> None:
    outcome = crash_loop(3, Path("worker.log"))
    assert (outcome.state, outcome.violations) == ("PRUNED", ("process_died",))
    assert "died 3 times; see worker.log" in outcome.attributes[TRIAL_REASON]


# ---------------------------------------------------------------------------------------------- two objectives


@pytest.fixture
def two(setting: Callable[[int], TrialSetting]) -> tuple[optuna.Trial, Callable[[int], TrialSetting]]:
    spec = make_spec(run=TINY_RUN, objectives=["val_loss", "phi"], pruner={"kind": "none"})
    trial = optuna.create_study(directions=["minimize", "maximize"]).ask()
    return trial, lambda epoch: dataclasses.replace(setting(epoch), spec=spec)


def test_two_objectives_are_the_last_evaluation_s_loss_and_phi(
    two: tuple[optuna.Trial, Callable[[int], TrialSetting]],
) -> None:
    trial, lease = two
    outcome = run_trial(trial, {"dropout": 0.1}, lease(1), until(99))
    last = outcome.attributes[TRIAL_HISTORY][-1]
    assert outcome.values == (last["val_loss"], last["phi"])
    losses = trial.study.trials[0].intermediate_values
    assert list(losses.values()) == [each["val_loss"] for each in outcome.attributes[TRIAL_HISTORY]]


def test_with_two_objectives_a_trial_goes_on_as_with_one(
    two: tuple[optuna.Trial, Callable[[int], TrialSetting]], tmp_path: Path
) -> None:
    trial, lease = two
    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, lease(1), until(3))
    trial = again(trial)
    assert reached_before(trial) == 3
    outcome = run_trial(trial, {"dropout": 0.1}, lease(2), until(99))
    assert [each["milestone"] for each in outcome.attributes[TRIAL_HISTORY]] == [1, 2, 3, 4, 5]
    shutil.rmtree(tmp_path / "trial")
    trial = again(trial)
    assert run_trial(trial, {"dropout": 0.1}, lease(3), until(99)).values == outcome.values
    assert trial.study.trials[0].user_attrs[TRIAL_REPEATED] == 5


def test_a_phi_that_is_not_finite_is_no_value(two: tuple[optuna.Trial, Callable[[int], TrialSetting]]) -> None:
    _, lease = two
    history = (make_evaluation(phi=math.nan),)
    for outcome in ("diverged", "out_of_memory"):
        result = TrainingResult(outcome=outcome, reason="", history=history)  # type: ignore[arg-type]
        assert hpo.worker.objective._outcome(result, lease(1).spec, {TRIAL_MACHINE: {}}).values == ()


# ---------------------------------------------------------------------------------------------- reports that were lost


def test_an_evaluation_is_reported_before_anybody_is_asked_to_leave(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    stored: list[list[int]] = []

    def look(evaluation: Evaluation) -> bool:
        stored.append(sorted(trial.study.trials[0].intermediate_values))
        return evaluation.milestone < 2

    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, setting(1), look)
    assert stored == [[1], [1, 2]]


def test_an_evaluation_whose_report_was_lost_in_a_crash_is_reported_on_return(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hpo.worker.objective._report

    def crash(trial: optuna.Trial, evaluation: Evaluation) -> None:
        if evaluation.milestone == 3:
            raise LeaseLost
        real(trial, evaluation)

    monkeypatch.setattr(hpo.worker.objective, "_report", crash)
    with pytest.raises(LeaseLost):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(99))
    assert sorted(trial.study.trials[0].intermediate_values) == [1, 2]
    monkeypatch.setattr(hpo.worker.objective, "_report", real)
    outcome = run_trial(again(trial), {"dropout": 0.1}, setting(2), until(99))
    losses = trial.study.trials[0].intermediate_values
    assert [losses[milestone] for milestone in range(1, 6)] == [
        each["val_loss"] for each in outcome.attributes[TRIAL_HISTORY]
    ]


def again(trial: optuna.Trial) -> optuna.Trial:
    """The trial as the next worker gets it."""
    return optuna.Trial(trial.study, trial._trial_id)


def test_a_trial_whose_checkpoints_are_gone_starts_over_and_says_so(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], tmp_path: Path
) -> None:
    said: list[str] = []
    for epoch, milestone in ((1, 2), (2, 1)):
        each = dataclasses.replace(setting(epoch), announce=said.append)
        with pytest.raises(Interrupted):
            run_trial(again(trial), {"dropout": 0.1}, each, until(milestone))
        shutil.rmtree(tmp_path / "trial")
    trial.storage.set_trial_intermediate_value(trial._trial_id, 1, 99.0)  # stands for another machine's number
    assert len(said) == 1
    assert said[0].startswith("trial 0 starts over, though it had reached evaluation 2: ")
    assert said[0].endswith(f" has no later checkpoint in {tmp_path / 'trial'} that its cpu can continue")
    outcome = run_trial(
        again(trial), {"dropout": 0.1}, dataclasses.replace(setting(3), announce=said.append), until(99)
    )
    (found,) = trial.study.trials
    assert found.user_attrs[TRIAL_REPEATED] == 4
    assert list(found.intermediate_values.values()) == [
        each["val_loss"] for each in outcome.attributes[TRIAL_HISTORY]
    ], "its numbers stand in place of the earlier ones"
    assert len(said) == 2


def test_a_trial_some_of_whose_checkpoints_are_gone_goes_on_from_the_last_there_is(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], tmp_path: Path
) -> None:
    said: list[str] = []
    for epoch, milestone in ((1, 2), (2, 4)):
        with pytest.raises(Interrupted):
            run_trial(again(trial), {"dropout": 0.1}, setting(epoch), until(milestone))
    (tmp_path / "trial" / "checkpoint-2.pt").unlink()
    run_trial(again(trial), {"dropout": 0.1}, dataclasses.replace(setting(3), announce=said.append), until(99))
    assert said[0].startswith("trial 0 goes on from evaluation 2, though it had reached evaluation 4: ")
    assert trial.study.trials[0].user_attrs[TRIAL_REPEATED] == 2


def test_how_far_a_trial_has_come_is_known(trial: optuna.Trial) -> None:
    assert reached_before(trial) == 0
    trial.report(4.0, 1)
    trial.report(4.0, 3)
    assert reached_before(again(trial)) == 3


def test_the_most_memory_that_a_trial_held_is_noted(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    attributes = run_trial(trial, {"dropout": 0.1}, setting(1), until(99)).attributes
    peaks = [each["peak_memory_bytes"] for each in attributes[TRIAL_HISTORY]]
    assert attributes[TRIAL_MACHINE]["peak_memory_bytes"] == max(peaks)


def test_what_its_tensors_should_hold_is_noted_beside_it(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], small_corpus: TokenizedCorpus
) -> None:
    machine = run_trial(trial, {"dropout": 0.1}, setting(1), until(99)).attributes[TRIAL_MACHINE]
    text = 4 * small_corpus.tokens("train")
    assert text < machine["predicted_peak_bytes"] < text + 20 * 2**20  # a network of 100 KB that is read 4,096 tokens
    assert machine["predicted_peak_bytes"] < machine["peak_memory_bytes"]  # which holds Python and its libraries too
