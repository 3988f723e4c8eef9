"""What changes over a run: the learning rate and λ_phi, as functions of the share of the budget spent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.config import RunConfig

FINAL_LEARNING_RATE = 0.1  # of the peak, at the end of the cosine
LAMBDA_WARMUP = 0.2  # share of the budget over which λ_phi rises in the `warmup` schedule
ADAPTIVE_RATE = 0.01  # step of the dual ascent that holds Φ at its floor, per update


def learning_rate_at(config: RunConfig, step: int) -> float:
    """Learning rate of update number `step`, counted from 0: a linear rise, then cosine to a tenth or flat."""
    training = config.training
    warmup_steps = training.warmup * config.steps
    if step < warmup_steps:
        return training.learning_rate * (step + 1) / (warmup_steps + 1)
    if training.learning_rate_schedule == "constant":
        return training.learning_rate
    progress = (step - warmup_steps) / max(config.steps - warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return training.learning_rate * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def set_lambda(config: RunConfig, step: int, lambda_phi: Tensor) -> None:
    """Put λ_phi of update number `step` into the tensor; the adaptive schedule leaves it to `adapt_lambda`."""
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
