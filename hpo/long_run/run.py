"""The long run: the same loop as the search's trials, over more text, before the user's eyes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hpo.errors import UsageError
from hpo.files import replace_with_link
from hpo.long_run.record import RunRecord
from hpo.long_run.tensorboard import EventFiles
from hpo.monitor.board import clock
from hpo_model.config import RunConfig
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import CheckpointError
from hpo_model.hardware import cpu_cores, default_device
from hpo_model.training.checkpoint import load_history
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult, train
from hpo_model.training.schedules import evaluations_without_progress
from hpo_reports.projection.project import Projection, ProjectionScore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """What is trained, and where it is kept."""

    title: str
    config: RunConfig
    corpus: TokenizedCorpus
    epochs: int
    checkpoint: Path  # written at each evaluation; the run continues from it if it is there
    record: RunRecord

    @property
    def best_checkpoint(self) -> Path:
        """That of the lowest validation loss so far."""
        return self.checkpoint.with_name(f"{self.checkpoint.stem}-best.pt")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How it is trained; nothing of it belongs to the run's configuration, and a continued run may have others."""

    patience: int | None = None  # evaluations without a new lowest validation loss after which it stops; None: never
    micro_batch: int | None = None  # sequences at once, the gradients of a batch adding up
    event_files: Path | None = None  # folder of TensorBoard's, if they are wanted

    def __post_init__(self) -> None:
        for option, value in (("--patience", self.patience), ("--micro-batch", self.micro_batch)):
            if value is not None and value < 1:
                raise UsageError(f"{option} must be at least 1, got {value}")


def run_long(run: LongRun, options: RuntimeOptions) -> TrainingResult:
    """Train to the end of the budget, from the run's checkpoint where there is one; a line per evaluation.

    Raises:
        UsageError: another process trains this run; or event files are wanted and TensorBoard is not installed.
        ModelError: as `hpo_model.training.loop.train`.
        KeyboardInterrupt: what was done since the last evaluation is lost, nothing else.
    """
    torch.set_num_threads(cpu_cores())
    with _alone(run):
        result = _train(run, options)
        run.record.end(result.outcome, result.reason)
    return result


def _train(run: LongRun, options: RuntimeOptions) -> TrainingResult:
    resume_from = run.checkpoint if run.checkpoint.is_file() else None
    history = [] if resume_from is None else _history(run)
    run.record.begin(history)
    for evaluation in history:
        logger.info("%s (before)", _line(run, evaluation))
    if history:
        _keep_best(run, history)  # a process that died may have saved its last checkpoint and not this one
    if _out_of_patience(history, options) and len(history) < run.config.training.evaluations:
        return TrainingResult(outcome="stopped", reason=_stopped(history), history=tuple(history))

    with _event_files(options, history) as events, _progress_bar(run, history) as on_update:

        def on_evaluation(evaluation: Evaluation) -> Decision:
            history.append(evaluation)
            _keep_best(run, history)
            logger.info("%s", _line(run, evaluation))
            events.add(evaluation)
            projection = run.record.add(history)
            if projection is not None:
                logger.info("%s", _describe_projection(projection))
            return Decision.STOP if _out_of_patience(history, options) else Decision.CONTINUE

        result = train(
            run.config,
            run.corpus,
            device=default_device(),
            save_to=run.checkpoint,
            resume_from=resume_from,
            micro_batch=options.micro_batch,
            on_evaluation=on_evaluation,
            on_update=on_update,
        )
    if result.outcome == "diverged":
        logger.info("%s", _line(run, result.history[-1]))
    return dataclasses.replace(result, reason=_stopped(history)) if result.outcome == "stopped" else result


def describe(run: LongRun, result: TrainingResult) -> Iterator[str]:
    """Lines on how it ended: the best evaluation, its checkpoint, and what projections were worth."""
    where = f" · {run.checkpoint}" if run.checkpoint.is_file() else ""
    yield f"{result.outcome}: {result.reason}{where}"
    if result.history and run.best_checkpoint.is_file():
        best = min(result.history, key=_loss)
        yield f"best: epoch {best.epoch:.2f}, val ppl {best.val_ppl:.2f} · {run.best_checkpoint}"
    yield from map(_describe_score, run.record.scores)


