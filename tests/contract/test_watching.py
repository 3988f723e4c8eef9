"""`hpo watch`: which changes it shows, how it ends, and what a webhook gets."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import hpo.monitor.watch
import hpo.monitor.webhook
from hpo.cli import app
from hpo.commands.options import timeout_in_s
from hpo.database.connection import Database, open_database
from hpo.errors import UsageError
from hpo.monitor.board import Board
from hpo.monitor.watch import Change, Ending, Watched, watch_study
from hpo.sweep.sweep import Sweep
from tests.support.receiver import Receiver
from tests.support.sweeps import COMPLETE, FAIL, PRUNED, complete, make_sweep, run_slot


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('watching')}/studies.db"


@pytest.fixture(scope="module")
def own(url: str) -> Iterator[Database]:
    database = open_database(url, create=True)
    yield database
    database.engine.dispose()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.monitor.watch, "PULSE_S", 0.02)
    monkeypatch.setattr(hpo.monitor.watch, "IDLE_S", 0.3)
    monkeypatch.setattr(hpo.monitor.watch, "BETWEEN_TRIALS_S", 0.1)
    monkeypatch.setattr(hpo.monitor.webhook, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def look(watched: Watched) -> list[Change]:
    return [change for change, _ in watched.look()]


def hpo_watch(url: str, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["watch", *arguments, "--storage", url])


# ---------------------------------------------------------------------------------------------- changes


def test_every_change_is_told_once(own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    watched = Watched(sweep, Board(sweep))
    assert [change.event for change in look(watched)] == ["watching"]
    assert look(watched) == []

    lease = sweep.slots.claim("worker-0@here-abc", None)
    assert lease is not None
    trial = sweep.start(lease)
    assert [change.event for change in look(watched)] == ["workers"]  # its parameters are not drawn yet
    value = trial.suggest_float("dropout", 0.0, 0.4)
    (started,) = look(watched)
    assert (started.event, started.trial, started.parameters) == ("trial_started", 0, {"dropout": value})
    trial.report(4.5, 3)
    (evaluated,) = look(watched)
    assert (evaluated.milestone, evaluated.evaluations, evaluated.val_loss) == (3, 10, 4.5)
    row = watched.board.workers["worker-0@here"]
    assert (row.trial, row.milestone, row.val_ppl) == (0, 3, pytest.approx(90.017131))
    assert sweep.slots.finish(lease, COMPLETE)
    sweep.finalize(lease, trial.number, COMPLETE)
    left, ended = look(watched)
    assert (left.event, left.workers) == ("workers", ())
    assert (ended.event, ended.outcome, ended.values, ended.done, ended.total) == (
        "trial_ended", "complete", (4.0,), 1, 2,
    )  # fmt: skip
    assert look(watched) == []


def test_a_loss_that_is_no_number_is_absent_from_json(own: Database) -> None:
    sweep = make_sweep(own, trials=1)
    watched = Watched(sweep, Board(sweep))
    look(watched)
    lease = sweep.slots.claim("worker", None)
    assert lease is not None
    trial = sweep.start(lease)
    trial.suggest_float("dropout", 0.0, 0.4)
    trial.report(float("inf"), 1)
    evaluated = look(watched)[-1]
    assert (evaluated.event, evaluated.milestone) == ("trial_evaluated", 1)
    assert "val_loss" not in evaluated.to_dict()
    assert watched.board.workers["worker"].val_ppl is None
    sweep.slots.release(lease)


# ---------------------------------------------------------------------------------------------- endings


def watch(sweep: Sweep, limit_s: float | None = 20.0) -> tuple[Ending, str]:
    file = io.StringIO()
    ending = watch_study(sweep, Console(file=file, width=40, _environ={}), limit_s)
    return ending, file.getvalue()


def test_a_finished_study_ends_well(own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    for _ in range(2):
        run_slot(sweep, COMPLETE)
    ending, text = watch(sweep)
    assert (ending.outcome, ending.exit_code) == ("finished", 0)
    assert text.splitlines()[-1] == "finished: 2 of 2 trials finished · best value 4 (trial 0)"
    assert ending.change.best_values == (4.0,)


def test_a_study_without_a_complete_trial_failed(own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    run_slot(sweep, PRUNED)
    run_slot(sweep, FAIL)
    ending, _ = watch(sweep)
    assert (ending.exit_code, ending.reason) == (3, "none of its 2 trials is complete")


def test_a_worker_that_gave_up_after_three_failures_is_a_failure(own: Database) -> None:
    sweep = make_sweep(own, trials=9)
    run_slot(sweep, complete(3.0))
    for _ in range(3):
        run_slot(sweep, FAIL)
    ending, _ = watch(sweep)
    assert (ending.outcome, ending.exit_code) == ("failed", 3)
    assert ending.reason.startswith("its last 3 trials failed, trial 3 by ")


def test_nobody_at_work_is_waited_for_then_told(own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    run_slot(sweep, COMPLETE)
    ending, text = watch(sweep)
    assert (ending.outcome, ending.exit_code) == ("nothing_running", 5)
    assert "nobody works on it now" in text


def test_a_worker_that_died_is_nobody_once_its_lease_is_over(own: Database) -> None:
    sweep = make_sweep(own, trials=2, lease_s=0.4)
    assert sweep.slots.claim("worker-0@here-abc", None) is not None
    began = time.monotonic()
    ending, text = watch(sweep)
    assert ending.exit_code == 5
    assert time.monotonic() - began > 0.6
    assert "at work: worker-0@here" in text


def test_the_time_limit_ends_the_watching_alone(own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    lease = sweep.slots.claim("worker", None)
    assert lease is not None
    ending, _ = watch(sweep, limit_s=0.1)
    assert (ending.outcome, ending.exit_code) == ("timeout", 4)
    assert sweep.slots.renew(lease)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_above_zero(minutes: float) -> None:
    with pytest.raises(UsageError, match="--timeout must be above 0 minutes"):
        timeout_in_s(minutes)


def between_looks(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen after the first look at the database and before the second."""
    real, looks = Watched.look, itertools.count()

    def look_and_act(watched: Watched) -> Iterator[tuple[Change, Any]]:
        if next(looks) == 1:
            act()
        return real(watched)

    monkeypatch.setattr(Watched, "look", look_and_act)


