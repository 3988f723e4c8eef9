"""An Optuna study as frozen records. Only the modules of `records` read Optuna's studies.

What `hpo run` writes into a study's and a trial's user attributes is read here; a study that plain Optuna made has
none of it, and then the fields are None.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_reports.records.attributes import (
    Scalar,
    entries,
    finite,
    number,
    scalar,
    scalars,
    section,
    text,
    truth,
    whole,
    writable,
)
from hpo_reports.records.names import (
    PREFIX,
    STUDY_LAST_RUN,
    STUDY_RECORD,
    STUDY_TABLE,
    TRIAL_CANDIDATE,
    TRIAL_CAUSAL,
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_IMPORTED,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_RUN,
    TRIAL_SLOT,
    TRIAL_SUSPICIOUS,
)

Direction = Literal["minimize", "maximize"]
Outcome = Literal["complete", "pruned", "diverged", "out_of_memory", "failed", "running", "waiting"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_OUTCOME_OF_STATE: Mapping[TrialState, Outcome] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The last evaluation of a run. None: not measured, or not finite."""

    milestone: float | None = None
    tokens: float | None = None  # training tokens read
    step: float | None = None  # updates made
    epoch: float | None = None  # passes over the training split
    full_split: bool | None = None  # whether it read the full validation split, not a sample of it
    val_ppl: float | None = None  # per token
    val_word_ppl: float | None = None
    val_bits_per_byte: float | None = None
    train_ppl: float | None = None  # on a fixed sample of the training text, without dropout
    phi: float | None = None  # Φ on the validation text, under the initial weights: compares between runs
    train_phi: float | None = None  # on training batches, under the weights that the run has learned
    delta_phi_loss: float | None = None
    seconds: float | None = None  # of training and evaluations, over all processes that worked on the run
    tokens_per_s: float | None = None
    peak_memory_bytes: float | None = None
    energy_joules: float | None = None  # of its GPU meanwhile, other users of it included


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial."""

    number: int
    outcome: Outcome
    is_ours: bool = False  # made by `hpo run`, so that its objective is nats per token
    slot: int | None = None
    role: str | None = None  # baseline, enqueued, grid or search; of a companion study baseline or finalist
    candidate: int | None = None  # in a companion study: number in the search
    reason: str | None = None  # why it ended
    searched: tuple[str, ...] = ()  # names of the parameters that the sampler chose
    parameters: Mapping[str, Scalar] = field(default_factory=dict)  # the run's, or of another program the searched ones
    values: tuple[float | None, ...] = ()  # of the objectives; of complete trials alone
    measured: Measurement = Measurement()
    curve: tuple[float | None, ...] = ()  # intermediate values in order
    feasible: bool = True  # breaks none of its constraints
    suspicious: bool = False  # its perplexity is implausibly low
    continued: int = 0  # times that it went on after an interruption
    device: str | None = None
    predicted_peak_bytes: int | None = None  # of the run's tensors, told before it began
    is_imported: bool = False  # a row of a table of past experiments: nothing of it was measured here
    causal: bool | None = None  # of an imported one: whether its network saw no token that it had to predict

    @property
    def is_baseline(self) -> bool:
        """Whether the others are to be compared with this one."""
        return self.slot == 0 or self.role == "baseline"

    @property
    def can_train(self) -> bool:
        """Whether `hpo train` and `hpo replicate` can take it up."""
        return self.is_ours and not self.is_imported

    @property
    def budget_tokens(self) -> int | None:
        """Training tokens that the run was allowed."""
        return whole(self.parameters, "budget_tokens")

    @property
    def planned_tokens(self) -> int | None:
        """The budget in whole updates: what a run that is not cut short reads."""
        budget, batch, length = (whole(self.parameters, n) for n in ("budget_tokens", "batch_size", "sequence_length"))
        if budget is None or not batch or not length:
            return budget
        return -(-budget // (batch * length)) * batch * length


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """The text that the networks learned from."""

    name: str | None
    source: str | None  # as asked for
    origin: str | None  # where it came from
    digest: str | None
    train_tokens: int | None
    valid_tokens: int | None
    test_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord:
    """How text became tokens."""

    kind: str | None
    vocabulary: int | None
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """The values between which, or out of which, a parameter was chosen."""

    name: str
    low: float | None
    high: float | None
    step: float | None
    log: bool
    choices: tuple[Scalar, ...]


@dataclass(frozen=True, kw_only=True)
class PastLog:
    """The table of past experiments from which a study was imported."""

    file: str | None
    digest: str | None
    imported_at: float | None  # seconds since 1970


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One study and all of its trials."""

    name: str
    directions: tuple[Direction, ...]
    trials: tuple[TrialRecord, ...]
    uid: str | None
    description: str | None
    created_at: float | None  # seconds since 1970
    last_run: float | None  # seconds since 1970
    planned_trials: int | None
    profile: str | None
    sampler: Mapping[str, Scalar]  # `kind` and its settings
    pruner: Mapping[str, Scalar]  # `kind` and its settings
    search: tuple[SearchRecord, ...]
    corpus: CorpusRecord
    tokenizer: TokenizerRecord
    hardware: str | None
    versions: Mapping[str, Scalar]
    log: PastLog | None = None

    @functools.cached_property  # asked of each of its trials, it would go through them all
    def is_ours(self) -> bool:
        """Whether `hpo run` made its trials: their objective is validation loss in nats per token."""
        return any(trial.is_ours for trial in self.trials)

    @property
    def can_train(self) -> bool:
        """Whether its trials can be trained again: it was not imported from a table."""
        return self.is_ours and self.log is None


