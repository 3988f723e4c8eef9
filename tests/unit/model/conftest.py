"""Fixtures of the model's suite alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from hpo_model.config import RunConfig, build_run
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import load_checkpoint
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult, train


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """One thread: the machine is shared, and exactness is promised for an equal number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Trained:
    config: RunConfig
    result: TrainingResult
    networks: tuple[Transformer, ...]  # at the start and at each milestone, in evaluation mode

    @property
    def network(self) -> Transformer:
        """At the end, its memory full."""
        return self.networks[-1]


@pytest.fixture(scope="session")
def trained(python_docs: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A small network that has learned something of python-docs."""
    config = build_run(
        {
            "preset": "nano",
            "width": 64,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "budget_tokens": 120_000,
            "evaluations": 3,
        }
    )
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    torch.manual_seed(config.training.seed)
    networks = [Transformer(config.architecture, python_docs.tokenizer.vocabulary)]

    def keep(evaluation: Evaluation) -> Decision:
        networks.append(copy.deepcopy(networks[0]))
        networks[-1].load_state_dict(load_checkpoint(path)["network"])
        return Decision.CONTINUE

    result = train(config, python_docs, save_to=path, on_evaluation=keep)
    return Trained(config, result, tuple(network.eval() for network in networks))
