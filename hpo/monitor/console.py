"""What `hpo run` shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.database.retry import is_transient
from hpo.sweep.slots import SlotCounts, Slots
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event
from hpo_model.config import Scalar
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_OUTCOME, TRIAL_REASON

DRAIN_PULSE_S = 0.5  # between looks at who still works


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a worker does, as a line of the table."""

    doing: str = ""  # where it has no trial
    trial: int | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)
    milestone: int = 0  # the last evaluation
    val_ppl: float | None = None
    tokens_per_s: float | None = None


@dataclass
class Board:
    """What is known about a running sweep."""

    sweep: Sweep
    slots: int | None = None  # how many the run is about; None: all that there are, or will be meanwhile
    started_at: float = field(default_factory=time.monotonic)
    counts: SlotCounts = field(default_factory=SlotCounts)
    done_before: int = 0
    front: list[FrozenTrial] = field(default_factory=list)  # with one objective the best trial
    workers: dict[str, Row] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # training tokens per second of each, when last measured

    def __post_init__(self) -> None:
        self.evaluations = self.sweep.spec.run_with({}).training.evaluations  # per trial
        self.refresh()
        self.done_before = self.counts.done

    @property
    def total(self) -> int:
        """Trials that there are to be."""
        return self.counts.total

    def refresh(self) -> None:
        """Read counts and best trials from the database."""
        self.counts = self.sweep.slots.counts(self.slots)
        self.front = [] if self.sweep.spec.replication is not None else self.sweep.front()  # of one seed's luck there

    def try_to_refresh(self) -> None:
        """The same, but what was known stands while the database is away."""
        try:
            self.refresh()
        except Exception as error:
            if not is_transient(error):
                raise

    def hear(self, event: Event) -> None:
        """Take in a worker's event."""
        if event.kind != "warned":
            self.workers[event.worker] = self._row(event)
        if event.evaluation is not None:
            self.rates[event.worker] = event.evaluation.tokens_per_s
        elif event.kind in ("waiting", "restarted", "fatal"):
            self.rates.pop(event.worker, None)
        if event.kind == "finished":
            self.try_to_refresh()

    def _row(self, event: Event) -> Row:
        if event.trial is None:
            return Row(doing="waiting for other workers' trials" if event.kind == "waiting" else event.kind)
        evaluation = event.evaluation
        milestone = self.evaluations if event.kind == "finished" else evaluation.milestone if evaluation else 0
        return Row(
            trial=event.trial,
            parameters=event.parameters,
            milestone=milestone,
            val_ppl=evaluation.val_ppl if evaluation else None,
            tokens_per_s=evaluation.tokens_per_s if evaluation else None,
        )

    def search_is_over(self) -> bool:
        """Whether there is nothing left to run."""
        return self.counts.begun == 0 and (self.counts.open == 0 or self.sweep.stopped_improving())

    def ending(self) -> str:
        """How far the search has come, and its best trials."""
        parts = [f"{self.counts.done} of {self.total} trials finished"]
        if self.counts.done < self.total and self.sweep.stopped_improving():
            parts.append(f"ended after {self.sweep.spec.stopping.trials_without_improvement} without improvement")
        if self.front:
            parts.append(describe_front(self.front, len(self.sweep.spec.objectives)))
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
            parts.append(describe_front(self.front, len(self.sweep.spec.objectives)))
        if self.tokens_per_s():
            parts.append(f"{self.tokens_per_s():,.0f} tokens/s")
        left = self.seconds_left()
        if left is not None and self.counts.done < self.total:
            parts.append(f"{clock(left)} left")
        return " · ".join(parts)


class Lines:
    """Plain lines, one per event that matters: for logs and pipes."""

    def __init__(self, board: Board, console: Console) -> None:
        self.board, self.console = board, console

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def hear(self, event: Event) -> None:
        """Show an event."""
        self.board.hear(event)
        if event.kind == "finished":
            self.say(f"{sentence(event)}  [{self.board.summary()}]")
        elif event.kind == "restarted":
            self.say(event.message)
        elif event.kind == "warned":
            self.say(f"{event.worker}: {event.message}")

    def say(self, line: str) -> None:
        """Show a line."""
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def pulse(self) -> None:
        """Nothing moves between lines."""


