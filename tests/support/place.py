"""A folder as a user of the command line has it: text, study files, a home, and the program itself."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest

from hpo.database.connection import open_database
from hpo.home import Home
from hpo.sweep.sweep import Sweep, open_sweep
from hpo_reports.records.names import TRIAL_SLOT
from tests.support.far_workers import wait_until
from tests.support.in_process import Answer, Hpo

STUDY = """
name = "small"
trials = 6
{top}
[text]
vocabulary = 300
[run]
preset = "nano"
width = 32
heads = 2
sequence_length = 32
batch_size = 4
budget_tokens = {budget}
evaluations = 5
evaluation_tokens = 512
{run}
[search]
lambda_phi = {{ low = 0.001, high = 0.3, log = true }}
dropout = {{ low = 0.0, high = 0.4 }}
[baseline]
lambda_phi = 0.05
dropout = 0.1
[[enqueued]]
lambda_phi = 0.01
dropout = 0.25
[sampler]
startup_trials = 3
[finalists]
replicates = {replicates}
{more}
"""


def study_text(*, budget: int = 6400, replicates: int = 0, **parts: str) -> str:
    """A study file of short runs; `parts` are its `top`, what is added to its `run`, and `more` sections."""
    return STUDY.format(**{"budget": budget, "replicates": replicates, "top": "", "run": "", "more": "", **parts})


@dataclasses.dataclass
class Place:
    """A folder with text, study files and a home of its own.

    Args:
        root: the folder; commands run in it.
        in_process: calls the program within this process, its workers still processes of their own. Only what is to be
            killed or interrupted as a whole takes a process, whose imports alone cost seconds.
    """

    root: Path
    in_process: Hpo
    started: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)

    @property
    def home(self) -> Home:
        return Home(self.root / "runs")

    @property
    def url(self) -> str:
        return f"sqlite:///{self.home.database}"

    def study(self, name: str = "small.toml", **parts: object) -> Path:
        """Write a study file, as `study_text` makes it."""
        path = self.root / name
        path.write_text(study_text(**parts), encoding="utf-8")  # type: ignore[arg-type]
        return path

    def hpo(self, *arguments: str | Path, **environment: str) -> Answer:
        """A command within this process."""
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(self.root)
            for name, value in {"HPO_HOME": str(self.home.root), **environment}.items():
                patched.setenv(name, value)
            return self.in_process(*arguments)

    def run(self, *arguments: str) -> Answer:
        """`hpo run` with one worker where nothing else is said: to measure how many suit takes seconds."""
        workers = () if "--workers" in arguments else ("--workers", "1")
        return self.hpo("run", "--study", "small.toml", "--data", "text", *arguments, *workers)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command in a process of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "OPTUNA_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "hpo", *arguments],
            cwd=self.root,
            env={**kept, "HPO_HOME": str(self.home.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill what still runs after a failure, lest it disturb other tests."""
        for process in self.started:
            process.kill()
            process.communicate()

    def start_run(self, *arguments: str) -> subprocess.Popen[str]:
        """`hpo run` in a process of its own."""
        return self.start("run", "--study", "small.toml", "--data", "text", *arguments)

    def optuna_study(self, name: str = "small") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.url)

    def sweep(self) -> Sweep:
        return open_sweep(open_database(self.url, create=False), "small")

    def assert_exact(self, total: int) -> None:
        """N slots, N finished trials, one trial per slot."""
        trials = self.optuna_study().trials
        assert len(trials) == total
        assert all(trial.state.is_finished() for trial in trials)
        assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in trials) == list(range(total))
        assert self.sweep().slots.counts(total).done == total

    def let_leases_expire(self) -> None:
        """Set back the leases of dead workers by the half minute that the next run would wait for."""
        with sqlite3.connect(self.home.database) as connection:
            connection.execute("UPDATE hpo_slots SET expires_at = 0 WHERE state IN ('leased', 'finishing')")
        connection.close()

    def checkpoints(self) -> list[Path]:
        return list((self.home.root / "studies").glob("*/trial-*/checkpoint-*.pt"))

    def wait_for_checkpoint(self, seen: int) -> int:
        """Until a checkpoint is there that was not among the `seen` ones; their number."""
        wait_until("a checkpoint is written", lambda: len(self.checkpoints()) > seen)
        return len(self.checkpoints())

    def trials_begun(self) -> int:
        if not self.home.database.is_file():
            return 0
        try:
            with sqlite3.connect(self.home.database) as connection:
                return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
        except sqlite3.OperationalError:  # the tables are just being made
            return 0

    def wait_for_trials(self, count: int) -> None:
        """Until so many trials have begun."""
        wait_until(f"{count} trials have begun", lambda: self.trials_begun() >= count)


def while_it_runs(act: Callable[[], object]) -> threading.Thread:
    """Do something beside a command that runs in this process; join the thread when the command has ended."""
    thread = threading.Thread(target=act, name="beside the command")
    thread.start()
    return thread


def own_workers() -> list[psutil.Process]:
    """Workers of a command in this process: they are children of its server of forks."""
    own = psutil.Process()
    return [child for child in own.children(recursive=True) if child.ppid() != own.pid]
