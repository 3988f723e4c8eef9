"""Follow a study through its database alone: what changed, and how it ended."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import FrozenTrial, TrialState

from hpo.monitor.board import Board, EndedTrial, Update, WorkerRow
from hpo.sweep.slots import LEASE_S
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import MAX_FAILURES_IN_A_ROW
from hpo_model.config import Scalar
from hpo_reports.records.names import TRIAL_OUTCOME, TRIAL_REASON

if TYPE_CHECKING:
    from rich.console import Console

    from hpo.monitor.console import Lines

PULSE_S = 1.0  # between looks at the database
# Without a lease. A dead worker's trial can be taken up only when its lease has expired, so this is longer.
IDLE_S = 2 * LEASE_S
BETWEEN_TRIALS_S = 5.0  # without a lease; a worker at work holds its next one sooner

Outcome = Literal["finished", "failed", "timeout", "nothing_running"]
EXIT_CODES: Mapping[Outcome, int] = {"finished": 0, "failed": 3, "timeout": 4, "nothing_running": 5}
Kind = Literal["watching", "workers", "trial_started", "trial_evaluated", "trial_ended", "study_ended"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that became different. Fields that a kind does not have are absent from its JSON."""

    event: Kind
    study: str
    at: str  # UTC, ISO 8601
    done: int | None = None  # trials that have ended
    total: int | None = None  # trials that there are to be
    workers: tuple[str, ...] | None = None  # who holds a trial now
    trial: int | None = None
    parameters: dict[str, Scalar] | None = None
    milestone: int | None = None  # the last evaluation, of `evaluations`
    evaluations: int | None = None
    val_loss: float | None = None  # nats per token; absent where it is not finite
    values: tuple[float, ...] | None = None  # of the study's objectives
    outcome: str | None = None  # of a trial: complete, pruned, diverged, …; of the study: `Outcome`
    reason: str | None = None
    exit_code: int | None = None
    best_trial: int | None = None  # of two objectives that of lowest validation loss
    best_values: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is printed and sent."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the watching ended."""

    outcome: Outcome
    reason: str
    change: Change

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """The body for a webhook: the change, and a sentence under the name that chat services read."""
        return {"text": f"study {self.change.study} {_readable(self.outcome)}: {self.reason}", **self.change.to_dict()}


@dataclass
class Watched:
    """A study as it was seen last."""

    sweep: Sweep
    board: Board
    workers: tuple[str, ...] = ()
    seen: dict[int, tuple[TrialState, int, bool]] = field(default_factory=dict)  # state, evaluations, parameters known
    ended: list[FrozenTrial] = field(default_factory=list)  # by the time at which they did
    busy_at: float = field(default_factory=time.monotonic)  # when somebody last held a lease
    first: bool = True

    def look(self) -> Iterator[tuple[Change, FrozenTrial | None]]:
        """Read the database; what is different, with the trial that it is about."""
        owners, at_work = self.sweep.slots.owners(), self.sweep.slots.at_work()
        if self.first and not at_work and self.board.front and self.board.is_over():
            self.first = False
            yield self.change("watching", workers=()), None
            return  # a finished study, of which nothing will change: its trials need not be read
        trials = self.sweep.study.get_trials(deepcopy=False)  # after their owners, so that none is missing
        self.board.refresh()
        if at_work:
            self.busy_at = time.monotonic()
        rows = {_shown(owner): self._row(trials[number]) for number, owner in owners.items()}
        self.board.apply(Update(rows=rows, all_workers=True))
        self.ended = sorted(
            (trial for trial in trials if trial.state.is_finished()),
            key=lambda trial: (trial.datetime_complete, trial.number),
        )
        if self.first:
            yield self.change("watching", workers=tuple(map(_shown, at_work))), None
        elif at_work != self.workers:
            yield self.change("workers", workers=tuple(map(_shown, at_work))), None
        self.workers = at_work
        for trial in trials:
            state = self._state(trial)
            before, self.seen[trial.number] = self.seen.get(trial.number), state
            if before != state and not self.first:
                yield from ((change, trial) for change in self._changes(trial, before, state))
        self.first = False

    def change(self, event: Kind, **facts: Any) -> Change:
        """A change as of now."""
        return Change(
            event=event,
            study=self.sweep.spec.name,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            done=self.board.counts.done,
            total=self.board.total,
            **facts,
        )

    def _state(self, trial: FrozenTrial) -> tuple[TrialState, int, bool]:
        known = set(trial.params) == set(self.sweep.spec.search)
        return trial.state, max(trial.intermediate_values, default=0), known

    def _changes(
        self, trial: FrozenTrial, before: tuple[TrialState, int, bool] | None, now: tuple[TrialState, int, bool]
    ) -> Iterator[Change]:
        began, (state, milestone, known) = before is not None and before[2], now
        if known and not began:
            yield self.change("trial_started", trial=trial.number, parameters=dict(trial.params))
        if milestone > (before[1] if before else 0):
            loss = trial.intermediate_values[milestone]
            yield self.change(
                "trial_evaluated",
                trial=trial.number,
                milestone=milestone,
                evaluations=self.board.evaluations,
                val_loss=loss if math.isfinite(loss) else None,
            )
        if state.is_finished() and not (before and before[0].is_finished()):
            yield self.change(
                "trial_ended",
                trial=trial.number,
                parameters=dict(trial.params),
                outcome=trial.user_attrs.get(TRIAL_OUTCOME, state.name.lower()),
                reason=trial.user_attrs.get(TRIAL_REASON),
                values=tuple(trial.values) if trial.values else None,
            )

    def _row(self, trial: FrozenTrial) -> WorkerRow:
        milestone = max(trial.intermediate_values, default=0)
        loss = trial.intermediate_values.get(milestone, math.inf)
        val_ppl = math.exp(loss) if loss < 700 else None
        return WorkerRow(trial=trial.number, parameters=dict(trial.params), milestone=milestone, val_ppl=val_ppl)

    def ending(self, *, out_of_time: bool) -> Ending | None:
        """How it ended, or None while it goes on."""
        idle_s = time.monotonic() - self.busy_at
        if self.board.is_over():
            if self.board.front or any(trial.state is TrialState.COMPLETE for trial in self.ended):
                return self.ends("finished", self.board.ending())
            return self.ends("failed", f"none of its {len(self.ended)} trials is complete")
        if idle_s >= BETWEEN_TRIALS_S and self._failed_at_last():
            last = self.ended[-1]
            reason = last.user_attrs.get(TRIAL_REASON, "no reason is known")
            return self.ends(
                "failed", f"its last {MAX_FAILURES_IN_A_ROW} trials failed, trial {last.number} by {reason}"
            )
        if idle_s >= IDLE_S:
            return self.ends("nothing_running", f"{self.board.ending()}, and nobody works on it; `hpo run` goes on")
        return self.ends("timeout", f"{self.board.ending()} when the time was up") if out_of_time else None

    def _failed_at_last(self) -> bool:
        last = self.ended[-MAX_FAILURES_IN_A_ROW:]
        return len(last) == MAX_FAILURES_IN_A_ROW and all(trial.state is TrialState.FAIL for trial in last)

    def ends(self, outcome: Outcome, reason: str) -> Ending:
        """The ending, with the last change, which reports it."""
        best = self.board.front[0] if self.board.front else None
        change = self.change(
            "study_ended",
            outcome=outcome,
            reason=reason,
            exit_code=EXIT_CODES[outcome],
            best_trial=None if best is None else best.number,
            best_values=None if best is None else tuple(best.values),
        )
        return Ending(outcome=outcome, reason=reason, change=change)


