"""How much memory a run's tensors hold at their peak, estimated from its configuration beforehand.

Letters: N tokens in a piece of the batch, T positions, D channels, V vocabulary.

A sum of what `train` keeps, term by term, at the largest of the few moments that can be the peak. On a CPU it is
within a few percent of what the allocator counts (tests, decisions). For CUDA it is the same sum with the element
sizes of bf16 autocast, and without a compiler, which may save less for the backward pass: that was never measured. What
a process holds besides, Python, libraries and a CUDA context, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpo_model.config import Architecture, PhiObjective, RunConfig
from hpo_model.hardware import is_mixed
from hpo_model.network.loss import LOGITS_AT_ONCE
from hpo_model.network.phi import COMPONENTS, probe_positions
from hpo_model.network.transformer import CONVOLUTION_TAPS
from hpo_model.training.evaluation import rows_at_once

FLOAT = 4  # bytes of a float32: weights, gradients, moments, residual stream, dropout's masks
TOKEN = 4  # bytes of a token of the training text, an int32


def parameter_count(architecture: Architecture, vocabulary: int) -> int:
    """Count a network's parameters."""
    width = architecture.width
    tokens = (1 if architecture.tie_embeddings else 2) * vocabulary
    embeddings = (tokens + architecture.sequence_length + architecture.bigram_buckets) * width
    earlier_taps = 3 * (architecture.attention_taps - 1) * width
    mixers = {"attention": 4 * width**2 + earlier_taps, "convolution": 3 * width**2 + CONVOLUTION_TAPS * width}
    blocks = sum(mixers[kind] + 8 * width**2 + 2 * width for kind in architecture.block_kinds)
    return embeddings + blocks + _memory_parameters(architecture) + width + len(COMPONENTS)


def _block_matrices(architecture: Architecture) -> int:
    """Count the parameters that Muon updates."""
    mixers = {"attention": 4, "convolution": 3}
    return sum((mixers[kind] + 8) * architecture.width**2 for kind in architecture.block_kinds)


