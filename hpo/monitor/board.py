"""What is known about a running study, fed by workers' events or by reading the database."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from hpo.database.retry import is_transient
from hpo.sweep.slots import SlotCounts, Slots
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event
from hpo_model.config import Scalar
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_OUTCOME, TRIAL_REASON

IDLE_PULSE_S = 0.5  # between two looks at who still works

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """What a worker is doing now."""

    doing: str = ""  # in words, while it has no trial
    trial: int | None = None
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    milestone: int = 0  # the last evaluation
    val_ppl: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class EndedTrial:
    """How a trial ended."""

    number: int
    outcome: str  # complete, pruned, diverged, …
    reason: str
    parameters: Mapping[str, Scalar]
    values: tuple[float, ...]  # of the study's objectives
    val_ppl: float | None

    @classmethod
    def of_event(cls, event: Event) -> EndedTrial:
        """As its worker reports it."""
        assert event.result is not None, "a trial that is finished has a result"
        assert event.trial is not None, "a trial that is finished has a number"
        state, values, attributes = event.result.state, event.result.values, event.result.attributes
        return cls._of(event.trial, event.parameters, state, values, attributes)

    @classmethod
    def of_trial(cls, trial: FrozenTrial) -> EndedTrial:
        """As the database has it."""
        return cls._of(trial.number, trial.params, trial.state.name, tuple(trial.values or ()), trial.user_attrs)

    @classmethod
    def _of(
        cls,
        number: int,
        parameters: Mapping[str, Scalar],
        state: str,
        values: tuple[float, ...],
        attributes: Mapping[str, Any],
    ) -> EndedTrial:
        return cls(
            number=number,
            outcome=attributes.get(TRIAL_OUTCOME, state.lower()),
            reason=attributes.get(TRIAL_REASON, ""),
            parameters=dict(parameters),
            values=tuple(values),
            val_ppl=_last_val_ppl(attributes),
        )


@dataclass(frozen=True, kw_only=True)
class Update:
    """What has changed: what workers do now, trials that have ended, and what else a user should see."""

    rows: Mapping[str, WorkerRow] = field(default_factory=dict)  # by worker
    all_workers: bool = False  # whether the rows are those of every worker there is
    ended: tuple[EndedTrial, ...] = ()
    messages: tuple[str, ...] = ()

    @classmethod
    def of_event(cls, event: Event, evaluations: int) -> Update:
        """The change that an event of a worker stands for.

        Args:
            event: of the worker.
            evaluations: of a whole trial.
        """
        rows = {} if event.kind == "warned" else {event.worker: _row(event, evaluations)}
        ended = (EndedTrial.of_event(event),) if event.kind == "finished" else ()
        messages: tuple[str, ...] = ()
        if event.kind == "restarted":
            messages = (event.message,)
        elif event.kind == "warned":
            messages = (f"{event.worker}: {event.message}",)
        return cls(rows=rows, ended=ended, messages=messages)


def _row(event: Event, evaluations: int) -> WorkerRow:
    if event.trial is None:
        return WorkerRow(doing="waiting for other workers' trials" if event.kind == "waiting" else event.kind)
    evaluation = event.evaluation
    return WorkerRow(
        trial=event.trial,
        parameters=event.parameters,
        milestone=evaluations if event.kind == "finished" else evaluation.milestone if evaluation else 0,
        val_ppl=evaluation.val_ppl if evaluation else None,
        tokens_per_s=evaluation.tokens_per_s if evaluation else None,
    )


@dataclass
class Board:
    """What is known about a running study."""

    sweep: Sweep
    slot_limit: int | None = None  # only the first so many slots count; None: all, also those added later
    started_at: float = field(default_factory=time.monotonic)
    counts: SlotCounts = field(default_factory=SlotCounts)
    done_before: int = 0
    front: list[FrozenTrial] = field(default_factory=list)  # with one objective the best trial
    workers: dict[str, WorkerRow] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # training tokens per second of each, when last measured

    def __post_init__(self) -> None:
        self.evaluations = self.sweep.spec.run_with({}).training.evaluations  # per trial
        self.refresh()
        self.done_before = self.counts.done

    @property
    def total(self) -> int:
        """Trials that the study is to end with."""
        return self.counts.total

    def refresh(self) -> None:
        """Read counts and best trials from the database."""
        self.counts = self.sweep.slots.counts(self.slot_limit)
        self.front = [] if self.sweep.spec.replication is not None else self.sweep.front()  # of one seed's luck there

    def try_to_refresh(self) -> None:
        """The same, but what was known stands while the database is away."""
        try:
            self.refresh()
        except Exception as error:
            if not is_transient(error):
                raise

    def apply(self, update: Update) -> None:
        """Take in what has changed."""
        if update.all_workers:
            self.workers = {}
        for name, row in update.rows.items():
            self.workers[name] = row
            if row.tokens_per_s is not None:
                self.rates[name] = row.tokens_per_s
            elif row.trial is None:
                self.rates.pop(name, None)
        if update.ended:
            self.try_to_refresh()

    def is_over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.counts.begun == 0 and (self.counts.open == 0 or self.sweep.stopped_improving())

    def ending(self) -> str:
        """How far the search has come, and its best trials."""
        parts = [f"{self.counts.done} of {self.total} trials finished"]
        if self.counts.done < self.total and self.sweep.stopped_improving():
            parts.append(f"ended after {self.sweep.spec.stopping.trials_without_improvement} without improvement")
        if self.front:
            parts.append(describe_best(self.front, len(self.sweep.spec.objectives)))
        return " · ".join(parts)

    def seconds_left(self) -> float | None:
        """At the pace so far, or None before the first trial has ended."""
        finished = self.counts.done - self.done_before
        if finished <= 0:
            return None
        return (time.monotonic() - self.started_at) / finished * (self.total - self.counts.done)

    def tokens_per_s(self) -> float:
        """Training tokens per second, all workers together."""
        return sum(self.rates.values())

    def summary(self) -> str:
        """Totals in one line."""
        parts = [f"{self.counts.done}/{self.total} trials"]
        if self.front:
            parts.append(describe_best(self.front, len(self.sweep.spec.objectives)))
        if self.tokens_per_s():
            parts.append(f"{self.tokens_per_s():,.0f} tokens/s")
        left = self.seconds_left()
        if left is not None and self.counts.done < self.total:
            parts.append(f"{clock(left)} left")
        return " · ".join(parts)


def describe_progress(sweep: Sweep) -> list[str]:
    """How far a study is, and who works on it."""
    board = Board(sweep, sweep.slots.total())
    counts = board.counts
    free = f"{counts.open + counts.released} open"
    if counts.released:
        free += f", {counts.released} of them interrupted"
    return [
        f"study {sweep.spec.name}: {board.ending()}",
        f"slots: {counts.done} done, {counts.leased} leased or finishing, {free}",
        *(f"trial {number}: {owner}" for number, owner in sorted(sweep.slots.owners().items())),
    ]


def wait_until_idle(slots: Slots) -> None:
    """Wait until no lease is held, and log who still works."""
    known: tuple[str, ...] = ()
    while owners := slots.at_work():
        if owners != known:
            logger.info("at work: %s", ", ".join(owners))
            known = owners
        time.sleep(IDLE_PULSE_S)
    logger.info("no worker is left")


def describe_ended(trial: EndedTrial) -> str:
    """`trial 7 complete: val ppl 131.20, all of 20,480 tokens · dropout=0.1`."""
    measured = f"val ppl {trial.val_ppl:.2f}, " if trial.val_ppl is not None else ""
    if len(trial.values) > 1:
        measured += f"Φ {trial.values[1]:.4f}, "
    return f"trial {trial.number} {trial.outcome}: {measured}{trial.reason} · {describe_parameters(trial.parameters)}"


def describe_parameters(parameters: Mapping[str, Scalar]) -> str:
    """`lambda_phi=0.05 dropout=0.1`."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in parameters.items()
    )


def describe_best(front: list[FrozenTrial], objectives: int) -> str:
    """`best val ppl 131.20 (trial 7)`; of two objectives both ends of the Pareto front."""
    if objectives == 1:
        return f"best {_describe_val_ppl(front[0])}"
    lowest, highest = _describe_val_ppl(front[0]), f"Φ {front[-1].values[1]:.4f} (trial {front[-1].number})"
    return f"front of {len(front)}, from {lowest} to {highest}"


def _describe_val_ppl(trial: FrozenTrial) -> str:
    """`val ppl 131.20 (trial 7)`; the loss where the perplexity is not known."""
    val_ppl = _last_val_ppl(trial.user_attrs)
    measured = f"val ppl {val_ppl:.2f}" if val_ppl is not None else f"value {trial.values[0]:.4g}"
    return f"{measured} (trial {trial.number})"


def _last_val_ppl(attributes: Mapping[str, Any]) -> float | None:
    history = attributes.get(TRIAL_HISTORY) or [{}]
    val_ppl: float | None = history[-1].get("val_ppl")
    return val_ppl


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
