"""Studies from one database to another: nothing is lost on the way, and the copy goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

import hpo.transfer.copying
from hpo.cli import app
from hpo.database import tables
from hpo.database.connection import Database
from hpo.errors import StorageError, StudyError
from hpo.home import Home
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import SlotCounts, Slots
from hpo.sweep.sweep import Sweep, find_sweep, load_study, open_sweep, study_names
from hpo.transfer.copying import copy_studies
from hpo_reports.records.names import STUDY_COPYING, STUDY_RECORD
from tests.support.sweeps import (
    COMPLETE,
    DIVERGED,
    FAIL,
    PRUNED,
    Crash,
    complete,
    contents,
    crash_at_commit,
    make_sweep,
    opened,
    run_slot,
    set_slot,
    slot_row,
)

PRUNER = {"kind": "successive_halving"}
MIDDLE = SlotCounts(done=4, leased=1, released=2, open=2)  # of a sweep that is `eventful`


@pytest.fixture
def url(new_url: Callable[[str], str]) -> str:
    return new_url("sqlite")


@pytest.fixture
def source(url: str) -> Iterator[Database]:
    with opened(url) as database:
        yield database


@pytest.fixture(params=["postgresql", "sqlite"])
def target_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    return new_url(request.param)


def eventful(database: Database, name: str = "toy") -> Sweep:
    """A sweep in the middle: every kind of slot and of trial."""
    sweep = make_sweep(database, name=name, trials=9, pruner=PRUNER)
    for outcome in (complete(3.0), PRUNED, DIVERGED, FAIL):
        run_slot(sweep, outcome)
    for slot in (4, 5, 6, 7):
        lease = sweep.slots.claim(f"worker-{slot}", 9)
        assert lease is not None
        assert lease.slot == slot
        if slot == 7:
            continue  # left before its trial began
        trial = sweep.start(lease)
        trial.suggest_float("dropout", 0.0, 0.4)
        trial.report(5.0, 1)
        trial.report(float("inf"), 3)
        trial.set_user_attr("note", {"Φ": [1, None, "two"]})
        trial.should_prune()
        if slot == 6:
            assert sweep.slots.finish(lease, complete(2.0))
    for slot, died in ((4, True), (5, False), (6, True), (7, True)):
        sweep.slots.release_owner(f"worker-{slot}", crashed=died)
    lease = sweep.slots.claim("expired", 9)
    assert lease is not None
    assert lease.slot == 6
    set_slot(database, sweep.study_id, 6, expires_at=0.0)
    sweep.row.request_stop()
    return sweep


def copied(source: str, target: str, name: str | None = None) -> list[str]:
    return list(copy_studies(source, target, name, Home(Path("no-home-here"))))


def fresh(database: Database, name: str) -> list[FrozenTrial]:
    """The trials as they are stored, without their ids."""
    study = load_study(database, name)
    trials = database.storage._inner._backend.get_all_trials(study._study_id)  # type: ignore[attr-defined]
    for trial in trials:
        trial._trial_id = 0
    return trials


def slots(database: Database, name: str) -> list[dict[str, Any]]:
    study_id = load_study(database, name)._study_id
    rows = [slot_row(database, study_id, number) for number in range(9)]
    return [{name: value for name, value in row.items() if name not in ("study_id", "expires_at")} for row in rows]


def refusal(kind: type[Exception], source: str, target: str, name: str | None = None) -> str:
    with pytest.raises(kind, match=r"\A[^\n]+\Z") as caught:
        copied(source, target, name)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- what is kept


def test_there_and_back_a_study_is_the_same(url: str, source: Database, new_url: Callable[[str], str]) -> None:
    original = eventful(source)
    there, back = new_url("postgresql"), new_url("sqlite")
    assert copied(url, there) == copied(there, back, "toy") == ["toy: 7 trials, 9 slots"]
    with opened(there) as first, opened(back) as second:
        for copy in (first, second):
            assert fresh(copy, "toy") == fresh(source, "toy")
            found = open_sweep(copy, "toy")
            assert dataclasses.replace(found.record, uid=original.uid) == original.record
            assert found.uid != original.uid, "else both would write to the same checkpoints"
            assert found.row.stop_requests() == 0
            assert found.study.metric_names == original.study.metric_names
            assert attributes(found.study) == attributes(original.study)
            assert slots(copy, "toy") == [
                {**row, "owner": None} if row["number"] == 6 else row for row in slots(source, "toy")
            ]
    trials = fresh(source, "toy")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL", *["RUNNING"] * 3]
    assert trials[2].constraints == {"diverged": 1.0}
    assert trials[4].intermediate_values == {1: 5.0, 3: float("inf")}
    assert "completed_rung_0" in trials[4].system_attrs
    assert [row["crash_count"] for row in slots(source, "toy")] == [0, 0, 0, 0, 1, 0, 1, 1, 0]


def attributes(study: optuna.Study) -> dict[str, Any]:
    """What a study's users have set."""
    return {name: value for name, value in study.user_attrs.items() if name not in (STUDY_COPYING, STUDY_RECORD)}


