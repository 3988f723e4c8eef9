"""The tables of our own beside Optuna's, in the same database, and their version."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa
from optuna.storages._rdb.models import StudyModel

from hpo.errors import StorageError

VERSION = 2  # 1: without `hpo_schema` and `hpo_studies.stops`

metadata = sa.MetaData()
slots = sa.Table(
    "hpo_slots",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, default="open"),  # open, leased, finishing, done
    sa.Column("owner", sa.String(200)),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("expires_at", sa.Double),  # seconds since 1970 on the database's clock
    sa.Column("trial_number", sa.Integer),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),  # of leases over this trial, in a row
    sa.Column("outcome", sa.Text),  # JSON, from `finishing` on
)
studies = sa.Table(
    "hpo_studies",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),  # JSON: what the study was made from; the first writer's stands
    sa.Column("stops", sa.Integer, nullable=False, server_default="0"),  # how often `hpo stop` was asked
)
versions = sa.Table("hpo_schema", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))


def create(engine: sa.Engine) -> None:
    """Make the tables where they are missing.

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
    present = set(sa.inspect(engine).get_table_names())
    if versions.name in present:
        with engine.connect() as connection:
            stored: int | None = connection.scalar(sa.select(sa.func.max(versions.c.version)))
        if stored is not None:
            return stored
    if not {slots.name, studies.name} <= present:  # or another process is just making them
        return None
    columns = {column["name"] for column in sa.inspect(engine).get_columns(studies.name)}
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


def forget_orphans(engine: sa.Engine) -> None:
    """Delete the rows of studies that were deleted: SQLite gives a deleted study's number to the next one."""
    alive = sa.select(StudyModel.study_id)
    with engine.begin() as connection:
        for table in (slots, studies):
            connection.execute(table.delete().where(table.c.study_id.not_in(alive)))


def upgrade(engine: sa.Engine) -> None:
    """Bring the tables of an older version to this one; once more changes nothing."""
    if version(engine) == 1:
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE hpo_studies ADD COLUMN stops INTEGER DEFAULT 0 NOT NULL")
    if version(engine) is not None:
        create(engine)
