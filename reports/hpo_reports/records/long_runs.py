"""The long runs of a study: their curves, what was projected of them, and how those projections came out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from hpo_reports.projection.curves import Curve
from hpo_reports.projection.project import Projection, ProjectionScore, projection_from, score
from hpo_reports.records.attributes import entries, number, text, whole
from hpo_reports.records.names import STUDY_LONG_RUN


@dataclass(frozen=True, kw_only=True)
class LongRunRecord:
    """One long run, ended or under way."""

    key: str
    trial: int | None  # whose configuration it has; None: one of its own
    epochs: float  # at which its schedule ends
    curve: Curve | None  # None: no evaluation yet, or one without a finite loss
    outcome: str | None  # None: under way, or left
    projections: tuple[Projection, ...]  # in the order in which they were made

    @property
    def is_complete(self) -> bool:
        """Whether it ran to its end."""
        return self.outcome == "complete"

    @functools.cached_property
    def scores(self) -> tuple[ProjectionScore, ...]:
        """Its projections against what happened; none while it has not ended."""
        if not self.is_complete or self.curve is None:
            return ()
        found = (score(each, self.curve) for each in self.projections)
        return tuple(each for each in found if each is not None)


def read_long_runs(study: optuna.Study) -> tuple[LongRunRecord, ...]:
    """All long runs that a study knows of; what is no record of one is passed over."""
    found = []
    for key, content in sorted(study.user_attrs.items()):
        if key.startswith(STUDY_LONG_RUN) and isinstance(content, Mapping):
            record = long_run(key, content, study.study_name)
            found += [] if record is None else [record]
    return tuple(found)


def long_run(key: str, content: Mapping[str, object], group: str) -> LongRunRecord | None:
    """The long run under an attribute of a study; None where it is no record of one."""
    trial, epochs = whole(content, "trial"), number(content, "epochs")
    if epochs is None or epochs <= 0 or (trial is None and content.get("trial") is not None):
        return None
    return LongRunRecord(
        key=key,
        trial=trial,
        epochs=epochs,
        curve=_curve(key, content, group, epochs),
        outcome=text(content, "outcome"),
        projections=tuple(each for each in map(_projection, entries(content, "projections")) if each is not None),
    )


def _curve(key: str, content: Mapping[str, object], group: str, horizon: float) -> Curve | None:
    history = entries(content, "history")
    times, losses = ([number(each, name) for each in history] for name in ("epoch", "val_loss"))
    trained = [number(each, "train_loss") for each in history]
    try:
        return Curve(
            name=key,
            group=group,
            epochs=tuple(float(each) for each in times if each is not None),
            val_loss=tuple(float(each) for each in losses if each is not None),
            train_loss=None if None in trained else tuple(float(each) for each in trained if each is not None),
            horizon=horizon,
        )
    except ValueError:  # a loss without its epoch, or no ascending epochs
        return None


def _projection(content: Mapping[str, object]) -> Projection | None:
    plain = {name: value for name, value in content.items() if name != "made_at"}
    try:
        return projection_from(plain)
    except (KeyError, TypeError):
        return None