class LiveTable(Lines):
    """A table of workers that is redrawn in place; finished trials scroll past above it."""

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board, console)
        self.live = Live(self.draw(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def pulse(self) -> None:
        """Redraw."""
        self.live.update(self.draw())

    def draw(self) -> Group:
        """The table and the totals below it."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("worker", "trial", "parameters", "progress", "", "val ppl", "tokens/s"):
            table.add_column(title, justify="right" if title in ("val ppl", "tokens/s") else "left", no_wrap=True)
        for name, row in sorted(self.board.workers.items()):
            table.add_row(*self._cells(name, row))
        elapsed = clock(time.monotonic() - self.board.started_at)
        totals = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.board.total, completed=self.board.counts.done, width=40)
        totals.add_row(bar, Text(f"{self.board.summary()} · {elapsed} so far"))
        return Group(table, totals)

    def _cells(self, name: str, row: Row) -> tuple[str | Text | ProgressBar, ...]:
        if row.trial is None:
            return name, "", row.doing, "", "", "", ""
        val_ppl = "" if row.val_ppl is None else f"{row.val_ppl:.2f}"
        speed = "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
        bar = ProgressBar(total=self.board.evaluations, completed=row.milestone, width=20)
        parameters = Text(describe_parameters(row.parameters))
        return name, str(row.trial), parameters, bar, f"{row.milestone}/{self.board.evaluations}", val_ppl, speed


def open_view(board: Board, console: Console) -> Lines:
    """The view that suits the console."""
    return LiveTable(board, console) if console.is_terminal else Lines(board, console)


def describe_progress(sweep: Sweep) -> list[str]:
    """How far a study is, and who works on it."""
    board = Board(sweep, sweep.slots.total())
    counts = board.counts
    return [
        f"study {sweep.spec.name}: {board.ending()}",
        f"slots: {counts.done} done, {counts.leased} leased, {counts.released} interrupted, {counts.open} not begun",
        *(f"trial {number}: {owner}" for number, owner in sorted(sweep.slots.owners().items())),
    ]


def drained(slots: Slots, say: Callable[[str], None]) -> None:
    """Wait until no lease is left, telling who still works."""
    told: tuple[str, ...] = ()
    while owners := slots.at_work():
        if owners != told:
            say(f"at work: {', '.join(owners)}")
            told = owners
        time.sleep(DRAIN_PULSE_S)
    say("no worker is left")


def sentence(event: Event) -> str:
    """A finished trial in one line."""
    assert event.result is not None
    attributes = event.result.attributes
    history = attributes.get(TRIAL_HISTORY) or [{}]
    val_ppl = history[-1].get("val_ppl")
    measured = f"val ppl {val_ppl:.2f}, " if val_ppl is not None else ""
    if len(event.result.values) > 1:
        measured += f"Φ {event.result.values[1]:.4f}, "
    outcome = attributes.get(TRIAL_OUTCOME, event.result.state.lower())
    reason = attributes.get(TRIAL_REASON, "")
    return f"trial {event.trial} {outcome}: {measured}{reason} · {describe_parameters(event.parameters)}"


def describe_parameters(parameters: dict[str, Scalar]) -> str:
    """`lambda_phi=0.05 dropout=0.1`."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in parameters.items()
    )


def describe_front(front: list[FrozenTrial], objectives: int) -> str:
    """`best val ppl 131.20 (trial 7)`; of two objectives both ends of the front."""
    if objectives == 1:
        return f"best {describe_best(front[0])}"
    lowest, highest = describe_best(front[0]), f"Φ {front[-1].values[1]:.4f} (trial {front[-1].number})"
    return f"front of {len(front)}, from {lowest} to {highest}"


def describe_best(trial: FrozenTrial) -> str:
    """`val ppl 131.20 (trial 7)`; the loss where the perplexity is not known."""
    history = trial.user_attrs.get(TRIAL_HISTORY) or [{}]
    val_ppl = history[-1].get("val_ppl")
    measured = f"val ppl {val_ppl:.2f}" if val_ppl is not None else f"value {trial.values[0]:.4g}"
    return f"{measured} (trial {trial.number})"


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
