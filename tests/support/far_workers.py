"""A toy study that really trains, and the specs for workers that an executor places somewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpo.database.connection import open_database
from hpo.home import Home
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import WorkerSpec
from hpo_model.data.tokens import TokenizedCorpus
from hpo_reports.records.names import TRIAL_CONTINUED, TRIAL_SLOT
from tests.support.sweeps import make_sweep

RUN = dict(
    preset="nano", width=32, heads=2, sequence_length=32, batch_size=4, budget_tokens=6400, evaluations=5,
    evaluation_tokens=512,
)  # fmt: skip


class FarStudy:
    """A study in a database, and what its workers are told."""

    def __init__(self, url: str, root: Path, corpus: TokenizedCorpus, *, trials: int, lease_s: float, **run: Any):
        self.url, self.home, self.corpus, self.lease_s = url, Home(root / "runs"), corpus, lease_s
        self.sweep: Sweep = make_sweep(
            open_database(url, create=True),
            lease_s=lease_s,
            trials=trials,
            text={"vocabulary": 300},
            run={**RUN, **run},
            pruner={"kind": "none"},
        )
        self.trials = trials

    def specs(self, workers: int, **changes: Any) -> list[tuple[WorkerSpec, Path]]:
        name, uid = self.sweep.spec.name, self.sweep.uid
        made = []
        for number in range(workers):
            content: dict[str, Any] = dict(
                storage_url=self.url, study_name=name, total=self.trials, home=self.home, tokens=self.corpus.folder,
                device="cpu", threads=1, name=f"worker-{number}", lease_s=self.lease_s,
            )  # fmt: skip
            spec = WorkerSpec(**{**content, **changes})
            made.append((spec, self.home.worker_log(name, uid, spec.name)))
        return made

    def assert_exact(self) -> None:
        """N slots, N complete trials, one trial per slot."""
        trials = self.sweep.study.get_trials()
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * self.trials
        assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in trials) == list(range(self.trials))
        counts = self.sweep.slots.counts(self.trials)
        assert (counts.done, counts.begun, counts.open) == (self.trials, 0, 0)

    def continued(self) -> list[int]:
        """Numbers of the trials that went on from a checkpoint."""
        return [trial.number for trial in self.sweep.study.get_trials() if trial.user_attrs.get(TRIAL_CONTINUED)]

    def checkpoints(self) -> list[Path]:
        return sorted(self.home.root.glob("studies/*/trial-*/checkpoint-*.pt"))

    def under_way(self) -> int:
        """Trials that run and have a checkpoint; one that has ended keeps its own."""
        running = self.sweep.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        folders = [self.home.trial(self.sweep.spec.name, self.sweep.uid, trial.number) for trial in running]
        return sum(any(folder.glob("checkpoint-*.pt")) for folder in folders)

    def close(self) -> None:
        self.sweep.slots.database.engine.dispose()


def wait_until(what: str, holds: Callable[[], object], patience_s: float = 240.0) -> None:
    """Until something holds; the test fails where it does not come to that."""
    until = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"not within {patience_s:.0f} s: {what}")
        time.sleep(0.05)
