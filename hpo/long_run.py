"""The long run with a trial's configuration: the same loop as the search's trials, over more text.

hpo train --from lambda_phi --trial 7 --epochs 20
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hpo.errors import StudyError, UsageError
from hpo.home import Home
from hpo.meaning import runs_version
from hpo.network import check_same_network
from hpo.run_record import RunRecord
from hpo.storage import open_database, storage_errors
from hpo.sweep import Sweep, open_sweep
from hpo.text import check_same_text, load_text
from hpo.view import clock
from model.config import RUNS_VERSION, RunConfig, Scalar, build_run
from model.evaluation import Evaluation
from model.hardware import cpu_cores, default_device
from model.tokens import TokenizedCorpus
from model.training import Decision, TrainingResult, load_history, train
from reports.projection.project import Projection

LEAST_EVALUATIONS = 10
EVALUATION_SHARE = 4  # tokens trained between two evaluations for each that an evaluation reads, at least


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """A configuration of the search, stretched to whole epochs."""

    config: RunConfig
    corpus: TokenizedCorpus
    checkpoint: Path  # written at each evaluation; the run continues from it if it is there
    trial: int
    record: RunRecord


@dataclass(frozen=True)
class LongRequest:
    """What the user asked for."""

    study: str  # made by `hpo run`
    trial: int | None  # None: the best one; of two objectives that of lowest validation loss
    epochs: int  # passes over the training split
    data: Path | None = None  # where the study's text is, if not where it was


def prepare_long_run(url: str, home: Home, request: LongRequest, announce: Callable[[str], None]) -> LongRun:
    """Find the trial, load its study's text, stretch its budget.

    Args:
        url: database of the study.
        home: where text and checkpoints lie.
        request: study, trial, epochs.
        announce: told what text is read, and which of several best trials was taken.

    Raises:
        HpoError, ModelError: what is wrong, in one line.
    """
    epochs = request.epochs
    if epochs < 1:
        raise UsageError(f"--epochs must be at least 1, got {epochs}")
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        number, recorded = _recorded_run(sweep, request.trial)
    if request.trial is None and len(sweep.spec.objectives) > 1:
        announce(
            f"trial {number} has the lowest validation loss; with two objectives --trial takes another of the front"
        )
    if (made := runs_version(sweep.record)) != RUNS_VERSION:
        announce(f"the study's runs are of version {made}; with equal values this program trains otherwise")
    corpus = load_text(sweep.spec, request.data, sweep, home, announce)
    check_same_text(sweep, corpus)
    check_same_network(sweep)
    evaluations = epochs * -(-LEAST_EVALUATIONS // epochs)  # a whole number of them per epoch
    config = build_run({**recorded, **_stretched(recorded, corpus, epochs, evaluations)})
    folder = home.study(request.study, sweep.uid) / "long-runs"
    checkpoint = folder / f"trial-{number:05d}-epochs-{epochs}.pt"
    record = RunRecord(sweep.study, trial=number, epochs=epochs, parameters=config.parameters())
    return LongRun(config=config, corpus=corpus, checkpoint=checkpoint, trial=number, record=record)


def run_long(run: LongRun, announce: Callable[[str], None]) -> TrainingResult:
    """Train to the end of the budget, from the run's checkpoint where there is one; a line per evaluation."""
    torch.set_num_threads(cpu_cores())
    resume_from = run.checkpoint if run.checkpoint.is_file() else None
    history = list(load_history(resume_from)) if resume_from else []
    if not history:
        run.record.restart()
    for evaluation in history:
        announce(f"{_line(run, evaluation)} (before)")

    def tell(evaluation: Evaluation) -> Decision:
        announce(_line(run, evaluation))
        history.append(evaluation)
        projection = run.record.add(history)
        if projection is not None:
            announce(_expectation(projection))
        return Decision.CONTINUE

    result = train(
        run.config,
        run.corpus,
        device=default_device(),
        save_to=run.checkpoint,
        resume_from=resume_from,
        on_evaluation=tell,
    )
    run.record.end(result.outcome, result.reason)
    return result


def _stretched(
    recorded: dict[str, Scalar], corpus: TokenizedCorpus, epochs: int, evaluations: int
) -> dict[str, Scalar]:
    """The budget of whole epochs; evaluations read the whole split where that costs little beside the training."""
    budget = epochs * corpus.tokens("train")
    affordable = budget // evaluations // EVALUATION_SHARE
    tokens = max(int(recorded["evaluation_tokens"]), min(corpus.tokens("valid"), affordable))
    return {"budget_tokens": budget, "evaluations": evaluations, "evaluation_tokens": tokens}


def _recorded_run(sweep: Sweep, trial: int | None) -> tuple[int, dict[str, Scalar]]:
    """All values of a trial as it was run: today's presets may be others."""
    name = sweep.spec.name
    if trial is None:
        best = sweep.best()
        if best is None:
            raise StudyError(f"study {name!r} has no complete trial yet; `hpo run` goes on with it")
        trial = best.number
    trials = sweep.study.get_trials(deepcopy=False)
    found = next((each for each in trials if each.number == trial), None)
    if found is None:
        raise StudyError(f"study {name!r} has no trial {trial} among its {len(trials)}")
    recorded = found.user_attrs.get("hpo:run")
    if not isinstance(recorded, dict):
        raise StudyError(
            f"trial {trial} of study {name!r} is {found.state.name} and has no record of its run; --trial names another"
        )
    return trial, recorded


def _expectation(projection: Projection) -> str:
    """The headline of a projection in one line."""
    best = projection.best
    doubt = "" if projection.ranks else "; too wide to rank by"
    return (
        f"projected best checkpoint by epoch {projection.horizon_epochs:g}: ppl {best.median:.1f}, nine in ten runs "
        f"between {best.low_90:.1f} and {best.high_90:.1f}{doubt}"
    )


def _line(run: LongRun, evaluation: Evaluation) -> str:
    left = evaluation.seconds / evaluation.milestone * (run.config.training.evaluations - evaluation.milestone)
    phi = f" · Φ {evaluation.phi:.3f}" if math.isfinite(evaluation.phi) else ""
    return (
        f"epoch {evaluation.epoch:5.2f} · val ppl {evaluation.val_ppl:8.2f} · word ppl {evaluation.val_word_ppl:9.2f}"
        f" · train ppl {evaluation.train_ppl:8.2f}{phi}"
        f" · {evaluation.tokens_per_s:,.0f} tokens/s · {clock(left)} left"
    )
