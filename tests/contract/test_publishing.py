"""Notes, figures and files for the dashboard: what is written, by whom, when, and what is left alone."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
from optuna_dashboard.artifact._backend import list_trial_artifacts

from hpo.dashboard import notes, publishing
from hpo.dashboard.freshness import states
from hpo.dashboard.notes import (
    Notes,
    PublishedVersion,
    is_ours,
    read_published_versions,
    remap_ids,
    signed,
    write_notes,
)
from hpo.dashboard.publishing import publish
from hpo.database.connection import Database
from hpo.home import Home
from hpo.study.search_space import suggest
from hpo.sweep.finalists import plan_finalists
from hpo.sweep.sweep import Sweep
from hpo.worker.artifacts import link_for_copy, offer
from hpo_reports.records.names import STUDY_LAST_RUN, STUDY_PUBLISHED
from tests.support.dashboard_study import attributes, home_in, make_study, run_slot
from tests.support.sweeps import PRUNED, complete, make_event, make_sweep
from tests.support.sweeps import run_slot as run_empty_slot

Open = Callable[..., Database]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_in(tmp_path)


@pytest.fixture
def lone(open_url: Open, sqlite_url: str) -> Database:
    return open_url(sqlite_url)


@pytest.fixture
def study(lone: Database, home: Home) -> Sweep:
    return make_study(lone, home)


def stamp_of(sweep: Sweep) -> PublishedVersion:
    """When the study's notes were written."""
    return read_published_versions(sweep.database).get(sweep.study_id, PublishedVersion())


def section_of_finalists(sweep: Sweep) -> str:
    """What the study's note says of its finalists."""
    return get_note(sweep.study).partition("## Finalists")[2].partition("\n## ")[0]


def studies_behind(database: Database) -> list[str]:
    """The studies whose notes do not show all that there is."""
    return [name for name, state in states(database).items() if state.is_stale]


def test_the_dashboard_reads_what_was_written(study: Sweep) -> None:
    shown = attributes(study.database, study.study_id)
    assert get_note(study.study).startswith("# Experiments")
    figures = {name: json.loads(text) for name, text in get_plotly_graph_objects(shown).items()}
    assert {"hpo-history", "hpo-curves", "hpo-slice-1"} <= set(figures)
    assert all({"data", "layout"} == set(figure) for figure in figures.values())
    for trial in study.study.get_trials():
        note = notes._stored_note(f"dashboard:{trial._trial_id}:", shown)
        assert note.startswith(f"**Trial {trial.number}: complete.**")
        files = list_trial_artifacts(shown, trial._system_attrs, trial)
        assert {each["filename"] for each in files} == {"history.csv", "checkpoint.pt"}
    assert study.study.metric_names == ["validation loss (nats per token)"]


def test_it_is_written_once_for_each_state(study: Sweep) -> None:
    before = attributes(study.database, study.study_id)
    assert publish(study.database, study.spec.name, final=True) == 0
    assert attributes(study.database, study.study_id) == before, "the time of writing among them"
    assert studies_behind(study.database) == []


def test_neither_the_last_run_nor_what_the_study_is_changes(study: Sweep) -> None:
    before, identity = study.study.user_attrs, study.spec.identity()
    study.slots.ensure(5)
    run_slot(study, Home(Path(study.database.engine.url.database or "").parent), 4.0)
    publish(study.database, study.spec.name, final=True)
    assert study.study.user_attrs == before
    assert STUDY_LAST_RUN not in before
    assert study.spec.identity() == identity


def test_in_a_hurry_nothing_is_written_before_its_time(study: Sweep, home: Home) -> None:
    study.slots.ensure(5)
    run_slot(study, home, 4.0)
    assert studies_behind(study.database) == [study.spec.name]
    left_s = publish(study.database, study.spec.name)
    assert 0 < left_s <= max(publishing.MIN_PERIOD_S, 100 * stamp_of(study).seconds)
    assert publish(study.database, study.spec.name, final=True) == 0
    assert stamp_of(study).finished == 5


