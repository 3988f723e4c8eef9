"""What is kept of long runs: their curves, and what was projected of them on the way.

The record of a study's run is a user attribute of the study, so that reports on any machine see it; that of a run of
no study is a file beside its checkpoint. Projections are made while the truth is not known, and stay as they were made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import UsageError
from hpo.files import write_text
from hpo_model.training.history import Evaluation
from hpo_reports.projection.curves import Curve
from hpo_reports.projection.project import Projection, ProjectionScore, project
from hpo_reports.records.long_runs import LongRunRecord, long_run
from hpo_reports.records.names import STUDY_LONG_RUN

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
MIN_EPOCHS = 5  # of a run that is projected; the reference runs have twenty

logger = logging.getLogger(__name__)


class RunStore(Protocol):
    """Where the records of long runs on one text are kept, by name."""

    group: str

    def records(self) -> Mapping[str, Any]:
        """All that are there."""

    def put(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep one, in the place of what it was before."""


class StudyStore:
    """The attributes of a study."""

    def __init__(self, study: optuna.Study) -> None:
        self.study, self.group = study, study.study_name

    def records(self) -> Mapping[str, Any]:
        """Those in the study now."""
        found = self.study.user_attrs.items()
        return {key.removeprefix(STUDY_LONG_RUN): content for key, content in found if key.startswith(STUDY_LONG_RUN)}

    def put(self, name: str, content: Mapping[str, Any]) -> None:
        """Write the attribute."""
        self.study.set_user_attr(STUDY_LONG_RUN + name, dict(content))


class FolderStore:
    """JSON files in the folder of the checkpoints; one that cannot be read is passed over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.group = folder, folder.name

    def records(self) -> Mapping[str, Any]:
        """Those in the folder now."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def put(self, name: str, content: Mapping[str, Any]) -> None:
        """Write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


class RunRecord:
    """The record of one long run, kept up to date.

    Args:
        store: where it is kept.
        name: of the run.
        trial: of the study, if the run has exactly its configuration.
        epochs: at which the run's schedule ends.
        parameters: all values of the run.
    """

    def __init__(
        self, store: RunStore, name: str, *, trial: int | None, epochs: int, parameters: Mapping[str, Any]
    ) -> None:
        self.store, self.name = store, name
        self.fresh: dict[str, Any] = {"trial": trial, "epochs": epochs, "parameters": dict(parameters)}
        self.content: dict[str, Any] = _read(store.records().get(name)) or self._begun()

    def begin(self, history: Sequence[Evaluation]) -> None:
        """The run goes on from these evaluations, and has not ended; without any it begins anew, all else forgotten."""
        if not history:
            self.content = self._begun()
        self._is_under_way(history)

    def _is_under_way(self, history: Sequence[Evaluation]) -> None:
        ended = ("outcome", "reason", "ended_at")
        self.content = {name: value for name, value in self.content.items() if name not in ended}
        self.content["history"] = [_kept(evaluation) for evaluation in history]

    def _begun(self) -> dict[str, Any]:
        return {**self.fresh, "projections": [], "started_at": time.time()}

    def add(self, history: Sequence[Evaluation]) -> Projection | None:
        """Keep the curve so far; project the run where it has reached one of those epochs and was not projected there.

        Returns:
            The new projection, if one was made.
        """
        self._is_under_way(history)
        projection = self._projected(history)
        if projection is not None:
            self.content["projections"].append({"made_at": time.time(), **projection.as_json()})
        self._write()
        return projection

    def end(self, outcome: str, reason: str) -> None:
        """Keep how the run ended."""
        self.content |= {"outcome": outcome, "reason": reason, "ended_at": time.time()}
        self._write()

    @property
    def scores(self) -> tuple[ProjectionScore, ...]:
        """The projections against what happened; none while the run has not come to its end."""
        run = self._run()
        return () if run is None else run.scores

    def _run(self) -> LongRunRecord | None:
        return long_run(self.name, self.content, self.store.group)

    def _projected(self, history: Sequence[Evaluation]) -> Projection | None:
        run = self._run()
        comparable = len({evaluation.whole_split for evaluation in history}) == 1  # else the last is of more text
        if run is None or run.curve is None or run.epochs < MIN_EPOCHS or not comparable:
            return None
        reached = run.curve.epochs[-1]
        made = {round(each.observed_epochs) for each in run.projections}
        if round(reached) not in PROJECTED or not math.isclose(reached, round(reached), rel_tol=0.01):
            return None
        if round(reached) in made:
            return None
        answer = project(run.curve, horizon=run.epochs, siblings=self._siblings())
        return answer if isinstance(answer, Projection) else None

    def _siblings(self) -> list[Curve]:
        """The curves of the other complete runs of the store."""
        found = []
        for name, content in sorted(self.store.records().items()):
            other = long_run(name, content, self.store.group) if isinstance(content, Mapping) else None
            if name != self.name and other is not None and other.is_complete and other.curve is not None:
                found.append(other.curve)
        return found

    def _write(self) -> None:
        """A store that is unreachable costs the record, never the run; the next evaluation writes all of it again."""
        try:
            self.store.put(self.name, self.content)
        except (OptunaError, SQLAlchemyError, OSError, UsageError) as error:
            logger.warning("there is no record of this run: %s", error)


def _read(content: object) -> dict[str, Any] | None:
    """The record of a run; None where it is something that another hand wrote there."""
    if not isinstance(content, Mapping) or not isinstance(content.get("projections"), list):
        return None
    return None if long_run("", content, "") is None else dict(content)


def _kept(evaluation: Evaluation) -> dict[str, Any]:
    values = dataclasses.asdict(evaluation)
    kept = {name: values[name] for name in KEPT}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in kept.items()}
