"""One trial, without processes: pruning decisions, interruptions, outcomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from toy_sweeps import make_spec

import hpo.objective
from hpo.objective import Interrupted, TrialSetting, deadly, newest_checkpoint, run_trial, tidy
from model.evaluation import Evaluation
from model.tokens import TokenizedCorpus

SMALL = {
    "preset": "nano",
    "width": 32,
    "heads": 2,
    "sequence_length": 32,
    "batch_size": 2,
    "budget_tokens": 1280,
    "evaluations": 5,
    "evaluation_tokens": 128,
}


@pytest.fixture
def setting(small_corpus: TokenizedCorpus, tmp_path: Path) -> Callable[[int], TrialSetting]:
    spec = make_spec(run=SMALL)

    def lease(epoch: int) -> TrialSetting:
        return TrialSetting(spec=spec, corpus=small_corpus, folder=tmp_path / "trial", epoch=epoch, device="cpu")

    return lease


@pytest.fixture
def trial() -> optuna.Trial:
    return optuna.create_study().ask()


def behind_at(milestone: int, asked: list[int]) -> Callable[..., bool]:
    def is_behind(spec: object, trial: optuna.Trial, at: int) -> bool:
        asked.append(at)
        return at == milestone

    return is_behind


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
    assert [each["val_loss"] for each in outcome.attributes["hpo:history"]] == list(losses.values())
    assert outcome.attributes["hpo:run"]["dropout"] == 0.1


def test_a_stop_does_not_take_a_pruning_decision_away(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.objective, "is_behind", behind_at(3, asked := []))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(1), until(3))
    assert (outcome.state, asked) == ("PRUNED", [1, 2, 3])


def test_a_milestone_whose_pruning_was_never_asked_for_is_asked_for_on_return(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(spec: object, trial: optuna.Trial, milestone: int) -> bool:
        if milestone == 3:
            raise OSError("killed between checkpoint and decision")
        return False

    monkeypatch.setattr(hpo.objective, "is_behind", crash)
    with pytest.raises(OSError, match="killed"):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(99))
    monkeypatch.setattr(hpo.objective, "is_behind", behind_at(3, asked := []))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(2), until(99))
    assert (outcome.state, asked, len(outcome.attributes["hpo:history"])) == ("PRUNED", [3], 3)


def test_an_interrupted_trial_goes_on_from_its_newest_checkpoint(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    with pytest.raises(Interrupted, match="stopped at"):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))
    outcome = run_trial(trial, {"dropout": 0.1}, setting(2), until(99))
    assert outcome.attributes["hpo:continued"] == 1
    assert [each["milestone"] for each in outcome.attributes["hpo:history"]] == [1, 2, 3, 4, 5]
    folder = setting(2).folder
    tidy(folder, outcome)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2.pt"]


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    with pytest.raises(Interrupted):
        run_trial(trial, {"dropout": 0.1}, setting(1), until(2))
    folder = setting(1).folder
    (folder / "checkpoint-2.pt").write_bytes(b"garbage")
    path, history = newest_checkpoint(folder)
    assert path == folder / "checkpoint-1.pt"
    assert len(history) == 2
    assert (folder / "checkpoint-2.pt.damaged").is_file()


def test_values_that_do_not_go_together_are_an_outcome(
    trial: optuna.Trial, setting: Callable[[int], TrialSetting]
) -> None:
    outcome = run_trial(trial, {"dropout": 0.1, "heads": 3}, setting(1), until(99))
    assert (outcome.state, outcome.violations) == ("PRUNED", ("invalid",))
    assert "heads must divide width" in outcome.attributes["hpo:reason"]


def test_a_trial_over_which_processes_die_is_avoided() -> None:
    outcome = deadly(3, Path("worker.log"))
    assert (outcome.state, outcome.violations) == ("PRUNED", ("process_died",))
    assert "died 3 times; see worker.log" in outcome.attributes["hpo:reason"]
