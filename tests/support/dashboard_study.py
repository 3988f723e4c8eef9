"""A study as `hpo run` leaves it, with notes, figures and files, whose names would like to be more than names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hpo.dashboard.publishing import publish
from hpo.database.connection import Database
from hpo.home import Home
from hpo.sweep.result import TrialResult
from hpo.sweep.sweep import Sweep, create_sweep
from hpo.worker.artifacts import offer
from hpo_reports.records.names import (
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_RUN,
    TRIAL_SUSPICIOUS,
)
from tests.support.sweeps import make_evaluation, make_record, make_spec

HOSTILE = "a | `b` <img src=x onerror=window.hacked=1> [c](javascript:window.hacked=1) %{x} $y$"
SCRIPT = "<script>window.hacked=1</script> **Which** | `value`? ![i](x)"


def history(final: float, evaluations: int = 10) -> list[dict[str, Any]]:
    """Evaluations whose loss falls to a value."""
    return [
        dataclasses.asdict(
            make_evaluation(m, val_loss=final + (1 - m / 10) ** 2, val_ppl=2.718 ** (final + (1 - m / 10) ** 2))
        )
        for m in range(1, evaluations + 1)
    ]


def run_slot(sweep: Sweep, home: Home, final: float, **changes: Any) -> int:
    """A trial from claim to done, as a worker takes it there; its checkpoint is a small file."""
    lease = sweep.slots.claim("worker", None)
    assert lease is not None
    trial = sweep.start(lease)
    values = {"dropout": trial.suggest_float("dropout", 0.0, 0.4), **changes}
    facts = {
        TRIAL_OUTCOME: "complete",
        TRIAL_REASON: f"all of its tokens, {SCRIPT}",
        TRIAL_RUN: {**sweep.spec.run_with({}).parameters(), **values},
        TRIAL_HISTORY: history(final),
        TRIAL_MACHINE: {"host": "here", "device": "cpu"},
        TRIAL_SUSPICIOUS: False,
    }
    outcome = TrialResult(state="COMPLETE", values=(final,), attributes=facts)
    for entry in facts[TRIAL_HISTORY]:
        trial.report(entry["val_loss"], entry["milestone"])
    folder = home.trial(sweep.spec.name, sweep.uid, trial.number)
    folder.mkdir(parents=True)
    (folder / "checkpoint-1.pt").write_bytes(b"weights of " + str(trial.number).encode())
    assert sweep.slots.finish(lease, outcome)
    offer(
        sweep.database, home, sweep.trial_id(trial.number), folder, facts[TRIAL_HISTORY], [folder / "checkpoint-1.pt"]
    )
    sweep.finalize(lease, trial.number, outcome)
    return trial.number


def make_study(database: Database, home: Home, trials: int = 4) -> Sweep:
    """The study, published."""
    spec = make_spec(name=HOSTILE, description=SCRIPT, trials=trials)
    sweep = create_sweep(database, make_record(spec))
    sweep.slots.ensure(trials)
    for place in range(trials):
        run_slot(sweep, home, 4.5 - 0.1 * place, lambda_schedule=HOSTILE if place else "constant")
    assert publish(database, spec.name) == 0
    return sweep


def attributes(database: Database, study_id: int) -> dict[str, Any]:
    """Optuna's attributes of a study."""
    return dict(json.loads(json.dumps(database.storage.get_study_system_attrs(study_id))))


def home_in(folder: Path) -> Home:
    return Home(folder / "runs")