def read_study(study: optuna.Study) -> StudyRecord:
    """Read a study and its trials, each once.

    Args:
        study: any open study; what it does not hold stays None.
    """
    attributes = study.user_attrs
    facts = section(attributes, STUDY_RECORD)
    spec = section(facts, "spec")
    fixed = scalars(section(spec, "run"))
    return StudyRecord(
        name=writable(study.study_name),
        directions=tuple("maximize" if d.name == "MAXIMIZE" else "minimize" for d in study.directions),
        trials=_trials(study, fixed),
        uid=text(facts, "uid"),
        description=text(spec, "description"),
        created_at=number(facts, "created_at"),
        last_run=number(attributes, STUDY_LAST_RUN),
        planned_trials=whole(spec, "trials"),
        profile=text(facts, "profile"),
        sampler=scalars(section(spec, "sampler")),
        pruner={_PRUNER_NAMES.get(name, name): value for name, value in scalars(section(spec, "pruner")).items()},
        search=tuple(_search(name, section(section(spec, "search"), name)) for name in section(spec, "search")),
        corpus=_corpus(section(facts, "corpus")),
        tokenizer=_tokenizer(section(facts, "tokenizer")),
        hardware=text(facts, "hardware"),
        versions=scalars(section(facts, "versions")),
        log=_log(section(attributes, STUDY_TABLE)),
    )