def test_the_source_is_left_as_it_is(url: str, source: Database, target_url: str) -> None:
    eventful(source)
    before = contents(source)
    copied(url, target_url)
    assert contents(source) == before


def test_the_copy_goes_on_where_the_original_stands(url: str, source: Database, target_url: str) -> None:
    eventful(source)
    copied(url, target_url)
    with opened(target_url) as target:
        sweep = open_sweep(target, "toy")
        assert sweep.slots.counts(None) == MIDDLE
        finishing = sweep.slots.claim("new", 9)
        assert finishing is not None
        assert (finishing.slot, finishing.trial_number, finishing.result) == (6, 6, complete(2.0))
        with sweep.holding(finishing):
            sweep.finalize(finishing, 6, complete(2.0))
        assert [run_slot(sweep, COMPLETE) for _ in range(4)] == [4, 5, 7, 8]
        trials = fresh(target, "toy")
        assert [trial.number for trial in trials] == list(range(9))
        assert all(trial.state.is_finished() for trial in trials)
        assert trials[6].value == 2.0
        assert sweep.slots.counts(None) == SlotCounts(done=9)
        make_sweep(target, name="another")


def test_a_worker_that_the_original_lost_has_no_lease_on_the_copy(url: str, source: Database, target_url: str) -> None:
    sweep = make_sweep(source, name="toy")
    lease = sweep.slots.claim("worker", 10)
    assert lease is not None
    sweep.start(lease)
    set_slot(source, sweep.study_id, 0, expires_at=0.0)
    copied(url, target_url)
    with opened(target_url) as target:
        copy = open_sweep(target, "toy")
        assert copy.slots.counts(None) == SlotCounts(released=1, open=9)
        taken = copy.slots.claim("new", 10)
        assert taken is not None
        assert (taken.slot, taken.trial_number, taken.fencing_token) == (0, 0, 2)


def test_all_studies_are_copied_or_the_named_one(url: str, source: Database, new_url: Callable[[str], str]) -> None:
    for name in ("a", "b", "c"):
        run_slot(make_sweep(source, name=name, trials=2), COMPLETE)
    one, every = new_url("sqlite"), new_url("sqlite")
    assert copied(url, one, "b") == ["b: 1 trials, 2 slots"]
    assert copied(url, every) == [f"{name}: 1 trials, 2 slots" for name in "abc"]
    with opened(one) as first, opened(every) as second:
        assert study_names(first) == ["b"]
        assert study_names(second) == ["a", "b", "c"]