Tell = Callable[[Change, FrozenTrial | None], None]


def watch_study(sweep: Sweep, console: Console | None, limit_s: float | None) -> Ending:
    """Follow a study to its end.

    Args:
        sweep: the study.
        console: where people read; None: changes go to standard output as JSON lines.
        limit_s: time after which to stop watching.
    """
    watched = Watched(sweep, Board(sweep))
    if console is None:
        return _follow(watched, _print_json, lambda: None, limit_s)
    from hpo.monitor.console import open_view

    with open_view(watched.board, console) as view:
        return _follow(watched, lambda change, trial: _print_change(view, change, trial), view.pulse, limit_s)


def _follow(watched: Watched, tell: Tell, pulse: Callable[[], None], limit_s: float | None) -> Ending:
    began = time.monotonic()
    while True:
        for change, trial in watched.look():
            tell(change, trial)
        pulse()
        ending = watched.ending(out_of_time=limit_s is not None and time.monotonic() - began >= limit_s)
        if ending is not None:
            tell(ending.change, None)
            return ending
        time.sleep(PULSE_S)


def _print_json(change: Change, trial: FrozenTrial | None) -> None:
    del trial
    print(json.dumps(change.to_dict()), flush=True)  # whoever reads a pipe hears of it now


def _print_change(view: Lines, change: Change, trial: FrozenTrial | None) -> None:
    """What is news to people; the table shows the rest."""
    if change.event in ("watching", "workers"):
        names = ", ".join(change.workers or ())
        doing = f"at work: {names}" if names else f"nobody works on it now; waiting {IDLE_S:.0f} s for a worker"
        view.say(f"study {change.study}: {view.board.ending()} · {doing}" if change.event == "watching" else doing)
    elif change.event == "trial_ended" and trial is not None:
        view.show(Update(ended=(EndedTrial.of_trial(trial),)))
    elif change.event == "study_ended" and change.outcome is not None:
        view.say(f"{_readable(change.outcome)}: {change.reason}")


def ending_of_loss(sweep: Sweep, reason: str) -> Ending:
    """The ending of a watch whose database is gone."""
    change = Change(
        event="study_ended",
        study=sweep.spec.name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        outcome="failed",
        reason=reason,
        exit_code=1,
    )
    return Ending(outcome="failed", reason=reason, change=change)


def _shown(owner: str) -> str:
    """The owner of a lease without the digits that tell processes apart."""
    return owner.rpartition("-")[0] or owner


def _readable(outcome: str) -> str:
    return outcome.replace("_", " ")