@contextlib.contextmanager
def _alone(run: LongRun) -> Iterator[None]:
    """One process at a time: two would take each other's checkpoints for their own."""
    lock = FileLock(run.checkpoint.with_name(f".{run.checkpoint.stem}.lock"), timeout=0)
    try:
        run.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(f"{run.checkpoint}: another process trains this run; it ends or is stopped first") from error
    except OSError as error:
        raise UsageError(f"{run.checkpoint.parent}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def _history(run: LongRun) -> list[Evaluation]:
    """The evaluations of the last checkpoint."""
    try:
        return list(load_history(run.checkpoint))
    except CheckpointError as error:
        if not run.best_checkpoint.is_file():
            raise
        best = run.best_checkpoint
        raise CheckpointError(f"{error}, and goes on from its best with {best} copied to its place") from error


def _loss(evaluation: Evaluation) -> float:
    return evaluation.val_loss if math.isfinite(evaluation.val_loss) else math.inf


def _out_of_patience(history: Sequence[Evaluation], options: RuntimeOptions) -> bool:
    waited = evaluations_without_progress([evaluation.val_loss for evaluation in history])
    return options.patience is not None and waited >= options.patience


def _stopped(history: Sequence[Evaluation]) -> str:
    waited = evaluations_without_progress([evaluation.val_loss for evaluation in history])
    return f"no new lowest validation loss in {waited} evaluations; a larger --patience goes on"


def _keep_best(run: LongRun, history: Sequence[Evaluation]) -> None:
    """The last checkpoint under a second name if it is the best so far; it is replaced later, never written to."""
    if min(history, key=_loss) is not history[-1]:
        return
    try:
        replace_with_link(run.best_checkpoint, run.checkpoint)
    except OSError as error:
        raise CheckpointError(f"{run.best_checkpoint}: checkpoint cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _event_files(options: RuntimeOptions, history: Sequence[Evaluation]) -> Iterator[EventFiles]:
    """TensorBoard's files, or none."""
    events = EventFiles(options.event_files, after=history[-1].step if history else 0)
    try:
        yield events
    finally:
        events.close()


@contextlib.contextmanager
def _progress_bar(run: LongRun, history: Sequence[Evaluation]) -> Iterator[Callable[[int], object]]:
    """A bar that moves in a terminal, below the lines that are logged; yields a function that takes the step."""
    console = Console()
    if not console.is_terminal:
        yield lambda step: None
        return
    columns = (TextColumn("epoch {task.fields[epoch]:5.2f}"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, refresh_per_second=2, speed_estimate_period=300) as shown:
        per_epoch = run.config.steps / run.epochs
        begun = history[-1].step if history else 0
        task = shown.add_task("", total=run.config.steps, completed=begun, epoch=begun / per_epoch)
        yield lambda step: shown.update(task, completed=step, epoch=step / per_epoch)


def _describe_projection(projection: Projection) -> str:
    """The headline of a projection in one line."""
    best = projection.best
    doubt = "" if projection.ranks else "; too wide to rank by"
    return (
        f"projected best checkpoint by epoch {projection.horizon_epochs:g}: ppl {best.median:.1f}, nine in ten runs "
        f"between {best.low_90:.1f} and {best.high_90:.1f}{doubt}"
    )


def _describe_score(score: ProjectionScore) -> str:
    """What a projection was worth, in one line."""
    best, word = score.projection.best, "inside" if score.best_inside[90] else "outside"
    error = f"{100 * math.expm1(score.best_log_error):+.0f} %"
    return (
        f"projected after epoch {score.projection.observed_epochs:.0f}: ppl {best.median:.1f} ({best.low_90:.1f} to "
        f"{best.high_90:.1f}); the best is {score.best_ppl:.1f}: {word}, {error} from the median"
    )


def _line(run: LongRun, evaluation: Evaluation) -> str:
    left = evaluation.seconds / evaluation.milestone * (run.config.training.evaluations - evaluation.milestone)
    phi = f" · Φ {evaluation.phi:.3f}" if math.isfinite(evaluation.phi) else ""
    return (
        f"epoch {evaluation.epoch:5.2f} · val ppl {evaluation.val_ppl:8.2f} · word ppl {evaluation.val_word_ppl:9.2f}"
        f" · train ppl {evaluation.train_ppl:8.2f}{phi}"
        f" · {evaluation.tokens_per_s:,.0f} tokens/s · {clock(left)} left"
    )
