"""A complete study as frozen, validated data, whatever file it came from.

Each section of a study file is one class here; `hpo.study.toml` reads the file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from hpo_model.config import (
    PRESETS,
    Presets,
    RunConfig,
    Scalar,
    TokenizerChoice,
    TokenizerKind,
    build_run,
    parameter_type,
)
from hpo_model.digest import short_digest
from hpo_model.errors import ConfigError
from hpo_reports.records.names import FINALISTS_SUFFIX

Profile = Literal["cpu", "cuda"]
T = TypeVar("T")
Role = Literal["baseline", "enqueued", "grid", "search", "finalist"]
Objective = Literal["val_loss", "phi"]  # of the last evaluation: nats per token, to be minimised; Φ, to be maximised
PLANNED: tuple[Role, ...] = ("baseline", "enqueued", "grid", "finalist")  # no sampler chooses these trials' values
FORMER_NAMES: Mapping[tuple[str | None, str], str] = {  # by section and name; None: the file's top
    (None, "known"): "enqueued",
    ("pruner", "first_milestone"): "min_resource",
    ("pruner", "reduction"): "reduction_factor",
    ("pruner", "peers"): "n_min_trials",
}
SHARED = ("budget_tokens", "evaluations", "evaluation_tokens", "seed")  # never searched
MAX_WHOLE = 2.0**53  # beyond it a float cannot hold every whole number
MAX_FINALISTS, MAX_REPLICATES = 100, 1000
Positive = Annotated[int, Field(gt=0, le=1_000_000)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dimension(_Section):
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


def with_present_names(content: Mapping[str, Any], note: Callable[[str, str], None] = lambda old, new: None) -> Any:
    """A study file's content, or that of a profile, with present names in place of former ones.

    Args:
        content: sections and values by name.
        note: called with the former and the present name of each value that has a former one.

    Raises:
        ValueError: both names are given.
    """
    renamed = dict(content)
    for (section, old), new in FORMER_NAMES.items():
        holder = renamed if section is None else renamed.get(section)
        if not isinstance(holder, dict) or old not in holder:
            continue
        if new in holder:
            raise ValueError(f"{old} is the former name of {new}: give one of them")
        changed = {new if name == old else name: value for name, value in holder.items()}
        renamed = changed if section is None else {**renamed, section: changed}
        place = "" if section is None else f"{section}."
        note(f"{place}{old}", f"{place}{new}")
    return renamed


def with_former_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """A specification as studies store it: under the former names, which every version of this program reads."""
    stored = dict(content)
    for (section, old), new in FORMER_NAMES.items():
        if section is None:
            stored[old] = stored.pop(new)
        else:
            stored[section] = {old if name == new else name: value for name, value in stored[section].items()}
    return stored


def stored_role(role: Role) -> str:
    """The role of a trial as its attribute says it: `known` for `enqueued`, as every version reads it."""
    return "known" if role == "enqueued" else role


def role_of(stored: object) -> Role | None:
    """The role of a trial from its attribute."""
    known: dict[object, Role] = {role: role for role in get_args(Role)}
    return "enqueued" if stored == "known" else known.get(stored)


class TextSection(_Section):
    """What is read, and in which tokens."""

    corpus: str = "auto"
    tokenizer: TokenizerKind = "bpe"
    vocabulary: int = Field(default=0, ge=0)

    @property
    def choice(self) -> TokenizerChoice:
        """The tokenizer to train."""
        return TokenizerChoice(kind=self.tokenizer, vocabulary=self.vocabulary)


class ModelSection(_Section):
    """Which network is trained."""

    network: str = ""  # "module:Class" of the user's own; "": the transformer


class SamplerSection(_Section):
    """How new configurations are proposed."""

    kind: Literal["tpe", "random", "grid"] = "tpe"
    startup_trials: int = Field(default=8, ge=1)  # random ones before TPE models anything; it counts the planned ones
    seed: int = Field(default=1, ge=0)


class PrunerSection(_Section):
    """How trials that fall behind are ended early, at evaluation milestones; planned ones never are."""

    kind: Literal["successive_halving", "percentile", "median", "none"] = "successive_halving"
    min_resource: Positive = 3  # evaluations that a trial has before it may be pruned
    reduction_factor: int = Field(default=4, ge=2)  # successive halving: one in so many goes on
    percentile: float = Field(default=25.0, gt=0, lt=100)  # of the complete trials' losses: a trial above it is pruned
    # other trials needed at a milestone before one is pruned there; complete ones except for successive halving
    n_min_trials: Positive = 3


class StoppingSection(_Section):
    """When the whole study ends before its total."""

    trials_without_improvement: Positive | None = None


class FinalistsSection(_Section):
    """What is run again after the search, beside the baseline; with either value at 0, nothing."""

    count: int = Field(ge=0, le=MAX_FINALISTS)  # how many of the best configurations
    replicates: int = Field(ge=0, le=MAX_REPLICATES)  # fresh seeds, the same for all of them


# A verdict on k candidates takes 1 + log2(k / 0.05) pairs: 7 for three, 6 for one (docs/decisions.md, 2026-11-26).
FINALISTS_BY_PROFILE: Mapping[str, Mapping[str, int]] = {
    "cpu": {"count": 1, "replicates": 6},
    "cuda": {"count": 3, "replicates": 7},
}


class Candidate(_Section):
    """A configuration of the search that is run again."""

    trial: int  # its number in the search
    role: Literal["baseline", "finalist"]
    parameters: dict[str, Scalar]  # the searched ones
    val_loss: float  # of its one run in the search, by which it was chosen


class Replication(_Section):
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


class StudySpec(_Section):
    """A complete, validated study, with the profile's overrides applied."""

    name: str = Field(min_length=1, max_length=200)
    description: str = ""
    trials: Positive = 40
    profile: Profile
    objectives: tuple[Objective, ...] = Field(default=("val_loss",), strict=False)
    text: TextSection = TextSection()
    model: ModelSection = ModelSection()
    run: dict[str, Scalar]
    search: dict[str, Dimension] = Field(min_length=1)
    baseline: dict[str, Scalar] = {}
    enqueued: tuple[dict[str, Scalar], ...] = Field(default=(), strict=False)
    sampler: SamplerSection = SamplerSection()
    pruner: PrunerSection = PrunerSection()
    stopping: StoppingSection = StoppingSection()
    finalists: FinalistsSection
    replication: Replication | None = None  # of companion studies
    _presets: Presets | None = PrivateAttr(None)  # None: today's

    @model_validator(mode="before")
    @classmethod
    def _finalists_by_profile(cls, content: Any) -> Any:
        """What a file leaves out of `[finalists]` is what its profile's hardware can afford."""
        given, objectives = content.get("finalists", {}), content.get("objectives", ())
        if not isinstance(given, Mapping):
            return content
        several = isinstance(objectives, list | tuple) and len(objectives) > 1
        usual = {"count": 0, "replicates": 0} if several else FINALISTS_BY_PROFILE.get(str(content.get("profile")), {})
        return {**content, "finalists": {**usual, **given}}

    @model_validator(mode="after")
    def _name_is_no_companions(self) -> StudySpec:
        if self.replication is None and self.name.endswith(FINALISTS_SUFFIX):
            raise ValueError(
                f"name: {FINALISTS_SUFFIX} at its end is for studies that the program makes, got {self.name!r}"
            )
        return self

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise ValueError(f"must be printable text without blanks at its ends, got {name!r}")
        return name

    @field_validator("objectives", mode="before")
    @classmethod
    def _loss_first(cls, objectives: Any) -> Any:
        allowed = (["val_loss"], ["val_loss", "phi"])
        if not isinstance(objectives, (list, tuple)) or list(objectives) not in allowed:
            raise ValueError(f'must be ["val_loss"] or ["val_loss", "phi"], got {objectives!r}')
        return objectives

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, content: Any) -> Any:
        """The specifications of stored studies have them."""
        return with_present_names(content) if isinstance(content, dict) else content

    @model_validator(mode="before")
    @classmethod
    def _two_objectives_prune_nothing(cls, content: Any) -> Any:
        """With several there is no order in which a trial could be behind; a [pruner] of the file is checked below."""
        several = isinstance(content, dict) and content.get("objectives") not in (None, ["val_loss"], ("val_loss",))
        return {"pruner": {"kind": "none"}, **content} if several else content

    @model_validator(mode="after")
    def _two_objectives_have_no_best(self) -> StudySpec:
        if len(self.objectives) > 1 and self.pruner.kind != "none":
            raise ValueError(f'pruner.kind: must be "none" with two objectives, got {self.pruner.kind!r}')
        if len(self.objectives) > 1 and self.stopping.trials_without_improvement is not None:
            raise ValueError(
                "stopping.trials_without_improvement: with two objectives no trial is the best to improve on"
            )
        if len(self.objectives) > 1 and self.finalists.count and self.finalists.replicates:
            raise ValueError("finalists: with two objectives no trial is the best; leave them out")
        return self

    @model_validator(mode="after")
    def _runs_can_be_built(self) -> StudySpec:
        """Every value a trial could get is one that a run accepts; so are the configurations that are run first."""
        for section, names in (("run", self.run), ("search", self.search)):
            if "network" in names:
                raise ValueError(f'{section}.network: all trials share it; put network = "module:Class" under [model]')
        for name in self.run:
            _named("run", name, parameter_type, name)
        _named("run", "", build_run, self.run)
        _named("model", "network", self.run_with, {})
        _named("text", "", lambda: self.text.choice)
        for name, dimension in self.search.items():
            if self.replication is None or name != "seed":
                _check_dimension(name, dimension)
            for value in dimension.corners:
                _named("search", name, self.run_with, {name: _typed(name, value)})
        for place, given in enumerate((self.baseline, *self.enqueued)):
            section = f"enqueued[{place - 1}]" if place else "baseline"
            for name, value in given.items():
                if name not in self.search:
                    raise ValueError(f"{section}.{name}: not a searched value; put what all trials share under [run]")
                if not self.search[name].holds(value):
                    raise ValueError(f"{section}.{name}: {value!r} is outside search.{name}")
            _named(section, "", self.run_with, given)
            for name, value in self._complete(given).items():
                if not self.search[name].holds(value):
                    raise ValueError(f"{section}.{name}: missing, and the run's own {value!r} is outside search.{name}")
        self._check_grid()
        return self

    def _check_grid(self) -> None:
        if self.sampler.kind != "grid":
            return
        if any(dimension.choices is None for dimension in self.search.values()):
            raise ValueError("sampler.kind: a grid needs choices for every searched value")

    def default_total(self) -> int:
        """The total where the user names none: the file's, but no more than a grid has points."""
        return min(self.trials, len(self.planned())) if self.sampler.kind == "grid" else self.trials

    def run_with(self, parameters: Mapping[str, Scalar]) -> RunConfig:
        """The run of a trial with these searched values.

        Raises:
            ConfigError: a value that a run does not accept.
        """
        return build_run({**self.run, **parameters, "network": self.model.network}, self._presets or PRESETS)

    def with_presets(self, presets: Presets) -> StudySpec:
        """The same study with presets that stand for other values than today's: those it was made with."""
        changed = self.model_copy()
        changed._presets = presets
        return changed

    def planned(self) -> tuple[tuple[Role, dict[str, Scalar]], ...]:
        """What is run first, in order: the baseline, enqueued configurations, and a grid's remaining points.

        Of a companion study: all of its runs.
        """
        if self.replication is not None:
            return self.replication.planned()
        wanted: list[tuple[Role, dict[str, Scalar]]] = [("baseline", self._complete(self.baseline))]
        wanted += [("enqueued", self._complete(given)) for given in self.enqueued]
        wanted += [("grid", point) for point in self._grid()] if self.sampler.kind == "grid" else []
        plan: list[tuple[Role, dict[str, Scalar]]] = []
        for role, parameters in wanted:
            if parameters not in (planned for _, planned in plan):
                plan.append((role, parameters))
        return tuple(plan)

    def max_trials(self) -> int | None:
        """How many different trials there are: a grid's size, a companion's runs, or None for no limit."""
        if self.replication is not None:
            return len(self.replication.runs)
        return len(self.planned()) if self.sampler.kind == "grid" else None

    def identity(self) -> dict[str, Any]:
        """What must be equal for two sessions to work on one study.

        Description, total, stopping rule and finalists may change meanwhile. The corpus is absent because its content
        counts, not the name under which it was found.
        """
        free = {"description", "trials", "stopping", "finalists", "replication", "profile"}
        content: dict[str, Any] = self.model_dump(mode="json", exclude=free)
        del content["text"]["corpus"]
        content["run"] = {name: _typed(name, value) for name, value in self.run.items()}
        return content

    def digest(self) -> str:
        """Sixteen hexadecimal digits of the identity."""
        return short_digest(json.dumps(self.identity(), sort_keys=True))

    def _complete(self, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Values for all searched names: the given ones, else what a run has anyway."""
        whole = {"preset": self.run.get("preset", ""), **self.run_with(given).parameters(), **given}
        return {name: _typed(name, whole[name]) for name in self.search}

    def _grid(self) -> Iterator[dict[str, Scalar]]:
        choices = [[_typed(name, value) for value in dimension.corners] for name, dimension in self.search.items()]
        for point in itertools.product(*choices):
            yield dict(zip(self.search, point, strict=True))


def _check_dimension(name: str, dimension: Dimension) -> None:
    if name in SHARED:
        raise ValueError(f"search.{name}: all trials share it, or they could not be compared; put it under [run]")
    expected = _named("search", name, parameter_type, name)
    if dimension.choices is None:
        if expected not in (int, float):
            raise ValueError(f"search.{name}: is {expected.__name__}, so it needs choices")
        whole = (dimension.low, dimension.high, dimension.step or 1)
        if expected is int and any(value != int(value) for value in whole if value is not None):
            raise ValueError(f"search.{name}: is a whole number, so low, high and step are too")


def _typed(name: str, value: Scalar) -> Scalar:
    """A value from a file as the type that a run has it in: 1 becomes 1.0, 2.0 becomes 2."""
    expected = parameter_type(name)
    if expected is float and type(value) is int:
        return float(value)
    if expected is int and type(value) is float and value.is_integer():
        return int(value)
    return value


def _named(section: str, name: str, build: Callable[..., T], *arguments: Any) -> T:
    """Build with the arguments; a configuration error names the key it belongs to."""
    try:
        return build(*arguments)
    except ConfigError as error:
        rule = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{section}.{name}: {rule}" if name else f"{section}: {rule}") from error