def test_trials_that_end_meanwhile_are_lines_or_a_table(own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(own, trials=2)
    run_slot(sweep, PRUNED)
    between_looks(monkeypatch, lambda: run_slot(sweep, COMPLETE))
    _, text = watch(sweep)
    assert "trial 1 complete: " in text
    assert "[2/2 trials · best value 4 (trial 1)" in text
    file = io.StringIO()
    assert watch_study(sweep, Console(file=file, force_terminal=True, width=120, _environ={}), None).exit_code == 0
    assert "finished: 2 of 2 trials finished" in file.getvalue()


# ---------------------------------------------------------------------------------------------- the command


def named(sweep: Sweep) -> str:
    sweep.publish()
    return sweep.spec.name


def test_json_is_one_object_a_line_and_the_exit_code_is_in_the_last(
    url: str, own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(own, trials=2)
    run_slot(sweep, PRUNED)
    between_looks(monkeypatch, lambda: run_slot(sweep, COMPLETE))
    result = hpo_watch(url, named(sweep), "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["event"] == "watching"
    assert {line["study"] for line in lines} == {sweep.spec.name}
    assert next(line for line in lines if line["event"] == "trial_ended")["outcome"] == "complete"
    assert (lines[-1]["event"], lines[-1]["outcome"], lines[-1]["best_trial"]) == ("study_ended", "finished", 1)
    assert result.exit_code == lines[-1]["exit_code"] == 0


@pytest.mark.parametrize(("outcome", "code"), [(COMPLETE, 0), (FAIL, 3)])
def test_a_webhook_hears_how_it_ended(url: str, own: Database, outcome: Any, code: int) -> None:
    sweep = make_sweep(own, trials=1)
    run_slot(sweep, outcome)
    receiver = Receiver()
    result = hpo_watch(url, named(sweep), "--notify", f"http://{receiver.host}/sesame")
    receiver.server.shutdown()
    receiver.server.server_close()
    assert result.exit_code == code
    (body,) = map(json.loads, receiver.bodies)
    assert (body["event"], body["exit_code"], body["study"]) == ("study_ended", code, sweep.spec.name)
    assert body["text"].startswith(f"study {sweep.spec.name} {body['outcome']}: ")


def test_a_webhook_that_is_not_there_changes_nothing(url: str, own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(own, trials=1)
    run_slot(sweep, COMPLETE)
    monkeypatch.setenv("HPO_NOTIFY", "http://127.0.0.1:9/sesame")
    result = hpo_watch(url, named(sweep))
    assert result.exit_code == 0
    assert "webhook http://127.0.0.1:9/***: not delivered" in result.stderr
    assert "sesame" not in result.output


def test_a_time_limit_is_not_worth_a_message(url: str, own: Database) -> None:
    sweep = make_sweep(own, trials=2)
    assert sweep.slots.claim("worker", None) is not None
    receiver = Receiver()
    result = hpo_watch(url, named(sweep), "--timeout", "0.001", "--notify", f"http://{receiver.host}/")
    receiver.server.shutdown()
    receiver.server.server_close()
    assert (result.exit_code, receiver.bodies) == (4, [])


def test_ctrl_c_ends_the_watching_alone(url: str, own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(own, trials=2)
    monkeypatch.setattr(hpo.monitor.watch.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    result = hpo_watch(url, named(sweep))
    assert result.exit_code == 130
    assert f"study {sweep.spec.name} goes on" in result.stderr


def test_a_database_that_goes_is_told_to_the_webhook(url: str, own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo.errors import StorageError

    sweep = make_sweep(own, trials=2)

    def gone(watched: Watched) -> Any:
        raise StorageError("sqlite:///x: disk I/O error")

    monkeypatch.setattr(Watched, "look", gone)
    receiver = Receiver()
    result = hpo_watch(url, named(sweep), "--notify", f"http://{receiver.host}/")
    receiver.server.shutdown()
    receiver.server.server_close()
    assert isinstance(result.exception, StorageError)
    (body,) = map(json.loads, receiver.bodies)
    assert (body["outcome"], body["exit_code"], body["reason"]) == ("failed", 1, "sqlite:///x: disk I/O error")


def test_an_unknown_study_and_a_bad_address_are_refused(url: str, own: Database, tmp_path: Path) -> None:
    make_sweep(own)
    assert "unknown study 'nobody'" in str(hpo_watch(url, "nobody").exception)
    assert "--notify takes a URL" in str(hpo_watch(url, "nobody", "--notify", "example.org").exception)
    assert "no such database" in str(hpo_watch(f"sqlite:///{tmp_path}/none.db", "nobody").exception)
