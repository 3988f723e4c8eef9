"""Schedules of the learning rate and of λ_phi."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hpo_model.config import RunConfig, Scalar, build_run
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.training.loop import train
from hpo_model.training.schedules import (
    ADAPTIVE_RATE,
    adapt_lambda,
    evaluations_without_progress,
    learning_rate_at,
    plateaus,
    set_lambda,
)

STEPS = 100


def run(**values: Scalar) -> RunConfig:
    config = build_run({"sequence_length": 8, "batch_size": 1, "budget_tokens": 8 * STEPS, **values})
    assert config.steps == STEPS
    return config


def lambdas(config: RunConfig) -> list[float]:
    tensor = torch.tensor(math.nan)
    values = []
    for step in range(STEPS):
        set_lambda(config, step, tensor)
        values.append(float(tensor))
    return values


def test_learning_rate_rises_linearly_then_falls_to_a_tenth_along_a_cosine() -> None:
    config = run(learning_rate=1e-2, warmup=0.1)
    rates = [learning_rate_at(config, step) for step in range(STEPS + 1)]
    assert rates[:10] == pytest.approx([1e-2 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == max(rates) == pytest.approx(1e-2)
    assert rates[55] == pytest.approx(1e-2 * 0.55)  # half way down: the mean of 1 and 0.1
    assert rates[STEPS] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_learning_rate_stays_at_its_peak_after_the_warm_up() -> None:
    config = run(learning_rate=1e-2, warmup=0.1, learning_rate_schedule="constant")
    assert {learning_rate_at(config, step) for step in range(10, STEPS)} == {1e-2}
    assert learning_rate_at(config, 0) < 1e-2


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_starts_at_its_peak_without_warm_up(schedule: str) -> None:
    assert learning_rate_at(run(learning_rate=1e-2, warmup=0.0, learning_rate_schedule=schedule), 0) == 1e-2


@pytest.mark.parametrize(
    ("losses", "found", "waited"),
    [
        ([], 0, 0),
        ([5.0, 4.0, 3.0], 0, 0),
        ([5.0, 5.0], 0, 1),
        ([5.0, 5.0, 5.0], 1, 2),
        ([5.0, 4.0, 4.5, 4.2, 3.9, 4.0], 1, 1),
        ([4.0, 4.1, 4.2, 4.3, 4.4], 2, 4),
        ([math.nan, 4.0], 0, 0),
        ([4.0, math.nan, math.inf], 1, 2),
    ],
)
def test_a_plateau_is_two_evaluations_without_a_new_lowest_loss(losses: list[float], found: int, waited: int) -> None:
    assert plateaus(losses) == found
    assert evaluations_without_progress(losses) == waited
    config = run(learning_rate=1e-2, warmup=0.1, learning_rate_schedule="plateau")
    assert learning_rate_at(config, 50, losses) == 1e-2 * 0.5**found
    assert learning_rate_at(config, 0, losses) == pytest.approx(1e-2 / 11), "the warm-up comes first"


def test_learning_rate_never_reaches_zero() -> None:
    config = run(learning_rate=1e-2, warmup=0.5)
    assert min(learning_rate_at(config, step) for step in range(STEPS)) >= 1e-2 / 51


def test_constant_lambda_never_changes() -> None:
    assert set(lambdas(run(lambda_phi=0.25))) == {0.25}


def test_warmup_lambda_rises_over_the_first_fifth() -> None:
    values = lambdas(run(lambda_phi=0.5, lambda_schedule="warmup"))
    assert values[:20] == pytest.approx([0.5 * step / 20 for step in range(20)])
    assert set(values[20:]) == {0.5}


def test_linear_lambda_falls_evenly_towards_zero() -> None:
    values = lambdas(run(lambda_phi=0.5, lambda_schedule="linear"))
    assert values == pytest.approx([0.5 * (1 - step / STEPS) for step in range(STEPS)])


def test_cosine_lambda_falls_slowly_first_and_last() -> None:
    values = lambdas(run(lambda_phi=0.5, lambda_schedule="cosine"))
    assert values[0] == 0.5
    assert values[50] == pytest.approx(0.25)
    assert values[0] - values[10] < values[40] - values[50] > values[89] - values[99]


def test_adaptive_lambda_is_left_to_the_dual_ascent() -> None:
    tensor = torch.tensor(0.123)
    set_lambda(run(lambda_schedule="adaptive"), 50, tensor)
    assert float(tensor) == pytest.approx(0.123)


@pytest.mark.parametrize(("phi", "moved"), [(0.5, 0.2), (0.9, -0.2)])
def test_adaptive_lambda_rises_below_the_floor_and_falls_above_it(phi: float, moved: float) -> None:
    tensor = torch.tensor(1.0)
    adapt_lambda(run(lambda_schedule="adaptive", phi_floor=0.7), tensor, torch.tensor(phi))
    assert float(tensor) == pytest.approx(1.0 + ADAPTIVE_RATE * moved)


def test_adaptive_lambda_never_falls_below_zero() -> None:
    tensor = torch.tensor(0.001)
    adapt_lambda(run(lambda_schedule="adaptive", phi_floor=0.2), tensor, torch.tensor(1.0))
    assert float(tensor) == 0.0


@pytest.mark.parametrize("schedule", ["constant", "warmup", "linear", "cosine"])
def test_other_schedules_do_not_adapt(schedule: str) -> None:
    tensor = torch.tensor(1.0)
    adapt_lambda(run(lambda_schedule=schedule), tensor, torch.tensor(0.0))
    assert float(tensor) == 1.0


# ---------------------------------------------------------------------------------------------- in a run's history


SMALL: dict[str, Scalar] = {
    "width": 16, "heads": 2, "sequence_length": 16, "memory_slots": 8, "phi_probes": 4, "batch_size": 2,
    "budget_tokens": 20 * 32, "evaluations": 10, "evaluation_tokens": 64, "lambda_phi": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5] * 10),
        ("warmup", [0.5 * step / 4 for step in (1, 3)] + [0.5] * 8),
        ("linear", [0.5 * (1 - step / 20) for step in range(1, 20, 2)]),
        ("cosine", [0.25 * (1 + math.cos(math.pi * step / 20)) for step in range(1, 20, 2)]),
    ],
)
def test_a_run_s_history_shows_lambda_as_its_schedule_has_it(
    schedule: str, expected: list[float], small_corpus: TokenizedCorpus
) -> None:
    """The run makes 20 updates, counted from 0, and is evaluated after every second one."""
    history = train(build_run({**SMALL, "lambda_schedule": schedule}), small_corpus).history
    assert [evaluation.lambda_phi for evaluation in history] == pytest.approx(expected)


@pytest.mark.parametrize(("floor", "sign"), [(0.99, 1), (0.01, -1)])
def test_a_run_s_history_shows_lambda_following_phi(floor: float, sign: int, small_corpus: TokenizedCorpus) -> None:
    """Between two evaluations λ moves by the rate times what the two updates' mean Φ lacks to the floor."""
    run = build_run({**SMALL, "lambda_schedule": "adaptive", "phi_floor": floor})
    lambdas, lacks = [0.5], []
    for evaluation in train(run, small_corpus).history:
        assert evaluation.lambda_phi is not None
        assert evaluation.train_phi is not None
        lambdas.append(evaluation.lambda_phi)
        lacks.append(floor - evaluation.train_phi)
    moves = [after - before for before, after in itertools.pairwise(lambdas)]
    assert moves == pytest.approx([2 * ADAPTIVE_RATE * lack for lack in lacks], abs=1e-6)
    assert all(move * sign > 0 for move in moves)
