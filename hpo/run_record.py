"""What a study keeps of its long runs: their curves, and what was projected of them on the way.

A record is a user attribute of the study, so that reports on any machine see it. Projections are made while the truth
is not known, and stay as they were made: the next report scores them.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from model.evaluation import Evaluation
from reports.long_runs import LONG_RUN, long_run, read_long_runs
from reports.projection.project import Projection, project

KEPT = (
    "tokens",
    "epoch",
    "whole_split",
    "val_loss",
    "val_ppl",
    "val_word_ppl",
    "val_bits_per_byte",
    "train_loss",
    "phi",
    "learning_rate",
    "seconds",
)
PROJECTED = (1, 2, 4, 8, 16, 32, 64)  # epochs after which a run is projected
LEAST_EPOCHS = 5  # of a run that is projected; the reference runs have twenty

logger = logging.getLogger(__name__)


class RunRecord:
    """The record of one long run, kept up to date in its study."""

    def __init__(self, study: optuna.Study, *, trial: int, epochs: int, parameters: Mapping[str, Any]) -> None:
        self.study = study
        self.key = f"{LONG_RUN}trial-{trial:05d}-epochs-{epochs}"
        self.fresh = {"trial": trial, "epochs": epochs, "parameters": dict(parameters), "projections": []}
        self.content: dict[str, Any] = study.user_attrs.get(self.key) or self._begun()

    def restart(self) -> None:
        """Forget what a run of these values did that nothing is left of: it begins anew."""
        self.content = self._begun()

    def _begun(self) -> dict[str, Any]:
        return {**copy.deepcopy(self.fresh), "started_at": time.time()}

    def add(self, history: Sequence[Evaluation]) -> Projection | None:
        """Keep the curve so far; project the run where it has reached one of those epochs and was not projected there.

        Returns:
            The new projection, if one was made.
        """
        self.content["history"] = [_kept(evaluation) for evaluation in history]
        projection = self._projected(history)
        if projection is not None:
            self.content["projections"].append({"made_at": time.time(), **projection.as_json()})
        self._write()
        return projection

    def end(self, outcome: str, reason: str) -> None:
        """Keep how the run ended."""
        self.content |= {"outcome": outcome, "reason": reason, "ended_at": time.time()}
        self._write()

    def _projected(self, history: Sequence[Evaluation]) -> Projection | None:
        run = long_run(self.key, self.content, self.study.study_name)
        comparable = len({evaluation.whole_split for evaluation in history}) == 1  # else the last is of more text
        if run is None or run.curve is None or run.epochs < LEAST_EPOCHS or not comparable:
            return None
        reached = run.curve.epochs[-1]
        made = {round(each.observed_epochs) for each in run.projections}
        if round(reached) not in PROJECTED or not math.isclose(reached, round(reached), rel_tol=0.01):
            return None
        if round(reached) in made:
            return None
        others = [each for each in read_long_runs(self.study) if each.key != self.key and each.is_complete]
        siblings = [each.curve for each in others if each.curve is not None]
        answer = project(run.curve, horizon=run.epochs, siblings=siblings)
        return answer if isinstance(answer, Projection) else None

    def _write(self) -> None:
        """A database that is away costs the record, never the run; the next evaluation writes all of it again."""
        try:
            self.study.set_user_attr(self.key, self.content)
        except (OptunaError, SQLAlchemyError, OSError) as error:
            logger.warning("the study does not hear of this run: %s", error)


def _kept(evaluation: Evaluation) -> dict[str, Any]:
    values = dataclasses.asdict(evaluation)
    kept = {name: values[name] for name in KEPT}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in kept.items()}