def test_what_takes_long_is_done_seldom(study: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = PublishedVersion(finished=4, state="another", at=time.time() - 300, seconds=30.0)
    with study.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE study_system_attributes SET value_json = :text WHERE key = :key"),
            {"text": json.dumps(vars(slow)), "key": STUDY_PUBLISHED},
        )
    assert publish(study.database, study.spec.name) == pytest.approx(2700, abs=60), "a hundredth of the time"
    assert stamp_of(study) == slow


@pytest.mark.parametrize("content", [{"finished": 4, "version": 2}, {"count": 3}, [1]])
def test_what_another_version_has_marked_is_written_anew(content: object, study: Sweep) -> None:
    with study.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE study_system_attributes SET value_json = :text WHERE key = :key"),
            {"text": json.dumps(content), "key": STUDY_PUBLISHED},
        )
    assert studies_behind(study.database) == [study.spec.name]
    assert publish(study.database, study.spec.name, final=True) == 0
    assert stamp_of(study).finished == 4


def test_a_later_state_is_not_overwritten(study: Sweep) -> None:
    study_id = study.study_id
    earlier = Notes(stamp=PublishedVersion(finished=3), study="earlier")
    assert not write_notes(study.database, study_id, earlier)
    assert get_note(study.study).startswith("# Experiments")


def test_a_note_that_somebody_edited_is_theirs_until_it_is_empty(study: Sweep, home: Home) -> None:
    save_note(study.study, "mine " * 1000)  # the dashboard cuts it into pieces
    study.slots.ensure(6)
    run_slot(study, home, 4.0)
    publish(study.database, study.spec.name, final=True)
    assert get_note(study.study) == "mine " * 1000
    save_note(study.study, "")
    run_slot(study, home, 3.9)
    publish(study.database, study.spec.name, final=True)
    assert get_note(study.study).startswith("# Experiments")
    assert "mine" not in get_note(study.study)


@pytest.mark.parametrize("text", ["a note", "", "ends in a line end\n", "windows\r\nlines", "[//]: # (hpo 0000)"])
def test_a_signed_note_is_known_again_and_an_edited_one_is_not(text: str) -> None:
    assert is_ours(signed(text))
    assert is_ours(signed(text).rstrip())
    assert is_ours("")
    assert is_ours(" \n")
    assert not is_ours(f"more {signed(text)}")
    assert not is_ours(f"{signed(text)}more")
    assert not is_ours(text or "theirs")


def test_notes_and_figures_that_are_no_more_are_removed(study: Sweep) -> None:
    study_id = study.study_id
    notes_now = Notes(stamp=PublishedVersion(finished=5), study="new", trials={1: "one"}, figures={"history": "{}"})
    assert write_notes(study.database, study_id, notes_now)
    shown = attributes(study.database, study_id)
    assert set(get_plotly_graph_objects(shown)) == {"hpo-history"}
    assert {key for key in shown if "note_str" in key} == {"dashboard:note_str:0", "dashboard:1:note_str:0"}


def test_figures_of_others_stay(study: Sweep) -> None:
    study_id, storage = study.study_id, study.database.storage
    storage.set_study_system_attr(study_id, "dashboard:plot_data:theirs:0", "{}")
    write_notes(study.database, study_id, Notes(stamp=PublishedVersion(finished=5), study="new"))
    assert set(get_plotly_graph_objects(attributes(study.database, study_id))) == {"theirs"}


def test_a_study_of_another_program_is_left_alone(lone: Database) -> None:
    theirs = optuna.create_study(study_name="theirs", storage=lone.storage)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert publish(lone, "theirs", final=True) == 0
    assert studies_behind(lone) == []
    assert attributes(lone, theirs._study_id) == {}


def test_a_study_that_was_deleted_meanwhile_gets_nothing(study: Sweep) -> None:
    study_id = study.study_id
    optuna.delete_study(study_name=study.spec.name, storage=study.database.storage)
    assert not write_notes(study.database, study_id, Notes(stamp=PublishedVersion(finished=9), study="late"))
    with study.database.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM study_system_attributes")) == 0


