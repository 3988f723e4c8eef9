"""A companion study as frozen records: which configurations were run again, under which seeds, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.storages import BaseStorage

from hpo_reports.records.attributes import Scalar, entries, number, scalars, section, text, whole
from hpo_reports.records.names import FINALISTS_SUFFIX, STUDY_RECORD, STUDY_TEST_EVALUATIONS
from hpo_reports.records.study import Measurement, StudyRecord, TrialRecord, read_study

ReplicateState = Literal[
    "complete",
    "lost",  # the configuration's own doing: diverged, out of memory, implausibly low
    "failed",  # the program's or the machine's doing: the pair is missing
    "pending",  # not yet ended
]


@dataclass(frozen=True, kw_only=True)
class ReplicateRecord:
    """One run of a candidate under one of the fresh seeds."""

    seed: int
    state: ReplicateState
    trial: int | None = None  # number in the companion study; None: not begun
    val_loss: float | None = None  # nats per token, which is log-perplexity, on the full validation split
    outcome: str | None = None  # of the trial, as other reports name it
    reason: str | None = None  # why it ended
    measured: Measurement = field(default_factory=Measurement)


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """One configuration and its runs under the fresh seeds."""

    trial: int  # number in the search
    is_baseline: bool
    parameters: Mapping[str, Scalar]  # the searched ones
    screening_val_loss: float | None  # of its one run in the search, by which it was chosen
    replicates: tuple[ReplicateRecord, ...]  # in the order of the seeds

    def losses(self) -> dict[int, float]:
        """Validation loss by seed, of the complete replicates."""
        return {each.seed: each.val_loss for each in self.replicates if each.val_loss is not None}

    def count(self, state: ReplicateState) -> int:
        """How many replicates are in a state."""
        return sum(each.state == state for each in self.replicates)


@dataclass(frozen=True, kw_only=True)
class TestScore:
    """One replicate of the winner on the test split."""

    seed: int | None
    trial: int | None  # number in the companion study
    loss: float  # nats per token
    ppl: float | None
    word_ppl: float | None
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True)
class TestEvaluation:
    """A look at the test split. The first is worth something; later ones were chosen knowing it."""

    candidate: int  # number in the search
    evaluated_at: float | None  # seconds since 1970
    scores: tuple[TestScore, ...]

    @property
    def mean_loss(self) -> float:
        """Nats per token; its exponential is the geometric mean of the perplexities."""
        return sum(score.loss for score in self.scores) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class FinalistsRecord:
    """A companion study."""

    name: str  # of the companion
    study: str  # the search
    candidates: tuple[
        CandidateRecord, ...
    ]  # the baseline first, if it is among them; then in the order of the screening
    seeds: tuple[int, ...]
    rounds: int  # times that seeds were planned; beyond one, some were added after a look at the others' results
    screened: int | None  # feasible complete trials among which the best were chosen, baseline included
    tests: tuple[TestEvaluation, ...]  # in the order in which they were made

    @property
    def pending_runs(self) -> int:
        """Runs that have not ended."""
        return sum(candidate.count("pending") for candidate in self.candidates)


def read_finalists(study: optuna.Study, storage: BaseStorage) -> FinalistsRecord | None:
    """Read the finalists of a search.

    Args:
        study: the search, whose companion is looked for; or the companion itself.
        storage: that holds both.

    Returns:
        None where there is no companion, or it belongs to another search of the same name.
    """
    if study.study_name.endswith(FINALISTS_SUFFIX):
        return read_companion(study)
    try:
        companion = optuna.load_study(study_name=study.study_name + FINALISTS_SUFFIX, storage=storage)
    except KeyError:
        return None
    created_at = section(study.user_attrs, STUDY_RECORD).get("created_at")
    return read_companion(companion) if _replication(companion.user_attrs).get("created_at") == created_at else None


def read_companion(companion: optuna.Study) -> FinalistsRecord | None:
    """Read the finalists out of their own study; None where it holds no candidates."""
    return _finalists(read_study(companion), companion.user_attrs)


def _replication(attributes: Mapping[str, object]) -> Mapping[str, object]:
    return section(section(section(attributes, STUDY_RECORD), "spec"), "replication")


def _finalists(record: StudyRecord, attributes: Mapping[str, object]) -> FinalistsRecord | None:
    content = _replication(attributes)
    chosen = entries(content, "candidates")
    seeds = _wholes(content.get("seeds"))
    if not chosen or not seeds:
        return None
    runs = {(trial.candidate, whole(trial.parameters, "seed")): trial for trial in record.trials}
    planned = {tuple(_wholes(run)) for run in _list(content.get("runs"))}
    candidates = [
        CandidateRecord(
            trial=trial,
            is_baseline=text(each, "role") == "baseline",
            parameters=scalars(section(each, "parameters")),
            screening_val_loss=number(each, "val_loss"),
            replicates=tuple(_replicate(runs.get((trial, seed)), seed) for seed in seeds if (trial, seed) in planned),
        )
        for each in chosen
        if (trial := whole(each, "trial")) is not None
    ]
    return FinalistsRecord(
        name=record.name,
        study=text(content, "study") or record.name.removesuffix(FINALISTS_SUFFIX),
        candidates=tuple(sorted(candidates, key=lambda candidate: not candidate.is_baseline)),
        seeds=tuple(seeds),
        rounds=len(_wholes(content.get("rounds"))),
        screened=whole(content, "screened"),
        tests=tuple(filter(None, map(_test, entries(attributes, STUDY_TEST_EVALUATIONS)))),
    )


def _replicate(trial: TrialRecord | None, seed: int) -> ReplicateRecord:
    if trial is None:
        return ReplicateRecord(seed=seed, state="pending")
    state = _state(trial)
    return ReplicateRecord(
        seed=seed,
        state=state,
        trial=trial.number,
        val_loss=trial.values[0] if state == "complete" else None,
        outcome=trial.outcome,
        reason=trial.reason,
        measured=trial.measured,
    )


def _state(trial: TrialRecord) -> ReplicateState:
    if trial.outcome in ("running", "waiting"):
        return "pending"
    if trial.outcome == "complete" and trial.feasible and not trial.suspicious and trial.values[0] is not None:
        return "complete"
    return "lost" if trial.outcome in ("complete", "diverged", "out_of_memory") else "failed"


def _test(content: Mapping[str, object]) -> TestEvaluation | None:
    candidate = whole(content, "candidate")
    scores = tuple(
        TestScore(
            seed=whole(each, "seed"),
            trial=whole(each, "trial"),
            loss=loss,
            ppl=number(each, "ppl"),
            word_ppl=number(each, "word_ppl"),
            bits_per_byte=number(each, "bits_per_byte"),
        )
        for each in entries(content, "scores")
        if (loss := number(each, "loss")) is not None
    )
    if candidate is None or not scores:
        return None
    return TestEvaluation(candidate=candidate, evaluated_at=number(content, "evaluated_at"), scores=scores)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _wholes(value: object) -> list[int]:
    return [each for each in _list(value) if isinstance(each, int) and not isinstance(each, bool)]
