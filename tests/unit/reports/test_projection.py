"""Projections: their laws, their refusals, their calibration and their scores."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.resources
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_reports.projection.calibration import Calibration, bounds, calibrate, quantile, residuals_of, siblings_of
from hpo_reports.projection.curves import Curve, read_curves, reference_curves
from hpo_reports.projection.pool import pooled
from hpo_reports.projection.project import (
    CALIBRATION,
    Projection,
    Refusal,
    calibration_json,
    digest,
    project,
    projection_from,
    score,
    shipped_calibration,
)
from tests.support.curves import toy_curve, toy_library
from tests.support.paths import REPOSITORY

PUBLIC = Path(os.environ.get("HPO_TEST_CURVES") or REPOSITORY.parent / "shared" / "data" / "curves")
BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture(scope="module")
def library() -> list[Curve]:
    return toy_library()


@functools.cache
def measured() -> Calibration:
    return calibrate(residuals_of(toy_library()))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return measured()


def projected(run: Curve, library: list[Curve], calibration: Calibration, **options: object) -> Projection:
    answer = project(run, horizon=20.0, library=library, calibration=calibration, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Projection)
    return answer


def test_a_projection_is_the_same_whatever_the_order_of_the_library_and_how_often_it_is_asked(
    library: list[Curve], calibration: Calibration
) -> None:
    run = toy_curve("run", "own").until(4)
    once = projected(run, library, calibration)
    assert once == projected(run, library, calibration)
    turned = projected(run, library[::-1], calibration)
    assert turned.best.median == pytest.approx(once.best.median, rel=1e-9)
    assert turned.final.high_90 == pytest.approx(once.final.high_90, rel=1e-9)


@settings(max_examples=25)
@given(
    epoch=st.integers(1, 19),
    start=st.floats(2.0, 9.0),
    fall=st.floats(0.0, 1.5),
    rise=st.floats(0.0, 2.0),
)
def test_ranges_are_nested_and_the_best_checkpoint_is_never_worse_than_the_last(
    epoch: int, start: float, fall: float, rise: float
) -> None:
    run = toy_curve("run", "own", start=start, fall=fall, rise=rise).until(epoch)
    answer = projected(run, toy_library(), measured(), target_ppl=100.0)
    seen = math.exp(min(run.val_loss))
    for outlook in answer.outlooks:
        for each in filter(None, (outlook.at_epoch, outlook.best_until)):
            assert 0 < each.low_90 <= each.low_80 <= each.median <= each.high_80 <= each.high_90
        assert outlook.beats_target is not None
        assert 0 <= outlook.beats_target <= 1
        assert (outlook.observed_ppl is None) == (outlook.epoch > epoch)
    assert answer.best.median <= answer.final.median * (1 + 1e-9)
    for outlook in answer.outlooks:
        if outlook.at_epoch is not None:
            assert outlook.best_until.low_90 <= outlook.at_epoch.low_90
            assert outlook.best_until.high_90 <= min(outlook.at_epoch.high_90, seen * (1 + 1e-9))
    medians = [outlook.best_until.median for outlook in answer.outlooks]
    assert medians == sorted(medians, reverse=True)


def test_more_of_a_run_narrows_the_range(library: list[Curve], calibration: Calibration) -> None:
    run = toy_curve("run", "own", seed=77)
    widths = [projected(run.until(epoch), library, calibration).final.width for epoch in (1, 4, 12)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1.2


def test_ranges_hold_what_they_promise_on_curves_that_no_library_curve_is(
    library: list[Curve], calibration: Calibration
) -> None:
    random = np.random.default_rng(11)
    held = []
    for number in range(60):
        run = toy_curve(
            f"new-{number}",
            "new",
            start=float(random.uniform(5.0, 6.2)),
            fall=float(random.uniform(0.4, 1.1)),
            power=float(random.uniform(0.2, 1.0)),
            rise=float(random.choice([0.0, 0.0, 0.4])),
            seed=1000 + number,
        )
        result = score(projected(run.until(5), library, calibration), run)
        assert result is not None
        held.append((result.best_inside[90], result.final_inside[90]))
    shares = np.array(held).mean(axis=0)
    assert (shares >= 0.8).all(), shares


def test_siblings_that_went_the_same_way_bring_the_median_nearer(
    library: list[Curve], calibration: Calibration
) -> None:
    """The study's runs fall by half as much again as the steepest of the library."""
    truth = toy_curve("run", "own", fall=1.6, power=0.9, seed=3)
    siblings = [toy_curve(f"s{n}", "own", fall=1.6, power=0.9, seed=50 + n) for n in range(3)]
    alone = score(projected(truth.until(1), library, calibration), truth)
    together = score(projected(truth.until(1), library, calibration, siblings=siblings), truth)
    assert alone is not None
    assert together is not None
    assert abs(together.best_log_error) < 0.5 * abs(alone.best_log_error)
    assert together.projection.siblings == 3


