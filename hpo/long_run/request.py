"""Which long run a user asked for: a trial's configuration, or a preset with values of one's own, over whole epochs.

hpo train --from lambda_phi --trial 7 --epochs 20
hpo train --preset small_iit --corpus wikitext-2 --batch-size 32 --lr 2e-4 --lambda-phi 0.1 --seed 42
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpo.database.connection import open_database, storage_errors
from hpo.errors import StudyError, UsageError
from hpo.home import Home
from hpo.long_run.record import FolderStore, RunRecord, StudyStore
from hpo.long_run.run import LongRun
from hpo.sweep.compatibility import check_network, check_text
from hpo.sweep.corpus import load_text
from hpo.sweep.finalists import find_finalists
from hpo.sweep.sweep import Sweep, open_sweep
from hpo_model.config import (
    SEMANTICS_VERSION,
    RunConfig,
    Scalar,
    TokenizerChoice,
    build_run,
    parameter_type,
    recorded_run,
)
from hpo_model.data.corpus import load_corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.digest import short_digest
from hpo_model.network.custom import source_digest
from hpo_reports.analysis.judging import judge
from hpo_reports.records.finalists import read_companion
from hpo_reports.records.names import TRIAL_RUN

MIN_EVALUATIONS = 10
EVALUATION_SHARE = 4  # tokens trained between two evaluations for each that an evaluation reads, at least
BOUNDLESS: Mapping[str, Scalar] = {"budget_tokens": 2**53}  # while it is not known how long the text is
DERIVED = ("preset", "budget_tokens", "evaluations", "evaluation_tokens")  # values that other options decide

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """A trial's configuration, run for longer."""

    study: str  # made by `hpo run`
    trial: int | None = None  # None: the finalists' winner, else the lowest loss of the search
    epochs: int  # passes over the training split
    values: Mapping[str, Scalar] = field(default_factory=dict)  # which replace the trial's
    data: Path | None = None  # where the study's text is, if not where it was


@dataclass(frozen=True, kw_only=True)
class PresetRequest:
    """A preset's configuration, of no study."""

    preset: str
    corpus: str = "auto"  # a name that `load_corpus` knows, or a folder
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    epochs: int
    values: Mapping[str, Scalar] = field(default_factory=dict)  # which replace the preset's


def prepare_trial_run(url: str, home: Home, request: TrialRequest) -> LongRun:
    """Find the trial, load its study's text, stretch its budget.

    Args:
        url: database of the study.
        home: where text and checkpoints lie.
        request: study, trial, epochs.

    Raises:
        HpoError, ModelError: what is wrong, in one line.
    """
    _check_epochs(request.epochs)
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        number, recorded = _recorded_run(sweep, _chosen(sweep) if request.trial is None else request.trial)
    if (made := sweep.record.fingerprint.semantics_version) != SEMANTICS_VERSION:
        logger.info(f"the study's runs are of version {made}; with equal values this program trains otherwise")
    corpus = load_text(sweep.spec, request.data, sweep.record, home, logger.info)
    check_text(sweep.record, corpus)
    check_network(sweep.record)
    corpus.check_length(build_run({**recorded, **request.values, **BOUNDLESS}).architecture.sequence_length)
    config = _stretched({**recorded, **request.values}, corpus, request.epochs)
    changed = config != _stretched(recorded, corpus, request.epochs)
    name = f"trial-{number:05d}-epochs-{request.epochs}" + (f"-{config.digest()[:8]}" if changed else "")
    return LongRun(
        title=f"trial {number} of {request.study}" + (" with values of your own" if changed else ""),
        config=config,
        corpus=corpus,
        epochs=request.epochs,
        checkpoint=home.long_runs(request.study, sweep.uid) / f"{name}.pt",
        record=RunRecord(
            StudyStore(sweep.study),
            name,
            trial=None if changed else number,
            epochs=request.epochs,
            parameters=config.parameters(),
        ),
    )


