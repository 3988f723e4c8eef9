"""Nats per token over a vocabulary, without ever holding all logits.

Shapes: N tokens, R rows (tokens) at once, D channels, V vocabulary.

The logits of a batch are by far the largest tensor of a small model: 16 sequences of 256 tokens over 8,192 token ids
are 128 MiB, and softmax, logarithm and gradient each want as much again. Here a few rows at a time go through the
output layer, the softmax and both products of the backward pass, and only the gradients are kept: the same arithmetic
with a small part of the memory, and of the time that moving it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**25}  # by device: what stays in cache; what fills a GPU
NOT_A_TARGET = -100


def nats_per_token(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of the targets, differentiable once in states and weights.

    Args:
        hidden_ND: states that the output layer reads.
        weight_VD: the output layer's matrix.
        targets_N: token ids; every one counts.

    Returns:
        A scalar, in nats. Its gradients are computed on the way, whether or not they are asked for.
    """
    nats: Tensor = _NatsPerToken.apply(hidden_ND, weight_VD, targets_N)  # type: ignore[no-untyped-call]
    return nats


@torch.no_grad()
def nats_of(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each target (N,), in nats; zero where the target is `NOT_A_TARGET`."""
    nats_N = torch.zeros(len(hidden_ND), device=hidden_ND.device)
    counts_N = targets_N != NOT_A_TARGET
    for rows, log_p_RV in _log_probabilities(hidden_ND, weight_VD):
        target_R1 = targets_N[rows].clamp_min(0)[:, None]
        nats_N[rows] = -log_p_RV.gather(1, target_R1)[:, 0]
    return nats_N.where(counts_N, 0.0)


def _log_probabilities(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after the other: which, and their log-probabilities (R, V), good until the next are asked for."""
    rows_at_once = max(1, LOGITS_AT_ONCE[hidden_ND.device.type] // len(weight_VD))
    dtype = _matrix_dtype(hidden_ND)
    weight_DV = weight_VD.to(dtype).T
    logits_RV = torch.empty(min(rows_at_once, len(hidden_ND)), len(weight_VD), dtype=dtype, device=hidden_ND.device)
    for first in range(0, len(hidden_ND), rows_at_once):
        rows = slice(first, min(first + rows_at_once, len(hidden_ND)))
        here_RV = torch.mm(hidden_ND[rows].to(dtype), weight_DV, out=logits_RV[: rows.stop - first])
        if dtype is torch.float32:
            yield rows, torch.log_softmax(here_RV, -1, out=here_RV)
        else:
            yield rows, torch.log_softmax(here_RV, -1, dtype=torch.float32)


def _matrix_dtype(states: Tensor) -> torch.dtype:
    """What autocast multiplies matrices in here."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


class _NatsPerToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        dtype = _matrix_dtype(hidden_ND)
        hidden_ND, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        nats_N = torch.empty(len(hidden_ND), device=hidden_ND.device)
        to_hidden_ND = torch.empty_like(hidden_ND)
        to_weight_VD = torch.empty_like(weight_VD)
        minus_one = torch.full((1, 1), -1.0, device=hidden_ND.device)
        for rows, log_p_RV in _log_probabilities(hidden_ND, weight_VD):
            target_R1 = targets_N[rows, None]
            nats_N[rows] = -log_p_RV.gather(1, target_R1)[:, 0]
            surprise_RV = log_p_RV.exp_().scatter_add_(1, target_R1, minus_one.expand_as(target_R1))
            surprise_RV = surprise_RV.to(dtype)
            torch.mm(surprise_RV, weight, out=to_hidden_ND[rows])
            _accumulate(to_weight_VD, surprise_RV.T, hidden_ND[rows], first=rows.start == 0)
        ctx.save_for_backward(to_hidden_ND, to_weight_VD)
        return nats_N.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        to_hidden_ND, to_weight_VD = ctx.saved_tensors
        share = upstream / len(to_hidden_ND)
        return to_hidden_ND.float().mul_(share), to_weight_VD.mul_(share), None  # in place: there is no second time


def _accumulate(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add a product to a total of float32, which need not be initialised before the first."""
    if total.dtype is not left.dtype:  # each product is rounded, their sum is not
        product = left @ right
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)
