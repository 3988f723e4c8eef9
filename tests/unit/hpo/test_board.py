"""What is known about a running study: totals, best trials, who still works, and the words for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

import hpo.monitor.board
from hpo.database.connection import Database
from hpo.monitor.board import (
    Board,
    EndedTrial,
    Update,
    clock,
    describe_best,
    describe_ended,
    describe_parameters,
    wait_until_idle,
)
from hpo.sweep.result import TrialResult
from hpo_reports.records.names import TRIAL_HISTORY
from tests.support.sweeps import (
    COMPLETE,
    complete,
    lost_connection,
    make_evaluation,
    make_event,
    make_sweep,
    make_update,
    run_slot,
)

# ---------------------------------------------------------------------------------------------- totals


def test_totals_without_a_best_trial(board: Board) -> None:
    assert board.summary() == "0/10 trials"
    assert board.ending() == "0 of 10 trials finished"
    assert board.seconds_left() is None
    assert not board.is_over()


def test_totals_with_a_best_trial(board: Board) -> None:
    run_slot(board.sweep, complete(4.0))
    run_slot(board.sweep, complete(3.0))
    board.apply(make_update(board, "finished", trial=1, result=COMPLETE))
    assert board.summary().startswith("2/10 trials · best value 3 (trial 1) · ")
    assert board.summary().endswith(" left")
    assert board.ending() == "2 of 10 trials finished · best value 3 (trial 1)"


def test_totals_of_two_objectives_name_both_ends_of_the_front(own: Database) -> None:
    board = Board(make_sweep(own, objectives=["val_loss", "phi"], pruner={"kind": "none"}), slot_limit=10)
    for values in ((4.0, 0.9), (3.0, 0.7), (3.5, 0.8), (5.0, 0.85)):
        run_slot(board.sweep, TrialResult(state="COMPLETE", values=values))
    board.refresh()
    assert board.ending() == "4 of 10 trials finished · front of 3, from value 3 (trial 1) to Φ 0.9000 (trial 0)"
    event = make_event("finished", trial=1, result=TrialResult(state="COMPLETE", values=(3.0, 0.7)))
    assert describe_ended(EndedTrial.of_event(event)).startswith("trial 1 complete: Φ 0.7000, ")


def test_the_time_left_counts_this_session_s_trials_alone(own: Database) -> None:
    sweep = make_sweep(own)
    for _ in range(4):
        run_slot(sweep, COMPLETE)
    board = Board(sweep, slot_limit=10)
    assert board.seconds_left() is None
    run_slot(sweep, COMPLETE)
    run_slot(sweep, COMPLETE)
    board.refresh()
    board.started_at -= 60  # two trials in a minute
    assert board.seconds_left() == pytest.approx(120, abs=5)


def test_nothing_is_left_when_all_are_done(own: Database) -> None:
    sweep = make_sweep(own)
    board = Board(sweep, slot_limit=1)
    run_slot(sweep, COMPLETE)
    board.refresh()
    assert board.is_over()
    assert board.summary() == "1/1 trials · best value 4 (trial 0)"


def test_a_search_that_stopped_improving_is_over(own: Database) -> None:
    board = Board(make_sweep(own, stopping={"trials_without_improvement": 2}), slot_limit=10)
    for loss in (1.0, 2.0, 2.0):
        assert not board.is_over()
        run_slot(board.sweep, complete(loss))
        board.refresh()
    assert board.is_over()
    assert board.ending() == "3 of 10 trials finished · ended after 2 without improvement · best value 1 (trial 0)"


def test_speed_is_that_of_all_workers_together(board: Board) -> None:
    for place, speed in enumerate((1000.0, 2000.0)):
        evaluation = make_evaluation(tokens_per_s=speed)
        board.apply(
            Update.of_event(
                make_event("evaluated", trial=place, worker=f"worker-{place}", evaluation=evaluation), board.evaluations
            )
        )
    assert board.tokens_per_s() == 3000.0
    board.apply(make_update(board, "waiting", worker="worker-0"))
    assert board.tokens_per_s() == 2000.0


def test_a_board_without_a_number_of_slots_is_about_all_there_are(own: Database) -> None:
    sweep = make_sweep(own, trials=3)
    board = Board(sweep)
    assert board.total == 3
    sweep.slots.ensure(5)
    run_slot(sweep, COMPLETE)
    board.refresh()
    assert (board.total, board.ending()) == (5, "1 of 5 trials finished · best value 4 (trial 0)")
    assert Board(sweep, slot_limit=2).total == 2


def test_what_was_known_stands_while_the_database_is_away(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    run_slot(board.sweep, COMPLETE)
    board.refresh()
    errors: list[Exception] = [sa.exc.OperationalError("SELECT", {}, lost_connection(board.sweep.database.engine))]
    monkeypatch.setattr(board.sweep.slots, "counts", lambda total: raise_(errors[-1]))
    board.apply(make_update(board, "finished", trial=1, result=COMPLETE))
    assert board.counts.done == 1
    with pytest.raises(sa.exc.OperationalError):
        board.refresh()  # when somebody has to know
    errors.append(ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        board.apply(make_update(board, "finished", trial=1, result=COMPLETE))


def raise_(error: Exception) -> None:
    raise error


# ---------------------------------------------------------------------------------------------- who still works


class Lull:
    """Stands for `time`: at each pause something happens."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.left = list(happenings)

    def sleep(self, pause_s: float) -> None:
        assert pause_s > 0
        self.left.pop(0)()


