"""The network: a causal transformer with Φ-guided memory, readable top to bottom.

Shapes: B sequences, T positions, D channels, H heads, E = D/H channels per head, F = 3D channels of
queries, keys and values, V vocabulary.

Causality is a law here: changing token t leaves every logit before t bit-identical, in every configuration. Decoder
after Radford et al. 2019 (GPT-2): pre-norm, learned positions, GELU, tied embeddings; no biases.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo_model.config import Architecture
from hpo_model.network.kv_cache import KVCache
from hpo_model.network.memory import PhiMemory
from hpo_model.network.phi import Attention, initial_weight_logits

CONVOLUTION_TAPS = 4  # positions that a gated convolution sees, its own included


class ForwardOutput(NamedTuple):
    """What a forward pass returns for the loss, Φ and the memory."""

    embedded_BTD: Tensor  # sum of the embeddings of token, position and, if there is one, bigram
    stream_BTD: Tensor  # residual stream that the memory was read with
    hidden_BTD: Tensor  # final states, which the output layer reads
    attention: Attention | None  # of the last attention layer; None: the network has none


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
        buckets = architecture.bigram_buckets
        self.bigram_embedding = nn.Embedding(buckets, width) if buckets else None
        self.blocks = nn.ModuleList(Block(kind, architecture, self.dropout) for kind in architecture.block_kinds)
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
        """Normal, with deviation 0.5 / √(inputs): GPT-2's 0.02 at its width. What adds to the stream begins at zero.

        Drawn from a generator of its own, the memory last: with equal seeds the control arm starts from equal weights.
        """
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for name, parameter in sorted(self.named_parameters(), key=lambda named: named[0].startswith("memory")):
            if parameter.ndim < 2:
                continue
            if name.endswith(("project.weight", "contract.weight", "bigram_embedding.weight", "earlier_taps")):
                nn.init.zeros_(parameter)
            elif name.endswith("taps"):
                nn.init.normal_(parameter, std=1 / math.sqrt(CONVOLUTION_TAPS), generator=generator)
            else:
                nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1]), generator=generator)

    def set_regularisation(self, *, dropout: float, noise: float) -> None:
        """Set the training-time probabilities; the control arm takes no noise."""
        self.dropout.set(dropout)
        self.noise.fill_(noise if self.architecture.iit else 0.0)

    def forward(self, tokens_BT: Tensor, past: KVCache | None = None) -> ForwardOutput:
        """Run the network up to its final states; `logits` reads them.

        With a KV cache (evaluation only) the tokens are new ones, at the positions that the cache holds, and see what
        it has kept of earlier ones; their states are the same as without.
        """
        positions = slice(tokens_BT.shape[1]) if past is None else past.positions_BT
        embedded_BTD = self.token_embedding(tokens_BT) + self.position_embedding.weight[positions]
        if self.bigram_embedding is not None:
            previous_BT = shifted(tokens_BT[..., None] + 1, 2, past)[0][..., 0]
            vocabulary, buckets = self.token_embedding.num_embeddings, self.bigram_embedding.num_embeddings
            embedded_BTD = embedded_BTD + self.bigram_embedding(
                bucket_of(previous_BT * vocabulary + tokens_BT, buckets)
            )
        stream_BTD = embedded_BTD
        if self.training:
            stream_BTD = embedded_BTD * self.dropout(embedded_BTD.shape)
        attention: Attention | None = None
        for block in self.blocks:
            stream_BTD, seen = block(stream_BTD, past)
            attention = seen or attention
        assert attention is not None, "an architecture has at least one attention layer"
        hidden_BTD = stream_BTD
        if self.memory is not None:
            hidden_BTD = self.memory(stream_BTD, None if past is None else past.reading_of(self.memory))
        if self.training and self.architecture.iit:
            hidden_BTD = torch.addcmul(hidden_BTD, self.noise, torch.randn_like(hidden_BTD))
        return ForwardOutput(embedded_BTD, stream_BTD, self.norm(hidden_BTD), attention)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Next-token logits (B, T, V)."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV


class Block(nn.Module):
    """A mixer over positions and a feed-forward layer, each added to the stream."""

    def __init__(self, kind: str, architecture: Architecture, dropout: Dropout) -> None:
        super().__init__()
        width = architecture.width
        self.mixer_norm = nn.LayerNorm(width, bias=False)
        self.mixer = (
            SelfAttention(width, architecture.heads, architecture.attention_taps)
            if kind == "attention"
            else GatedConvolution(width)
        )
        self.feed_norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        self.dropout = dropout

    def forward(self, stream_BTD: Tensor, past: KVCache | None = None) -> tuple[Tensor, Attention | None]:
        """Return the stream after this block, and the queries and keys of its attention, if it has one."""
        mixed_BTD, attention = self.mixer(self.mixer_norm(stream_BTD), past)
        stream_BTD = self.add(stream_BTD, mixed_BTD)
        fed_BTD = self.contract(F.gelu(self.expand(self.feed_norm(stream_BTD))))
        return self.add(stream_BTD, fed_BTD), attention

    def add(self, stream_BTD: Tensor, part_BTD: Tensor) -> Tensor:
        """The stream with a part added to it, in training after dropout."""
        if not self.training:
            return stream_BTD + part_BTD
        return torch.addcmul(stream_BTD, part_BTD, self.dropout(part_BTD.shape))


class SelfAttention(nn.Module):
    """Multi-head causal attention.

    Args:
        width: channels D.
        heads: H.
        taps: positions that each query, key and value is mixed from, its own and those right before it, with a weight
            per channel (So et al. 2021, Primer). It begins as its own alone.
    """

    def __init__(self, width: int, heads: int, taps: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.earlier_taps = nn.Parameter(torch.zeros(taps - 1, 3 * width)) if taps > 1 else None
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, past: KVCache | None = None) -> tuple[Tensor, Attention]:
        """Mix each position with those before it."""
        mixed_BTF = self.query_key_value(x_BTD)
        if self.earlier_taps is not None:
            *earlier, own_BTF = shifted(mixed_BTF, len(self.earlier_taps) + 1, past)
            mixed_BTF = own_BTF
            taps = self.earlier_taps.to(own_BTF.dtype)  # else queries, keys and values would become float32
            for tap, signal_BTF in enumerate(earlier):
                mixed_BTF = torch.addcmul(mixed_BTF, signal_BTF, taps[tap])
        parts = mixed_BTF.chunk(3, dim=-1)
        query_BHTE, key_BHTE, value_BHTE = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if past is None:
            mixed_BHTE = F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, is_causal=True)
        else:
            mixed_BHTE = past.attend(query_BHTE, key_BHTE, value_BHTE)
        mixed_BTD = mixed_BHTE.transpose(1, 2).flatten(-2)
        return self.project(mixed_BTD), Attention(query_BHTE, key_BHTE)


class GatedConvolution(nn.Module):
    """A short causal convolution per channel, gated by the position itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.taps = nn.Parameter(torch.zeros(CONVOLUTION_TAPS, width))
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, past: KVCache | None = None) -> tuple[Tensor, None]:
        """Mix each position with the few before it."""
        signal_BTD, gate_BTD = self.expand(x_BTD).chunk(2, dim=-1)
        earlier = shifted(signal_BTD, CONVOLUTION_TAPS, past)
        mixed_BTD = sum(self.taps[tap] * earlier[tap] for tap in range(CONVOLUTION_TAPS))
        return self.project(mixed_BTD * F.silu(gate_BTD)), None


