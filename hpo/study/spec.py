"""A complete study as frozen, validated data, whatever file it came from; `hpo.study.toml` reads the file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, field_validator, model_validator

from hpo.study.former_names import with_present_names
from hpo.study.sections import (
    FINALISTS_BY_PROFILE,
    Dimension,
    FinalistsSection,
    ModelSection,
    Positive,
    Profile,
    PrunerSection,
    Replication,
    Role,
    SamplerSection,
    Section,
    StoppingSection,
    TextSection,
)
from hpo_model.config import PRESETS, Presets, RunConfig, Scalar, build_run, parameter_type
from hpo_model.digest import short_digest
from hpo_model.errors import ConfigError
from hpo_reports.records.names import FINALISTS_SUFFIX

T = TypeVar("T")
Objective = Literal["val_loss", "phi"]  # of the last evaluation: nats per token, to be minimised; Φ, to be maximised
PLANNED: tuple[Role, ...] = ("baseline", "enqueued", "grid", "finalist")  # no sampler chooses these trials' values
SHARED = ("budget_tokens", "evaluations", "evaluation_tokens", "seed")  # never searched


class StudySpec(Section):
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
    baseline: dict[str, Scalar] = Field(default_factory=dict)
    enqueued: tuple[dict[str, Scalar], ...] = Field(default=(), strict=False)
    sampler: SamplerSection = SamplerSection()
    pruner: PrunerSection = PrunerSection()
    stopping: StoppingSection = StoppingSection()
    finalists: FinalistsSection
    replication: Replication | None = None  # of companion studies
    _presets: Presets = PrivateAttr(default_factory=dict)  # those that stand for other values than today's

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
        return build_run({**self.run, **parameters, "network": self.model.network}, {**PRESETS, **self._presets})

    def with_presets(self, presets: Presets) -> StudySpec:
        """The same study with presets as they were when it was made; what is not among them stands for today's values.

        Args:
            presets: all values of each preset that a trial may take.
        """
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
