"""What the figures of a study show, computed apart from how it is drawn. No Plotly here.

A study may hold ten thousand trials, and a browser draws a thousand points well: what is drawn is thinned, what matters
is kept, and the number that there would be is handed on, so that the figure can say so.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, TypeVar

from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.document.formats import MISSING
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import StudyRecord, TrialRecord, perplexity_of

MAX_POINTS = 1_000  # in one figure
ALWAYS_KEPT = 100  # of the best trials
MAX_CURVES = 40
MAX_SLICES = 24
MAX_CATEGORIES = 30
_LEFT_OUT = (
    *("suspicious", "infeasible", "other_budget", "not_finite"),
    *("not_causal", "causality_unknown", "budget_unknown"),
)

Item = TypeVar("Item")
Kind = Literal[
    "winner",
    "baseline",
    "complete",
    "not_compared",  # complete, but implausibly low, infeasible, or of another budget
    "pruned",
    "diverged",
    "out_of_memory",
    "failed",
    "running",
]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial in a figure of two axes; x is text where the axis has categories."""

    number: int
    kind: Kind
    x: float | str
    y: float


@dataclass(frozen=True, kw_only=True)
class Points:
    """Trials as points, thinned."""

    points: tuple[Point, ...]
    of: int  # how many there would be
    without: int = 0  # begun trials without a value, which have no place
    line: tuple[tuple[float, float], ...] = ()  # best so far, or the front
    perplexity: bool = False  # y is validation perplexity per token; else an objective's value


