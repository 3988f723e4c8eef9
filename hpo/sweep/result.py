"""How a trial ended, in the form in which it waits in its slot until Optuna has stored it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The end of a trial."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] = ()  # of the study's objectives at the last evaluation; none unless all are finite
    violations: tuple[str, ...] = ()  # constraints that the trial breaks, so that the sampler avoids its region
    attributes: dict[str, Any] = field(default_factory=dict)  # Optuna user attributes

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
        """The result that `to_json` gave."""
        content = json.loads(text)
        return cls(**{**content, "values": tuple(content["values"]), "violations": tuple(content["violations"])})
