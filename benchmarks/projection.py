"""How well learning curves are projected: on public curves, leaving one source out, and on runs of our own.

python benchmarks/projection.py --data PATH                          # two minutes: PATH holds public curves as *.jsonl
python benchmarks/projection.py --data PATH --fresh FOLDER/runs.jsonl    # also runs that no reference run is like
python benchmarks/projection.py --calibrate                          # rewrites the calibration that is shipped

Each source weighs alike. The scales that a source is projected with are measured on the others alone, and so is the
library; with siblings, other curves of its own source are given. The replay asks what was to be expected of a run whose
validation perplexity after one of twenty epochs is 650.62: of all sources, of those that count in epochs as it does,
and of the reference runs. These are projected in the same way, leaving one stretch of text out, also to epochs before
the horizon; the fresh runs with all that is shipped, as a user's run would be.

What was chosen on the public curves is development evidence: the pool itself, the quarter of the last doubling's change
in each interval's width, what is done with fewer than three points. The fresh runs had no part in any choice.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import keep

from hpo_reports.projection.calibration import (
    SIBLING_COUNTS,
    Calibration,
    Target,
    calibrate,
    expected,
    observed,
    quantile,
    residuals_of,
    siblings_of,
    truths_of,
)
from hpo_reports.projection.curves import Curve, read_curves, reference_curves
from hpo_reports.projection.pool import pooled
from hpo_reports.projection.project import (
    CALIBRATION,
    Projection,
    Range,
    calibration_json,
    project,
    shipped_calibration,
)

SHARES = (0.05, 0.2, 0.4, 0.6)
BETWEEN = (1, 4, 8)  # epochs from which others before the horizon are projected
MAX_OF_A_SOURCE = 60
MIN_POINTS = 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One projection and its truth."""

    source: str
    target: Target
    share: float
    log_error: float
    inside: dict[int, bool]
    log_width: float  # of the 90 % interval


def public_curves(folder: Path, *, in_epochs: bool = False) -> list[Curve]:
    """The usable curves of a folder, of each file at most sixty, drawn by a fixed seed.

    Args:
        folder: of *.jsonl, a source each.
        in_epochs: only those whose time counts passes over a text.
    """
    curves: list[Curve] = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        rows = [row for row in rows if len(row["x"]) >= MIN_POINTS and all(map(math.isfinite, row["val_ppl"]))]
        rows = [row for row in rows if not in_epochs or row["x_unit"] == "epoch"]
        chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_OF_A_SOURCE]
        for row in (rows[place] for place in sorted(chosen)):
            losses = tuple(map(math.log, row["val_ppl"]))
            epochs = tuple(map(float, row["x"]))
            curves.append(Curve(name=row["name"], group=path.stem, epochs=epochs, val_loss=losses, horizon=epochs[-1]))
    return curves


def leave_one_out(curves: Sequence[Curve], n_siblings: int) -> list[Trial]:
    """Project every curve of every source with what the other sources teach."""
    trials: list[Trial] = []
    for source in sorted({curve.group for curve in curves}):
        calibration = calibrate(residuals_of(curves, n_siblings=n_siblings, without=source, shares=SHARES))
        library = [curve for curve in curves if curve.group != source]
        for curve in curves:
            if curve.group == source:
                siblings = siblings_of(curve, curves, n_siblings)
                trials += tried(curve, library, siblings if len(siblings) == n_siblings else [], calibration)
    return trials


def tried(
    curve: Curve, library: Sequence[Curve], siblings: Sequence[Curve], calibration: Calibration
) -> Iterable[Trial]:
    """A curve's projections from each share of it."""
    for share in SHARES:
        prefix = observed(curve, share)
        if prefix is None:
            continue
        truths = truths_of(curve)
        for target, loss in expected(pooled(prefix, library, siblings), prefix, calibration, share).items():
            yield Trial(
                source=curve.group,
                target=target,
                share=share,
                log_error=abs(truths[target] - loss.median),
                inside={level: low <= truths[target] <= high for level, (low, high) in loss.intervals.items()},
                log_width=loss.intervals[90][1] - loss.intervals[90][0],
            )


