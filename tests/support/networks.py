"""Networks as users write them: one that passes all conformance checks, and one for each way to fail."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn

from hpo_model.config import Architecture
from hpo_model.network.kv_cache import KVCache
from hpo_model.network.transformer import ForwardOutput, Transformer


class Recurrent(nn.Module):
    """A gated recurrent network: passes all conformance checks."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__()
        width = architecture.width
        self.embedding = nn.Embedding(vocabulary, width)
        self.layer = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        self.output = nn.Linear(width, vocabulary, bias=False)

    def set_regularisation(self, *, dropout: float, noise: float) -> None:
        assert noise == 0
        self.dropout.p = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.layer(self.embedding(tokens))[0])
        return states


class Reversed(Recurrent):
    """Reads backwards: sees the future."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flip(1)).flip(1)


class Mixing(Recurrent):
    """Normalises over the batch, and over positions."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.norm = nn.BatchNorm1d(architecture.width)

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.norm(super().forward(tokens).transpose(1, 2)).transpose(1, 2)
        return states


class Neighbours(Recurrent):
    """Sees the other sequences of its batch at its own position, in training alone."""

    def forward(self, tokens: Tensor) -> Tensor:
        states = super().forward(tokens)
        return states + states.mean(0) if self.training else states


class Dice(Recurrent):
    """Draws random numbers that no seed of ours decides."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (1 + random.random() * self.training)


class Counting(Recurrent):
    """Keeps state where no checkpoint finds it: it is another network after its fifth pass."""

    passes = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.passes += self.training and torch.is_grad_enabled()
        return super().forward(tokens) * (2.0 if self.passes > 5 else 1.0)


class Idle(Recurrent):
    """Has a parameter that nothing uses."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.unused = nn.Linear(2, 2)


class Infinite(Recurrent):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) / 0


class Dull(Recurrent):
    """Its states say nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * 1e-9


class Hungry(Recurrent):
    """Holds a hundred copies of its states."""

    def forward(self, tokens: Tensor) -> Tensor:
        states = super().forward(tokens)
        wide = torch.cat([states] * 100, -1).sigmoid()
        return states + 0 * wide.sum(-1, keepdim=True)


class Slow(Recurrent):
    """Takes its time."""

    def forward(self, tokens: Tensor) -> Tensor:
        states = super().forward(tokens)
        time.sleep(0.7 if self.training and torch.is_grad_enabled() else 0.0)
        return states


class WithPhi(Transformer):
    """A transformer with something changed, and all of Φ and memory."""

    def forward(self, tokens_BT: Tensor, past: KVCache | None = None) -> ForwardOutput:
        states = super().forward(tokens_BT, past)
        return states._replace(hidden_BTD=states.hidden_BTD.tanh())


class Fixed(Recurrent):
    """Takes texts of one length alone."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.positions = nn.Parameter(torch.randn(architecture.sequence_length, architecture.width))

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + self.positions


class Anchored(Fixed):
    """Counts positions from the end."""

    def forward(self, tokens: Tensor) -> Tensor:
        return Recurrent.forward(self, tokens) + self.positions[-tokens.shape[1] :]


class MixingPast(Transformer):
    """Adds the mean of all before: what a past of single tokens does not hold. Its forward takes none."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:  # type: ignore[override]
        states = super().forward(tokens_BT)
        count_T1 = torch.arange(1, tokens_BT.shape[1] + 1)[:, None]
        return states._replace(hidden_BTD=states.hidden_BTD + states.hidden_BTD.cumsum(1) / count_T1)


class NoOutput(nn.Module):
    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        del architecture, vocabulary
        super().__init__()


class Biased(Recurrent):
    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.output = nn.Linear(architecture.width, vocabulary)


class NoRegularisation(Recurrent):
    set_regularisation = None  # type: ignore[assignment]


class Logits(Recurrent):
    """Returns what it should leave to `output`."""

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.output(super().forward(tokens))
        return logits


class Broken(Recurrent):
    def forward(self, tokens: Tensor) -> Tensor:
        del tokens
        raise RuntimeError("on\npurpose")


class Unbuildable(Recurrent):
    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        del architecture, vocabulary
        raise TypeError("wants something else")


def function(architecture: Architecture, vocabulary: int) -> None:
    """No class."""
