"""The sections of a study file as frozen, validated data, one class each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hpo_model.config import Scalar, TokenizerChoice, TokenizerKind

Profile = Literal["cpu", "cuda"]
Role = Literal["baseline", "enqueued", "grid", "search", "finalist"]
MAX_WHOLE = 2.0**53  # beyond it a float cannot hold every whole number
MAX_FINALISTS, MAX_REPLICATES = 100, 1000
Positive = Annotated[int, Field(gt=0, le=1_000_000)]


class Section(BaseModel):
    """A part of a study file: no unknown names, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dimension(Section):
    """One searched value: an interval (`low`, `high`, `log`, `step`) or a list (`choices`)."""

    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    choices: tuple[Scalar, ...] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> Dimension:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                raise ValueError("choices stand alone, without low, high, log or step")
            if len(set(self.choices)) != len(self.choices) or not self.choices:
                raise ValueError(f"choices must be different values, at least one, got {list(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale must start above 0, got low {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if not _is_multiple(self.high - self.low, self.step):
            raise ValueError(f"high {self.high:g} is no whole number of steps of {self.step:g} above low {self.low:g}")
        if max(abs(self.low), abs(self.high)) > MAX_WHOLE:
            raise ValueError(f"low and high must be within ±{MAX_WHOLE:g}")
        return self

    @property
    def corners(self) -> tuple[Scalar, ...]:
        """The values between which, or out of which, a trial's value comes."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def holds(self, value: Scalar) -> bool:
        """Whether a trial may have this value."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, str | bool) or not self.low <= value <= self.high:
            return False
        return _is_multiple(value - self.low, self.step)


def _is_multiple(distance: float, step: float | None) -> bool:
    return step is None or abs(distance / step - round(distance / step)) < 1e-9


class TextSection(Section):
    """What is read, and in which tokens."""

    corpus: str = "auto"
    tokenizer: TokenizerKind = "bpe"
    vocabulary: int = Field(default=0, ge=0)

    @property
    def choice(self) -> TokenizerChoice:
        """The tokenizer to train."""
        return TokenizerChoice(kind=self.tokenizer, vocabulary=self.vocabulary)


class ModelSection(Section):
    """Which network is trained."""

    network: str = ""  # "module:Class" of the user's own; "": the transformer


class SamplerSection(Section):
    """How new configurations are proposed."""

    kind: Literal["tpe", "random", "grid"] = "tpe"
    startup_trials: int = Field(default=8, ge=1)  # random ones before TPE models anything; it counts the planned ones
    seed: int = Field(default=1, ge=0)


class PrunerSection(Section):
    """How trials that fall behind are ended early, at evaluation milestones; planned ones never are."""

    kind: Literal["successive_halving", "percentile", "median", "none"] = "successive_halving"
    min_resource: Positive = 3  # evaluations that a trial has before it may be pruned
    reduction_factor: int = Field(default=4, ge=2)  # successive halving: one in so many goes on
    percentile: float = Field(default=25.0, gt=0, lt=100)  # of the complete trials' losses: a trial above it is pruned
    # other trials needed at a milestone before one is pruned there; complete ones except for successive halving
    n_min_trials: Positive = 3


class StoppingSection(Section):
    """When the whole study ends before its total."""

    trials_without_improvement: Positive | None = None


class FinalistsSection(Section):
    """What is run again after the search, beside the baseline; with either value at 0, nothing."""

    count: int = Field(ge=0, le=MAX_FINALISTS)  # how many of the best configurations
    replicates: int = Field(ge=0, le=MAX_REPLICATES)  # fresh seeds, the same for all of them


# A verdict on k candidates takes 1 + log2(k / 0.05) pairs: 7 for three, 6 for one (docs/decisions.md, 2026-11-26).
FINALISTS_BY_PROFILE: Mapping[str, Mapping[str, int]] = {
    "cpu": {"count": 1, "replicates": 6},
    "cuda": {"count": 3, "replicates": 7},
}


class Candidate(Section):
    """A configuration of the search that is run again."""

    trial: int  # its number in the search
    role: Literal["baseline", "finalist"]
    parameters: dict[str, Scalar]  # the searched ones
    val_loss: float  # of its one run in the search, by which it was chosen


class Replication(Section):
    """What a companion study runs again. The program writes it; no study file has it."""

    study: str  # the search
    created_at: float | None = None  # of the search: tells it from another of its name
    screened: int  # complete, feasible trials to choose from when candidates were last chosen
    candidates: tuple[Candidate, ...] = Field(strict=False)
    seeds: tuple[int, ...] = Field(strict=False)
    runs: tuple[tuple[int, int], ...] = Field(strict=False)  # by slot: candidate and seed; only ever added to
    rounds: tuple[int, ...] = Field(strict=False)  # number of seeds after each time that some were added

    @field_validator("runs", mode="before")
    @classmethod
    def _pairs(cls, runs: Any) -> Any:
        return [tuple(run) for run in runs]  # JSON knows no tuples

    def planned(self) -> tuple[tuple[Role, dict[str, Scalar]], ...]:
        """Role and values of each run, in the order of the slots."""
        candidates = {candidate.trial: candidate for candidate in self.candidates}
        chosen = ((candidates[trial], seed) for trial, seed in self.runs)
        return tuple((candidate.role, {**candidate.parameters, "seed": seed}) for candidate, seed in chosen)
