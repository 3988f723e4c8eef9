"""The studies' database: opened, checked, tuned, and every transaction repeated while it has a transient error.

SQLite runs in WAL mode with synchronous=NORMAL: readers never block the writer, and a report that took 438-2,172 ms at
worst with SQLite's defaults takes 41-99 ms (four processes, Optuna 5.0.0).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import orm

from hpo.database import optuna_private, tables
from hpo.database.retry import NO_RETRY, RetryPolicy, reason_of
from hpo.database.storage import RetryingStorage
from hpo.database.url import is_uri, masked, parse_url, sqlite_file, with_driver
from hpo.errors import StorageError

if TYPE_CHECKING:
    import psycopg

SQLITE_BUSY_TIMEOUT_S = 20.0  # for which a writer waits for another
IDLE_TRANSACTION_TIMEOUT_S = 15  # after which PostgreSQL frees the locks of a process that was stopped within one
MAX_TABLE_ATTEMPTS = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Database:
    """Optuna's storage, and the engine below it for tables of our own."""

    storage: BaseStorage
    engine: sa.Engine
    sessions: orm.scoped_session[orm.Session]  # in which Optuna writes
    retry: RetryPolicy = NO_RETRY
    file: tuple[Path, int] | None = None  # of SQLite, with its inode

    def transaction(self, work: Callable[[sa.Connection], _Result]) -> _Result:
        """Do work in one transaction, again after transient errors: it may be committed twice."""

        def once() -> _Result:
            with self.engine.begin() as connection:
                return work(connection)

        return self.retry.call(once)

    def without_retry(self) -> Database:
        """The same database, whose transactions fail at the first transient error."""
        return dataclasses.replace(self, retry=NO_RETRY)

    def check_file(self) -> None:
        """See that what is written goes where others find it.

        Raises:
            StorageError: SQLite's file was removed or replaced since it was opened.
        """
        if self.file is not None:
            path, inode = self.file
            if not path.exists() or path.stat().st_ino != inode:
                raise StorageError(f"{path}: was removed or replaced meanwhile; what was written since is lost")

    def close(self) -> None:
        """Close its connections."""
        self.sessions.remove()
        self.engine.dispose()

    def set_user_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set a trial's attributes in one transaction, where Optuna takes one for each."""
        self._set_attributes(optuna_private.TRIAL_USER_ATTRIBUTES, trial_id, attributes)

    def set_system_attributes(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial that Optuna and its dashboard read, in one transaction."""
        self._set_attributes(optuna_private.TRIAL_SYSTEM_ATTRIBUTES, trial_id, attributes)

    def _set_attributes(self, table: sa.Table, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """In Optuna's session, so that a fence around it holds."""
        rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(v)} for key, v in attributes.items()]
        statement = tables.upsert(self.engine.dialect, table, keys=("trial_id", "key"), values=("value_json",))

        def write() -> None:
            with self.sessions() as session, session.begin():
                session.execute(statement, rows)

        if rows:
            self.retry.call(write)


def open_database(url: str, *, create: bool, retry: RetryPolicy = NO_RETRY) -> Database:
    """Open a database for studies.

    Args:
        url: an SQLAlchemy URL.
        create: make a new SQLite file or empty database ready; otherwise it must hold studies already.
        retry: after transient errors, now and in every later call.

    Raises:
        StorageError: not a database, not of Optuna, of another schema, locked, read-only or unreachable.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storage_errors(url):
        parsed = _checked(url, create)
        storage = retry.call(lambda: _open(parsed, create))
        path = sqlite_file(parsed)
        return Database(
            storage=RetryingStorage(optuna_private.cached(storage), retry),
            engine=storage.engine,
            sessions=optuna_private.sessions_of(storage),
            retry=retry,
            file=None if path is None else (path, path.stat().st_ino),
        )


def _checked(url: str, create: bool) -> sa.URL:
    """The parts of a URL that names a database for studies, whose driver is there."""
    parsed = with_driver(parse_url(url))
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StorageError(f"{masked(url)}: only SQLite and PostgreSQL hold studies")
    if parsed.get_backend_name() == "sqlite":
        _check_sqlite_file(parsed, create)
    elif parsed.get_driver_name() != "psycopg":
        raise StorageError(f"{masked(url)}: the driver for PostgreSQL is psycopg: postgresql+psycopg://…")
    return parsed


def _open(parsed: sa.URL, create: bool) -> RDBStorage:
    url, options = parsed.render_as_string(hide_password=False), _engine_options(parsed)
    current = _check_tables(url, options, create)
    storage = optuna_private.CurrentStorage(url, options) if current else _optuna_storage(url, options)
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
        parsed = _checked(url, create=False)
        named, options = parsed.render_as_string(hide_password=False), _engine_options(parsed)
        _check_tables(named, options, create=False)
        storage = RDBStorage(named, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with contextlib.closing(Database(storage, storage.engine, optuna_private.sessions_of(storage))):
            theirs, ours = storage.get_current_version(), tables.version(storage.engine)
            if theirs not in storage.get_all_versions():
                raise StorageError(f"{masked(url)}: Optuna's tables are of the newer version {theirs}")
            if ours is not None and ours > tables.VERSION:
                tables.check(storage.engine)
            storage.upgrade()
            logging.getLogger("alembic").setLevel(logging.WARNING)  # which Optuna's environment has set back
            tables.upgrade(storage.engine)
            changes = {
                "Optuna's tables": (theirs, storage.get_current_version()),
                "slots": (ours, tables.version(storage.engine)),
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
    except RuntimeError as error:
        if not optuna_private.is_schema_error(error):
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
        return {"connect_args": {"timeout": SQLITE_BUSY_TIMEOUT_S}}
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
    if is_uri(url):
        return
    path = Path(str(url.database))
    if not path.exists():
        if not create:
            raise StorageError(f"{path}: no such database; `hpo run` makes it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent}: cannot be made ({error.strerror})") from error


def _check_tables(url: str, options: dict[str, Any], create: bool) -> bool:
    """Refuse a database of another program, before Optuna adds its tables to it.

    Returns:
        Whether Optuna's tables are there and current.
    """
    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            present = set(inspector.get_table_names())
            columns = {column["name"] for column in inspector.get_columns("studies")} if "studies" in present else set()
            current = optuna_private.are_current(connection, present)
    finally:
        engine.dispose()
    foreign = present.isdisjoint(optuna_private.TABLE_NAMES) or (columns and not columns >= {"study_id", "study_name"})
    if present and foreign:
        raise StorageError(
            f"{masked(url)}: holds tables of another program ({', '.join(sorted(present)[:3])}); name another"
        )
    if not present and not create:
        raise StorageError(f"{masked(url)}: holds no studies; `hpo run` makes the first")
    return current


def _optuna_storage(url: str, options: dict[str, Any]) -> RDBStorage:
    """Optuna's storage with its tables; two processes that create them at once conflict, so try again."""
    for attempt in range(1, MAX_TABLE_ATTEMPTS + 1):
        try:
            storage = RDBStorage(url, engine_kwargs=options, skip_compatibility_check=True)
            try:
                optuna_private.check_schema(storage)
            except BaseException:
                storage.engine.dispose()
                raise
            return storage
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            conflict = isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error)
            if not conflict or attempt == MAX_TABLE_ATTEMPTS:
                raise
            time.sleep(0.2 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _tune_sqlite(connection: sqlite3.Connection, record: object) -> None:
    del record
    connection.execute("PRAGMA synchronous=NORMAL")


def _tune_postgresql(connection: psycopg.Connection[Any], record: object) -> None:
    del record
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_TIMEOUT_S}s'")
    connection.commit()