def test_both_databases_take_notes(database: Database) -> None:
    sweep = make_sweep(database)
    run_empty_slot(sweep, PRUNED)
    assert sweep.spec.name in studies_behind(database)
    assert publish(database, sweep.spec.name, final=True) == 0
    assert get_note(sweep.study).startswith("# Experiments")
    assert sweep.spec.name not in studies_behind(database)


def test_two_that_write_at_once_leave_the_later_state(database: Database) -> None:
    sweep = make_sweep(database)
    study_id = sweep.study_id
    states = [
        Notes(stamp=PublishedVersion(finished=n), study=f"state {n}", trials={1: f"state {n}"}) for n in range(1, 9)
    ]
    threads = [threading.Thread(target=write_notes, args=(database, study_id, each)) for each in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert get_note(sweep.study).startswith("state 8")
    assert stamp_of(sweep).finished == 8


def test_of_very_many_trials_the_best_get_a_note(lone: Database, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MAX_TRIAL_NOTES", 2)
    sweep = make_study(lone, home)
    shown = attributes(lone, sweep.study_id)
    numbers = {int(key.split(":")[1]) - 1 for key in shown if key.endswith("note_str:0") and key.count(":") == 3}
    assert numbers == {0, 3}, "the baseline and the best"


def test_running_it_again_changes_no_note_but_what_is_noted_of_it_does(study: Sweep) -> None:
    study.study.set_user_attr(STUDY_LAST_RUN, time.time())
    assert studies_behind(study.database) == []
    study.study.set_user_attr("hpo:long_run:7", {"history": []})  # as a long run does while it goes on
    assert studies_behind(study.database) == [study.spec.name]
    assert publish(study.database, study.spec.name, final=True) == 0
    assert studies_behind(study.database) == []


def test_finalists_are_in_the_note_of_their_search(study: Sweep, sqlite_url: str) -> None:
    before = section_of_finalists(study)
    companion = plan_finalists(study, 1, 2)
    assert companion is not None
    for _ in range(companion.slots.counts(None).total):
        run_empty_slot(companion, complete(4.0))
    assert set(studies_behind(study.database)) == {study.spec.name, companion.spec.name}
    publishing.publish_quietly(sqlite_url, companion.spec.name, pytest.fail)
    assert studies_behind(study.database) == []
    assert "hpo replicate" in before
    assert "2 configurations, the baseline among them" in section_of_finalists(study)


def test_notes_of_trials_know_the_seed_noise_that_the_report_has_measured(study: Sweep, sqlite_url: str) -> None:
    def note_of_the_second() -> str:
        trial = study.study.get_trials()[1]
        shown = attributes(study.database, study.study_id)
        return notes._stored_note(f"dashboard:{trial._trial_id}:", shown)

    assert "Not distinguishable from the baseline with one run (9.5 % better in val PPL)." in note_of_the_second()
    companion = plan_finalists(study, 1, 6)
    assert companion is not None
    for place in range(companion.slots.counts(None).total):
        lease = companion.slots.claim("worker", None)
        assert lease is not None
        trial = companion.start(lease)
        suggest(companion.spec, trial)
        companion.finalize(lease, trial.number, complete(4.0 + 0.01 * (place // 2 % 3)))
    publishing.publish_quietly(sqlite_url, companion.spec.name, pytest.fail)
    assert "9.5 % better than the baseline in val PPL; one run, no verdict." in note_of_the_second()


# ------------------------------------------------------------------------------------------------------- who and when


def test_workers_news_are_published_beside_them_and_at_the_end(
    lone: Database, home: Home, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(lone)
    told: list[str] = []
    with publishing.publishing(sqlite_url, sweep.spec.name, told.append) as hear:
        run_empty_slot(sweep, PRUNED)
        hear(make_event("finished"))
        until = time.monotonic() + 60
        while stamp_of(sweep).finished < 1:
            assert time.monotonic() < until, told
            time.sleep(0.05)
        run_empty_slot(sweep, PRUNED)
        hear(make_event("finished"))
    assert stamp_of(sweep).finished == 2
    assert told == []


def test_a_failure_is_told_once_and_the_search_goes_on(
    sqlite_url: str, lone: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(lone)
    run_empty_slot(sweep, PRUNED)
    told: list[str] = []

    def broken(*arguments: object) -> Any:
        raise RuntimeError("no ink")

    monkeypatch.setattr(publishing, "_notes", broken)
    with publishing.publishing(sqlite_url, sweep.spec.name, told.append) as hear:
        for _ in range(3):
            hear(make_event("finished"))
            time.sleep(0.1)
    assert told == ["notes and figures for the dashboard were not written (no ink); nothing else is lost"]
    assert stamp_of(sweep) == PublishedVersion()


def test_a_dashboard_brings_all_studies_up_to_date(lone: Database, sqlite_url: str) -> None:
    sweeps = [make_sweep(lone) for _ in range(2)]
    for sweep in sweeps:
        run_empty_slot(sweep, PRUNED)
    with publishing.publishing_all(sqlite_url, lambda line: pytest.fail(line)):
        until = time.monotonic() + 60
        while studies_behind(lone):
            assert time.monotonic() < until
            time.sleep(0.05)


# -------------------------------------------------------------------------------------------------------------- files


def test_a_checkpoint_is_linked_not_copied(study: Sweep, home: Home) -> None:
    folder = home.trial(study.spec.name, study.uid, 0)
    [checkpoint] = folder.glob("checkpoint-*.pt")
    assert os.stat(checkpoint).st_nlink == 2
    assert {path.stat().st_ino for path in home.artifacts.iterdir()} >= {checkpoint.stat().st_ino}


def test_files_that_are_offered_again_stay_one(lone: Database, home: Home) -> None:
    sweep = make_sweep(lone)
    number = run_empty_slot(sweep, PRUNED)
    folder = home.trial(sweep.spec.name, sweep.uid, number)
    folder.mkdir(parents=True)
    (folder / "checkpoint-1.pt").write_bytes(b"one")
    (folder / "checkpoint-2.pt").write_bytes(b"two")
    trial_id = sweep.trial_id(number)
    for name in ("checkpoint-1.pt", "checkpoint-2.pt", "checkpoint-2.pt"):
        offer(lone, home, trial_id, folder, [{"milestone": 1}], [folder / name])
    assert sorted(path.read_bytes() for path in home.artifacts.iterdir()) == [b"milestone\n1\n", b"two"]


def test_a_trial_without_files_offers_none(lone: Database, home: Home) -> None:
    sweep = make_sweep(lone)
    number = run_empty_slot(sweep, PRUNED)
    offer(lone, home, sweep.trial_id(number), home.trial(sweep.spec.name, sweep.uid, number), (), [])
    assert list(home.artifacts.iterdir()) == []


def test_a_copy_has_notes_and_files_of_its_own(study: Sweep, home: Home, tmp_path: Path) -> None:
    shown = {
        "dashboard:note_ver": 1,
        "dashboard:7:note_ver": 2,
        "dashboard:8:note_str:0": "x",
        "dashboard:artifacts:7:a": 3,
    }
    assert remap_ids(shown, {7: 70}) == {
        "dashboard:note_ver": 1,
        "dashboard:70:note_ver": 2,
        "dashboard:artifacts:70:a": 3,
    }
    trial = study.study.get_trials()[0]
    own = link_for_copy(trial._system_attrs, home, home.trial("copy", "uid", 0))
    files = {
        json.loads(value)["filename"]: key.partition(":")[2]
        for key, value in own.items()
        if key.startswith("artifacts:")
    }
    assert set(files) == {"history.csv", "checkpoint.pt"}
    assert (home.artifacts / files["checkpoint.pt"]).read_bytes() == b"weights of 0"
    assert not set(own) & {key for key in trial._system_attrs if key.startswith("artifacts:")}


def test_evaluations_are_a_table(study: Sweep, home: Home) -> None:
    trial = study.study.get_trials()[0]
    facts = [json.loads(value) for key, value in trial._system_attrs.items() if key.startswith("artifacts:")]
    [table] = [each for each in facts if each["filename"] == "history.csv"]
    assert table["mimetype"] == "text/csv"
    lines = (home.artifacts / table["artifact_id"]).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("milestone,tokens,step,epoch,")
    assert len(lines) == 11
