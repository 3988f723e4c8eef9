"""A run between two updates: its network, optimizer and text, and how far it has come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpo_model.config import RunConfig
from hpo_model.data.batches import TrainingBatches
from hpo_model.hardware import compiles, keep_freed_memory, reset_peak_memory
from hpo_model.network.custom import build_network, source_digest
from hpo_model.training.history import Evaluation
from hpo_model.training.optimizer import make_optimizer

if TYPE_CHECKING:  # importing it loads the tokenizers package, which training does not need
    from hpo_model.data.tokens import TokenizedCorpus


class Run:
    """A run at its start; `restore_run` takes it to where a checkpoint was written.

    Args:
        config: the run.
        corpus: text under a tokenizer.
        device: a torch device.
        micro_batch: sequences at once where memory is short; None: the whole batch.
        compiled: whether to compile the step; None: where it pays.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: TokenizedCorpus,
        *,
        device: str = "cpu",
        micro_batch: int | None = None,
        compiled: bool | None = None,
    ) -> None:
        self.config, self.corpus, self.device = config, corpus, torch.device(device)
        self.micro_batch = micro_batch
        self.compiled = compiles(self.device) if compiled is None else compiled
        keep_freed_memory()
        torch.manual_seed(config.training.seed)
        architecture = config.architecture
        self.source = source_digest(architecture.network) if architecture.network else None  # of the user's code
        self.network = build_network(architecture, corpus.tokenizer.vocabulary).to(self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        reset_peak_memory(self.device)
        self.network.set_regularisation(dropout=config.training.dropout, noise=config.training.noise)
        self.optimizer = make_optimizer(self.network, config.training)
        # Tensors, so that other values need no other compiled graph
        self.lambda_phi = torch.tensor(config.phi.lambda_phi, device=self.device)
        self.phi_target = torch.tensor(config.phi.phi_target, device=self.device)
        self.batches = TrainingBatches(corpus, config, self.device)
        self.valid_sample = corpus.sample("valid", config.training.evaluation_tokens)
        self.train_sample = corpus.sample("train", config.training.evaluation_tokens)
        self.step = 0  # updates made
        self.seconds = 0.0  # spent on training and evaluations, over all processes that worked on the run
        self.history: list[Evaluation] = []
        self.checkpoint: Path | None = None  # the last one that this process has written

    @property
    def rows(self) -> int:
        """Sequences that go through the network at once in an update."""
        return min(self.micro_batch or sys.maxsize, self.config.training.batch_size)

    @property
    def tokens(self) -> int:
        """Training tokens read."""
        return self.step * self.config.tokens_per_step

    @property
    def val_losses(self) -> list[float]:
        """Of all evaluations so far, in order."""
        return [evaluation.val_loss for evaluation in self.history]


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the CPU's generator, and of the device's if it has one."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)