def test_the_gap_to_the_training_loss_warns_of_a_rise(library: list[Curve]) -> None:
    """Equal validation losses so far; one run's training loss is that of the curves that rose later."""
    run = toy_curve("run", "own", noise=0.0).until(8)
    losses = np.array(run.val_loss)
    calm = dataclasses.replace(run, train_loss=tuple(losses - 0.1 - 0.3 * np.array(run.epochs) / 20))
    bent = dataclasses.replace(run, train_loss=tuple(losses - 0.1 - 0.7 * np.array(run.epochs) / 20))
    rises = []
    for each in (calm, bent):
        paths = pooled(each, library, [])
        rises.append(float(paths.weights_N @ (paths.losses_NG[:, -1] > paths.losses_NG.min(axis=1) + 0.02)))
    assert rises[1] > rises[0] + 0.05


@pytest.mark.parametrize(
    ("run", "obstacle"),
    [
        (dataclasses.replace(toy_curve("run", "own").until(3), horizon=3.2), "schedule_mismatch"),
        (dataclasses.replace(toy_curve("run", "own").until(3), val_loss=(5.0, math.nan, 4.0)), "diverged"),
        (dataclasses.replace(toy_curve("run", "own").until(3), val_loss=(5.0, math.inf, 4.0)), "diverged"),
        (toy_curve("run", "own"), "ended"),
    ],
)
def test_what_cannot_be_projected_is_refused(
    library: list[Curve], calibration: Calibration, run: Curve, obstacle: str
) -> None:
    answer = project(run, horizon=20.0, library=library, calibration=calibration)
    assert isinstance(answer, Refusal)
    assert answer.obstacle == obstacle


def test_a_thin_library_is_refused(library: list[Curve], calibration: Calibration) -> None:
    answer = project(toy_curve("run", "own").until(3), horizon=20.0, library=library[:5], calibration=calibration)
    assert answer == Refusal(obstacle="no_library")


def test_siblings_of_another_schedule_are_not_asked(library: list[Curve], calibration: Calibration) -> None:
    other = toy_curve("s", "own", epochs=5)
    assert projected(toy_curve("run", "own").until(3), library, calibration, siblings=[other]).siblings == 0


def test_a_chance_agrees_with_the_ranges(library: list[Curve], calibration: Calibration) -> None:
    run = toy_curve("run", "own").until(4)
    best = projected(run, library, calibration).best
    targets = {best.low_90: 0.05, best.median: 0.5, math.exp(min(run.val_loss)) + 1: 1.0, 1.0: 0.0}
    for target, chance in targets.items():
        told = projected(run, library, calibration, target_ppl=target).outlooks[-1].beats_target
        assert told == pytest.approx(chance, abs=0.002)


def test_the_same_configuration_under_another_seed_is_no_sibling() -> None:
    """A study's long runs differ in what they are; a run's double would make siblings look better than they are."""
    runs = [dataclasses.replace(toy_curve(f"r{n}", "own", seed=n), configuration=f"c{n // 2}") for n in range(6)]
    chosen = siblings_of(runs[0], runs, 6)
    assert {each.name for each in chosen} == {"r2", "r3", "r4", "r5"}
    assert siblings_of(runs[0], runs, 2) == siblings_of(runs[0], runs[::1], 2)


def test_a_projection_survives_json_and_is_scored_when_the_run_has_ended(
    library: list[Curve], calibration: Calibration
) -> None:
    run = toy_curve("run", "own")
    answer = projected(run.until(4), library, calibration, target_ppl=150.0)
    again = projection_from(json.loads(json.dumps(answer.as_json())))
    assert again == answer
    assert score(again, run.until(19)) is None
    result = score(again, run)
    assert result is not None
    assert result.best_ppl == pytest.approx(math.exp(min(run.val_loss)))
    assert result.best_inside[90] == (again.best.low_90 <= result.best_ppl <= again.best.high_90)
    lifted = dataclasses.replace(run, val_loss=tuple(loss + 3 for loss in run.val_loss))
    residuals = score(again, lifted)
    assert residuals is not None
    assert not any((*residuals.best_inside.values(), *residuals.final_inside.values()))


def test_a_scale_is_what_the_truths_needed() -> None:
    """Bounds scaled by the measured factor hold nine tenths of the truths that they were measured on."""
    library = toy_library(24)
    residuals = list(residuals_of(library, shares=(0.2,)))
    calibration = calibrate(residuals)
    for target in ("final", "best"):
        needed = [residual.scale[90] for residual in residuals if residual.target == target]
        assert np.mean(np.array(needed) <= calibration.scale(target, 90, 0.2)) >= 0.9  # type: ignore[arg-type]


