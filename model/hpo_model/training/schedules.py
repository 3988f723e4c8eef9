"""Schedules of the learning rate and of λ_phi, by the share of the budget spent or by the results so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpo_model.config import RunConfig

FINAL_LEARNING_RATE = 0.1  # of the peak, at the end of the cosine
PLATEAU_FACTOR = 0.5  # of the learning rate, each time the validation loss has stopped falling
PLATEAU_EVALUATIONS = 2  # in a row without a new lowest loss: a plateau
LAMBDA_WARMUP = 0.2  # share of the budget over which λ_phi rises in the `warmup` schedule
ADAPTIVE_RATE = 0.01  # step of the dual ascent that holds Φ at its floor, per update


def learning_rate_at(config: RunConfig, step: int, val_losses: Sequence[float] = ()) -> float:
    """Learning rate of update number `step`, counted from 0: a linear rise, then what the schedule says.

    Args:
        config: the run.
        step: updates made before this one.
        val_losses: of all evaluations before it, in order; used by the plateau schedule alone.
    """
    training = config.training
    warmup_steps = training.warmup * config.steps
    if step < warmup_steps:
        return training.learning_rate * (step + 1) / (warmup_steps + 1)
    if training.learning_rate_schedule == "constant":
        return training.learning_rate
    if training.learning_rate_schedule == "plateau":
        return training.learning_rate * PLATEAU_FACTOR ** plateaus(val_losses)
    progress = (step - warmup_steps) / max(config.steps - warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return training.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def evaluations_without_progress(val_losses: Sequence[float]) -> int:
    """Evaluations since the lowest validation loss; what is not a number is no progress."""
    if not val_losses:
        return 0
    lowest = min(range(len(val_losses)), key=lambda at: (not math.isfinite(val_losses[at]), val_losses[at]))
    return len(val_losses) - 1 - lowest


def plateaus(val_losses: Sequence[float]) -> int:
    """How often so far the loss stayed at or above its lowest for `PLATEAU_EVALUATIONS` evaluations in a row."""
    lowest, waited, found = math.inf, 0, 0
    for loss in val_losses:
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited == PLATEAU_EVALUATIONS:
            found, waited = found + 1, 0
    return found


def set_lambda(config: RunConfig, step: int, lambda_phi: Tensor) -> None:
    """Set λ_phi of update number `step` in place; the adaptive schedule leaves it to `adapt_lambda`."""
    progress = step / config.steps
    share = {
        "constant": 1.0,
        "warmup": min(1.0, progress / LAMBDA_WARMUP),
        "linear": 1.0 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }.get(config.phi.lambda_schedule)
    if share is not None:
        lambda_phi.fill_(config.phi.lambda_phi * share)


@torch.no_grad()
def adapt_lambda(config: RunConfig, lambda_phi: Tensor, mean_phi: Tensor) -> None:
    """Dual ascent of the adaptive schedule: λ_phi rises while Φ is below its floor and falls while it is above."""
    if config.phi.lambda_schedule == "adaptive":
        lambda_phi.add_(ADAPTIVE_RATE * (config.phi.phi_floor - mean_phi)).clamp_(min=0.0)
