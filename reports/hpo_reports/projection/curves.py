"""A run's losses by epoch, and how they are read at any time between."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LIBRARY = "reference_runs.jsonl"
MAX_NATS = 700.0  # whose exponential a float still holds


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A learning curve. Losses are of one fixed text, measured without dropout, in nats per token."""

    name: str
    group: str  # runs of one group share text or author: one is never calibrated with the others of its group
    epochs: tuple[float, ...]  # ascending, above 0
    val_loss: tuple[float, ...]
    train_loss: tuple[float, ...] | None = None  # at the same moments
    horizon: float  # epoch at which the run's learning-rate schedule ends, and with it the run
    configuration: str = ""  # what runs share that differ in their seed alone; empty: it is like no other run

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.val_loss) or not self.epochs:
            raise ValueError(
                f"curve {self.name}: needs as many losses as epochs and at least one, got "
                f"{len(self.val_loss)} and {len(self.epochs)}"
            )
        if self.epochs[0] <= 0 or any(later <= earlier for earlier, later in itertools.pairwise(self.epochs)):
            raise ValueError(f"curve {self.name}: epochs must ascend from above 0, got {self.epochs[:5]}")

    @property
    def is_finite(self) -> bool:
        """Whether every loss is a finite number."""
        return all(map(math.isfinite, self.val_loss))

    @property
    def now(self) -> float:
        """The share of the horizon that has passed at the last point."""
        return self.epochs[-1] / self.horizon

    def until(self, epoch: float) -> Curve:
        """What was known at an epoch: the points up to there, at least the first."""
        n = max(sum(each <= epoch * (1 + 1e-9) for each in self.epochs), 1)
        train = None if self.train_loss is None else self.train_loss[:n]
        return dataclasses.replace(self, epochs=self.epochs[:n], val_loss=self.val_loss[:n], train_loss=train)

    def at(self, share: Floats) -> Floats:
        """The validation loss at shares of the horizon, between points by a line over log-time; the ends are held."""
        losses: Floats = np.interp(np.log(share), np.log(np.array(self.epochs) / self.horizon), self.val_loss)
        return losses

    @property
    def gap(self) -> float | None:
        """How far the validation loss is above the training loss at the last point."""
        return None if self.train_loss is None else self.val_loss[-1] - self.train_loss[-1]

    def gap_at(self, share: float) -> float | None:
        """The gap at a share of the horizon."""
        if self.train_loss is None:
            return None
        gaps = np.array(self.val_loss) - np.array(self.train_loss)
        return float(np.interp(math.log(share), np.log(np.array(self.epochs) / self.horizon), gaps))


@functools.cache
def reference_curves() -> tuple[Curve, ...]:
    """The reference runs that come with the program, those that were trained to their end."""
    text = importlib.resources.files("hpo_reports.projection").joinpath(LIBRARY).read_text(encoding="utf-8")
    return tuple(read_curves(json.loads(line) for line in text.splitlines()))


def read_curves(rows: Iterable[Mapping[str, Any]]) -> Iterable[Curve]:
    """Curves from rows of the reference runs' format; diverged runs are left out."""
    for row in rows:
        if row.get("outcome", "complete") != "complete":
            continue
        yield Curve(
            name=row["name"],
            group=row["group"],
            epochs=tuple(map(float, row["epochs"])),
            val_loss=tuple(row["val_loss"]),
            train_loss=tuple(row["train_loss"]) if row.get("train_loss") else None,
            horizon=float(row["epochs"][-1]),
            configuration=json.dumps({**row.get("config", {}), "seed": None}, sort_keys=True),
        )
