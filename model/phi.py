"""Integrated information Φ of a sequence, and the ΔΦ term of the loss. Pure tensor functions.

Shapes: B sequences, T positions, D channels, H heads, E channels per head, P probes, C = 4 components.

Φ is a weighted mean of four components in [0, 1] per sequence, after the INFINITO V5.2 logs. It is a regulariser over
hidden states and attention, not a measure of consciousness, and never enters the logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PhiObjective

COMPONENTS = ("temporal_coherence", "integration", "complexity", "attention_diversity")
INITIAL_WEIGHTS = (0.3, 0.3, 0.2, 0.2)
V5_2_TARGET = 3.5  # out of reach for a mean of components in [0, 1]; max(0, 3 Φ₀ − Φ) pulls Φ₀ down meanwhile


class Attention(NamedTuple):
    """What one attention layer asked and answered, from which attention can be recomputed where it is needed."""

    query_BHTE: Tensor
    key_BHTE: Tensor


def attention_received(attention: Attention, probes: int) -> Tensor:
    """Estimate how much attention each key receives, averaged over heads and queries.

    The attention matrix is never built whole: `probes` queries, one from the middle of each of as many equal
    stretches of the sequence, stand for all T.

    Returns:
        (B, T) shares that sum to 1 over the keys.
    """
    query_BHTE, key_BHTE = attention
    positions_P = probe_positions(query_BHTE.shape[-2], probes, query_BHTE.device)
    scores_BHPT = query_BHTE[:, :, positions_P] @ key_BHTE.transpose(-1, -2) / math.sqrt(query_BHTE.shape[-1])
    keys_T = torch.arange(key_BHTE.shape[-2], device=key_BHTE.device)
    scores_BHPT = scores_BHPT.masked_fill(keys_T > positions_P[:, None], float("-inf"))
    return scores_BHPT.float().softmax(-1).mean((1, 2))


def probe_positions(length: int, probes: int, device: torch.device | str = "cpu") -> Tensor:
    """The middle of each of `probes` equal stretches of `length` positions; all positions where probes are plenty."""
    count = min(probes, length)
    return ((torch.arange(count, device=device) + 0.5) * (length / count)).long()


def components(hidden_BTD: Tensor, received_BT: Tensor) -> Tensor:
    """The four components of Φ.

    temporal coherence   mean over t of (1 + cos(h_t, h_{t+1})) / 2
    integration          mean |cos| between the mean states of the four quarters of the sequence (6 pairs)
    complexity           sigmoid(10 · variance of h over the positions, averaged over channels)
    attention diversity  entropy of the attention received per key, divided by log T

    Args:
        hidden_BTD: hidden states, T at least 4.
        received_BT: attention received per key, summing to 1 over T.

    Returns:
        (B, C) values in [0, 1], in the order of `COMPONENTS`.
    """
    hidden_BTD = hidden_BTD.float()
    coherence_B = (1 + F.cosine_similarity(hidden_BTD[:, :-1], hidden_BTD[:, 1:], dim=-1)).mean(-1) / 2
    complexity_B = torch.sigmoid(10 * hidden_BTD.var(dim=1, correction=0).mean(-1))
    entropy_B = -torch.special.xlogy(received_BT, received_BT.clamp_min(1e-12)).sum(-1)
    diversity_B = (entropy_B / math.log(received_BT.shape[-1])).clamp(0, 1)
    return torch.stack((coherence_B, _integration(hidden_BTD), complexity_B, diversity_B), dim=-1)


def _integration(hidden_BTD: Tensor) -> Tensor:
    quarters = torch.stack([quarter.mean(1) for quarter in hidden_BTD.tensor_split(4, dim=1)], dim=1)
    directions = F.normalize(quarters, dim=-1)
    cosines = directions @ directions.transpose(-1, -2)
    row, column = torch.triu_indices(4, 4, offset=1, device=cosines.device)
    return cosines[:, row, column].abs().mean(-1)


def weighted(components_BC: Tensor, weight_logits_C: Tensor) -> Tensor:
    """Φ per sequence (B,): the components' mean under softmax weights."""
    return components_BC @ weight_logits_C.softmax(-1)


def initial_weight_logits() -> Tensor:
    """Logits (C,) whose softmax is `INITIAL_WEIGHTS`."""
    return torch.tensor(INITIAL_WEIGHTS).log()


def delta_phi(
    objective: PhiObjective, phi_B: Tensor, fixed_phi_B: Tensor, input_phi_B: Tensor, target: float = 0.0
) -> Tensor:
    """The ΔΦ objective, to be multiplied by λ_phi.

    v5.2     mean of (Φ − 3.5)² + max(0, 3 Φ₀ − Φ)
    bounded  mean of (Φ − Φ*)² + max(0, Φ_in − Φ)

    Args:
        phi_B: Φ under the learned weights.
        fixed_phi_B: Φ₀, under the initial weights.
        input_phi_B: Φ_in, of the embeddings.
        target: Φ* in (0, 1), of the bounded objective.

    Returns:
        A scalar. Source: V5.2 as reconstructed from the five rows of its experiment log.
    """
    if objective == "v5.2":
        return ((phi_B - V5_2_TARGET).square() + F.relu(3 * fixed_phi_B - phi_B)).mean()
    return ((phi_B - target).square() + F.relu(input_phi_B - phi_B)).mean()