def summary(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each target and share."""
    rows = []
    for target in ("final", "best"):
        for share in SHARES:
            chosen = [each for each in trials if (each.target, each.share) == (target, share)]
            if chosen:
                rows.append({"target": target, "share": share, **weighed(chosen)})
    return rows


def weighed(trials: Sequence[Trial]) -> dict[str, Any]:
    """Coverage, median error and width, every source counting alike."""
    sizes = {source: sum(each.source == source for each in trials) for source in {each.source for each in trials}}
    weights = np.array([1 / sizes[each.source] for each in trials])

    def mean(of: Callable[[Trial], float]) -> float:
        return float(np.average([of(each) for each in trials], weights=weights))

    def median(of: Callable[[Trial], float]) -> float:
        return quantile(np.array([of(each) for each in trials]), weights, 0.5)

    by_source = {source: [each.inside[90] for each in trials if each.source == source] for source in sorted(sizes)}
    return {
        "curves": len(trials),
        "coverage_80": round(mean(lambda each: each.inside[80]), 3),
        "coverage_90": round(mean(lambda each: each.inside[90]), 3),
        "median_abs_log_error": round(median(lambda each: each.log_error), 4),
        "width_90": round(math.exp(median(lambda each: each.log_width)), 2),
        "coverage_90_by_source": {source: round(float(np.mean(held)), 2) for source, held in by_source.items()},
    }


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print(
            f"  {row['target']:<5} from {row['share']:4.0%}: 90 % holds {row['coverage_90']:.0%}, 80 % holds "
            f"{row['coverage_80']:.0%} · error {row['median_abs_log_error']:.3f} · width ×{row['width_90']:.2f}"
            f" · {row['coverage_90_by_source']}",
            flush=True,
        )


def between(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """How often the ranges at epochs before the horizon hold, by the epoch from which they were made."""
    held: dict[int, list[tuple[bool, bool]]] = {epoch: [] for epoch in BETWEEN}
    for group in sorted({curve.group for curve in curves}):
        library = [curve for curve in curves if curve.group != group]
        calibration = calibrate(residuals_of(library))
        for curve in (each for each in curves if each.group == group):
            for epoch in BETWEEN:
                answer = project(curve.until(epoch), horizon=curve.horizon, library=library, calibration=calibration)
                assert isinstance(answer, Projection)
                held[epoch] += [
                    (_in(each.at_epoch, curve.val_loss[int(each.epoch) - 1]), _in(each.best_until, min(until)))
                    for each in answer.outlooks[:-1]
                    if each.at_epoch is not None
                    for until in [curve.until(each.epoch).val_loss]
                ]
    rows = []
    for epoch, pairs in held.items():
        at, best = (round(float(np.mean(each)), 3) for each in zip(*pairs, strict=True))
        rows.append({"from_epoch": epoch, "ranges": len(pairs), "coverage_90": at, "best_coverage_90": best})
        print(f"  from epoch {epoch} to those before the horizon: 90 % holds {at:.0%}, of the best {best:.0%}")
    return rows


def _in(expected: Range, loss: float) -> bool:
    return expected.low_90 * (1 - 1e-9) <= math.exp(loss) <= expected.high_90 * (1 + 1e-9)


def replayed(library: Sequence[Curve], calibration: Calibration) -> dict[str, Any]:
    """What was to be expected of the experiment log's run after one epoch."""
    run = Curve(name="log", group="log", epochs=(1.0,), val_loss=(math.log(650.62),), horizon=20.0)
    projection = project(run, horizon=20.0, library=library, calibration=calibration, target_ppl=50.0)
    assert isinstance(projection, Projection)
    final, best = projection.final, projection.best
    figures = {
        "final": [round(each, 1) for each in (final.low_90, final.median, final.high_90)],
        "best": [round(each, 1) for each in (best.low_90, best.median, best.high_90)],
        "holds_212": final.low_90 <= 212 <= final.high_90,
        "below_50": projection.outlooks[-1].beats_target,
    }
    print(f"  from 650.62 at epoch 1, at epoch 20: {figures}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with public curves")
    parser.add_argument("--fresh", type=Path, help="runs.jsonl of benchmarks/reference_runs.py --fresh")
    parser.add_argument("--calibrate", action="store_true", help="measure the shipped scales anew, and do no more")
    arguments = parser.parse_args()
    own = list(reference_curves())
    if arguments.calibrate:
        target = Path(__file__).parents[1] / "reports" / "hpo_reports" / "projection" / CALIBRATION
        target.write_text(calibration_json(own), encoding="utf-8")
        return
    figures: dict[str, Any] = {}
    if arguments.data:
        public = public_curves(arguments.data)
        for n_siblings in (0, 3):
            figures[f"public_{n_siblings}_siblings"] = rows = summary(leave_one_out(public, n_siblings))
            show(f"{len(public)} public curves, {n_siblings} siblings, one source left out:", rows)
        for name, curves in (("all", public), ("in_epochs", public_curves(arguments.data, in_epochs=True))):
            print(f"replay, {len(curves)} curves ({name}):")
            figures[f"replay_public_{name}"] = replayed(curves, calibrate(residuals_of(curves)))
    for n_siblings in SIBLING_COUNTS:
        figures[f"own_{n_siblings}_siblings"] = rows = summary(leave_one_out(own, n_siblings))
        show(f"{len(own)} reference runs, {n_siblings} siblings, one stretch of text left out:", rows)
    figures["own_between"] = between(own)
    figures["replay_own"] = replayed(own, shipped_calibration(0))
    if arguments.fresh:
        fresh = list(read_curves(map(json.loads, arguments.fresh.read_text("utf-8").splitlines())))
        trials = [trial for curve in fresh for trial in tried(curve, own, [], shipped_calibration(0))]
        figures["fresh"] = rows = summary(trials)
        show(f"{len(fresh)} fresh runs, as shipped:", rows)
    keep("projection", figures)


if __name__ == "__main__":
    main()
