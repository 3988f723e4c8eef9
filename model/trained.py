"""A trained network as its checkpoint holds it: weights, shape, tokenizer, and what it was trained on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_checkpoint
from model.config import RunConfig, build_run
from model.errors import CheckpointError
from model.evaluation import Evaluation
from model.tokenizer import Tokenizer, load_tokenizer
from model.transformer import Transformer

NEXT_STEP = "copy it again, or name another one"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What can be generated from and evaluated, with nothing else at hand."""

    path: Path
    config: RunConfig
    network: Transformer  # in evaluation mode
    tokenizer: Tokenizer
    corpus_name: str
    corpus_source: str  # what to pass to `load_corpus`
    corpus_digest: str  # of the text that it was trained on
    history: tuple[Evaluation, ...]

    @property
    def tokens(self) -> int:
        """Training tokens that it has read."""
        return self.history[-1].tokens if self.history else 0


def load_trained(path: Path, device: torch.device | str = "cpu") -> Trained:
    """Read a checkpoint that `train` wrote; nothing in it is executed.

    Raises:
        CheckpointError: missing, truncated, of another version, holding code, or put together from two runs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    content = load_checkpoint(path, device, next_step=NEXT_STEP)
    try:
        return _trained(path, content, device)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises plain Exception; the others name what is missing or misshapen
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise CheckpointError(f"{path}: holds no trained network ({reason}); {NEXT_STEP}") from error


def _trained(path: Path, content: dict[str, Any], device: torch.device | str) -> Trained:
    config = build_run(content["config"])
    if own := config.architecture.network:
        raise CheckpointError(f"{path}: its network is code of a user's own; `hpo export --network {own}` runs it")
    tokenizer = tokenizer_of(path, content)
    network = Transformer(config.architecture, tokenizer.vocabulary).to(device)
    network.load_state_dict(content["network"])
    return Trained(
        path=path,
        config=config,
        network=network.eval(),
        tokenizer=tokenizer,
        corpus_name=content["corpus"]["name"],
        corpus_source=content["corpus"]["source"],
        corpus_digest=content["identity"]["corpus"],
        history=tuple(Evaluation(**evaluation) for evaluation in content["history"]),
    )


def tokenizer_of(path: Path, content: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a checkpoint holds, which must be the one of its run."""
    tokenizer = load_tokenizer(content["tokenizer"]["kind"], content["tokenizer"]["definition"])
    expected = content["identity"]["tokenizer"]
    if tokenizer.digest != expected:
        raise CheckpointError(
            f"{path}: its network was trained with another tokenizer (digest {expected}, it holds {tokenizer.digest}); "
            f"{NEXT_STEP}"
        )
    return tokenizer


def untrained(trained: Trained) -> Trained:
    """Where the run began: its seed's initial weights, nothing read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trained.config.training.seed)
        network = Transformer(trained.config.architecture, trained.tokenizer.vocabulary)
    network = network.to(trained.network.output.weight.device).eval()
    return dataclasses.replace(trained, network=network, history=())