def test_a_study_of_plain_optuna_is_copied_too(url: str, source: Database, target_url: str) -> None:
    theirs = optuna.create_study(
        storage=source.storage, study_name="theirs", directions=["minimize", "maximize"], sampler=TWO
    )
    theirs.enqueue_trial({"x": 0.5})
    theirs.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_categorical("c", ["a", None])), 3)
    theirs.enqueue_trial({"x": 0.25})
    theirs.set_user_attr("note", "Φ")
    assert copied(url, target_url) == ["theirs: 4 trials, 0 slots"]
    with opened(target_url) as target:
        copy = load_study(target, "theirs")
        assert copy.directions == theirs.directions
        assert attributes(copy) == {"note": "Φ"}
        assert fresh(target, "theirs") == fresh(source, "theirs")
        assert copy.ask().suggest_float("x", 0, 1) == 0.25
        assert not sa.inspect(target.engine).has_table("hpo_slots")


TWO = optuna.samplers.RandomSampler(seed=1)


def test_a_study_of_two_objectives_keeps_both(url: str, source: Database, target_url: str) -> None:
    original = make_sweep(source, name="two", objectives=["val_loss", "phi"], pruner={"kind": "none"}, trials=2)
    run_slot(original, TrialResult(state="COMPLETE", values=(4.0, 0.8)))
    copied(url, target_url)
    with opened(target_url) as target:
        copy = open_sweep(target, "two")
        assert copy.study.directions == original.study.directions
        assert copy.study.metric_names == original.study.metric_names
        assert [trial.values for trial in copy.front()] == [[4.0, 0.8]]


def test_ours_and_theirs_are_copied_together(url: str, source: Database, target_url: str) -> None:
    make_sweep(source, name="ours", trials=2)
    optuna.create_study(storage=source.storage, study_name="theirs")
    assert copied(url, target_url) == ["ours: 0 trials, 2 slots", "theirs: 0 trials, 0 slots"]


def test_times_are_kept_to_the_second(url: str, source: Database, target_url: str) -> None:
    began = datetime.datetime(2020, 2, 29, 12, 30, 45)
    ended = began + datetime.timedelta(hours=1)
    study = optuna.create_study(storage=source.storage, study_name="toy")
    trial = optuna.create_trial(value=1.0)
    trial.datetime_start, trial.datetime_complete = began, ended
    study.add_trial(trial)
    copied(url, target_url)
    with opened(target_url) as target:
        (found,) = fresh(target, "toy")
        assert (found.datetime_start, found.datetime_complete) == (began, ended)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e-300])
def test_values_without_an_ordinary_number_are_kept(value: float, url: str, source: Database, target_url: str) -> None:
    study = optuna.create_study(storage=source.storage, study_name="toy")
    study.add_trial(optuna.create_trial(value=value, intermediate_values={1: value, 2: float("nan")}))
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED, value=value))
    copied(url, target_url)
    with opened(target_url) as target:
        complete_, pruned = fresh(target, "toy")
        assert (complete_.value, pruned.value) == (value, value)
        assert complete_.intermediate_values[1] == value
        assert complete_.intermediate_values[2] != complete_.intermediate_values[2]


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_study_at_work_is_not_copied(url: str, source: Database, target_url: str) -> None:
    sweep = make_sweep(source, name="toy")
    lease = sweep.slots.claim("worker-0@host", 10)
    assert lease is not None
    sweep.start(lease)
    message = refusal(StudyError, url, target_url)
    assert message == "study 'toy': worker-0@host at work; `hpo stop toy` first"
    assert sweep.slots.release(lease)
    assert copied(url, target_url) == ["toy: 1 trials, 10 slots"]


def test_a_worker_that_is_about_to_begin_its_trial_is_at_work(url: str, source: Database, target_url: str) -> None:
    assert make_sweep(source, name="toy").slots.claim("worker-0@host", 10) is not None
    assert "worker-0@host at work" in refusal(StudyError, url, target_url)


