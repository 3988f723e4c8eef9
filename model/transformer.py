"""The network: a causal transformer with Φ-guided memory, readable top to bottom.

Shapes: B sequences, T positions, D channels, H heads, E = D/H channels per head, V vocabulary.

Causality is a law here: changing token t leaves every logit before t bit-identical, in every configuration. Decoder
after Radford et al. 2019 (GPT-2): pre-norm, learned positions, GELU, tied embeddings; no biases.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Architecture
from model.errors import CausalityError
from model.memory import PhiMemory
from model.phi import Attention, initial_weight_logits

CONVOLUTION_TAPS = 4  # positions that a gated convolution sees, its own included


class States(NamedTuple):
    """What a forward pass leaves for the loss, Φ and the memory."""

    embedded_BTD: Tensor  # token plus position embedding
    stream_BTD: Tensor  # residual stream that the memory was read with
    hidden_BTD: Tensor  # final states, which the output layer reads
    attention: Attention  # of the last attention layer


class Transformer(nn.Module):
    """Next-token model over a vocabulary.

    Args:
        architecture: the shape; `iit = False` builds the control arm.
        vocabulary: V, number of token ids.

    Dropout and noise are tensors, not constants: a second trial with other values needs no new graph.
    """

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__()
        width = architecture.width
        self.architecture = architecture
        self.dropout = Dropout()
        self.noise: Tensor
        self.register_buffer("noise", torch.zeros(()), persistent=False)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(architecture.sequence_length, width)
        self.blocks = nn.ModuleList(
            Block(kind, width, architecture.heads, self.dropout) for kind in architecture.block_kinds
        )
        self.memory = (
            PhiMemory(width, width // architecture.heads, architecture.memory_slots, architecture.memory_gate)
            if architecture.has_memory
            else None
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.output = nn.Linear(width, vocabulary, bias=False)
        if architecture.tie_embeddings:
            self.output.weight = self.token_embedding.weight
        self.phi_weight_logits = nn.Parameter(initial_weight_logits(), requires_grad=architecture.iit)
        self.initial_phi_weight_logits: Tensor
        self.register_buffer("initial_phi_weight_logits", initial_weight_logits(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with standard deviation 0.02, layers that write into the stream scaled by depth.

        Drawn from a generator of its own, the memory last: with equal seeds the control arm starts from equal weights.
        """
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for name, parameter in sorted(self.named_parameters(), key=lambda named: named[0].startswith("memory")):
            if parameter.ndim < 2:
                continue
            into_stream = name.endswith(("project.weight", "contract.weight"))
            scale = 1 / math.sqrt(2 * len(self.blocks)) if into_stream else 1.0
            deviation = 1 / math.sqrt(CONVOLUTION_TAPS) if name.endswith("taps") else 0.02 * scale
            nn.init.normal_(parameter, std=deviation, generator=generator)

    def set_regularisation(self, *, dropout: float, noise: float) -> None:
        """Set the training-time probabilities; the control arm takes no noise."""
        self.dropout.probability.fill_(dropout)
        self.noise.fill_(noise if self.architecture.iit else 0.0)

    def forward(self, tokens_BT: Tensor) -> States:
        """Run the network up to its final states; `logits` reads them."""
        length = tokens_BT.shape[1]
        embedded_BTD = self.token_embedding(tokens_BT) + self.position_embedding.weight[:length]
        stream_BTD = self.dropout(embedded_BTD)
        attention: Attention | None = None
        for block in self.blocks:
            stream_BTD, seen = block(stream_BTD)
            attention = seen or attention
        assert attention is not None, "an architecture has at least one attention layer"
        hidden_BTD = stream_BTD
        if self.memory is not None:
            hidden_BTD = hidden_BTD + self.memory(stream_BTD)
        if self.training and self.architecture.iit:
            hidden_BTD = hidden_BTD + self.noise * torch.randn_like(hidden_BTD)
        return States(embedded_BTD, stream_BTD, self.norm(hidden_BTD), attention)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Next-token logits (B, T, V)."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV


class Block(nn.Module):
    """A mixer over positions and a feed-forward layer, each added to the stream."""

    def __init__(self, kind: str, width: int, heads: int, dropout: Dropout) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(width, bias=False)
        self.mixer = SelfAttention(width, heads) if kind == "attention" else GatedConvolution(width)
        self.feed_norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        self.dropout = dropout

    def forward(self, stream_BTD: Tensor) -> tuple[Tensor, Attention | None]:
        """The stream after this block, and what its attention asked, if it has one."""
        mixed_BTD, attention = self.mixer(self.mixer_norm(stream_BTD))
        stream_BTD = stream_BTD + self.dropout(mixed_BTD)
        fed_BTD = self.contract(F.gelu(self.expand(self.feed_norm(stream_BTD))))
        return stream_BTD + self.dropout(fed_BTD), attention


class SelfAttention(nn.Module):
    """Multi-head causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Attention]:
        """What each position takes from those up to itself."""
        batch, length, width = x_BTD.shape
        parts = self.query_key_value(x_BTD).view(batch, length, 3, self.heads, width // self.heads)
        query_BHTE, key_BHTE, value_BHTE = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHTE = F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, is_causal=True)
        mixed_BTD = mixed_BHTE.transpose(1, 2).reshape(batch, length, width)
        return self.project(mixed_BTD), Attention(query_BHTE, key_BHTE)


class GatedConvolution(nn.Module):
    """A short causal convolution per channel, gated by the position itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.taps = nn.Parameter(torch.zeros(CONVOLUTION_TAPS, width))
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        """What each position takes from the few up to itself."""
        signal_BTD, gate_BTD = self.expand(x_BTD).chunk(2, dim=-1)
        padded = F.pad(signal_BTD, (0, 0, CONVOLUTION_TAPS - 1, 0))
        length = x_BTD.shape[1]
        mixed_BTD = sum(self.taps[tap] * padded[:, tap : tap + length] for tap in range(CONVOLUTION_TAPS))
        return self.project(mixed_BTD * F.silu(gate_BTD)), None


class Dropout(nn.Module):
    """Dropout whose probability is a tensor, so that one compiled graph serves every value of it."""

    def __init__(self) -> None:
        super().__init__()
        self.probability: Tensor
        self.register_buffer("probability", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The input, in training with some elements zero and the others scaled up."""
        if not self.training:
            return x
        drawn = torch.rand(x.shape, device=x.device)  # float32 always: bfloat16 would round small probabilities up
        kept = (drawn >= self.probability) / (1 - self.probability)
        return x * kept.to(x.dtype)


@torch.no_grad()
def check_causality(network: Transformer) -> None:
    """Refuse a network in which changing a token moves an earlier logit, in training or in evaluation.

    A memory is filled and its gate opened for the time of the check; the network is left as it was.

    Raises:
        CausalityError: some position sees its own future.
    """
    length = network.architecture.sequence_length
    device = network.token_embedding.weight.device
    vocabulary = network.token_embedding.num_embeddings
    tokens_BT = torch.arange(length, device=device)[None] % vocabulary
    was_training = network.training
    kept = copy.deepcopy(network.memory.state_dict()) if network.memory is not None else {}
    if network.memory is not None:
        network.memory.fill()
    for training in (False, True):
        network.train(training)
        before_TV = _logits_under_fixed_noise(network, tokens_BT)
        for place in (length // 4, length // 2, length - 1):
            changed_BT = tokens_BT.clone()
            changed_BT[0, place] = (changed_BT[0, place] + 1) % vocabulary
            after_TV = _logits_under_fixed_noise(network, changed_BT)
            if not torch.equal(before_TV[:place], after_TV[:place]):
                moved = (before_TV[:place] - after_TV[:place]).abs().max().item()
                raise CausalityError(
                    f"the network is not causal: changing token {place} moved earlier logits by up to {moved:.2g}; "
                    "its perplexity would be meaningless"
                )
    network.train(was_training)
    if network.memory is not None:
        network.memory.load_state_dict(kept)


def _logits_under_fixed_noise(network: Transformer, tokens_BT: Tensor) -> Tensor:
    """Logits (T, V) of one sequence; dropout and noise are equal at each call, and the caller's are left alone."""
    device = tokens_BT.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return network.logits(network(tokens_BT).hidden_BTD)[0]
