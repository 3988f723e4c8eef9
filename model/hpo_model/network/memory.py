"""External memory that keeps the best integrated states.

Shapes: B sequences, T positions, D channels, K channels of a key, M slots.

A slot holds a key, a value and the Φ of the sequence that wrote it. Each position reads with its own query, so reading
is causal; writing happens after the update, detached, without loops or host synchronisation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpo_model.config import MemoryGate

PHI_SHARE = 0.7  # α: a slot's priority is α·Φ + (1 − α)·attention + recency
RECENCY = 0.1  # what a slot just written is worth above one written long ago
RECENCY_WRITES = 500.0  # writes after which that advantage has fallen to 1/e
INITIAL_THRESHOLD = 0.5
THRESHOLD_SOFTNESS = 0.1  # τ of σ((Φ − θ)/τ), through which the threshold θ learns
CLOSED_GATE = -5.0  # the gate's bias at the start: σ(−5) = 0.7 %


class Candidates(NamedTuple):
    """One state per sequence, offered to the memory."""

    normed_BD: Tensor
    attention_B: Tensor  # received, relative to the most attended position of the sequence


class Reading(NamedTuple):
    """The part of a reading that is the same for every position."""

    weight_DM: Tensor  # to scores from states; of a dynamic gate one column more
    bias_M: Tensor  # of the scores: shuts empty slots out; of a dynamic gate one element more
    trust_M: Tensor
    read_MD: Tensor  # what each slot gives


class PhiMemory(nn.Module):
    """M slots of (key, value, Φ), read by every position and written by the best-attended state of each sequence.

    Args:
        width: channels D of the hidden states.
        key_width: channels K of keys and queries.
        slots: M.
        gate: "static" (one learned scalar) or "dynamic" (computed from each position's state).
    """

    def __init__(self, width: int, key_width: int, slots: int, gate: MemoryGate) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, key_width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate_weight = nn.Linear(width, 1, bias=False) if gate == "dynamic" else None
        self.gate_bias = nn.Parameter(torch.tensor(CLOSED_GATE))
        self.threshold = nn.Parameter(torch.tensor(INITIAL_THRESHOLD))
        self.key_MK: Tensor
        self.value_MD: Tensor
        self.phi_M: Tensor
        self.attention_M: Tensor
        self.written_M: Tensor
        self.writes: Tensor
        self.register_buffer("key_MK", torch.zeros(slots, key_width))
        self.register_buffer("value_MD", torch.zeros(slots, width))
        self.register_buffer("phi_M", torch.zeros(slots))
        self.register_buffer("attention_M", torch.zeros(slots))
        self.register_buffer("written_M", torch.full((slots,), float("-inf")))  # when; −inf marks an empty slot
        self.register_buffer("writes", torch.zeros(()))

    def forward(self, stream_BTD: Tensor, reading: Reading | None = None) -> Tensor:
        """The stream (B, T, D) plus what each position reads; exactly the stream while nothing is stored.

        Queries meet the keys before they meet the states, and gate and trust enter the M weights of a position rather
        than the D channels of what it reads: two products over the positions do it all.

        Args:
            stream_BTD: the residual stream.
            reading: what `reading` gave, where nothing was written or learned since.
        """
        with torch.autocast(stream_BTD.device.type, enabled=False):  # it would round the stream that passes through
            return self._read(stream_BTD, reading or self.reading())

    def reading(self) -> Reading:
        """Compute the part of a reading that is the same for every position."""
        filled_M = self.written_M > float("-inf")
        bias_M = torch.where(filled_M, 0.0, -1e9).to(self.query.weight.dtype)
        weight_DM = self.query.weight.T @ self.key_MK.T / math.sqrt(self.key_MK.shape[-1])
        if self.gate_weight is not None:
            bias_M = torch.cat((bias_M, self.gate_bias[None]))
            weight_DM = torch.cat((weight_DM, self.gate_weight.weight.T), 1)
        trust_M = torch.sigmoid((self.phi_M - self.threshold) / THRESHOLD_SOFTNESS) * filled_M
        return Reading(weight_DM, bias_M, trust_M, self.value(self.value_MD))

    def _read(self, stream_BTD: Tensor, reading: Reading) -> Tensor:
        batch, length, width = stream_BTD.shape
        normed_ND = self.norm(stream_BTD).view(-1, width)
        scores_NM = torch.addmm(reading.bias_M, normed_ND, reading.weight_DM)
        gate: Tensor = self.gate_bias
        if self.gate_weight is not None:
            scores_NM, gate = scores_NM[:, :-1], scores_NM[:, -1:]
        weights_NM = scores_NM.softmax(-1) * (reading.trust_M * torch.sigmoid(gate))
        read_ND = torch.addmm(stream_BTD.view(-1, width), weights_NM, reading.read_MD)
        return read_ND.view(batch, length, width)

    @torch.no_grad()
    def candidates(self, stream_BTD: Tensor, received_BT: Tensor) -> Candidates:
        """The best-attended state of each sequence's second half, where states have seen some context.

        Args:
            stream_BTD: what `forward` was given.
            received_BT: attention received per position.
        """
        half = received_BT.shape[1] // 2
        rows_B = torch.arange(len(stream_BTD), device=stream_BTD.device)
        attention_B, position_B = received_BT[:, half:].max(-1)
        normed_BD = self.norm(stream_BTD[rows_B, half + position_B])
        return Candidates(normed_BD, attention_B / received_BT.amax(-1))

    @torch.no_grad()
    def write(self, candidates: Candidates, phi_B: Tensor) -> None:
        """Keep the M of highest priority among what is stored and what is offered.

        A candidate whose Φ is below the learned threshold is not written.

        Args:
            candidates: of the batch that the update was just made from.
            phi_B: Φ of their sequences.
        """
        normed_BD, attention_B = candidates
        self.writes += 1
        admitted_B = torch.where(phi_B >= self.threshold, self.writes, float("-inf"))

        keys = torch.cat((self.key_MK, self.query(normed_BD).to(self.key_MK.dtype)))
        values = torch.cat((self.value_MD, normed_BD.to(self.value_MD.dtype)))
        phis = torch.cat((self.phi_M, phi_B))
        attentions = torch.cat((self.attention_M, attention_B))
        written = torch.cat((self.written_M, admitted_B))
        recency = RECENCY * torch.exp((written - self.writes) / RECENCY_WRITES)
        priority = PHI_SHARE * phis + (1 - PHI_SHARE) * attentions + recency
        priority = priority.masked_fill(written == float("-inf"), float("-inf"))

        kept = priority.topk(len(self.phi_M)).indices
        self.key_MK.copy_(keys[kept])
        self.value_MD.copy_(values[kept])
        self.phi_M.copy_(phis[kept])
        self.attention_M.copy_(attentions[kept])
        self.written_M.copy_(written[kept])

    @torch.no_grad()
    def fill(self) -> None:
        """Fill every slot with random keys and values, and open the gate half, so that every reading is non-zero."""
        generator = torch.Generator().manual_seed(0)
        for buffer in (self.key_MK, self.value_MD):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        self.phi_M.fill_(1.0)
        self.written_M.zero_()
        self.gate_bias.zero_()

    def used(self) -> Tensor:
        """Number of filled slots, as a scalar tensor."""
        return (self.written_M > float("-inf")).sum()