def test_one_study_at_work_does_not_keep_another_from_being_copied(url: str, source: Database, target_url: str) -> None:
    sweep = make_sweep(source, name="busy")
    lease = sweep.slots.claim("worker", 10)
    assert lease is not None
    sweep.start(lease)
    make_sweep(source, name="idle", trials=2)
    assert copied(url, target_url, "idle") == ["idle: 0 trials, 2 slots"]
    assert "'busy': worker at work" in refusal(StudyError, url, target_url)


def test_a_study_that_the_target_has_is_not_overwritten(url: str, source: Database, target_url: str) -> None:
    eventful(source)
    make_sweep(source, name="another")
    with opened(target_url) as target:
        run_slot(make_sweep(target, name="toy"), COMPLETE)
        before = contents(target)
        assert refusal(StudyError, url, target_url) == "study 'toy' is in the target already; nothing was copied"
        assert contents(target) == before
    assert copied(url, target_url, "another") == ["another: 0 trials, 10 slots"]
    assert "'another' is in the target already" in refusal(StudyError, url, target_url, "another")


def test_a_database_is_not_copied_into_itself(url: str, source: Database) -> None:
    eventful(source)
    before = contents(source)
    assert "is in the target already" in refusal(StudyError, url, url)
    assert contents(source) == before


def test_an_unknown_study_is_not_copied(url: str, source: Database, tmp_path: Any) -> None:
    make_sweep(source, name="toy")
    target = f"sqlite:///{tmp_path}/target.db"
    assert refusal(StudyError, url, target, "nothing") == "unknown study 'nothing': there are toy"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["source", "target"])
def test_what_is_no_database_is_named(place: str, url: str, source: Database, tmp_path: Any) -> None:
    make_sweep(source, name="toy")
    (tmp_path / "notes.txt").write_text("not a database\n" * 1000)
    bad = f"sqlite:///{tmp_path}/notes.txt"
    pair = (bad, url) if place == "source" else (url, bad)
    assert refusal(StorageError, *pair).startswith(f"{bad}: file is not a database")


def test_a_source_that_is_not_there_is_not_made(url: str, tmp_path: Any) -> None:
    assert "no such database" in refusal(StorageError, f"sqlite:///{tmp_path}/none.db", url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["source", "target"])
def test_slots_of_an_older_version_are_named_and_left_as_they_are(
    place: str, url: str, source: Database, target_url: str
) -> None:
    run_slot(make_sweep(source, name="toy"), COMPLETE)
    with opened(target_url) as target:
        run_slot(make_sweep(target, name="another"), COMPLETE)
        older = source if place == "source" else target
        for statement in ("DROP TABLE hpo_schema", "ALTER TABLE hpo_studies DROP COLUMN stops"):
            with older.engine.begin() as connection:
                connection.exec_driver_sql(statement)
        before = contents(older)
        assert "older schema 1; `hpo storage upgrade` brings it to 2" in refusal(StorageError, url, target_url)
        assert contents(older) == before
        assert tables.version(older.engine) == 1


def test_a_copy_has_checkpoints_of_its_own(url: str, source: Database, target_url: str, tmp_path: Path) -> None:
    original, home = eventful(source), Home(tmp_path)
    first = home.trial("toy", original.uid, 0) / "checkpoint-1.pt"
    first.parent.mkdir(parents=True)
    first.write_text("the original's")
    list(copy_studies(url, target_url, "toy", home))
    with opened(target_url) as target:
        second = home.trial("toy", open_sweep(target, "toy").uid, 0) / "checkpoint-1.pt"
    assert second.read_text() == "the original's"
    second.unlink()  # as tidying does
    assert first.read_text() == "the original's"


# ---------------------------------------------------------------------------------------------- interruptions


