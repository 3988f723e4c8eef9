"""The URL of a studies' database: which one is in force, and how it is shown without its password."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.home import Home


def storage_url(flag: str | None, home: Home) -> str:
    """The database in force: `--storage`, else `HPO_STORAGE`, else `OPTUNA_STORAGE`, else SQLite at home."""
    named = flag or os.environ.get("HPO_STORAGE") or os.environ.get("OPTUNA_STORAGE")
    if named:
        return named
    return sa.URL.create("sqlite", database=str(home.database)).render_as_string()


def masked(url: str) -> str:
    """The URL without its password."""
    try:
        parsed = parse_url(url)
    except StorageError:
        return "(not a database URL)"
    return parsed.update_query_dict(dict.fromkeys(_secrets(parsed), "***")).render_as_string(hide_password=True)


def has_password(url: str) -> bool:
    """Whether the URL holds a password, which a file made from it would hold as well."""
    parsed = sa.make_url(url)
    return bool(parsed.password) or bool(_secrets(parsed))


def is_sqlite(url: str) -> bool:
    """Whether the URL names an SQLite database."""
    return sa.make_url(url).get_backend_name() == "sqlite"


def is_missing(url: str) -> bool:
    """Whether the URL names an SQLite file that does not exist yet."""
    path = sqlite_file(parse_url(url))
    return path is not None and not path.exists()


def parse_url(url: str) -> sa.URL:
    """The parts of a URL.

    Raises:
        StorageError: it is none; the message does not repeat it, since it may hold a password.
    """
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:  # the latter for a port that is no number
        raise StorageError(
            "(not a database URL): a storage is named like sqlite:///my.db or postgresql+psycopg://…"
        ) from error
    if "@" in (parsed.host or ""):
        raise StorageError("(not a database URL): in a user's name or password write @ as %40")
    return parsed


def with_driver(url: sa.URL) -> sa.URL:
    """The URL with the driver that this program brings, where it names none."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgres", "postgresql") else url


def sqlite_file(url: sa.URL) -> Path | None:
    """The file of an SQLite database; None for PostgreSQL, and for SQLite's own `file:` URIs."""
    if url.get_backend_name() != "sqlite" or is_uri(url):
        return None
    return Path(str(url.database)).absolute()


def is_uri(url: sa.URL) -> bool:
    """Whether an SQLite database is named by a URI of SQLite's own."""
    return str(url.database).startswith("file:")


def _secrets(url: sa.URL) -> list[str]:
    return [name for name in url.query if "password" in name.lower()]
