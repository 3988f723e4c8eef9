"""Each private name of Optuna and its dashboard on which the program relies, and that one file alone uses them."""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage, get_storage
from sqlalchemy import orm

from hpo.database import optuna_private
from hpo.database.connection import Database
from tests.support.paths import REPOSITORY

OURS = sorted(
    path for folder in ("hpo", "model", "reports", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)
PRIVATE = Path(optuna_private.__file__)
COLUMNS = {
    "STUDIES": {"study_id", "study_name"},
    "STUDY_USER_ATTRIBUTES": {"study_id", "key", "value_json"},
    "STUDY_SYSTEM_ATTRIBUTES": {"study_id", "key", "value_json"},
    "TRIALS": {"trial_id", "study_id", "number"},
    "TRIAL_USER_ATTRIBUTES": {"trial_id", "key", "value_json"},
    "TRIAL_SYSTEM_ATTRIBUTES": {"trial_id", "key", "value_json"},
}


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(study_name="toy")


def moved(name: str) -> str:
    return f"Optuna {optuna.__version__} has moved {name}; mend hpo/database/optuna_private.py"


class TestEachName:
    @pytest.mark.parametrize("table", COLUMNS)
    def test_tables_have_the_columns(self, table: str) -> None:
        found = {column.name for column in getattr(optuna_private, table).columns}
        assert found >= COLUMNS[table], moved(f"the columns of {table}")

    def test_a_database_of_optuna_s_is_known_by_its_tables(self, database: Database) -> None:
        present = set(sa.inspect(database.engine).get_table_names())
        assert present >= optuna_private.TABLE_NAMES, moved("the names of its tables")

    def test_rdb_storage_has_sessions_and_a_version_check(self, sqlite_url: str) -> None:
        storage = RDBStorage(sqlite_url)
        assert optuna_private.sessions_of(storage)().get_bind() is storage.engine, moved("RDBStorage.scoped_session")
        optuna_private.check_schema(storage)  # RDBStorage._version_manager
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9'")
            connection.exec_driver_sql("UPDATE version_info SET schema_version = 99")
        with pytest.raises(RuntimeError) as caught:
            optuna_private.check_schema(storage)
        assert optuna_private.is_schema_error(caught.value), moved("the words about its schema")
        storage.engine.dispose()

    def test_current_tables_are_opened_as_by_optuna_s_own_constructor(self, sqlite_url: str) -> None:
        theirs = RDBStorage(sqlite_url)
        assert theirs.get_head_version() == optuna_private.TABLES_VERSION, moved("the version of its tables")
        optuna.create_study(study_name="toy", storage=theirs).add_trial(optuna.trial.create_trial(value=1.0))
        ours = optuna_private.CurrentStorage(sqlite_url, {})
        assert set(vars(theirs)) - set(vars(ours)) == {"_version_manager"}, moved("the constructor of RDBStorage")
        for name in set(vars(ours)) - {"engine", "scoped_session", "skip_compatibility_check"}:
            assert getattr(ours, name) == getattr(theirs, name), moved(f"RDBStorage.{name}")
        assert ours.get_all_trials(1) == theirs.get_all_trials(1)
        added = ours.create_new_trial(1)
        assert theirs.get_trial(added) == ours.get_trial(added)
        for storage in (ours, theirs):
            storage.engine.dispose()

    @pytest.mark.parametrize("found", [["v9"], [], ["v3.0.0.d"]])
    def test_tables_of_another_version_are_not_current(self, sqlite_url: str, found: list[str]) -> None:
        storage = RDBStorage(sqlite_url)
        present = set(sa.inspect(storage.engine).get_table_names())
        with storage.engine.begin() as connection:
            assert optuna_private.are_current(connection, present)
            assert not optuna_private.are_current(connection, present - {"studies"})
            connection.exec_driver_sql("DELETE FROM alembic_version")
            for version in found:
                connection.exec_driver_sql(f"INSERT INTO alembic_version VALUES ('{version}')")
            assert not optuna_private.are_current(connection, present)
        storage.engine.dispose()

    def test_a_session_holds_the_trial_that_it_creates(self, sqlite_url: str) -> None:
        storage, seen = RDBStorage(sqlite_url), list[int]()
        study = optuna.create_study(storage=storage)
        sessions = optuna_private.sessions_of(storage)

        def note(session: orm.Session) -> None:
            session.flush()
            with contextlib.suppress(ValueError):  # a transaction that creates none
                seen.append(optuna_private.new_trial_number(session))

        sa.event.listen(sessions, "before_commit", note)
        get_storage(storage).create_new_trial(storage.get_study_id_from_name(study.study_name))
        sa.event.remove(sessions, "before_commit", note)
        assert seen == [0], moved("TrialModel in the session that creates a trial")
        storage.engine.dispose()

    def test_a_trial_has_an_id_and_its_reports(self, study: optuna.Study) -> None:
        trial = study.ask()
        trial.report(4.0, 1)
        assert optuna_private.trial_id(trial) == optuna_private.trial_id(study.get_trials()[0]), moved(
            "Trial._trial_id"
        )
        assert optuna_private.reported(trial) == {1: 4.0}, moved("Trial._cached_frozen_trial")
        again = optuna_private.trial_of(study, optuna_private.trial_id(trial))
        assert again.number == trial.number, moved("the constructor of Trial")

    def test_enqueued_values_are_fixed_parameters(self, study: optuna.Study) -> None:
        study.enqueue_trial({"x": 0.5})
        (waiting,) = study.get_trials()
        assert waiting.system_attrs[optuna_private.FIXED_PARAMETERS] == {"x": 0.5}, moved("fixed_params")

    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_metric_names_are_a_system_attribute(self, study: optuna.Study) -> None:
        study.set_metric_names(["loss"])
        (stored,) = [each.system_attrs for each in study._storage.get_all_studies()]
        assert stored[optuna_private.METRIC_NAMES] == ["loss"], moved("study:metric_names")

    def test_successive_halving_notes_its_rungs(self) -> None:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1)
        trial = optuna.create_study(pruner=pruner).ask()
        trial.report(1.0, 1)
        trial.should_prune()
        stored = trial.storage.get_trial(optuna_private.trial_id(trial)).system_attrs
        assert any(key.startswith(optuna_private.COMPLETED_RUNG) for key in stored), moved("completed_rung_")

    def test_system_attributes_can_be_replaced_in_a_copy(self, study: optuna.Study) -> None:
        study.enqueue_trial({"x": 0.5})
        (trial,) = study.get_trials()
        changed = optuna_private.with_system_attributes(trial, {"a": 1})
        assert optuna_private.system_attributes(changed) == changed.system_attrs == {"a": 1}, moved("_system_attrs")
        assert "a" not in trial.system_attrs

    def test_a_snapshot_answers_samplers_and_pruners(self, study: optuna.Study) -> None:
        study.add_trial(optuna.trial.create_trial(value=1.0))
        snapshot = optuna_private.SnapshotStudy(study.study_name, study._storage)
        snapshot.refresh()
        study.add_trial(optuna.trial.create_trial(value=0.0))
        assert [trial.value for trial in snapshot.get_trials()] == [1.0], moved("Study._get_trials")
        assert snapshot.best_value == 0.0, "the storage's own answer stays what it is"

    def test_artifacts_are_under_their_prefix(self, study: optuna.Study, tmp_path: Path) -> None:
        (tmp_path / "file.txt").write_text("text")
        folder = tmp_path / "artifacts"
        folder.mkdir()
        store = optuna_private.ArtifactFolder(folder)
        trial = study.ask()
        artifact = optuna.artifacts.upload_artifact(
            artifact_store=store, file_path=str(tmp_path / "file.txt"), study_or_trial=trial
        )
        stored = trial.storage.get_trial(optuna_private.trial_id(trial)).system_attrs
        assert json.loads(stored[f"{optuna_private.ARTIFACT}{artifact}"])["filename"] == "file.txt", moved("artifacts:")
        assert store.folder == folder, moved("FileSystemArtifactStore._base_path")
        assert store.path(artifact).read_text() == "text", moved("FileSystemArtifactStore._get_filepath")

    def test_notes_and_figures_of_the_dashboard_are_under_their_prefixes(self, study: optuna.Study) -> None:
        optuna_dashboard.save_note(study, "text")
        optuna_dashboard.save_plotly_graph_object(study, __import__("plotly").graph_objects.Figure())
        (stored,) = [each.system_attrs for each in study._storage.get_all_studies()]
        assert stored[f"{optuna_private.DASHBOARD}note_str:0"] == "text", moved("dashboard:note_str:")
        assert any(key.startswith(optuna_private.DASHBOARD_FIGURE) for key in stored), moved("dashboard:plot_data:")


def private_names(path: Path) -> list[str]:
    """Imports of private modules of Optuna or its dashboard, and uses of private attributes of its objects."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("optuna"):
            parts = [*node.module.split("."), *(each.name for each in node.names)]
            found += [f"{node.lineno}: {node.module}" for part in parts if part.startswith("_")]
        if isinstance(node, ast.Attribute) and node.attr in OPTUNA_ATTRIBUTES:
            found.append(f"{node.lineno}: .{node.attr}")
    return found


OPTUNA_ATTRIBUTES = {
    *("_study_id", "_trial_id", "_storage", "_backend", "_cached_frozen_trial", "_system_attrs", "_user_attrs"),
    *("_get_trials", "_base_path", "_get_filepath", "_version_manager", "_suggest", "_params", "_distributions"),
    *("_pruner", "_sampler", "_directions"),
}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_other_file_uses_a_private_name(path: Path) -> None:
    found = private_names(path)
    if path == PRIVATE:
        assert found, "this test finds what it looks for"
    else:
        assert not found
