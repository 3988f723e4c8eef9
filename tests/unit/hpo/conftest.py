"""A board of a study of its own, for what shows one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpo.database.connection import Database, open_database
from hpo.monitor.board import Board
from tests.support.sweeps import make_sweep


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database of the file's tests."""
    database = open_database(f"sqlite:///{tmp_path_factory.mktemp('own')}/studies.db", create=True)
    yield database
    database.engine.dispose()


@pytest.fixture
def board(own: Database) -> Board:
    """Of a new study with ten slots."""
    return Board(make_sweep(own), slot_limit=10)