def _trials(study: optuna.Study, fixed: Mapping[str, Scalar]) -> tuple[TrialRecord, ...]:
    """All trials. Of a million objects without cycles, the garbage collector would take 2 of every 5 seconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return tuple(_trial(trial, fixed) for trial in study.get_trials(deepcopy=False))
    finally:
        if was_enabled:
            gc.enable()


def _log(content: Mapping[str, object]) -> PastLog | None:
    if not content:
        return None
    file, digest = text(content, "file"), text(content, "digest")
    return PastLog(file=file, digest=digest, imported_at=number(content, "imported_at"))


def _trial(trial: FrozenTrial, fixed: Mapping[str, Scalar]) -> TrialRecord:
    attributes = trial.user_attrs
    is_ours = any(name.startswith(PREFIX) for name in attributes)
    outcome = _outcome(trial)
    curve = tuple(finite(value) for _, value in sorted(trial.intermediate_values.items()))
    return TrialRecord(
        number=trial.number,
        outcome=outcome,
        is_ours=is_ours,
        slot=whole(attributes, TRIAL_SLOT),
        role=_role(text(attributes, TRIAL_ROLE)),
        candidate=whole(attributes, TRIAL_CANDIDATE),
        reason=text(attributes, TRIAL_REASON),
        searched=tuple(scalars(trial.params)),
        parameters={**(fixed if is_ours else {}), **scalars(trial.params), **scalars(section(attributes, TRIAL_RUN))},
        values=tuple(map(finite, trial.values)) if outcome == "complete" else (),
        measured=_measured(trial, curve, is_ours),
        curve=curve,
        feasible=all(value <= 0 for value in trial.constraints.values()),
        suspicious=attributes.get(TRIAL_SUSPICIOUS) is True,
        is_imported=attributes.get(TRIAL_IMPORTED) is True,
        causal=truth(attributes, TRIAL_CAUSAL),
        continued=whole(attributes, TRIAL_CONTINUED) or 0,
        device=text(section(attributes, TRIAL_MACHINE), "device"),
        predicted_peak_bytes=whole(section(attributes, TRIAL_MACHINE), "predicted_peak_bytes"),
    )


def _role(stored: str | None) -> str | None:
    return "enqueued" if stored == "known" else stored


def _outcome(trial: FrozenTrial) -> Outcome:
    """The recorded outcome once Optuna was told of it; else what Optuna's state says."""
    recorded = trial.user_attrs.get(TRIAL_OUTCOME)
    if trial.state.is_finished() and recorded in ("pruned", "diverged", "out_of_memory", "failed"):
        return next(outcome for outcome in OUTCOMES if outcome == recorded)
    return _OUTCOME_OF_STATE[trial.state]


def _measured(trial: FrozenTrial, curve: tuple[float | None, ...], is_ours: bool) -> Measurement:
    history = entries(trial.user_attrs, TRIAL_HISTORY)
    if history:
        last = history[-1]
        numbers = {name: number(last, name) for name in _MEASURED}
        full_split = truth(last, "full_split" if "full_split" in last else "whole_split")  # the stored name
        return Measurement(full_split=full_split, **numbers)
    if not is_ours:
        return Measurement()
    losses = trial.values[:1] if trial.state is TrialState.COMPLETE else curve  # nats per token
    return Measurement(milestone=trial.last_step, val_ppl=perplexity_of(finite(losses[-1])) if losses else None)


def perplexity_of(nats: float | None) -> float | None:
    """The perplexity of a loss in nats; None where there is none, or none that a float can hold."""
    try:
        return None if nats is None else math.exp(nats)
    except OverflowError:
        return None


def _search(name: str, content: Mapping[str, object]) -> SearchRecord:
    choices = content.get("choices")
    return SearchRecord(
        name=writable(name),
        low=number(content, "low"),
        high=number(content, "high"),
        step=number(content, "step"),
        log=content.get("log") is True,
        choices=tuple(map(scalar, choices)) if isinstance(choices, list | tuple) else (),
    )


def _corpus(content: Mapping[str, object]) -> CorpusRecord:
    tokens = section(content, "tokens")
    return CorpusRecord(
        name=text(content, "name"),
        source=text(content, "source"),
        origin=text(content, "origin"),
        digest=text(content, "digest"),
        train_tokens=whole(tokens, "train"),
        valid_tokens=whole(tokens, "valid"),
        test_tokens=whole(tokens, "test"),
    )


def _tokenizer(content: Mapping[str, object]) -> TokenizerRecord:
    return TokenizerRecord(
        kind=text(content, "kind"), vocabulary=whole(content, "vocabulary"), digest=text(content, "digest")
    )


# as earlier versions stored them
_PRUNER_NAMES = {"first_milestone": "min_resource", "reduction": "reduction_factor", "peers": "n_min_trials"}
_MEASURED = tuple(field.name for field in dataclasses.fields(Measurement) if field.name != "full_split")
