"""The tables of our own beside Optuna's, in the same database: their columns, their version, and its migrations.

Four columns are stored under a former name, so that programs of both names can work on one study at the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from hpo.database.optuna_private import STUDIES
from hpo.errors import StorageError

VERSION = 2

_UPGRADE_LOCK = 7_105_903_514  # any number that no other program locks

metadata = sa.MetaData()
slots = sa.Table(
    "hpo_slots",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, default="open"),  # open, leased, finishing, done
    sa.Column("owner", sa.String(200)),
    sa.Column("epoch", sa.Integer, key="fencing_token", nullable=False, default=0),  # of the newest lease
    sa.Column("expires_at", sa.Double),  # seconds since 1970 on the database's clock
    sa.Column("trial_number", sa.Integer),
    sa.Column(
        "deaths", sa.Integer, key="crash_count", nullable=False, default=0
    ),  # of leases over this trial, in a row
    sa.Column("outcome", sa.Text, key="result"),  # JSON of a TrialResult, from `finishing` on
)
studies = sa.Table(
    "hpo_studies",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),  # JSON of a SweepRecord
    # how often `hpo stop` was called
    sa.Column("stops", sa.Integer, key="stop_requests", nullable=False, server_default="0"),
)
versions = sa.Table("hpo_schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))


def create(engine: sa.Engine) -> None:
    """Create the tables that are missing.

    Raises:
        StorageError: there are some of another version.
    """
    check(engine)
    already_made = (sa.exc.IntegrityError, sa.exc.ProgrammingError)  # PostgreSQL's IF NOT EXISTS has a race
    with contextlib.suppress(*already_made), engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
    with contextlib.suppress(sa.exc.IntegrityError), engine.begin() as connection:
        if connection.scalar(sa.select(versions.c.version)) is None:
            connection.execute(versions.insert().values(version=VERSION))


def version(engine: sa.Engine) -> int | None:
    """Version of the tables in a database; None where there are none yet."""
    with engine.connect() as connection:
        return _version(connection)


def _version(connection: sa.Connection) -> int | None:
    inspector = sa.inspect(connection)
    present = set(inspector.get_table_names())
    if versions.name in present:
        stored: int | None = connection.scalar(sa.select(sa.func.max(versions.c.version)))
        if stored is not None:
            return stored
    if not {slots.name, studies.name} <= present:  # or another process is creating them right now
        return None
    columns = {column["name"] for column in inspector.get_columns(studies.name)}
    return 2 if "stops" in columns else 1


def check(engine: sa.Engine) -> bool:
    """Whether the tables are there.

    Raises:
        StorageError: they are of another version than this program's.
    """
    found = version(engine)
    if found is not None and found > VERSION:
        raise StorageError(f"its slots have the newer schema {found}; this version of the program reads {VERSION}")
    if found is not None and found < VERSION:
        raise StorageError(f"its slots have the older schema {found}; `hpo storage upgrade` brings it to {VERSION}")
    return found is not None


def delete_orphans(engine: sa.Engine) -> None:
    """Delete the rows of studies that were deleted: SQLite gives a deleted study's id to the next one."""
    alive = sa.select(STUDIES.c.study_id)
    with engine.begin() as connection:
        for table in (slots, studies):
            connection.execute(table.delete().where(table.c.study_id.not_in(alive)))


def upgrade(engine: sa.Engine) -> None:
    """Bring the tables of an older version to this one; once more changes nothing."""
    if version(engine) is None:
        return
    while _upgrade_once(engine):
        pass
    create(engine)


def _upgrade_once(engine: sa.Engine) -> bool:
    """Run the next migration, if there is one; of two processes that do so at once one waits and finds it done."""
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # which its driver leaves out before CREATE and ALTER
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        found = _version(connection)
        if found is None or found >= VERSION:
            return False
        connection.execute(sa.schema.CreateTable(versions, if_not_exists=True))
        _MIGRATIONS[found](connection)
        connection.execute(versions.delete())
        connection.execute(versions.insert().values(version=found + 1))
        return True


def _count_stops(connection: sa.Connection) -> None:
    """1 to 2: `hpo stop`."""
    _operations(connection).add_column(
        "hpo_studies", sa.Column("stops", sa.Integer, nullable=False, server_default="0")
    )


_MIGRATIONS: Mapping[int, Callable[[sa.Connection], None]] = {1: _count_stops}


def _operations(connection: sa.Connection) -> Any:
    """Alembic's operations, which Optuna brings."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    return Operations(MigrationContext.configure(connection))


def by_key(table: sa.Table, row: sa.Row[Any]) -> dict[str, Any]:
    """A row of a table under the names that code has for its columns."""
    return {column.key: row._mapping[column] for column in table.columns}


def upsert(dialect: sa.Dialect, table: sa.Table, *, keys: Sequence[str], values: Sequence[str]) -> Any:
    """An insert that overwrites `values` where a row of these `keys` is there."""
    insert = _insert(dialect, table)
    return insert.on_conflict_do_update(
        index_elements=list(keys), set_={name: insert.excluded[name] for name in values}
    )


def lock_row(dialect: sa.Dialect, table: sa.Table, keys: Sequence[str], value: str) -> Any:
    """An insert that locks the row where it is there, by setting a value to what it is."""
    return _insert(dialect, table).on_conflict_do_update(index_elements=list(keys), set_={value: table.c[value]})


def insert_if_absent(dialect: sa.Dialect, table: sa.Table) -> Any:
    """An insert that does nothing where the row is there."""
    return _insert(dialect, table).on_conflict_do_nothing()


def _insert(dialect: sa.Dialect, table: sa.Table) -> Any:
    """The insert of one dialect; the other is not loaded."""
    if dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table)
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert(table)