def test_bounds_are_quantiles_about_the_median_scaled_on_each_side() -> None:
    values, weights = np.arange(101.0), np.full(101, 1 / 101)
    assert quantile(values, weights, 0.5) == pytest.approx(50)
    assert bounds(values, weights, 90, 1.0, 0.0) == pytest.approx((5, 95), abs=0.6)
    low, high = bounds(values, weights, 90, 1.1, 0.0)
    assert (50 - low, high - 50) == pytest.approx((49.5, 49.5), abs=0.6)
    assert bounds(values, weights, 80, 2.0, 4.0) == pytest.approx((0, 138), abs=1.2)  # no loss is below 0


def test_curves_are_read_between_their_points_over_log_time() -> None:
    curve = Curve(name="c", group="g", epochs=(1.0, 4.0), val_loss=(6.0, 4.0), horizon=4.0)
    assert float(curve.at(np.array(0.5))) == pytest.approx(5.0)
    assert float(curve.at(np.array(0.01))) == 6.0


@pytest.mark.parametrize("epochs", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_epochs_must_ascend_from_above_zero(epochs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="curve c: "):
        Curve(name="c", group="g", epochs=epochs, val_loss=tuple(5.0 for _ in epochs), horizon=20.0)


def test_diverged_runs_are_in_no_library() -> None:
    row = {"name": "r", "group": "g", "epochs": [1, 2], "val_loss": [5.0, 4.0], "train_loss": [5.0, 4.0]}
    assert [curve.name for curve in read_curves([row, {**row, "name": "d", "outcome": "diverged"}])] == ["r"]


def test_the_shipped_runs_are_many_of_several_texts_and_seeds_and_some_overfit() -> None:
    curves = reference_curves()
    assert len(curves) >= 24
    assert len({curve.group for curve in curves}) >= 4
    assert all(curve.is_finite and curve.train_loss is not None and curve.horizon == 20 for curve in curves)
    overfit = [curve for curve in curves if min(curve.val_loss) < curve.val_loss[-1] - 0.02]
    assert 4 <= len(overfit) < len(curves)


def test_the_shipped_scales_were_measured_on_the_shipped_runs() -> None:
    text = importlib.resources.files("hpo_reports.projection").joinpath(CALIBRATION).read_text(encoding="utf-8")
    assert json.loads(text)["curves"] == digest(reference_curves())


@pytest.mark.nightly
def test_the_shipped_scales_are_those_of_the_shipped_runs() -> None:
    measured = json.loads(calibration_json(reference_curves()))
    for siblings in (0, 1, 3):
        shipped = shipped_calibration(siblings)
        for key, values in measured[str(siblings)]["scales"].items():
            assert shipped.scales[key] == pytest.approx(values, rel=1e-6), key


def run_of_the_log() -> Projection:
    """650.62 after one epoch, 212.22 after twenty; the log foretold 50 to 70."""
    run = Curve(name="log", group="log", epochs=(1.0,), val_loss=(math.log(650.62),), horizon=20.0)
    answer = project(run, horizon=20.0, target_ppl=50.0)
    assert isinstance(answer, Projection)
    return answer


def test_the_run_of_the_log_would_have_been_foretold_with_its_doubts() -> None:
    answer = run_of_the_log()
    assert answer.final.low_90 <= 212.22 <= answer.final.high_90
    assert not answer.ranks


def test_what_the_log_foretold_was_next_to_impossible() -> None:
    chance = run_of_the_log().outlooks[-1].beats_target
    assert chance is not None
    assert chance < 0.01


@pytest.mark.nightly
@pytest.mark.skipif(not PUBLIC.is_dir(), reason=f"no public learning curves in {PUBLIC}; set HPO_TEST_CURVES")
def test_public_curves_of_sources_that_nothing_was_measured_on_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("projection")
    trials = benchmark.leave_one_out(benchmark.public_curves(PUBLIC), 0)
    for share, error, width in ((0.2, 0.16, 2.8), (0.4, 0.07, 2.0), (0.6, 0.05, 1.7)):
        figures = benchmark.weighed([each for each in trials if (each.target, each.share) == ("final", share)])
        assert 0.87 <= figures["coverage_90"] <= 0.95, (share, figures)
        assert figures["median_abs_log_error"] <= error, (share, figures)
        assert figures["width_90"] <= width, (share, figures)
    curves = benchmark.public_curves(PUBLIC, in_epochs=True)
    replay = benchmark.replayed(curves, calibrate(residuals_of(curves)))
    assert replay["holds_212"]
    assert replay["below_50"] < 0.01
