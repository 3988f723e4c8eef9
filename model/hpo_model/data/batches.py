"""The order in which a run reads its text.

Shapes: B sequences, T positions, N tokens of the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpo_model.config import RunConfig
from hpo_model.hardware import upload

if TYPE_CHECKING:  # importing it loads the tokenizers package, which training does not need
    from hpo_model.data.tokens import TokenizedCorpus


class TrainingBatches:
    """The order in which a run reads its text: a function of seed and update, so that it needs no state.

    Each epoch cuts the stream into sequences at another phase and shuffles them. Runs with equal seeds read the same
    sequences in the same order, whatever their batch size.
    """

    def __init__(self, corpus: TokenizedCorpus, config: RunConfig, device: torch.device) -> None:
        self.stream_N = torch.from_numpy(corpus.span("train").ids.astype("int32")).to(device)
        self.tokens = len(self.stream_N) - 1
        self.length = config.architecture.sequence_length
        self.batch_size = config.training.batch_size
        self.seed = config.training.seed
        self.sequences = max(self.tokens // self.length - 1, 1)  # one less than fit, which leaves room for the phase
        self.window = torch.arange(self.length + 1, device=device)
        self.order: dict[int, Tensor] = {}  # of the epochs that the last batch touched

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of update number `step`, counted from 0."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size  # sequences read, over all epochs
        epochs = range(first // self.sequences, (last - 1) // self.sequences + 1)
        self.order = {epoch: self.order[epoch] if epoch in self.order else self.shuffled(epoch) for epoch in epochs}
        starts_B = torch.cat(
            [
                order[max(first - epoch * self.sequences, 0) : last - epoch * self.sequences]
                for epoch, order in self.order.items()
            ]
        )
        windows_BT = self.stream_N[starts_B[:, None] + self.window].long()
        return windows_BT[:, :-1], windows_BT[:, 1:]

    def shuffled(self, epoch: int) -> Tensor:
        """Where the sequences of an epoch start, in the order in which they are read."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        phase = torch.randint(self.tokens - self.sequences * self.length + 1, (), generator=generator)
        starts = torch.randperm(self.sequences, generator=generator) * self.length + phase
        return upload(starts, self.stream_N.device)