def test_a_copy_that_was_interrupted_anywhere_is_begun_again(
    url: str, source: Database, new_url: Callable[[str], str], ready_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventful(source)
    lost, crashes = [], 0
    for place in itertools.count(1):
        target_url = new_url("sqlite")
        shutil.copyfile(ready_file, str(sa.make_url(target_url).database))
        with opened(target_url) as target:
            with monkeypatch.context() as patch:
                patch.setattr(hpo.transfer.copying, "open_database", lambda url, create: target if create else source)
                try:
                    with crash_at_commit(target, place, "after"):
                        copied(url, target_url)
                except Crash:
                    crashes += 1
                else:
                    break  # that many transactions there are not
            with contextlib.suppress(StudyError):  # it was whole
                assert copied(url, target_url) == ["toy: 7 trials, 9 slots"]
            held = Slots(target, load_study(target, "toy")._study_id)
            if fresh(target, "toy") != fresh(source, "toy") or held.counts(None) != MIDDLE:
                lost.append(place)
    assert crashes > 12
    assert not lost, "transactions after which half a copy stayed"


def test_a_copy_of_a_copy_that_was_interrupted_is_begun_again(
    url: str, source: Database, new_url: Callable[[str], str]
) -> None:
    eventful(source)
    first, second = new_url("sqlite"), new_url("sqlite")
    copied(url, first)
    interrupt(first, second)
    assert copied(first, second) == ["toy: 7 trials, 9 slots"]


def interrupt(source: str, target: str) -> None:
    """Copy, and end after the second trial."""
    with after_two_trials(crash), pytest.raises(Crash):
        copied(source, target)


def crash() -> None:
    raise Crash


@contextlib.contextmanager
def after_two_trials(happening: Callable[[], object]) -> Iterator[None]:
    """Let something happen in the middle of a copy."""
    real, calls = optuna.storages._CachedStorage.create_new_trial, itertools.count(1)

    def create(*arguments: Any, **named: Any) -> int:
        if next(calls) == 3:
            happening()
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.storages._CachedStorage, "create_new_trial", create)
        yield


def test_of_two_that_copy_at_once_one_makes_the_copy(url: str, source: Database, target_url: str) -> None:
    eventful(source)
    with after_two_trials(lambda: copied(url, target_url)):
        assert "copied by another process at the same time" in refusal(StudyError, url, target_url)
    with opened(target_url) as target:
        assert fresh(target, "toy") == fresh(source, "toy")
        assert open_sweep(target, "toy").slots.counts(None) == MIDDLE


def test_half_a_copy_is_not_run(url: str, source: Database, target_url: str) -> None:
    eventful(source)
    interrupt(url, target_url)
    with opened(target_url) as target, pytest.raises(StudyError):
        find_sweep(target, "toy")


def test_half_a_copy_is_not_copied(url: str, source: Database, target_url: str, new_url: Callable[[str], str]) -> None:
    eventful(source)
    interrupt(url, target_url)
    refusal(StudyError, target_url, new_url("sqlite"))


def test_slots_of_a_deleted_study_are_not_mixed_with_the_copy_s(
    url: str, source: Database, new_url: Callable[[str], str]
) -> None:
    run_slot(make_sweep(source, name="toy", trials=2), PRUNED)
    target_url = new_url("sqlite")  # where a deleted study's number comes round again
    with opened(target_url) as target:
        run_slot(make_sweep(target, name="deleted", trials=5), COMPLETE)
        optuna.delete_study(study_name="deleted", storage=target.storage)
        assert copied(url, target_url) == ["toy: 1 trials, 2 slots"]
        assert open_sweep(target, "toy").slots.counts(None) == SlotCounts(done=1, open=1)


def test_the_command_tells_what_it_copied(url: str, source: Database, target_url: str) -> None:
    run_slot(make_sweep(source, name="a", trials=2), TrialResult(state="FAIL"))
    make_sweep(source, name="b", trials=3)
    told = CliRunner().invoke(app, ["storage", "copy", url, target_url, "--study", "b"])
    assert (told.exit_code, told.stdout) == (0, "b: 0 trials, 3 slots\n")
    again = CliRunner().invoke(app, ["storage", "copy", url, target_url])
    assert isinstance(again.exception, StudyError)
