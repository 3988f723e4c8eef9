"""Commands that read or stop a study never import torch, and load what draws and computes only where they need it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.database.connection import open_database
from tests.support.sweeps import complete, make_sweep, run_slot

# Runs commands one after another and prints which of the heavy packages each of them has added.
PROGRAM = """
import contextlib, io, json, sys
from unittest import mock
from hpo.cli import app
from hpo_reports.errors import IncomparableError
seen, added = set(), {}
for command in json.loads(sys.argv[1]):
    fake = mock.patch("hpo.dashboard.server.serve") if command[0] == "dashboard" else contextlib.nullcontext()
    with contextlib.redirect_stdout(io.StringIO()), fake:
        try:
            app(command, standalone_mode=False)
        except SystemExit as end:
            assert not end.code, (command, end.code)
        except IncomparableError:
            assert command[0] == "compare"  # these studies have no budget, which is found when all has been imported
    names = {"torch", "ray", "datasets", "scipy", "sklearn", "pandas", "plotly", "optuna_dashboard"}
    names |= {"alembic", "psycopg"}  # of use for new tables and for PostgreSQL
    heavy = names & set(sys.modules)
    added[command[0]] = sorted(heavy - seen)
    seen |= heavy
print(json.dumps(added))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with two finished studies."""
    url = f"sqlite:///{tmp_path}/studies.db"
    database = open_database(url, create=True)
    for name in ("one", "two"):
        sweep = make_sweep(database, name=name, trials=2)
        for loss in (4.0, 3.9):
            run_slot(sweep, complete(loss))
    database.engine.dispose()
    return url


def test_what_only_reads_or_stops_a_study_never_loads_torch(url: str) -> None:
    light = [["--help"], ["studies"], ["status", "one"], ["stop", "one"], ["watch", "one", "--json"]]
    heavier = [["report", "one"], ["compare", "one", "two"], ["dashboard"]]
    environment = {**os.environ, "HPO_STORAGE": url}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([*light, *heavier])], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    added = json.loads(ran.stdout)
    assert [added[command[0]] for command in light] == [[]] * len(light)
    assert not any("torch" in added[command[0]] for command in heavier)