def shifted(signal_BTD: Tensor, taps: int, past: KVCache | None) -> list[Tensor]:
    """The signal taps - 1, …, 1, 0 positions before each; before the first position it is zero."""
    if past is not None:
        return past.taps(signal_BTD, taps)
    padded = F.pad(signal_BTD, (0, 0, taps - 1, 0))
    return [padded[:, tap : tap + signal_BTD.shape[1]] for tap in range(taps)]


def bucket_of(pair_BT: Tensor, buckets: int) -> Tensor:
    """Hash numbers below 2**62 to 0 … buckets - 1, evenly (Knuth's multiplicative method)."""
    scattered_BT = pair_BT * 2_654_435_761 & 0xFFFFFFFF
    return scattered_BT * buckets >> 32


class Dropout(nn.Module):
    """Dropout whose probability is a tensor, so that one compiled graph serves every value of it.

    Probabilities are multiples of 1/65,536: sixteen random bits decide over an element, and four decisions are cut from
    one number of the generator, which is a fifth of what a uniform number for each element costs on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.probability: Tensor
        self.register_buffer("probability", torch.zeros(()), persistent=False)

    def set(self, probability: float) -> None:
        """Set the probability, rounded to a multiple of 1/65,536."""
        self.probability.fill_(min(round(probability * 2**16), 2**16 - 1) / 2**16)

    def forward(self, shape: torch.Size) -> Tensor:
        """Return the mask for elements of this shape: 0 for dropped ones, 1 / (1 - p) for the others."""
        device = self.probability.device
        if device.type == "cpu":
            words = torch.randint(-(2**63), 2**63 - 1, (-(-shape.numel() // 4),), dtype=torch.int64)
            bits = words.view(torch.int16)[: shape.numel()].view(shape)
            kept = bits.to(torch.float32).ge_(self.probability * 2**16 - 2**15)
        else:
            kept = torch.rand(shape, device=device).ge_(self.probability)
        return kept.div_(1 - self.probability)