def test_without_workers_nobody_is_waited_for(own: Database, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    monkeypatch.setattr(hpo.monitor.board, "time", Lull())
    wait_until_idle(make_sweep(own).slots)
    assert log == ["no worker is left"]


def test_workers_are_waited_for_and_named_when_they_change(
    own: Database, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    sweep = make_sweep(own)
    leases = {owner: sweep.slots.claim(owner, 10) for owner in ("b", "a")}
    for lease in leases.values():
        assert lease is not None
        sweep.start(lease)
    steps = [sweep.row.stop_requests, *(lambda lease=lease: sweep.slots.release(lease) for lease in leases.values())]
    monkeypatch.setattr(hpo.monitor.board, "time", Lull(*steps))
    wait_until_idle(sweep.slots)
    assert log == ["at work: a, b", "at work: a", "no worker is left"]


def test_a_worker_that_is_about_to_begin_its_trial_is_waited_for(
    own: Database, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    slots = make_sweep(own).slots
    slots.claim("worker", 10)
    monkeypatch.setattr(hpo.monitor.board, "time", Lull(lambda: slots.release_owner("worker", crashed=False)))
    wait_until_idle(slots)
    assert log == ["at work: worker", "no worker is left"]


# ---------------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([{"val_ppl": 9.0}, {"val_ppl": 131.204}], "val ppl 131.20 (trial 7)"),
        ([{"val_ppl": None}], "value 4.877 (trial 7)"),
        ([], "value 4.877 (trial 7)"),
        (None, "value 4.877 (trial 7)"),
    ],
)
def test_the_best_trial_is_told_in_perplexity_where_it_is_known(history: Any, expected: str) -> None:
    attributes = {} if history is None else {TRIAL_HISTORY: history}
    trial = create_trial(state=TrialState.COMPLETE, value=4.87654, user_attrs=attributes)
    trial.number = 7
    assert describe_best([trial], 1) == f"best {expected}"


def test_parameters_are_told_in_four_digits() -> None:
    parameters = {"learning_rate": 1.23456e-05, "dropout": 0.1, "layers": 12345, "iit": False, "blocks": "attention"}
    expected = "learning_rate=1.235e-05 dropout=0.1 layers=12345 iit=False blocks=attention"
    assert describe_parameters(parameters) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0:00"),
        (4.6, "0:05"),
        (59.6, "1:00"),
        (245, "4:05"),
        (3599.4, "59:59"),
        (3600, "1:00:00"),
        (90_061, "25:01:01"),
    ],
)
def test_the_clock(seconds: float, expected: str) -> None:
    assert clock(seconds) == expected


def test_an_outcome_without_words_is_told_by_its_state() -> None:
    event = make_event("finished", trial=3, result=TrialResult(state="FAIL"))
    assert describe_ended(EndedTrial.of_event(event)).startswith("trial 3 fail: ")
