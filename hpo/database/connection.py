"""Opens Optuna storage with engine options that fit it. The only room that handles the database's URL.

SQLite runs in WAL mode with synchronous=NORMAL: readers never block the writer, and a report that took 438-2,172 ms at
worst with SQLite's defaults takes 41-99 ms (four processes, Optuna 5.0.0).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialSystemAttributeModel, TrialUserAttributeModel
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql, sqlite

from hpo.database import tables as schema
from hpo.database.retry import NO_RETRY, RetryPolicy, reason_of
from hpo.errors import StorageError
from hpo.home import Home

SQLITE_PATIENCE_S = 20.0  # how long a writer waits for another
FROZEN_TRANSACTION_S = 15  # after which PostgreSQL frees the locks of a process that was stopped within one
TABLE_ATTEMPTS = 5
OPTUNA_TABLES = {"studies", "trials", "version_info"}


def storage_url(flag: str | None, home: Home) -> str:
    """The database in force: `--storage`, else `HPO_STORAGE`, else `OPTUNA_STORAGE`, else SQLite at home."""
    named = flag or os.environ.get("HPO_STORAGE") or os.environ.get("OPTUNA_STORAGE")
    if named:
        return named
    return sa.URL.create("sqlite", database=str(home.database)).render_as_string()


def masked(url: str) -> str:
    """The URL without its password."""
    try:
        parsed = _parse(url)
    except StorageError:
        return "(not a database URL)"
    secret = [name for name in parsed.query if "password" in name.lower()]
    return parsed.update_query_dict(dict.fromkeys(secret, "***")).render_as_string(hide_password=True)


def is_missing(url: str) -> bool:
    """Whether the URL names an SQLite file that is not there yet."""
    parsed = _parse(url)
    return parsed.get_backend_name() == "sqlite" and not _is_uri(parsed) and not Path(str(parsed.database)).exists()


@dataclass(frozen=True)
class Database:
    """Optuna's storage, and what is below it for tables of our own."""

    storage: BaseStorage
    engine: sa.Engine
    sessions: orm.scoped_session[orm.Session]  # in which Optuna writes
    retry: RetryPolicy = NO_RETRY
    file: tuple[Path, int] | None = None  # of SQLite, with the number by which the file system knows it

    def check_file(self) -> None:
        """See that what is written goes where others find it.

        Raises:
            StorageError: SQLite's file was removed or replaced since it was opened.
        """
        if self.file is not None:
            path, number = self.file
            if not path.exists() or path.stat().st_ino != number:
                raise StorageError(f"{path}: was removed or replaced meanwhile; what was written since is lost")

    def close(self) -> None:
        """Close its connections."""
        self.sessions.remove()
        self.engine.dispose()

    def set_user_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set a trial's attributes in one transaction, where Optuna takes one for each."""
        self._set_attributes(TrialUserAttributeModel, trial_id, attributes)

    def set_system_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial that Optuna and its dashboard read, in one transaction."""
        self._set_attributes(TrialSystemAttributeModel, trial_id, attributes)

    def _set_attributes(
        self,
        table: type[TrialUserAttributeModel | TrialSystemAttributeModel],
        trial_id: int,
        attributes: Mapping[str, Any],
    ) -> None:
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(v)} for key, v in attributes.items()]
        insert = (sqlite if self.engine.dialect.name == "sqlite" else postgresql).insert(table)
        replace = insert.on_conflict_do_update(
            index_elements=["trial_id", "key"], set_={"value_json": insert.excluded.value_json}
        )

        def write() -> None:
            with self.sessions() as session, session.begin():
                session.execute(replace, rows)

        if rows:
            self.retry.call(write)


class _PatientStorage(RDBStorage):
    """Optuna's storage, each of whose calls outlasts a database that is away.

    All of them may be sent twice but the one that creates a trial: whoever creates binds the trial to its slot in the
    same transaction, which happens once.
    """

    retry = NO_RETRY


def _patient(name: str) -> Callable[..., Any]:
    call = getattr(RDBStorage, name)

    @functools.wraps(call)
    def call(self: _PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self.retry.call(lambda: call(self, *arguments, **named))

    return outlast


for _name in (
    *("set_study_user_attr", "set_study_system_attr", "get_study_id_from_name", "get_study_name_from_id"),
    *("get_study_directions", "get_study_user_attrs", "get_study_system_attrs", "get_all_studies"),
    *("_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number", "_get_best_trial_id"),
    *("set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("get_trial", "_get_trials"),
):
    setattr(_PatientStorage, _name, _patient(_name))


def open_database(url: str, *, create: bool, retry: RetryPolicy = NO_RETRY) -> Database:
    """Open a database for studies.

    Args:
        url: an SQLAlchemy URL.
        create: make a new SQLite file or empty database ready; otherwise it must hold studies already.
        retry: with a database that is away, now and in every later call.

    Raises:
        StorageError: not a database, not of Optuna, of another schema, locked, read-only or unreachable.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(url):
        parsed = _with_driver(_parse(url))
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise StorageError(f"{masked(url)}: only SQLite and PostgreSQL hold studies")
        if parsed.get_backend_name() == "sqlite":
            _check_sqlite_file(parsed, create)
        elif parsed.get_driver_name() != "psycopg":
            raise StorageError(f"{masked(url)}: the driver for PostgreSQL is psycopg: postgresql+psycopg://…")
        storage = retry.call(lambda: _open(parsed, create))
        storage.retry = retry
        return Database(
            storage=optuna.storages.get_storage(storage),
            engine=storage.engine,
            sessions=storage.scoped_session,
            retry=retry,
            file=_file(parsed),
        )


