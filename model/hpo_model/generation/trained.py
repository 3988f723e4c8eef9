"""A trained network as its checkpoint holds it: weights, shape, tokenizer, and what it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpo_model.config import RunConfig, recorded_run
from hpo_model.data.tokenizer import Tokenizer, load_tokenizer
from hpo_model.errors import CheckpointError, NetworkError, class_and_message
from hpo_model.network.custom import Network, build_network, source_digest
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import load_checkpoint
from hpo_model.training.history import Evaluation

NEXT_STEP = "copy it again, or name another one"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What can be generated from and evaluated, with nothing else at hand."""

    path: Path
    config: RunConfig
    network: Network  # in evaluation mode
    tokenizer: Tokenizer
    corpus_name: str
    corpus_source: str  # what to pass to `load_corpus`
    corpus_digest: str  # of the text that it was trained on
    history: tuple[Evaluation, ...]
    source: str | None = None  # digest of the code where the network is the user's own

    @property
    def transformer(self) -> Transformer | None:
        """The network where it has the attention that Φ asks for: this program's own, or a kind of it."""
        return self.network if isinstance(self.network, Transformer) else None

    @property
    def tokens(self) -> int:
        """Training tokens that it has read."""
        return self.history[-1].tokens if self.history else 0


def load_trained(path: Path, device: torch.device | str = "cpu", own: Collection[str] = ()) -> Trained:
    """Read a checkpoint that `train` wrote; nothing in it is executed.

    Args:
        path: the checkpoint.
        device: where the network goes.
        own: networks as `module:Class` that the user has named: their code may be run.

    Raises:
        CheckpointError: missing, truncated, of another version, holding code, or put together from two runs; or the
            network is the user's own and was not named, or is other code.
        NetworkError: the named network cannot be imported or built.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    content = load_checkpoint(path, device, next_step=NEXT_STEP)
    try:
        return _trained(path, content, device, own)
    except (CheckpointError, NetworkError):
        raise
    except Exception as error:  # tokenizers raises plain Exception; the others name what is missing or misshapen
        reason = class_and_message(error, 120)
        raise CheckpointError(f"{path}: holds no trained network ({reason}); {NEXT_STEP}") from error


def _trained(path: Path, content: dict[str, Any], device: torch.device | str, own: Collection[str]) -> Trained:
    config = recorded_run(content["config"])
    source = _same_code(path, content, config.architecture.network, own) if config.architecture.network else None
    tokenizer = tokenizer_of(path, content)
    network = build_network(config.architecture, tokenizer.vocabulary).to(device)
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
        source=source,
    )


def _same_code(path: Path, content: dict[str, Any], network: str, own: Collection[str]) -> str:
    """The digest of a user's code, which must have been named, and be what the network was trained by."""
    if network not in own:
        other = f", not {', '.join(own)}" if own else ""
        raise CheckpointError(f"{path}: its network is code of a user's own; `--network {network}` runs it{other}")
    trained_by, digest = content["identity"].get("network"), source_digest(network)
    if digest != trained_by:
        raise CheckpointError(
            f"{path}: was trained by other code of {network} (digest {trained_by}, now {digest}); restore the file"
        )
    return digest


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
        network = build_network(trained.config.architecture, trained.tokenizer.vocabulary)
    network = network.to(trained.network.output.weight.device).eval()
    return dataclasses.replace(trained, network=network, history=())
