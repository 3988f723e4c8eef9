"""Small studies, sweeps and events, built by hand: nothing here trains."""

from __future__ import annotations

import json
import uuid
from typing import Any

from hpo.slots import TrialOutcome
from hpo.storage import Database
from hpo.study_file import Dimension, StudySpec
from hpo.sweep import Sweep, create_sweep
from hpo.worker import Event
from model.config import build_run
from model.evaluation import Evaluation

ENGINES = ("sqlite", "postgresql")
COMPLETE = TrialOutcome(state="COMPLETE", values=(4.0,), attributes={"hpo:outcome": "complete"})
PRUNED = TrialOutcome(state="PRUNED", attributes={"hpo:outcome": "pruned"})
FAIL = TrialOutcome(state="FAIL", attributes={"hpo:outcome": "failed"})
DIVERGED = TrialOutcome(state="PRUNED", violations=("diverged",), attributes={"hpo:outcome": "diverged"})


def make_spec(**changes: Any) -> StudySpec:
    """One searched value, a baseline, ten trials; `changes` replace whole sections."""
    content = {
        "name": "toy",
        "trials": 10,
        "profile": "cpu",
        "run": {"preset": "nano"},
        "search": {"dropout": {"low": 0.0, "high": 0.4}},
        "baseline": {"dropout": 0.1},
    }
    whole = {**content, **changes}
    if "search" in changes:
        whole["baseline"] = {**inside(whole), **changes.get("baseline", {})}
    return StudySpec.model_validate(whole)


def inside(content: dict[str, Any]) -> dict[str, Any]:
    """A value of each searched space that does not hold the run's own."""
    own = {**build_run(content["run"]).parameters(), **content["run"]}
    spaces = {name: Dimension.model_validate(space) for name, space in content["search"].items()}
    return {name: space.corners[0] for name, space in spaces.items() if not space.holds(own.get(name, ""))}


def make_record(spec: StudySpec) -> dict[str, Any]:
    record = {
        "uid": uuid.uuid4().hex[:8],
        "profile": spec.profile,
        "spec": spec.model_dump(mode="json"),
        "corpus": {"name": "pages", "source": "pages", "digest": "c"},
        "tokenizer": {"digest": "t"},
    }
    return dict(json.loads(json.dumps(record)))


def make_sweep(database: Database, *, lease_s: float = 60.0, **changes: Any) -> Sweep:
    """A sweep of a name of its own with all its slots, in a database that may hold others."""
    spec = make_spec(**{"name": f"toy-{uuid.uuid4().hex[:8]}", **changes})
    sweep = create_sweep(database, spec.name, make_record(spec), lease_s)
    sweep.slots.ensure(spec.trials)
    return sweep


def complete(loss: float) -> TrialOutcome:
    return TrialOutcome(state="COMPLETE", values=(loss,), attributes={"hpo:outcome": "complete"})


def run_slot(sweep: Sweep, outcome: TrialOutcome, owner: str = "worker") -> int:
    """Take the next slot from claim to done; the number of its trial."""
    lease = sweep.slots.claim(owner, sweep.spec.trials)
    assert lease is not None
    trial = sweep.begin(lease)
    assert sweep.slots.bind(lease, trial.number)
    assert sweep.slots.finish(lease, outcome)
    sweep.settle(lease, trial.number, outcome)
    return trial.number


def make_evaluation(milestone: int = 1, **changes: Any) -> Evaluation:
    values: dict[str, Any] = dict(
        milestone=milestone, tokens=1000 * milestone, step=10 * milestone, epoch=0.1, whole_split=False,
        val_loss=4.0, val_ppl=54.6, val_word_ppl=300.0, val_bits_per_byte=2.0, train_loss=3.9, train_ppl=49.4,
        phi=0.7, temporal_coherence=0.7, integration=0.7, complexity=0.7, attention_diversity=0.7, train_phi=0.7,
        delta_phi_loss=0.4, lambda_phi=0.05, threshold=0.5, gate=0.01, memory_used=8, learning_rate=1e-3,
        gradient_norm=1.0, tokens_per_s=5000.0, seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip
    return Evaluation(**{**values, **changes})


def make_event(kind: Any, **facts: Any) -> Event:
    return Event(**{"kind": kind, "worker": "worker-0", "parameters": {"dropout": 0.1}, **facts})
