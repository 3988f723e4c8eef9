"""Databases: how one is named and opened, what is refused in one line, and calls that outlast an outage."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy import orm

import hpo.database.connection
from hpo.database.connection import Database, open_database, storage_errors, upgrade
from hpo.database.retry import NO_RETRY
from hpo.database.url import masked, storage_url
from hpo.errors import StorageError
from hpo.home import Home
from tests.support.side_processes import PROCESSES, make_study
from tests.support.sweeps import ENGINES, PATIENT, lost_connection, opened, unheard

Open = Callable[..., Database]
PASSWORD = "s3cr3t-w0rd"


@pytest.fixture
def ready_file() -> None:
    """None: here databases are made anew, since that is what is looked at."""


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.database.connection, "SQLITE_BUSY_TIMEOUT_S", 0.1)


def refusal(url: str, *, create: bool = True) -> str:
    """What is said of a database that cannot be used; always one line."""
    with pytest.raises(StorageError, match=r"\A[^\n]+\Z") as caught:
        open_database(url, create=create)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------- which database


def test_the_flag_comes_before_the_environment_and_our_variable_before_optuna_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    assert storage_url(None, home) == f"sqlite:///{tmp_path}/studies.db"
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    assert storage_url(None, home) == "sqlite:///optuna.db"
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///hpo.db")
    assert storage_url(None, home) == "sqlite:///hpo.db"
    assert storage_url("sqlite:///flag.db", home) == "sqlite:///flag.db"


def test_empty_variables_name_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPO_STORAGE", "")
    monkeypatch.setenv("OPTUNA_STORAGE", "")
    assert storage_url(None, Home(tmp_path)) == f"sqlite:///{tmp_path}/studies.db"


@pytest.mark.parametrize("folder", ["plain", "with blank", "Φ", "100%", "a#b", "a:b@c"])
def test_the_default_database_lies_at_home_whatever_home_is_called(folder: str, tmp_path: Path, open_url: Open) -> None:
    home = Home(tmp_path / folder)
    open_url(storage_url(None, home))
    assert home.database.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder]


# ---------------------------------------------------------------------------------------------- a database that is used


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_database_is_made_and_found_again(engine: str, new_url: Callable[[str], str], open_url: Open) -> None:
    url = new_url(engine)
    made = open_url(url, create=True)
    optuna.create_study(storage=made.storage, study_name="toy")
    found = open_url(url, create=False)
    assert [study.study_name for study in found.storage.get_all_studies()] == ["toy"]


def test_missing_folders_are_made(tmp_path: Path, open_url: Open) -> None:
    open_url(f"sqlite:///{tmp_path}/a/b/studies.db")
    assert (tmp_path / "a" / "b" / "studies.db").is_file()


def test_plain_optuna_and_we_read_each_other_s_studies(sqlite_url: str, open_url: Open) -> None:
    theirs = optuna.storages.RDBStorage(sqlite_url)
    optuna.create_study(storage=theirs, study_name="theirs")
    ours = open_url(sqlite_url, create=False)
    optuna.create_study(storage=ours.storage, study_name="ours")
    assert optuna.study.get_all_study_names(theirs) == ["theirs", "ours"]
    theirs.engine.dispose()


def test_every_sqlite_connection_writes_ahead_without_full_synchronisation(sqlite_url: str, open_url: Open) -> None:
    open_url(sqlite_url)
    database = open_url(sqlite_url, create=False)
    connections = [database.engine.connect() for _ in range(8)]
    try:
        for connection in connections:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
            patience_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
            assert patience_ms == 1000 * hpo.database.connection.SQLITE_BUSY_TIMEOUT_S
    finally:
        for connection in connections:
            connection.close()


def test_attributes_of_a_trial_are_set_in_one_transaction_and_replace_older_ones(database: Database) -> None:
    study = optuna.create_study(storage=database.storage)
    trial = study.ask()
    study.ask()
    trial.set_user_attr("kept", "Φ")
    trial.set_user_attr("replaced", 1)
    commits: list[int] = []
    with commits_of(database, commits):
        database.set_user_attributes(trial._trial_id, {"replaced": [None, 0.5], "new": {"a": "b"}})
    assert len(commits) == 1
    assert study.trials[0].user_attrs == {"kept": "Φ", "replaced": [None, 0.5], "new": {"a": "b"}}
    assert study.trials[1].user_attrs == {}
    with commits_of(database, commits):
        database.set_user_attributes(trial._trial_id, {})
    assert len(commits) == 1


@contextlib.contextmanager
def commits_of(database: Database, commits: list[int]) -> Iterator[None]:
    def note(connection: object) -> None:
        commits.append(1)

    sa.event.listen(database.engine, "commit", note)
    yield
    sa.event.remove(database.engine, "commit", note)


def test_attributes_whose_answer_is_lost_are_set_once(database_url: str) -> None:
    with opened(database_url, PATIENT) as database:
        study = optuna.create_study(storage=database.storage)
        with unheard(database, 2) as broken:
            database.set_user_attributes(study.ask()._trial_id, {"a": 1, "b": 2})
        assert broken == [2]
        assert study.trials[0].user_attrs == {"a": 1, "b": 2}


X = optuna.distributions.FloatDistribution(0.0, 1.0)
FAILED = optuna.trial.TrialState.FAIL
Call = Callable[[BaseStorage, int, int], object]
CALLS: dict[str, Call] = {  # of a study and its second trial
    "set_study_user_attr": lambda storage, study, trial: storage.set_study_user_attr(study, "a", 1),
    "set_study_system_attr": lambda storage, study, trial: storage.set_study_system_attr(study, "a", 1),
    "get_study_id_from_name": lambda storage, study, trial: storage.get_study_id_from_name("toy"),
    "get_study_name_from_id": lambda storage, study, trial: storage.get_study_name_from_id(study),
    "get_study_directions": lambda storage, study, trial: storage.get_study_directions(study),
    "get_study_user_attrs": lambda storage, study, trial: storage.get_study_user_attrs(study),
    "get_study_system_attrs": lambda storage, study, trial: storage.get_study_system_attrs(study),
    "get_all_studies": lambda storage, study, trial: storage.get_all_studies(),
    "set_trial_param": lambda storage, study, trial: storage.set_trial_param(trial, "x", 0.5, X),
    "get_trial_id": lambda storage, study, trial: storage.get_trial_id_from_study_id_trial_number(study, 1),
    "get_trial_number_from_id": lambda storage, study, trial: storage.get_trial_number_from_id(trial),
    "get_trial_param": lambda storage, study, trial: storage.get_trial_param(trial, "y"),
    "set_trial_state_values": lambda storage, study, trial: storage.set_trial_state_values(trial, FAILED),
    "set_trial_intermediate_value": lambda storage, study, trial: storage.set_trial_intermediate_value(trial, 1, 2.0),
    "set_trial_user_attr": lambda storage, study, trial: storage.set_trial_user_attr(trial, "a", 1),
    "set_trial_system_attr": lambda storage, study, trial: storage.set_trial_system_attr(trial, "a", 1),
    "get_trial": lambda storage, study, trial: storage.get_trial(trial),
    "get_all_trials": lambda storage, study, trial: storage.get_all_trials(study),
    "get_n_trials": lambda storage, study, trial: storage.get_n_trials(study),
    "get_best_trial": lambda storage, study, trial: storage.get_best_trial(study),
    "get_trial_params": lambda storage, study, trial: storage.get_trial_params(trial),
    "get_trial_user_attrs": lambda storage, study, trial: storage.get_trial_user_attrs(trial),
    "get_trial_system_attrs": lambda storage, study, trial: storage.get_trial_system_attrs(trial),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_of_optuna_s_calls_outlasts_an_outage_for_the_patient(call: str, sqlite_url: str) -> None:
    with opened(sqlite_url) as database:
        study = optuna.create_study(storage=database.storage, study_name="toy")
        study.add_trial(optuna.create_trial(value=1.0, state=optuna.trial.TrialState.COMPLETE))
        trial = study.ask()
        trial.suggest_float("y", 0.0, 1.0)
    for retry in (NO_RETRY, PATIENT):
        with opened(sqlite_url, retry) as database:
            if call == "set_trial_param":  # which takes a trial that was read before
                database.storage.get_all_trials(study._study_id)
            with outage(database, times=2):
                refusal = pytest.raises(StorageInternalError, match="during the commit")
                with contextlib.nullcontext() if retry is PATIENT else refusal:
                    CALLS[call](database.storage, study._study_id, trial._trial_id)


@contextlib.contextmanager
def outage(database: Database, times: int) -> Iterator[None]:
    """Fail so many of the next statements, as a database that is away does."""
    left = [times]

    def fail(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if left[0]:
            left[0] -= 1
            raise sa.exc.OperationalError(statement, {}, lost_connection(database.engine))

    sa.event.listen(database.engine, "before_cursor_execute", fail)
    yield
    sa.event.remove(database.engine, "before_cursor_execute", fail)


def test_dropped_postgres_connections_are_replaced(new_url: Callable[[str], str], open_url: Open) -> None:
    database = open_url(new_url("postgresql"))
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    with database.engine.connect() as connection, database.engine.connect() as other:
        mine = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        other.exec_driver_sql("SELECT 1")
        other.rollback()
        other.close()
        connection.exec_driver_sql(f"{kill}{mine}")
    optuna.create_study(storage=database.storage, study_name="toy")
    assert [study.study_name for study in database.storage.get_all_studies()] == ["toy"]


def test_a_read_only_database_can_be_read_and_not_written(sqlite_url: str, tmp_path: Path, open_url: Open) -> None:
    optuna.create_study(storage=open_url(sqlite_url).storage, study_name="toy")
    url = f"sqlite:///file:{tmp_path}/studies.db?mode=ro&uri=true"
    database = open_url(url, create=False)
    assert [study.study_name for study in database.storage.get_all_studies()] == ["toy"]
    with pytest.raises(StorageError, match="readonly database: it cannot be written"), storage_errors(url):
        optuna.create_study(storage=database.storage, study_name="other")


@pytest.mark.parametrize("name", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgres_is_reached_by_the_driver_that_comes_with_the_program(
    name: str, new_url: Callable[[str], str], open_url: Open
) -> None:
    url = new_url("postgresql").replace("postgresql+psycopg", name, 1)
    assert open_url(url).engine.driver == "psycopg"
    assert upgrade(url) == []


def test_what_is_written_goes_where_others_find_it(tmp_path: Path, sqlite_url: str, open_url: Open) -> None:
    database = open_url(sqlite_url)
    database.check_file()
    (tmp_path / "studies.db").rename(tmp_path / "away.db")
    for _ in ("removed", "replaced"):
        with pytest.raises(StorageError, match=r"studies\.db: was removed or replaced meanwhile"):
            database.check_file()
        (tmp_path / "studies.db").write_bytes((tmp_path / "away.db").read_bytes())
    (tmp_path / "away.db").replace(tmp_path / "studies.db")
    database.check_file()


def test_other_databases_have_no_file_to_check(new_url: Callable[[str], str], tmp_path: Path, open_url: Open) -> None:
    open_url(new_url("postgresql")).check_file()
    open_url(f"sqlite:///{tmp_path}/studies.db")
    open_url(f"sqlite:///file:{tmp_path}/studies.db?uri=true", create=False).check_file()


def test_a_closed_database_has_no_connection_left(new_url: Callable[[str], str], open_url: Open) -> None:
    database, other = open_url(url := new_url("postgresql")), open_url(url)
    database.storage.get_all_studies()
    others = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    with other.engine.connect() as connection:
        assert connection.scalar(others) == 2
        database.close()
        until = time.monotonic() + 20
        while connection.scalar(others) > 1:  # the server notes it in its own time
            assert time.monotonic() < until
            connection.rollback()


# ---------------------------------------------------------------------------------------------- one that is refused


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    assert refusal(url) == "sqlite:// keeps nothing: name a file, for example sqlite:///studies.db"


@pytest.mark.parametrize("url", ["nonsense", "studies.db", "/tmp/studies.db", f"user:{PASSWORD}@host/name"])
def test_what_is_no_url_is_refused_without_being_repeated(url: str) -> None:
    message = refusal(url)
    assert message.startswith("(not a database URL): ")
    assert url not in message
    assert PASSWORD not in message


@pytest.mark.parametrize(
    "driver", ["magic", "magic+driver", "sqlite+magic", "postgresql+magic", "postgresql+asyncpg", "oracle"]
)
def test_an_unknown_or_missing_driver_is_refused(driver: str) -> None:
    message = refusal(f"{driver}://user:{PASSWORD}@127.0.0.1:1/name")
    assert re.search("Can't load plugin|the driver for PostgreSQL is psycopg|only SQLite and PostgreSQL", message)
    assert PASSWORD not in message


def test_a_reader_makes_no_database(tmp_path: Path) -> None:
    assert refusal(f"sqlite:///{tmp_path}/none/studies.db", create=False).endswith(
        "none/studies.db: no such database; `hpo run` makes it"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_reader_wants_studies(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    message = refusal(f"sqlite:///{tmp_path}/empty.db", create=False)
    assert message.endswith("holds no studies; `hpo run` makes the first")
    assert contents(tmp_path) == {"empty.db": b""}


def test_an_empty_postgres_database_has_no_studies(new_url: Callable[[str], str]) -> None:
    assert refusal(new_url("postgresql"), create=False).endswith("holds no studies; `hpo run` makes the first")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(f"sqlite:///{tmp_path}/file/below/studies.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_left_as_it_is(create: bool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 1000)
    before = contents(tmp_path)
    message = refusal(f"sqlite:///{tmp_path}/notes.txt", create=create)
    assert message.endswith("file is not a database: name another file with --storage")
    assert contents(tmp_path) == before


def foreign(folder: Path) -> str:
    connection = sqlite3.connect(folder / "theirs.db")
    connection.execute("CREATE TABLE notes (text)")
    connection.execute("INSERT INTO notes VALUES ('mine')")
    connection.commit()
    connection.close()
    return f"sqlite:///{folder}/theirs.db"


@pytest.mark.parametrize("create", [True, False])
def test_another_program_s_database_is_refused_and_left_as_it_is(create: bool, tmp_path: Path) -> None:
    url = foreign(tmp_path)
    before = contents(tmp_path)
    assert "holds tables of another program (notes)" in refusal(url, create=create)
    assert contents(tmp_path) == before


def test_another_program_s_postgres_database_is_refused(new_url: Callable[[str], str]) -> None:
    url = new_url("postgresql")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text text)")
    assert "holds tables of another program (notes)" in refusal(url)
    assert sa.inspect(engine).get_table_names() == ["notes"]
    engine.dispose()


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("create", [True, False])
def test_a_locked_database_is_told(create: bool, sqlite_url: str, tmp_path: Path, open_url: Open) -> None:
    open_url(sqlite_url).engine.dispose()
    holder = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    holder.execute("PRAGMA journal_mode = DELETE")  # in WAL mode readers are never locked out
    holder.execute("BEGIN EXCLUSIVE")
    assert refusal(sqlite_url, create=create).endswith(
        "database is locked: another program holds it; close that, or wait and run again"
    )
    holder.close()


@pytest.mark.usefixtures("short_patience")
def test_a_writer_that_waited_in_vain_is_told(sqlite_url: str, tmp_path: Path, open_url: Open) -> None:
    database = open_url(sqlite_url)
    holder = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked: another program holds it"), storage_errors(sqlite_url):
        optuna.create_study(storage=database.storage, study_name="toy")
    holder.close()


@pytest.mark.parametrize("version", ["v2.6.0.a", "v9.0.0.a"])  # one that Optuna had, one that it may have
@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_another_optuna_is_refused(
    create: bool, version: str, sqlite_url: str, tmp_path: Path, open_url: Open
) -> None:
    open_url(sqlite_url).engine.dispose()
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()
    assert "no longer compatible with the table schema" in refusal(sqlite_url, create=create)


# ---------------------------------------------------------------------------------------------- passwords, error texts


def test_a_masked_url_is_the_url_without_its_password() -> None:
    assert masked(f"postgresql://user:{PASSWORD}@host:5432/name") == "postgresql://user:***@host:5432/name"
    assert masked("postgresql://user@host/name") == "postgresql://user@host/name"
    assert masked("sqlite:////home/me/studies.db") == "sqlite:////home/me/studies.db"


@pytest.mark.parametrize("password", [PASSWORD, "p%40ss%2Fw0rd", "sp ace", "a:b:c", "ünï"])
def test_an_unreachable_server_is_told_without_the_password(password: str) -> None:
    message = refusal(f"postgresql+psycopg://user:{password}@127.0.0.1:1/name")
    assert message.startswith("postgresql+psycopg://user:***@127.0.0.1:1/name: ")
    assert "Connection refused" in message
    assert password not in message


def test_a_wrong_password_is_not_told(new_url: Callable[[str], str]) -> None:
    url = sa.make_url(new_url("postgresql")).set(username="nobody-here", password=PASSWORD)
    message = refusal(url.render_as_string(hide_password=False))
    assert "nobody-here" in message
    assert PASSWORD not in message


def test_no_repr_shows_the_password(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/studies.db")
    engine = sa.create_engine(f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:1/name")
    sessions = orm.scoped_session(orm.sessionmaker(bind=engine))
    assert PASSWORD not in repr(Database(storage, engine, sessions))
    storage.engine.dispose()


LOCKED = sqlite3.OperationalError("database is locked")


def chained(cause: Exception) -> StorageInternalError:
    error = StorageInternalError("An exception is raised during the commit. " * 3)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LOCKED, "database is locked: another program holds it; close that, or wait and run again"),
        (sa.exc.OperationalError("SELECT secret", {"a": 1}, LOCKED), "database is locked: another program holds it"),
        (chained(sa.exc.OperationalError("SELECT secret", {}, LOCKED)), "database is locked: another program holds it"),
        (sqlite3.OperationalError("database or disk is full"), "disk is full: free space and run again"),
        (sa.exc.OperationalError("SELECT secret", {}, Exception("two\n\tlines")), "two lines"),
        (sa.exc.OperationalError("SELECT secret", {}, Exception()), "Exception"),
    ],
)
def test_a_database_s_error_becomes_one_line_without_sql(error: Exception, words: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors(f"postgresql://user:{PASSWORD}@host/name"):
        raise error
    message = str(caught.value)
    assert message.startswith("postgresql://user:***@host/name: ")
    assert words in message
    assert "\n" not in message
    assert "secret" not in message
    assert caught.value.__cause__ is error


def test_a_module_that_is_missing_is_not_the_database_s_fault(sqlite_url: str) -> None:
    with pytest.raises(ModuleNotFoundError), storage_errors(sqlite_url):
        raise ModuleNotFoundError("No module named 'secrets'")


@pytest.mark.parametrize("act", [lambda url: open_database(url, create=False), upgrade])
def test_another_driver_is_refused_in_one_line(act: Callable[[str], object]) -> None:
    with pytest.raises(
        StorageError, match=r"\Apostgresql\+psycopg2://me:\*\*\*@h/d: the driver for PostgreSQL is psycopg"
    ):
        act(f"postgresql+psycopg2://me:{PASSWORD}@h/d")


@pytest.mark.parametrize("error", [ValueError("a defect"), RuntimeError("a defect"), KeyError("a defect")])
def test_a_defect_keeps_its_type(error: Exception) -> None:
    with pytest.raises(type(error), match="a defect") as caught, storage_errors("sqlite:///studies.db"):
        raise error
    assert caught.value is error


def test_an_error_that_is_in_words_already_is_not_changed() -> None:
    with pytest.raises(StorageError, match=r"\Ain words\Z"), storage_errors("sqlite:///studies.db"):
        raise StorageError("in words")


def test_a_sign_in_the_password_that_would_move_the_host_is_refused() -> None:
    message = refusal(f"postgresql://user:{PASSWORD}@{PASSWORD}@127.0.0.1:1/name")
    assert message.endswith("in a user's name or password write @ as %40") or "Connection refused" in message
    assert PASSWORD not in message


@pytest.mark.parametrize("url", [f"postgresql://host:{PASSWORD}", "postgresql://user:word@[::1/name"])
def test_a_port_that_is_no_number_is_refused(url: str) -> None:
    message = refusal(url)
    assert message.startswith("(not a database URL): ")
    assert PASSWORD not in message


def test_a_password_in_the_query_is_masked_too() -> None:
    assert PASSWORD not in masked(f"postgresql://host/name?user=me&password={PASSWORD}")


@pytest.mark.parametrize("query", ["file::memory:?uri=true", "file:x?mode=memory&cache=shared&uri=true"])
def test_a_database_in_memory_is_refused_also_as_a_uri(query: str) -> None:
    assert "keeps nothing" in refusal(f"sqlite:///{query}")


@pytest.mark.parametrize("folder", ["why?", "a%20b"])
def test_signs_of_urls_in_home_s_path_are_parts_of_it(folder: str, tmp_path: Path, open_url: Open) -> None:
    home = Home(tmp_path / folder)
    open_url(storage_url(None, home))
    assert home.database.is_file()


def test_an_engine_that_slots_do_not_know_is_refused() -> None:
    message = refusal(f"mysql://user:{PASSWORD}@127.0.0.1:1/name")
    assert "SQLite" in message
    assert "PostgreSQL" in message


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_database_may_be_opened_by_several_at_once(
    engine: str, new_url: Callable[[str], str], processes: ProcessPoolExecutor
) -> None:
    url = new_url(engine)
    jobs = [processes.submit(make_study, url, "toy") for _ in range(PROCESSES)]
    wait(jobs)
    assert len({job.result() for job in jobs}) == 1


def test_a_database_whose_making_was_interrupted_is_completed(sqlite_url: str, tmp_path: Path, open_url: Open) -> None:
    with sqlite3.connect(tmp_path / "studies.db") as connection:  # as after kill -9 in the first of Optuna's statements
        connection.execute("CREATE TABLE studies (study_id INTEGER NOT NULL PRIMARY KEY, study_name VARCHAR(512))")
    connection.close()
    optuna.create_study(storage=open_url(sqlite_url).storage, study_name="toy")


def test_a_read_only_database_of_plain_optuna_can_be_read(sqlite_url: str, tmp_path: Path, open_url: Open) -> None:
    theirs = optuna.storages.RDBStorage(sqlite_url)
    optuna.create_study(storage=theirs, study_name="theirs")
    theirs.engine.dispose()
    database = open_url(f"sqlite:///file:{tmp_path}/studies.db?mode=ro&uri=true", create=False)
    assert [study.study_name for study in database.storage.get_all_studies()] == ["theirs"]