def _memory_parameters(architecture: Architecture) -> int:
    if not architecture.has_memory:
        return 0
    width = architecture.width
    gate = width if architecture.memory_gate == "dynamic" else 0
    return width + width * (width // architecture.heads) + width**2 + gate + 2


def peak_tensor_bytes(
    config: RunConfig,
    vocabulary: int,
    train_tokens: int,
    *,
    device_type: str = "cpu",
    micro_batch: int | None = None,
) -> int:
    """Predict the most bytes that the tensors of a run hold at once.

    Args:
        config: the run.
        vocabulary: V, token ids of its tokenizer.
        train_tokens: of the training split, which lies on the device.
        device_type: "cpu" or "cuda".
        micro_batch: sequences that go through the network at once where memory is short; None: the whole batch, and as
            many as an evaluation likes.
    """
    architecture, batch_size = config.architecture, config.training.batch_size
    rows = batch_size if micro_batch is None else min(micro_batch, batch_size)
    estimate = MemoryEstimate(
        architecture=architecture,
        objective=config.phi.phi_objective,
        vocabulary=vocabulary,
        device_type=device_type,
        tokens=rows * architecture.sequence_length,
    )
    moments = 2 * estimate.weights  # of AdamW; Muon keeps one of each matrix
    if config.training.optimizer == "muon":
        moments -= FLOAT * _block_matrices(architecture)
    gathered = estimate.weights if rows < batch_size else 0  # gradients of the pieces before
    beside_weights = (
        estimate.in_check(),
        moments + gathered + estimate.in_update(),
        moments + estimate.in_evaluation(rows_at_once(architecture.sequence_length, device_type, micro_batch)),
    )
    return estimate.weights + TOKEN * train_tokens + max(beside_weights)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes held beside weights, moments and text, at each moment that can be the peak."""

    architecture: Architecture
    objective: PhiObjective
    vocabulary: int
    device_type: str
    tokens: int  # N

    @property
    def mixed(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return is_mixed(self.device_type)

    @property
    def weights(self) -> int:
        """Bytes of all parameters."""
        return FLOAT * parameter_count(self.architecture, self.vocabulary)

    @property
    def output_matrix(self) -> int:
        """Bytes of the output layer's matrix, the largest of the parameters."""
        return FLOAT * self.vocabulary * self.architecture.width

    @property
    def factor(self) -> int:
        """Bytes of one number that a matrix product reads or gives."""
        return 2 if self.mixed else FLOAT

    @property
    def factors(self) -> int:
        """Bytes of one such number for each token and channel."""
        return self.factor * self.tokens * self.architecture.width

    @property
    def states(self) -> int:
        """Bytes of a float32 for each token and channel."""
        return FLOAT * self.tokens * self.architecture.width

    # ------------------------------------------------------------------------- what the backward pass will read

    def saved(self) -> int:
        """Bytes that the network keeps for its backward pass, and its final states."""
        embedding = 2 * self.states  # dropout's mask, the stream
        blocks = sum(self._saved_by_block(kind) for kind in self.architecture.block_kinds)
        copies = (self.weights - self.output_matrix) // 2 if self.mixed else 0  # of the weights in bf16
        return embedding + blocks + self._saved_by_memory() + self.states + copies

    def _saved_by_block(self, kind: str) -> int:
        feed_forward = 9 * self.factors  # normalised input, 4 D before GELU, 4 D after it
        streams = 4 * self.states  # dropout's mask and the stream, twice
        return self._saved_by_mixer(kind) + feed_forward + streams

    def _saved_by_mixer(self, kind: str) -> int:
        if kind == "attention":
            normaliser = FLOAT * self.tokens * self.architecture.heads  # of the softmax: the matrix itself is not kept
            padded = 3 * self.factors if self.architecture.attention_taps > 1 else 0  # what the taps are multiplied by
            return 5 * self.factors + padded + normaliser  # normalised input; query, key, value; what they give
        return 6 * self.factors + self.states  # input, signal and gate, padded signal, silu, projected; the mix

    def _saved_by_memory(self) -> int:
        """Its normalised input, three weights for each slot, and the noisy states, which without it are the stream."""
        if not self.architecture.has_memory:
            return 0
        return self.factors + self.states + 3 * FLOAT * self.tokens * self.architecture.memory_slots

    def _saved_by_phi(self) -> int:
        if not self.architecture.iit:
            return 0
        keys = self.factors  # once more, in the order that the product with the probes wants
        embedded = self.states if self.objective == "bounded" else 0
        return self._probed() + keys + embedded

    def _probed(self) -> int:
        """The attention of the probes."""
        probes = len(probe_positions(self.architecture.sequence_length, self.architecture.phi_probes))
        return FLOAT * self.tokens * self.architecture.heads * probes

    # ------------------------------------------------------------------------- the moments

    def in_update(self) -> int:
        """The largest moment of an update."""
        return max(self._in_loss(), self._in_phi(), self._in_last_block(), self._in_embedding())

    def _in_loss(self) -> int:
        """Everything is saved; rows of logits come on top."""
        copies = self.factors + 3 * self.output_matrix // 2 if self.mixed else 0  # of states, matrix, its gradient
        return self.saved() + self._saved_by_phi() + self._gradients_of_loss() + self._logits(self.tokens) + copies

    def _gradients_of_loss(self) -> int:
        return self.factors + self.output_matrix

    def _logits(self, tokens: int) -> int:
        rows = min(tokens, max(1, LOGITS_AT_ONCE[self.device_type] // self.vocabulary))
        each = FLOAT + 2 * self.factor if self.mixed else FLOAT  # logits, their logarithms, gradient: in place or not
        return each * rows * self.vocabulary

    def _in_phi(self) -> int:
        """The backward pass of Φ: many probes are as large as states."""
        if not self.architecture.iit:
            return 0
        return self.saved() + self._saved_by_phi() + self._gradients_of_loss() + 2 * self._probed()

    def _in_last_block(self) -> int:
        """The backward pass at its first feed-forward layer: what came after is freed, 4 D have a gradient."""
        freed = self._saved_by_memory() + 2 * self.states  # also the last stream and the mask before it
        gradients = 4 * self.factors + 2 * self.states  # of GELU's result; of the stream and of what is added to it
        asked = 2 * self.factors if self.architecture.iit else 0  # Φ's, of queries and keys, until that layer's turn
        contract = 4 * FLOAT * self.architecture.width**2
        return self.saved() - freed + gradients + asked + self.output_matrix + contract

    def _in_embedding(self) -> int:
        """The backward pass ends: all weights have gradients, a tied matrix one of each of its uses."""
        second = self.output_matrix if self.architecture.tie_embeddings else 0
        return self.weights + second + 3 * self.states

    def in_evaluation(self, rows: int) -> int:
        """The last feed-forward layer of `rows` sequences, or their logits."""
        channels = self._channels(rows)
        states = 3 * FLOAT * channels + 3 * self.factor * channels
        return max(self._in_feed_forward(rows), states + self._logits(rows * self.architecture.sequence_length))

    def in_check(self) -> int:
        """The causality check: a copy of the network; its largest matrix is drawn, two sequences go through it."""
        states = 2 * FLOAT * self._channels(2)  # of the passes before
        return self.weights + max(self.output_matrix, states + self._in_feed_forward(2))

    def _channels(self, rows: int) -> int:
        return rows * self.architecture.sequence_length * self.architecture.width

    def _in_feed_forward(self, rows: int) -> int:
        """The last one, where no backward pass follows."""
        layers = min(2, self.architecture.block_kinds.count("attention"))  # whose queries, keys and values are held
        return (4 * FLOAT + (8 + 3 * layers) * self.factor) * self._channels(rows)