@dataclass(frozen=True, kw_only=True)
class DrawnCurve:
    """What a trial reported on its way, in order."""

    number: int
    kind: Kind
    values: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnCurves:
    """The curves of the trials that matter most."""

    curves: tuple[DrawnCurve, ...]
    of: int
    perplexity: bool


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The complete trials by one searched parameter."""

    parameter: str
    points: Points
    log: bool
    categories: tuple[str, ...] = ()  # in order; empty: the axis has numbers
    categories_of: int = 0


def history(record: StudyRecord, comparison: TrialComparison, objective: int = 0) -> Points:
    """What each trial reached, by number, and the best of the comparable ones so far.

    Args:
        record: the study.
        comparison: of its complete trials.
        objective: the place of the objective.
    """
    begun = [trial for trial in record.trials if trial.outcome != "waiting"]
    reached = ((trial, _reached(trial, objective, record)) for trial in begun)
    points = [
        Point(number=trial.number, kind=kind_of(trial, comparison), x=trial.number, y=value)
        for trial, value in reached
        if value is not None
    ]
    ranked = {trial.number for trial in comparison.ranked}  # empty where there are several objectives
    line = _best_so_far([point for point in points if point.number in ranked], record.directions[objective])
    return Points(
        points=tuple(thinned(points, _notable(comparison))),
        of=len(points),
        without=len(begun) - len(points),
        line=tuple(_spread(line, MAX_POINTS)),
        perplexity=record.is_ours and objective == 0,
    )


def curves(record: StudyRecord, comparison: TrialComparison) -> DrawnCurves:
    """The learning curves of winner, baseline, what runs, and then of the best and the longest."""
    trials = [trial for trial in record.trials if any(value is not None for value in trial.curve)]
    rank = {trial.number: place for place, trial in enumerate(comparison.ranked)}
    first: Mapping[Kind, int] = {"winner": 0, "baseline": 1, "running": 2, "complete": 3}

    def relevance(trial: TrialRecord) -> tuple[int, int, int, int]:
        kind = first.get(kind_of(trial, comparison), 4)
        return kind, rank.get(trial.number, len(rank)), -len(trial.curve), trial.number

    drawn = sorted(trials, key=relevance)[:MAX_CURVES]
    perplexity = record.is_ours
    return DrawnCurves(
        curves=tuple(
            DrawnCurve(
                number=trial.number,
                kind=kind_of(trial, comparison),
                values=tuple(_shown(value, perplexity) for value in trial.curve),
            )
            for trial in drawn
        ),
        of=len(trials),
        perplexity=perplexity,
    )


def slices(record: StudyRecord, comparison: TrialComparison) -> list[Slice]:
    """A slice for each searched parameter, in the order in which they appear."""
    names = dict.fromkeys(name for trial in record.trials for name in trial.searched)
    logarithmic = {search.name for search in record.search if search.log}
    complete = _complete(record)
    found = (_slice(name, complete, record, comparison, name in logarithmic) for name in names)
    return list(itertools.islice((each for each in found if each.points.points), MAX_SLICES))


def phi_against_perplexity(record: StudyRecord, comparison: TrialComparison) -> Points:
    """The complete runs by validation perplexity and Φ."""
    points = [
        Point(number=trial.number, kind=kind_of(trial, comparison), x=trial.measured.val_ppl, y=trial.measured.phi)
        for trial in _complete(record)
        if trial.measured.val_ppl is not None and trial.measured.phi is not None
    ]
    return Points(points=tuple(thinned(points, _notable(comparison))), of=len(points), perplexity=True)


def pareto(record: StudyRecord, comparison: TrialComparison) -> Points | None:
    """The complete trials by both objectives, and the front; None where there are not two."""
    if len(record.directions) != 2:
        return None
    points = []
    for trial in _complete(record):
        x, y = (_value(trial, place, record) for place in (0, 1))
        if x is not None and y is not None:
            points.append(Point(number=trial.number, kind=kind_of(trial, comparison), x=x, y=y))
    place = {point.number: point for point in points}
    front = [place[trial.number] for trial in comparison.front if trial.number in place]
    return Points(
        points=tuple(thinned(points, _notable(comparison))),
        of=len(points),
        line=tuple(_spread([(float(point.x), point.y) for point in front], MAX_POINTS)),
        perplexity=record.is_ours,
    )


def kind_of(trial: TrialRecord, comparison: TrialComparison) -> Kind:
    """How a trial is marked in every figure."""
    if comparison.winner is not None and trial.number == comparison.winner.number:
        return "winner"
    if trial.is_baseline and comparison.baseline is not None and trial.number == comparison.baseline.number:
        return "baseline"
    if trial.outcome == "complete":
        verdict = comparison.verdicts.get(trial.number)
        return "not_compared" if verdict is not None and verdict.standing in _LEFT_OUT else "complete"
    return "running" if trial.outcome == "waiting" else trial.outcome


def thinned(points: Sequence[Point], keep: Iterable[int]) -> list[Point]:
    """At most `MAX_POINTS` of the points, evenly spread, in their order.

    Args:
        points: all of them.
        keep: numbers of trials that are not to be left out, as long as they are not too many themselves.
    """
    if len(points) <= MAX_POINTS:
        return list(points)
    wanted = set(keep)
    kept = [point for point in points if point.number in wanted][:MAX_POINTS]
    others = [point for point in points if point.number not in wanted]
    numbers = {point.number for point in (*kept, *_spread(others, MAX_POINTS - len(kept)))}
    return [point for point in points if point.number in numbers]


def _spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many of the items, evenly spread, the last among them."""
    if len(items) <= most:
        return items
    return [items[(place + 1) * len(items) // most - 1] for place in range(most)]


def _notable(comparison: TrialComparison) -> set[int]:
    """Trials that are never left out: the best, the front, the baseline."""
    best = (*comparison.ranked[:ALWAYS_KEPT], *comparison.front[:ALWAYS_KEPT])
    return {trial.number for trial in (*best, *((comparison.baseline,) if comparison.baseline else ()))}


def _complete(record: StudyRecord) -> list[TrialRecord]:
    return [trial for trial in record.trials if trial.outcome == "complete"]


def _value(trial: TrialRecord, objective: int, record: StudyRecord) -> float | None:
    """A value as it is drawn: of our runs what was measured, of others the objective of a complete trial."""
    if record.is_ours:
        return (trial.measured.val_ppl, trial.measured.phi)[objective] if objective < 2 else None
    return trial.values[objective] if objective < len(trial.values) else None


def _reached(trial: TrialRecord, objective: int, record: StudyRecord) -> float | None:
    """A trial's value; of one that another program did not complete, the last that it reported."""
    if trial.outcome == "complete" or record.is_ours or objective > 0:
        return _value(trial, objective, record)
    return next((value for value in reversed(trial.curve) if value is not None), None)


def _shown(value: float | None, perplexity: bool) -> float | None:
    """A reported value as it is drawn: of ours, which are nats per token, the perplexity."""
    return perplexity_of(value) if perplexity else value


def _best_so_far(points: Sequence[Point], direction: str) -> list[tuple[float, float]]:
    """The number and value of each trial that is better than all before it."""
    sign = -1 if direction == "maximize" else 1
    best: list[tuple[float, float]] = []
    for point in points:
        if not best or sign * point.y < sign * best[-1][1]:
            best.append((float(point.x), point.y))
    return best


def _slice(
    name: str, complete: Sequence[TrialRecord], record: StudyRecord, comparison: TrialComparison, log: bool
) -> Slice:
    """The trials by one parameter, on an axis of numbers if all its values are numbers."""
    placed = [(trial, trial.parameters.get(name), _value(trial, 0, record)) for trial in complete]
    rows = [(trial, x, y) for trial, x, y in placed if name in trial.searched and y is not None]
    present = [x for _, x, _ in rows if x is not None]
    numeric = bool(present) and all(map(is_number, present))
    points = []
    for trial, x, y in rows:
        place = float(x) if is_number(x) else category(x)
        if not (numeric and x is None):
            points.append(Point(number=trial.number, kind=kind_of(trial, comparison), x=place, y=y))
    missing = len(rows) - len(points)
    counts = Counter(str(point.x) for point in points) if not numeric else Counter()
    shown = [text for text, _ in counts.most_common(MAX_CATEGORIES)]
    points = [point for point in points if numeric or point.x in shown]
    return Slice(
        parameter=name,
        points=Points(
            points=tuple(thinned(points, _notable(comparison))),
            of=len(points),
            without=missing,
            perplexity=record.is_ours,
        ),
        log=log and numeric and all(isinstance(point.x, float) and point.x > 0 for point in points),
        categories=tuple(sorted(shown)),
        categories_of=len(counts),
    )


def category(value: Scalar) -> str:
    """A value as the name of a category."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:g}"


def is_number(value: Scalar) -> TypeGuard[int | float]:
    """Whether a value has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)
