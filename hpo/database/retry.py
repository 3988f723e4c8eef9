"""Repeat calls after transient errors of the database: restarting, unreachable, overloaded, locked."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

FIRST_PAUSE_S = 0.1  # doubled after each attempt
MAX_PAUSE_S = 5.0
# SQLSTATEs: connection, shutdown or time-out, deadlock, full, locked, idle too long, no longer the primary server
TRANSIENT_STATES = ("08", "57", "40", "53300", "55P03", "25P03", "25006")
REFUSED = (
    "does not exist",
    "authentication failed",
    "no password supplied",
    "pg_hba.conf",
)  # by a server that is there

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """For how long the same call is repeated, after pauses drawn at random below a limit that doubles.

    Random pauses keep a fleet from coming back all at once when its database does (full jitter).
    """

    max_elapsed_s: float = 0.0  # 0: not once more
    give_up: Callable[[], bool] = lambda: False  # asked before each pause
    announce: Callable[[str], None] = lambda line: None  # called when an outage begins and when it ends

    def call(self, call: Callable[[], _Result]) -> _Result:
        """What the call returns, at last.

        Raises:
            Exception: what the call raised last; at once if it is not transient.
        """
        began, pause_s, dice = time.monotonic(), FIRST_PAUSE_S, random.Random()
        announced = False
        while True:
            try:
                result = call()
            except Exception as error:
                away_s = time.monotonic() - began
                if not is_transient(error) or away_s >= self.max_elapsed_s or self.give_up():
                    raise
                if not announced:
                    self.announce(f"cannot reach the database ({reason_of(error)}); waiting")
                    announced = True
                time.sleep(dice.uniform(0.0, pause_s))
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                if announced:
                    self.announce(f"the database is back after {time.monotonic() - began:.1f} s")
                return result


NO_RETRY = RetryPolicy()


def is_transient(error: BaseException) -> bool:
    """Whether an error of SQLAlchemy, Optuna or a driver means that the same call may succeed later."""
    if isinstance(error, StorageInternalError):
        return error.__cause__ is not None and is_transient(error.__cause__)
    if isinstance(error, sa.exc.TimeoutError):  # all connections of the pool are in use
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    driver = error.orig
    if isinstance(driver, sqlite3.OperationalError):
        return "locked" in str(driver) or "busy" in str(driver)
    import psycopg  # which those whose studies are in SQLite never load

    if isinstance(driver, psycopg.Error):
        if driver.sqlstate is None:  # no connection, or it broke; the server's reasons come as text alone
            unreachable = isinstance(driver, (psycopg.OperationalError, psycopg.InterfaceError))
            return unreachable and not any(sign in str(driver) for sign in REFUSED)
        return driver.sqlstate.startswith(TRANSIENT_STATES)
    return error.connection_invalidated


def reason_of(error: BaseException) -> str:
    """The driver's own words in one line, without SQL and parameters."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return reason_of(error.__cause__)
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()) or type(cause).__name__
