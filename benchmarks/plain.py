"""A plain transformer in PyTorch's own modules, as one writes it from its documentation: what ours is compared with.

Shapes: B sequences, T positions, D channels, V vocabulary.

Token and learned position embedding, `nn.TransformerEncoder` under a causal mask, a last norm, tied output layer; the
same loss and the same optimizer as ours, no Φ, memory or noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the network is made of."""

    width: int
    layers: int
    heads: int
    sequence_length: int
    vocabulary: int
    dropout: float
    inner_dropout: bool = True  # on attention weights and after the activation too, as PyTorch's layer has it


class PlainTransformer(nn.Module):
    """Next-token model: token ids (B, T) to logits (B, T, V)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.position_embedding = nn.Embedding(shape.sequence_length, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        layer = nn.TransformerEncoderLayer(
            shape.width,
            shape.heads,
            dim_feedforward=4 * shape.width,
            dropout=shape.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        if not shape.inner_dropout:
            layer.self_attn.dropout = layer.dropout.p = 0.0
        # nested tensors are for padded batches, and not to be had with `norm_first`
        self.encoder = nn.TransformerEncoder(
            layer, shape.layers, norm=nn.LayerNorm(shape.width), enable_nested_tensor=False
        )
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.output.weight = self.token_embedding.weight
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(
                embedding.weight, std=0.02
            )  # PyTorch's 1 would make logits of a tied output 16 times too big
        self.mask_TT: Tensor
        self.register_buffer("mask_TT", nn.Transformer.generate_square_subsequent_mask(shape.sequence_length))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at each position."""
        length = tokens_BT.shape[1]
        embedded_BTD = self.token_embedding(tokens_BT) + self.position_embedding.weight[:length]
        mask_TT = self.mask_TT[:length, :length]
        hidden_BTD = self.encoder(self.dropout(embedded_BTD), mask=mask_TT, is_causal=True)
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV


def make_optimizer(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all parameters."""
    return torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


def update(network: nn.Module, optimizer: torch.optim.Optimizer, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """One update; returns its loss in nats per token. Matrices are multiplied in bfloat16 on CUDA, as ours are."""
    device = inputs_BT.device.type
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits_BTV = network(inputs_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
    optimizer.step()
    return loss.detach()
