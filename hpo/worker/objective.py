"""One trial: parameters -> training -> report, prune, outcome. The only file of the search that trains."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from hpo.database import optuna_private
from hpo.study.search_space import should_prune
from hpo.study.spec import StudySpec
from hpo.sweep.checkpoints import checkpoint_path, newest_checkpoint
from hpo.sweep.result import TrialResult
from hpo_model.config import RunConfig, Scalar
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import ConfigError
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult, train
from hpo_model.training.memory_estimate import peak_tensor_bytes
from hpo_reports.records.names import (
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_REPEATED,
    TRIAL_RUN,
    TRIAL_SUSPICIOUS,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrialSetting:
    """What a trial needs besides its parameters."""

    spec: StudySpec
    corpus: TokenizedCorpus
    folder: Path  # of this trial's checkpoints
    fencing_token: int  # of the lease
    device: str
    announce: Callable[[str], None] = logger.warning  # called where a trial has to repeat evaluations


class Interrupted(Exception):
    """The trial was left at a checkpoint, to be continued."""


def run_trial(
    trial: optuna.Trial,
    parameters: Mapping[str, Scalar],
    setting: TrialSetting,
    on_evaluation: Callable[[Evaluation], bool],
) -> TrialResult:
    """Train the trial's network, from its last checkpoint if there is one.

    Args:
        trial: a running Optuna trial, new or continued.
        parameters: its searched values.
        setting: study, text, folder, device.
        on_evaluation: called after the value is reported; return False to stop. What it raises ends the trial here.

    Raises:
        Interrupted: `on_evaluation` said so; the checkpoint is written.
        ModelError: text, disk or network do not allow training.
    """
    try:
        config = setting.spec.run_with(parameters)
    except ConfigError as error:  # each value is sound, this combination is not
        facts = {TRIAL_OUTCOME: "failed", TRIAL_REASON: str(error)}
        return TrialResult(state="PRUNED", violations=("invalid",), attributes=facts)

    def report(evaluation: Evaluation) -> Decision:
        _report(trial, evaluation)
        go_on = on_evaluation(evaluation)
        if behind(evaluation):
            return Decision.PRUNE
        return Decision.CONTINUE if go_on else Decision.INTERRUPT

    def behind(evaluation: Evaluation) -> bool:
        last = evaluation.milestone == config.training.evaluations
        return not last and should_prune(setting.spec, trial, evaluation.milestone)

    resume_from, history = newest_checkpoint(setting.folder, setting.device)
    reached = reached_before(trial)
    for evaluation in history[reached:]:  # a crash came between checkpoint and report
        _report(trial, evaluation)
    if len(history) < reached:
        _report_repetition(trial, reached, len(history), setting)
    attributes: dict[str, Any] = {
        TRIAL_RUN: config.parameters(),
        TRIAL_MACHINE: _machine(config, setting),
        TRIAL_CONTINUED: 0 if resume_from is None else setting.fencing_token - 1,
    }
    if history and behind(history[-1]):  # a stop came between this evaluation and the question
        reason = f"behind its peers at {history[-1].tokens:,} tokens"
        return _outcome(TrainingResult(outcome="pruned", reason=reason, history=history), setting.spec, attributes)
    result = train(
        config,
        setting.corpus,
        device=setting.device,
        save_to=checkpoint_path(setting.folder, setting.fencing_token),
        resume_from=resume_from,
        on_evaluation=report,
    )
    if result.outcome == "interrupted":
        raise Interrupted(result.reason)
    return _outcome(result, setting.spec, attributes)


def reached_before(trial: optuna.Trial) -> int:
    """The last evaluation that had been reported when this trial object was made; 0 where there was none."""
    return max(optuna_private.reported(trial), default=0)


def failed(error: Exception, log: Path) -> TrialResult:
    """The result of a trial that raised an unforeseen exception."""
    reason = f"{type(error).__name__}: {error}; see {log}"
    return TrialResult(state="FAIL", attributes={TRIAL_OUTCOME: "failed", TRIAL_REASON: reason})


def crash_loop(crash_count: int, log: Path) -> TrialResult:
    """The result of a trial whose process crashed again and again, as by the system's out-of-memory killer."""
    reason = f"its process died {crash_count} times; see {log}"
    attributes = {TRIAL_OUTCOME: "failed", TRIAL_REASON: reason}
    return TrialResult(state="PRUNED", violations=("process_died",), attributes=attributes)


def _report(trial: optuna.Trial, evaluation: Evaluation) -> None:
    """Report an evaluation's loss, in place of an earlier one where the trial had to start over.

    `Trial.report` would ignore the second one, and refuses studies with two objectives. Those are never pruned: there
    the reports say how far a trial has come, and draw its curve.
    """
    repeated = evaluation.milestone in optuna_private.reported(trial)
    if repeated or len(trial.study.directions) > 1:
        trial.storage.set_trial_intermediate_value(
            optuna_private.trial_id(trial), evaluation.milestone, evaluation.val_loss
        )
    else:
        trial.report(evaluation.val_loss, evaluation.milestone)


def _report_repetition(trial: optuna.Trial, reached: int, kept: int, setting: TrialSetting) -> None:
    """Say that checkpoints are missing, for example because another machine has them, and count the repetitions."""
    begins = f"goes on from evaluation {kept}" if kept else "starts over"
    setting.announce(
        f"trial {trial.number} {begins}, though it had reached evaluation {reached}: {platform.node()} has no later "
        f"checkpoint in {setting.folder} that its {setting.device} can continue"
    )
    trial.set_user_attr(TRIAL_REPEATED, trial.user_attrs.get(TRIAL_REPEATED, 0) + reached - kept)


def _outcome(result: TrainingResult, spec: StudySpec, attributes: dict[str, Any]) -> TrialResult:
    attributes[TRIAL_MACHINE]["peak_memory_bytes"] = max(
        (each.peak_memory_bytes for each in result.history if each.peak_memory_bytes is not None), default=None
    )
    attributes |= {
        TRIAL_OUTCOME: result.outcome,
        TRIAL_REASON: result.reason,
        TRIAL_SUSPICIOUS: result.suspicious,
        TRIAL_HISTORY: [_finite(dataclasses.asdict(evaluation)) for evaluation in result.history],
    }
    values = tuple(getattr(last, objective) for last in result.history[-1:] for objective in spec.objectives)
    if not all(map(math.isfinite, values)):
        values = ()
    if result.outcome == "complete":
        violations: tuple[str, ...] = ("suspicious",) if result.suspicious else ()
        return TrialResult(state="COMPLETE", values=values, violations=violations, attributes=attributes)
    violations = (result.outcome,) if result.outcome in ("diverged", "out_of_memory") else ()
    return TrialResult(state="PRUNED", values=values, violations=violations, attributes=attributes)


def _machine(config: RunConfig, setting: TrialSetting) -> dict[str, Any]:
    """Where a trial ran, and the peak that was predicted for its tensors with the whole batch at once."""
    vocabulary, train_tokens = setting.corpus.tokenizer.vocabulary, setting.corpus.tokens("train")
    device_type = torch.device(setting.device).type
    own = config.architecture.network  # whose memory cannot be known beforehand
    predicted = None if own else peak_tensor_bytes(config, vocabulary, train_tokens, device_type=device_type)
    return {
        "host": platform.node(),
        "device": setting.device,
        "threads": torch.get_num_threads(),
        "predicted_peak_bytes": predicted,
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows neither infinity nor NaN: such a value is missing."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
