"""Small studies, sweeps and events, built by hand, and databases that misbehave: nothing here trains."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import psycopg
import sqlalchemy as sa

from hpo.database import tables
from hpo.database.connection import Database, open_database
from hpo.database.retry import NO_RETRY, RetryPolicy
from hpo.monitor.board import Board, Update
from hpo.study.sections import Dimension
from hpo.study.spec import StudySpec
from hpo.sweep.record import CorpusFacts, SweepRecord, TokenizerFacts
from hpo.sweep.result import TrialResult
from hpo.sweep.sweep import Sweep, create_sweep
from hpo.worker.messages import Event
from hpo_model.config import build_run
from hpo_model.training.history import Evaluation
from hpo_reports.records.names import STUDY_RECORD, TRIAL_OUTCOME

ENGINES = ("sqlite", "postgresql")
PATIENT = RetryPolicy(max_elapsed_s=60.0)
TINY_RUN: dict[str, Any] = {  # trains in a moment
    "preset": "nano",
    "width": 32,
    "heads": 2,
    "sequence_length": 32,
    "batch_size": 2,
    "budget_tokens": 1280,
    "evaluations": 5,
    "evaluation_tokens": 128,
}
COMPLETE = TrialResult(state="COMPLETE", values=(4.0,), attributes={TRIAL_OUTCOME: "complete"})
PRUNED = TrialResult(state="PRUNED", attributes={TRIAL_OUTCOME: "pruned"})
FAIL = TrialResult(state="FAIL", attributes={TRIAL_OUTCOME: "failed"})
DIVERGED = TrialResult(state="PRUNED", violations=("diverged",), attributes={TRIAL_OUTCOME: "diverged"})


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


def make_record(spec: StudySpec) -> SweepRecord:
    return SweepRecord(
        uid=uuid.uuid4().hex[:8],
        spec=spec,
        profile=spec.profile,
        corpus=CorpusFacts(name="pages", source="pages", digest="c"),
        tokenizer=TokenizerFacts(digest="t"),
    )


def make_sweep(database: Database, *, lease_s: float = 60.0, **changes: Any) -> Sweep:
    """A sweep of a name of its own with all its slots, in a database that may hold others."""
    spec = make_spec(**{"name": f"toy-{uuid.uuid4().hex[:8]}", **changes})
    sweep = create_sweep(database, make_record(spec), lease_s)
    sweep.slots.ensure(spec.trials)
    return sweep


def rewrite_record(sweep: Sweep, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let a study's stored record be as another version of the program wrote it."""
    content = change(json.loads(sweep.row.record_text() or "{}"))
    write = tables.studies.update().where(tables.studies.c.study_id == sweep.study_id)
    sweep.database.transaction(lambda connection: connection.execute(write.values(record=json.dumps(content))))
    sweep.study.set_user_attr(STUDY_RECORD, content)


def complete(loss: float) -> TrialResult:
    return TrialResult(state="COMPLETE", values=(loss,), attributes={TRIAL_OUTCOME: "complete"})


def run_slot(sweep: Sweep, outcome: TrialResult, owner: str = "worker") -> int:
    """Take the next slot from claim to done; the number of its trial."""
    lease = sweep.slots.claim(owner, None)
    assert lease is not None
    trial = sweep.start(lease)
    assert sweep.slots.finish(lease, outcome)
    sweep.finalize(lease, trial.number, outcome)
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


def make_update(board: Board, kind: str, **facts: Any) -> Update:
    """What an event of a worker changes on a board."""
    return Update.of_event(make_event(kind, **facts), board.evaluations)


# ---------------------------------------------------------------------------------------------- databases


@contextlib.contextmanager
def opened(url: str, retry: RetryPolicy = NO_RETRY) -> Iterator[Database]:
    """A database as another process opens it, which may be more patient."""
    database = open_database(url, create=True, retry=retry)
    try:
        yield database
    finally:
        database.engine.dispose()


def contents(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, Optuna's and ours, as the driver gives them."""
    with database.engine.connect() as connection:
        return {
            name: sorted((tuple(row) for row in connection.exec_driver_sql(f'SELECT * FROM "{name}"')), key=repr)
            for name in sa.inspect(connection).get_table_names()
        }


def slot_row(database: Database, study_id: int, slot: int) -> dict[str, Any]:
    """One slot as it is stored."""
    columns = tables.slots.c
    query = sa.select(tables.slots).where(columns.study_id == study_id, columns.number == slot)
    with database.engine.connect() as connection:
        return tables.by_key(tables.slots, connection.execute(query).one())


def set_slot(database: Database, study_id: int, slot: int, **values: Any) -> None:
    """Change a slot behind everybody's back."""
    columns = tables.slots.c
    change = tables.slots.update().where(columns.study_id == study_id, columns.number == slot)
    with database.engine.begin() as connection:
        connection.execute(change.values(**values))


def lost_connection(engine: sa.Engine) -> Exception:
    """What the driver raises where it cannot know what became of a statement."""
    if engine.dialect.name == "sqlite":
        return sqlite3.OperationalError("database is locked")
    return psycopg.OperationalError("server closed the connection unexpectedly")


class Crash(Exception):
    """Stands for kill -9: nothing after it happens."""


@contextlib.contextmanager
def unheard(database: Database, *numbers: int) -> Iterator[list[int]]:
    """Commit what these of the next writing transactions want, but break their connection before the answer.

    Yields:
        Numbers of the transactions that have been broken so far, from 1 on.
    """
    broken: list[int] = []

    def commit_and_break(number: int, connection: Any, commit: Callable[[Any], None]) -> None:
        commit(connection)
        if number in numbers:
            broken.append(number)
            if database.engine.dialect.name == "postgresql":
                connection.driver_connection.close()
            raise lost_connection(database.engine)

    with _commits(database.engine, commit_and_break):
        yield broken


@contextlib.contextmanager
def crash_at_commit(database: Database, number: int, moment: Literal["before", "after"]) -> Iterator[None]:
    """Crash before or after so manieth of the next writing transactions has been committed."""

    def commit_or_crash(reached: int, connection: Any, commit: Callable[[Any], None]) -> None:
        if reached != number or moment == "after":
            commit(connection)
        if reached == number:
            raise Crash

    with _commits(database.engine, commit_or_crash):
        yield


@contextlib.contextmanager
def _commits(engine: sa.Engine, act: Callable[[int, Any, Callable[[Any], None]], None]) -> Iterator[None]:
    """Let something else than a commit happen at the end of each transaction that writes."""
    real, numbers, writing = engine.dialect.do_commit, itertools.count(1), set[int]()

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            writing.add(threading.get_ident())

    def commit(connection: Any) -> None:
        if threading.get_ident() in writing:
            writing.remove(threading.get_ident())
            act(next(numbers), connection, real)
        else:
            real(connection)

    sa.event.listen(engine, "before_cursor_execute", note)
    engine.dialect.do_commit = commit  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.dialect.do_commit
        sa.event.remove(engine, "before_cursor_execute", note)


class Pause:
    """Stops an engine's next transaction just before its commit, until it may go on."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __enter__(self) -> Pause:
        sa.event.listen(self.engine, "commit", self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        self.go_on.set()
        sa.event.remove(self.engine, "commit", self._stop)

    def _stop(self, connection: object) -> None:
        del connection
        self.reached.set()
        assert self.go_on.wait(30), "nobody let the transaction go on"