def _open(parsed: sa.URL, create: bool) -> _PatientStorage:
    url, options = parsed.render_as_string(hide_password=False), _engine_options(parsed)
    _check_tables(url, options, create)
    storage = _optuna_storage(url, options)
    sqlite = parsed.get_backend_name() == "sqlite"
    sa.event.listen(storage.engine, "connect", _tune_sqlite if sqlite else _tune_postgresql)
    storage.engine.dispose()  # connections made before are not tuned
    if sqlite and create:
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # a property of the file: it stays
    return storage


def upgrade(url: str) -> list[str]:
    """Bring the tables of Optuna and our own to the versions of this program; done twice, it changes nothing.

    Returns:
        A line for each of the two that changed.

    Raises:
        StorageError: the database cannot be used, or was made by a newer version.
    """
    with storage_errors(url):
        parsed = _with_driver(_parse(url))
        if parsed.get_backend_name() == "sqlite":
            _check_sqlite_file(parsed, create=False)
        named, options = parsed.render_as_string(hide_password=False), _engine_options(parsed)
        _check_tables(named, options, create=False)
        storage = RDBStorage(named, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with contextlib.closing(Database(storage, storage.engine, storage.scoped_session)):
            theirs, ours = storage.get_current_version(), schema.version(storage.engine)
            if theirs not in storage.get_all_versions():
                raise StorageError(f"{masked(url)}: Optuna's tables are of the newer version {theirs}")
            if ours is not None and ours > schema.VERSION:
                schema.check(storage.engine)
            storage.upgrade()
            schema.upgrade(storage.engine)
            changes = {
                "Optuna's tables": (theirs, storage.get_current_version()),
                "slots": (ours, schema.version(storage.engine)),
            }
            return [f"{what}: {before} → {after}" for what, (before, after) in changes.items() if before != after]


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what database drivers and Optuna raise about the database itself into one line without a password."""
    try:
        yield
    except StorageError:
        raise
    except StorageInternalError as error:
        raise StorageError(f"{masked(url)}: {_reason(error)}") from error
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StorageError(f"{masked(url)}: {_reason(error)}") from error
    except ImportError as error:
        raise StorageError(f"{masked(url)}: {error}") from error
    except RuntimeError as error:
        if "table schema" not in str(error):
            raise
        raise StorageError(f"{masked(url)}: {' '.join(str(error).split())}") from error


def _reason(error: BaseException) -> str:
    """The driver's own words, without SQL and parameters."""
    words = reason_of(error)
    advice = {
        "database is locked": "another program holds it; close that, or wait and run again",
        "readonly database": "it cannot be written; check its permissions",
        "file is not a database": "name another file with --storage",
        "disk is full": "free space and run again; nothing that was stored is lost",
    }
    return next((f"{words}: {hint}" for sign, hint in advice.items() if sign in words), words)


def _engine_options(url: sa.engine.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": SQLITE_PATIENCE_S}}
    keepalives = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
    named = {name: value for name, value in keepalives.items() if name not in url.query}
    return {
        "pool_pre_ping": True,
        "pool_size": 2,
        "max_overflow": 3,
        "connect_args": {"connect_timeout": 10, **named},
    }


def _check_sqlite_file(url: sa.engine.URL, create: bool) -> None:
    in_memory = not url.database or ":memory:" in url.database or "mode=memory" in str(url)
    if in_memory:
        raise StorageError("sqlite:// keeps nothing: name a file, for example sqlite:///studies.db")
    if _is_uri(url):
        return
    path = Path(str(url.database))
    if not path.exists():
        if not create:
            raise StorageError(f"{path}: no such database; `hpo run` makes it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent}: cannot be made ({error.strerror})") from error


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:  # the latter for a port that is no number
        raise StorageError(
            "(not a database URL): a storage is named like sqlite:///my.db or postgresql+psycopg://…"
        ) from error
    if "@" in (parsed.host or ""):
        raise StorageError("(not a database URL): in a user's name or password write @ as %40")
    return parsed


def _with_driver(url: sa.URL) -> sa.URL:
    """The URL with the driver that this program brings, where it names none."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def _file(url: sa.URL) -> tuple[Path, int] | None:
    if url.get_backend_name() != "sqlite" or _is_uri(url):
        return None
    path = Path(str(url.database)).absolute()
    return path, path.stat().st_ino


def _is_uri(url: sa.URL) -> bool:
    return str(url.database).startswith("file:")


def _check_tables(url: str, options: dict[str, Any], create: bool) -> None:
    """Refuse a database of another program, before Optuna adds its tables to it."""
    engine = sa.create_engine(url, **options)
    try:
        inspector = sa.inspect(engine)
        tables = set(inspector.get_table_names())
        columns = {column["name"] for column in inspector.get_columns("studies")} if "studies" in tables else set()
    finally:
        engine.dispose()
    foreign = tables.isdisjoint(OPTUNA_TABLES) or (columns and not columns >= {"study_id", "study_name"})
    if tables and foreign:
        raise StorageError(
            f"{masked(url)}: holds tables of another program ({', '.join(sorted(tables)[:3])}); name another"
        )
    if not tables and not create:
        raise StorageError(f"{masked(url)}: holds no studies; `hpo run` makes the first")


def _optuna_storage(url: str, options: dict[str, Any]) -> _PatientStorage:
    """Optuna's storage, its tables made; two processes that make them at once get in each other's way, so try again."""
    for attempt in range(1, TABLE_ATTEMPTS + 1):
        try:
            storage = _PatientStorage(url, engine_kwargs=options, skip_compatibility_check=True)
            try:
                storage._version_manager.check_table_schema_compatibility()
            except BaseException:
                storage.engine.dispose()
                raise
            return storage
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            in_each_others_way = isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error)
            if not in_each_others_way or attempt == TABLE_ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _tune_sqlite(connection: sqlite3.Connection, record: object) -> None:
    del record
    connection.execute("PRAGMA synchronous=NORMAL")


def _tune_postgresql(connection: psycopg.Connection[Any], record: object) -> None:
    del record
    connection.execute(f"SET idle_in_transaction_session_timeout = '{FROZEN_TRANSACTION_S}s'")
    connection.commit()
