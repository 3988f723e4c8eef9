"""Integrated information Φ of a sequence, and the ΔΦ term of the loss. Pure tensor functions.

Shapes: B sequences, T positions, D channels, H heads, E channels per head, P probes, Q = 4 quarters of a sequence,
C = 4 components.

Φ is a weighted mean of four components in [0, 1] per sequence, after the INFINITO V5.2 logs. It is a regulariser over
hidden states and attention, not a measure of consciousness, and never enters the logits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo_model.config import PhiObjective

COMPONENTS = ("temporal_coherence", "integration", "complexity", "attention_diversity")
INITIAL_WEIGHTS = (0.3, 0.3, 0.2, 0.2)
QUARTERS = 4
V5_2_TARGET = 3.5  # out of reach for a mean of components in [0, 1]; max(0, 3 Φ₀ − Φ) pulls Φ₀ down meanwhile


class Attention(NamedTuple):
    """Queries and keys of an attention layer, from which attention is recomputed where it is needed."""

    query_BHTE: Tensor
    key_BHTE: Tensor


def attention_received(attention: Attention, probes: int) -> Tensor:
    """Estimate how much attention each key receives, averaged over heads and queries.

    The attention matrix is never built whole: at most `probes` queries, one from the middle of each of as many equal
    stretches of the sequence, stand for all T.

    Returns:
        (B, T) shares that sum to 1 over the keys.
    """
    query_BHTE, key_BHTE = attention
    length, width = query_BHTE.shape[-2:]
    probed = probe_positions(length, probes)
    query_BHPE = query_BHTE[:, :, probed.start :: probed.step] / math.sqrt(width)
    positions_T = torch.arange(length, device=key_BHTE.device)
    future_PT = positions_T > positions_T[probed.start :: probed.step, None]
    bias_PT = torch.zeros(future_PT.shape, device=key_BHTE.device).masked_fill_(future_PT, float("-inf"))
    return (query_BHPE @ key_BHTE.transpose(-1, -2) + bias_PT).softmax(-1).mean((1, 2))


def probe_positions(length: int, probes: int) -> range:
    """The middles of at most `probes` equal stretches of `length` positions; a last, shorter one may have none."""
    stretch = -(-length // probes)
    return range(stretch // 2, length, stretch)


def components(hidden_BTD: Tensor, received_BT: Tensor) -> Tensor:
    """The four components of Φ.

    temporal coherence   mean over t of (1 + cos(h_t, h_{t+1})) / 2
    integration          mean |cos| between the mean states of the four quarters of the sequence (6 pairs); position t
                         of T lies in quarter ⌊4t / T⌋
    complexity           sigmoid(10 · variance of h over the positions, averaged over channels)
    attention diversity  entropy of the attention received per key, divided by log T

    Args:
        hidden_BTD: hidden states, T at least 4.
        received_BT: attention received per key, summing to 1 over T.

    Returns:
        (B, C) values in [0, 1], in the order of `COMPONENTS`.
    """
    squares_BT, products_BT, quarters_BQD = _Moments.apply(hidden_BTD.float())  # type: ignore[no-untyped-call]
    lengths_BT = squares_BT.clamp_min(1e-16).sqrt()
    coherence_B = (1 + products_BT / (lengths_BT[:, :-1] * lengths_BT[:, 1:])).mean(-1) / 2
    share_Q = _quarters(hidden_BTD).count_nonzero(-1) / hidden_BTD.shape[1]
    mean_BD = share_Q @ quarters_BQD
    variance_B = squares_BT.mean(-1) / hidden_BTD.shape[-1] - mean_BD.square().mean(-1)
    complexity_B = torch.sigmoid(10 * variance_B)
    entropy_B = -torch.special.xlogy(received_BT, received_BT.clamp_min(1e-12)).sum(-1)
    diversity_B = (entropy_B / math.log(received_BT.shape[-1])).clamp(0, 1)
    return torch.stack((coherence_B, _integration(quarters_BQD), complexity_B, diversity_B), dim=-1)


def _integration(quarters_BQD: Tensor) -> Tensor:
    directions_BQD = F.normalize(quarters_BQD, dim=-1)
    cosines_BQQ = directions_BQD @ directions_BQD.transpose(-1, -2)
    row, column = torch.triu_indices(QUARTERS, QUARTERS, offset=1, device=cosines_BQQ.device)
    return cosines_BQQ[:, row, column].abs().mean(-1)


def _quarters(hidden_BTD: Tensor) -> Tensor:
    """(Q, T): row q holds 1 / n at the n positions of quarter q, so that a product with it takes their means."""
    length, device = hidden_BTD.shape[1], hidden_BTD.device
    quarter_T = torch.arange(length, device=device) * QUARTERS // length
    member_QT = (quarter_T == torch.arange(QUARTERS, device=device)[:, None]).to(hidden_BTD.dtype)
    return member_QT / member_QT.sum(-1, keepdim=True)


class _Moments(torch.autograd.Function):
    """All that Φ asks of the states: ‖h_t‖² (B, T), h_t · h_{t+1} (B, T - 1) and the means of the quarters (B, Q, D).

    Written out because automatic differentiation fills a whole tensor with zeros for each of the six slices.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(hidden_BTD)
        squares_BT = torch.linalg.vecdot(hidden_BTD, hidden_BTD)
        products_BT = torch.linalg.vecdot(hidden_BTD[:, :-1], hidden_BTD[:, 1:])
        return squares_BT, products_BT, _quarters(hidden_BTD) @ hidden_BTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_squares_BT: Tensor, to_products_BT: Tensor, to_quarters_BQD: Tensor) -> Tensor:
        (hidden_BTD,) = ctx.saved_tensors
        to_hidden_BTD = _quarters(hidden_BTD).T @ to_quarters_BQD
        to_hidden_BTD.addcmul_(hidden_BTD, to_squares_BT[..., None], value=2)
        to_hidden_BTD[:, :-1].addcmul_(hidden_BTD[:, 1:], to_products_BT[..., None])
        to_hidden_BTD[:, 1:].addcmul_(hidden_BTD[:, :-1], to_products_BT[..., None])
        return to_hidden_BTD


def weighted(components_BC: Tensor, weight_logits_C: Tensor) -> Tensor:
    """Φ per sequence (B,): the components' mean under softmax weights."""
    return components_BC @ weight_logits_C.softmax(-1)


def initial_weight_logits() -> Tensor:
    """Logits (C,) whose softmax is `INITIAL_WEIGHTS`."""
    return torch.tensor(INITIAL_WEIGHTS).log()


def delta_phi(
    objective: PhiObjective, phi_B: Tensor, fixed_phi_B: Tensor, input_phi_B: Tensor, target: Tensor | float
) -> Tensor:
    """The ΔΦ objective, to be multiplied by λ_phi.

    v5.2     mean of (Φ − 3.5)² + max(0, 3 Φ₀ − Φ)
    bounded  mean of (Φ − Φ*)² + max(0, Φ_in − Φ)

    Args:
        phi_B: Φ under the learned weights.
        fixed_phi_B: Φ₀, under the initial weights.
        input_phi_B: Φ_in, of the embeddings.
        target: Φ* in (0, 1); v5.2 has one of its own.

    Returns:
        A scalar. Source: V5.2 as reconstructed from the five rows of its experiment log.
    """
    if objective == "v5.2":
        return ((phi_B - V5_2_TARGET).square() + F.relu(3 * fixed_phi_B - phi_B)).mean()
    return ((phi_B - target).square() + F.relu(input_phi_B - phi_B)).mean()
