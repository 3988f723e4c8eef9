"""The test evaluation: the winner of the finalists on the test split, under each of its seeds, once."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial

from hpo.errors import StudyError
from hpo.home import Home
from hpo.sweep.checkpoints import newest_checkpoint
from hpo.sweep.sweep import Sweep, is_feasible
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import CheckpointError
from hpo_model.generation.trained import load_trained
from hpo_model.hardware import cpu_cores, default_device
from hpo_model.training.evaluation import Scores, score
from hpo_reports.records.names import FINALISTS_SUFFIX, STUDY_TEST_EVALUATIONS, TRIAL_CANDIDATE, TRIAL_MACHINE

logger = logging.getLogger(__name__)


def tested_candidates(companion: Sweep) -> list[int]:
    """The candidates of the test evaluations so far, in order, by their numbers in the search."""
    return [int(each["candidate"]) for each in companion.study.user_attrs.get(STUDY_TEST_EVALUATIONS, [])]


def evaluate_on_test_split(companion: Sweep, candidate: int, corpus: TokenizedCorpus, home: Home) -> None:
    """Measure a candidate's complete replicates on the test split, and store the scores with the companion study.

    Args:
        companion: the finalists' study.
        candidate: number in the search.
        corpus: the study's text.
        home: where checkpoints lie.

    Raises:
        StudyError: the text has no test split, or a checkpoint is not on this machine; nothing was measured.
        CheckpointError: a checkpoint cannot be read.
    """
    if "test" not in corpus.splits:
        raise StudyError(f"{corpus.corpus_name} has no test split; the winner stays unmeasured on one")
    earlier = len(tested_candidates(companion))
    checkpoints = _checkpoints(companion, candidate, home)
    torch.set_num_threads(cpu_cores())
    scores = []
    for trial, checkpoint in checkpoints:
        seed = int(trial.params["seed"])
        measured = _measured(checkpoint, corpus, companion.spec.model.network)
        logger.info("test split, seed %d: ppl %.2f, word ppl %.2f", seed, measured.perplexity, measured.word_perplexity)
        scores.append(
            {
                "seed": seed,
                "trial": trial.number,
                "loss": measured.loss,
                "ppl": measured.perplexity,
                "word_ppl": measured.word_perplexity,
                "bits_per_byte": measured.bits_per_byte,
            }
        )
    if len(tested_candidates(companion)) > earlier:
        return  # another process has done it meanwhile
    evaluation = {"candidate": candidate, "evaluated_at": time.time(), "scores": scores}
    before: list[Any] = companion.study.user_attrs.get(STUDY_TEST_EVALUATIONS, [])
    companion.study.set_user_attr(STUDY_TEST_EVALUATIONS, [*before, evaluation])


def _measured(checkpoint: Path, corpus: TokenizedCorpus, own: str) -> Scores:
    """A replicate's network on the test split; its checkpoint must be of this network and text."""
    trained = load_trained(checkpoint, default_device(), [own] if own else [])
    for what, mine, its in (
        ("network", own, trained.config.architecture.network),
        ("corpus", corpus.corpus_digest, trained.corpus_digest),
        ("tokenizer", corpus.tokenizer.digest, trained.tokenizer.digest),
    ):
        if its != mine:
            raise CheckpointError(f"{checkpoint}: written by a run with another {what}; it is not measured on this one")
    return score(trained.network, corpus.span("test"), torch.device(default_device()))


def _checkpoints(companion: Sweep, candidate: int, home: Home) -> list[tuple[FrozenTrial, Path]]:
    """The candidate's complete replicates and their checkpoints, in the order of the seeds.

    Raises:
        StudyError: one of them lies elsewhere.
    """
    trials = [trial for trial in companion.study.get_trials(deepcopy=False) if is_feasible(trial)]
    mine = [trial for trial in trials if trial.user_attrs.get(TRIAL_CANDIDATE) == candidate]
    found = []
    for trial in sorted(mine, key=lambda trial: int(trial.params["seed"])):
        folder = home.trial(companion.spec.name, companion.uid, trial.number)
        machine = trial.user_attrs.get(TRIAL_MACHINE, {})
        checkpoint, _ = newest_checkpoint(folder, machine.get("device", "cpu"))
        if checkpoint is None:
            host = machine.get("host", "another machine")
            raise StudyError(
                f"no checkpoint of trial {trial.number} of {companion.spec.name} in {folder}; it was trained on "
                f"{host}, where `hpo replicate {companion.spec.name.removesuffix(FINALISTS_SUFFIX)}` finds it"
            )
        found.append((trial, checkpoint))
    return found
