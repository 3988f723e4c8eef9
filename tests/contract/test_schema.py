"""Our tables beside Optuna's: made, refused in another version, brought up to date."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from hpo.cli import app
from hpo.database import tables
from hpo.database.connection import Database, open_database, upgrade
from hpo.errors import StorageError
from hpo.sweep.slots import SlotCounts
from hpo.sweep.study_row import StudyRow
from hpo.sweep.sweep import create_sweep, find_sweep, open_sweep
from tests.support.sweeps import COMPLETE, ENGINES, contents, make_record, make_spec, make_sweep, opened, run_slot

SLOTS_1 = """
CREATE TABLE hpo_slots (
    study_id INTEGER NOT NULL, number INTEGER NOT NULL, state VARCHAR(16) NOT NULL, owner VARCHAR(200),
    epoch INTEGER NOT NULL, expires_at DOUBLE PRECISION, trial_number INTEGER, deaths INTEGER NOT NULL, outcome TEXT,
    PRIMARY KEY (study_id, number))"""
STUDIES_1 = "CREATE TABLE hpo_studies (study_id {serial} NOT NULL, record TEXT NOT NULL, PRIMARY KEY (study_id))"
OPTUNA_NOW = "v3.2.0.a"


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    return new_url(request.param)


@pytest.fixture
def old(url: str) -> Iterator[Database]:
    """A database as version 1 left it: one trial done, one in the hands of a worker, one not begun."""
    with opened(url) as database:
        sweep = make_sweep(database, name="toy", trials=3)
        run_slot(sweep, COMPLETE)
        lease = sweep.slots.claim("worker", 3)
        assert lease is not None
        sweep.start(lease)
        with database.engine.begin() as connection:
            slots = connection.exec_driver_sql("SELECT * FROM hpo_slots ORDER BY number").mappings().all()
            for table in tables.metadata.sorted_tables:
                connection.exec_driver_sql(f"DROP TABLE {table.name}")
            connection.exec_driver_sql(SLOTS_1)
            serial = "SERIAL" if database.engine.dialect.name == "postgresql" else "INTEGER"
            connection.exec_driver_sql(STUDIES_1.format(serial=serial))
            names = ", ".join(f":{name}" for name in slots[0])
            connection.execute(sa.text(f"INSERT INTO hpo_slots VALUES ({names})"), [dict(row) for row in slots])
            study = {"study": sweep.study_id, "record": sweep.record.to_json()}
            connection.execute(sa.text("INSERT INTO hpo_studies VALUES (:study, :record)"), study)
        yield database


def run(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def is_refused(work: Callable[[], object], words: str) -> None:
    """In one line, which says so."""
    with pytest.raises(StorageError, match=r"\A[^\n]+\Z") as caught:
        work()
    assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------- which version


def test_new_tables_are_of_this_version(url: str) -> None:
    with opened(url) as database:
        assert tables.version(database.engine) is None
        assert tables.check(database.engine) is False
        for _ in range(2):
            tables.create(database.engine)
            assert tables.version(database.engine) == tables.VERSION
            assert contents(database)["hpo_schema"] == [(tables.VERSION,)]
        assert tables.check(database.engine) is True


def test_tables_whose_making_was_interrupted_are_completed(url: str) -> None:
    with opened(url) as database:
        tables.create(database.engine)
        run(database, "DELETE FROM hpo_schema")
        assert tables.version(database.engine) == tables.VERSION
        run(database, "DROP TABLE hpo_schema")
        assert tables.version(database.engine) == tables.VERSION
        tables.create(database.engine)
        assert contents(database)["hpo_schema"] == [(tables.VERSION,)]


def test_an_older_version_is_refused_and_left_as_it_is(old: Database) -> None:
    assert tables.version(old.engine) == 1
    before = contents(old)
    spec = make_spec(name="another")
    for work in (
        lambda: find_sweep(old, "toy"),
        lambda: open_sweep(old, "toy"),
        lambda: StudyRow(old, 1).record(),
        lambda: create_sweep(old, make_record(spec)),
    ):
        is_refused(work, "older schema 1; `hpo storage upgrade` brings it to 2")
    assert contents(old) == before


def test_tables_of_an_older_version_are_not_taken_for_new_ones(old: Database) -> None:
    is_refused(lambda: tables.create(old.engine), "older schema 1")
    assert tables.version(old.engine) == 1


def test_a_newer_version_is_refused(url: str) -> None:
    with opened(url) as database:
        make_sweep(database, name="toy")
        run(database, "UPDATE hpo_schema SET version = 3")
        is_refused(lambda: open_sweep(database, "toy"), "newer schema 3; this version of the program reads 2")


# ---------------------------------------------------------------------------------------------- upgrade


def test_an_upgraded_study_goes_on(old: Database, url: str) -> None:
    before = contents(old)
    assert upgrade(url) == ["slots: 1 → 2"]
    sweep = open_sweep(old, "toy")
    after = contents(old)
    assert {name: rows for name, rows in after.items() if rows != before.get(name)} == {
        "hpo_schema": [(2,)],
        "hpo_studies": [(*row, 0) for row in before["hpo_studies"]],
    }
    assert sweep.slots.counts(None) == SlotCounts(done=1, leased=1, open=1)
    sweep.row.request_stop()
    assert sweep.row.stop_requests() == 1
    sweep.slots.release_owner("worker", crashed=True)
    assert [run_slot(sweep, COMPLETE) for _ in range(2)] == [1, 2]
    assert [trial.value for trial in sweep.study.get_trials()] == [4.0] * 3
    make_sweep(old, name="another")


def test_upgrading_twice_changes_nothing(old: Database, url: str) -> None:
    upgrade(url)
    open_sweep(old, "toy").row.request_stop()
    before = contents(old)
    assert upgrade(url) == []
    assert contents(old) == before


def test_an_upgrade_that_was_interrupted_is_completed(old: Database, url: str) -> None:
    run(old, "ALTER TABLE hpo_studies ADD COLUMN stops INTEGER DEFAULT 0 NOT NULL")  # as far as version 2, unmarked
    assert open_sweep(old, "toy").row.stop_requests() == 0
    upgrade(url)
    assert contents(old)["hpo_schema"] == [(2,)]


def test_an_upgrade_that_fails_changes_nothing(old: Database, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate = tables._MIGRATIONS[1]

    def fail(connection: sa.Connection) -> None:
        migrate(connection)
        raise RuntimeError("in the middle")

    before = contents(old)
    monkeypatch.setattr(tables, "_MIGRATIONS", {1: fail})
    with pytest.raises(RuntimeError, match="in the middle"):
        upgrade(url)
    assert contents(old) == before
    monkeypatch.undo()
    assert upgrade(url) == ["slots: 1 → 2"]


def test_two_upgrades_at_once_are_one(old: Database, url: str) -> None:
    start = threading.Barrier(2)

    def one(_: int) -> None:
        engine = sa.create_engine(old.engine.url, connect_args=dict(timeout=20) if "sqlite" in url else {})
        start.wait(30)
        tables.upgrade(engine)
        engine.dispose()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one, range(2)))
    assert tables.version(old.engine) == tables.VERSION
    assert upgrade(url) == []
    assert open_sweep(old, "toy").row.stop_requests() == 0


def test_an_upgrade_adds_nothing_to_a_database_of_plain_optuna(url: str) -> None:
    with opened(url) as database:
        optuna.create_study(storage=database.storage, study_name="theirs")
        before = contents(database)
        upgrade(url)
        assert contents(database) == before


def test_optuna_s_older_tables_are_upgraded_too(old: Database, url: str) -> None:
    run(old, "DROP INDEX ix_trials_study_id")
    run(old, "UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    is_refused(lambda: open_database(url, create=False), "no longer compatible with the table schema")
    assert upgrade(url) == [f"Optuna's tables: v3.0.0.d → {OPTUNA_NOW}", "slots: 1 → 2"]
    with opened(url) as database:
        assert open_sweep(database, "toy").slots.counts(None).done == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'v9.0.0.a'", "newer version v9.0.0.a"),
        ("UPDATE hpo_schema SET version = 3", "newer schema 3"),
    ],
)
def test_what_a_newer_version_made_is_not_upgraded(url: str, change: str, words: str) -> None:
    with opened(url) as database:
        make_sweep(database, name="toy")
        run(database, change)
        before = contents(database)
        is_refused(lambda: upgrade(url), words)
        assert contents(database) == before


def test_what_is_no_database_of_studies_is_not_upgraded(tmp_path: Path) -> None:
    is_refused(lambda: upgrade(f"sqlite:///{tmp_path}/none.db"), "no such database")
    is_refused(lambda: upgrade("sqlite:///:memory:"), "keeps nothing")
    is_refused(lambda: upgrade("nonsense"), "not a database URL")
    (tmp_path / "empty.db").touch()
    is_refused(lambda: upgrade(f"sqlite:///{tmp_path}/empty.db"), "holds no studies")
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()
    is_refused(lambda: upgrade(f"sqlite:///{tmp_path}/theirs.db"), "another program (notes)")


def test_the_command_says_what_it_did(old: Database, url: str) -> None:
    run(old, "DROP INDEX ix_trials_study_id")
    run(old, "UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    said = [CliRunner().invoke(app, ["storage", "upgrade", "--storage", url]).stdout for _ in range(2)]
    first, second = said
    assert first == f"Optuna's tables: v3.0.0.d → {OPTUNA_NOW}\nslots: 1 → 2\n"
    assert second == "nothing to do: its tables are of this version\n"


def test_the_command_does_not_hide_that_it_upgraded_our_tables(old: Database, url: str) -> None:
    said = CliRunner().invoke(app, ["storage", "upgrade", "--storage", url]).stdout
    assert "nothing to do" not in said