def prepare_preset_run(home: Home, request: PresetRequest) -> LongRun:
    """Load the text, build the run; it lies in the home's `trained` folder, beside others on the same text.

    Args:
        home: where text and checkpoints lie.
        request: preset, text, epochs.

    Raises:
        HpoError, ModelError: what is wrong, in one line.
    """
    _check_epochs(request.epochs)
    named = {"preset": request.preset, **request.values}
    architecture = build_run({**named, **BOUNDLESS}).architecture  # refused before minutes are spent on a tokenizer
    if architecture.network:
        source_digest(architecture.network)
    text = load_corpus(request.corpus, home.corpora, logger.info)
    corpus = tokenize_corpus(text, request.tokenizer, home.tokens)
    corpus.check_length(architecture.sequence_length)
    config = _stretched(build_run({**named, **BOUNDLESS}).parameters(), corpus, request.epochs)
    digests = short_digest(f"{corpus.corpus_digest} {corpus.tokenizer.digest}")
    folder = home.trained(corpus.corpus_name, digests[:8])
    name = f"{request.preset}-epochs-{request.epochs}-{config.digest()[:8]}"
    return LongRun(
        title=f"{request.preset} on {corpus.corpus_name}",
        config=config,
        corpus=corpus,
        epochs=request.epochs,
        checkpoint=folder / f"{name}.pt",
        record=RunRecord(FolderStore(folder), name, trial=None, epochs=request.epochs, parameters=config.parameters()),
    )


def read_values(settings: list[str]) -> dict[str, Scalar]:
    """Values of a run from `NAME=VALUE` texts, for `build_run`, which checks them.

    Raises:
        UsageError: no `=`, or a name that another option decides.
        ConfigError: an unknown name.
    """
    values: dict[str, Scalar] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign:
            raise UsageError(f"--set takes NAME=VALUE, got {setting!r}")
        if name in DERIVED:
            raise UsageError(f"--set {name}: follows from --preset, or from --epochs and the text")
        kind = parameter_type(name)
        values[name] = text
        if kind is not str:
            with contextlib.suppress(ValueError):  # `build_run` refuses what stays text
                values[name] = json.loads(text)
    return values


def _check_epochs(epochs: int) -> None:
    if epochs < 1:
        raise UsageError(f"--epochs must be at least 1, got {epochs}")


def _stretched(values: Mapping[str, Scalar], corpus: TokenizedCorpus, epochs: int) -> RunConfig:
    """The budget of whole epochs; evaluations read the full split where that costs little beside the training."""
    budget = epochs * corpus.tokens("train")
    evaluations = epochs * -(-MIN_EVALUATIONS // epochs)  # a whole number of them per epoch
    affordable = budget // evaluations // EVALUATION_SHARE
    tokens = max(int(values["evaluation_tokens"]), min(corpus.tokens("valid"), affordable))
    steps = build_run({**values, "budget_tokens": budget, "evaluations": 1}).steps
    if steps < evaluations:
        raise UsageError(
            f"{steps} updates in {epochs} epochs of this text are fewer than {evaluations} evaluations; "
            "a smaller --batch-size, or more --epochs"
        )
    return build_run({**values, "budget_tokens": budget, "evaluations": evaluations, "evaluation_tokens": tokens})


def _chosen(sweep: Sweep) -> int:
    """The winner of the finalists once all of them have run, else the trial of lowest validation loss."""
    companion = None if sweep.spec.replication is not None else find_finalists(sweep)
    record = None if companion is None else read_companion(companion.study)
    judgement = None if record is None else judge(record)
    if judgement is not None and judgement.winner is not None and judgement.is_complete:
        logger.info(f"trial {judgement.winner} has the lowest mean loss of the finalists")
        return judgement.winner
    best = sweep.best()
    if best is None:
        raise StudyError(f"study {sweep.spec.name!r} has no complete trial yet; `hpo run` goes on with it")
    if len(sweep.spec.objectives) > 1:
        logger.info(
            f"trial {best.number} has the lowest validation loss; with two objectives --trial takes another of the "
            "front"
        )
    return best.number


def _recorded_run(sweep: Sweep, trial: int) -> tuple[int, dict[str, Scalar]]:
    """All values of a trial as it was run: today's presets may be others."""
    name = sweep.spec.name
    trials = sweep.study.get_trials(deepcopy=False)
    found = next((each for each in trials if each.number == trial), None)
    if found is None:
        raise StudyError(f"study {name!r} has no trial {trial} among its {len(trials)}")
    recorded = found.user_attrs.get(TRIAL_RUN)
    if not isinstance(recorded, dict):
        raise StudyError(
            f"trial {trial} of study {name!r} is {found.state.name} and has no record of its run; --trial names another"
        )
    return trial, recorded_run(recorded).parameters()
