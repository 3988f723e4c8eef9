"""What a user asked for, before anything is opened or checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hpo.errors import UsageError
from hpo.executors.resources import ResourceRequest


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Who starts workers, and where."""

    kind: Literal["local", "ray", "slurm"] = "local"
    ray_address: str | None = None  # None: as Ray finds its cluster
    slurm_options: Mapping[str, str] = field(default_factory=dict)
    cpus_per_worker: int = 1  # of a cluster; as many threads train


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    study: str  # name of a shipped study, or path of a study file; to join: of a study in the database
    trials: int | None = None  # the total; None: what the study file says
    data: Path | None = None  # folder with the text; None: what the study was made from, or its file says
    resources: ResourceRequest = field(default_factory=ResourceRequest)
    executor: Executor = field(default_factory=Executor)

    @property
    def gpus_per_worker(self) -> float:
        """The share of a GPU that a worker on a cluster gets."""
        return 1 / (self.resources.trials_per_gpu or 1)


def parse_slurm_options(options: Iterable[str]) -> dict[str, str]:
    """`partition=gpu` -> {"partition": "gpu"}.

    Raises:
        UsageError: an option without a key or a value.
    """
    parsed = {}
    for option in options:
        key, sign, value = option.partition("=")
        if not sign or not key:
            raise UsageError(f"--slurm takes KEY=VALUE, got {option!r}")
        parsed[key] = value
    return parsed
