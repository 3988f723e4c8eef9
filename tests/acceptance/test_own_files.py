"""Files of a user's own, of whatever name, in the folder from which the program is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hpo.database.connection import open_database
from hpo.sweep.sweep import open_sweep
from tests.support.own_files import write_own_files
from tests.support.texts import TOPICS, write_text

# Twenty trials, ten for a worker: so benchmarks of one and of two workers run, in processes of their own.
STUDY = """
name = "small"
trials = 20
[text]
vocabulary = 300
[run]
preset = "nano"
width = 16
heads = 2
layers = 1
sequence_length = 16
batch_size = 2
budget_tokens = 320
evaluations = 1
evaluation_tokens = 64
[search]
dropout = { low = 0.0, high = 0.4 }
[baseline]
dropout = 0.1
[finalists]
count = 0
replicates = 0
"""


def test_they_take_the_place_of_no_module_in_commands_workers_and_benchmarks(tmp_path: Path) -> None:
    write_own_files(tmp_path)
    write_text(tmp_path / "text", {"train": TOPICS[:4], "valid": TOPICS[4:6]})
    (tmp_path / "small.toml").write_text(STUDY, encoding="utf-8")

    def hpo(*command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        ran = subprocess.run(
            [sys.executable, "-m", "hpo", *command],
            cwd=tmp_path,
            env=environment | {"HPO_HOME": "runs"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    hpo("run", "--study", "small.toml", "--data", "text")
    url = f"sqlite:///{tmp_path}/runs/studies.db"
    assert open_sweep(open_database(url, create=False), "small").slots.counts(20).done == 20
    assert "20 of 20 trials finished" in hpo("status")
    assert "small" in hpo("report", "small")
